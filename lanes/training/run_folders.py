"""Where runs lie: numbered folders, each with its checkpoints.

Kept out: what is written into them.
"""

from pathlib import Path


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
    taken = [int(p.name) for p in root.iterdir() if p.name.isdigit()] if root.is_dir() else []
    return root / str(max(taken, default=0) + 1)
