"""Where runs lie: numbered folders, each with its checkpoints.

Kept out: what is written into them.
"""

from pathlib import Path

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
