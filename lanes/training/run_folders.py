"""Where runs lie: folders with numbers or names, each with its checkpoints.

Kept out: what is written into them, and which one a verb takes (which_run.py).
"""

import re
from contextlib import suppress
from pathlib import Path

from filelock import FileLock, Timeout

from lanes.checkpoint import newest_whole


def run_of(checkpoint: str | None) -> Path:
    """The folder of the run that wrote a checkpoint.

    Raises:
        ValueError: there is no checkpoint.
    """
    if not checkpoint:
        raise ValueError("there is no checkpoint to evaluate; give --ckpt_path, e.g. runs/NAME/1/checkpoints/last.ckpt")
    parent = Path(checkpoint).parent
    return parent.parent if parent.name == "checkpoints" else parent


def next_folder(root: Path) -> Path:
    """A folder that no run has taken yet."""
    last = last_run(root)
    return root / str(int(last.name) + 1 if last else 1)


def last_run(root: Path) -> Path | None:
    """The folder of the newest run; None if there is none yet."""
    numbers = [int(path.name) for path in root.iterdir() if path.name.isdigit()] if root.is_dir() else []
    return root / str(max(numbers)) if numbers else None


def last_checkpoint(run: Path) -> tuple[Path | None, list[str]]:
    """The newest whole checkpoint of a run, and what is wrong with newer ones; none if none was written yet.

    Raises:
        ValueError: there are checkpoints, and all of them are damaged.
    """
    found, wrong = newest_whole(run / "checkpoints")
    if wrong and found is None:
        raise ValueError(f"no checkpoint of {run} is whole: {'; '.join(wrong)}")
    return found, wrong


def check_name(name: str) -> str:
    """A run's name, which becomes a folder beside those that have numbers.

    Raises:
        ValueError: it cannot be one.
    """
    if name.isdigit() or not re.fullmatch(r"\w[\w.=-]*", name):
        raise ValueError(
            f"--run {name!r} cannot be a run's name: use letters, digits, - _ = and . (not a bare number: those are "
            "given to runs without a name)"
        )
    return name


def hold(run: Path, who: str, *, wait_s: float = 0) -> FileLock:
    """Keep a run for this process, as long as it lives: two that write into one folder would spoil it.

    Args:
        run: its folder, made if need be.
        who: this process, in words, for another that wants it.
        wait_s: for so long, if another has it.

    Raises:
        ValueError: another process trains it.
    """
    run.mkdir(parents=True, exist_ok=True)
    lock = FileLock(run / ".held")
    try:
        lock.acquire(timeout=wait_s)
    except Timeout:
        holder = run / ".held-by"
        other = holder.read_text().strip() if holder.is_file() else "another process"
        raise ValueError(
            f"{run} is being trained by {other}; wait for its end (in jobs: --dependency=singleton), or give another "
            "--run"
        ) from None
    except (NotImplementedError, OSError):  # a disk without locks: nothing can be known
        return lock
    with suppress(OSError):
        (run / ".held-by").write_text(who)
    return lock
