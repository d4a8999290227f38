"""What can befall a checkpoint, and the words that must tell it."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

MODEL, MANIFEST = "model.safetensors", "manifest.json"


def cut_off(path: Path) -> None:
    """A file's last bytes are missing."""
    (path / MODEL).write_bytes((path / MODEL).read_bytes()[:-7])


def swapped(path: Path) -> None:
    """Its weights are those of the checkpoint beside it that is called "other", of the same architecture."""
    shutil.copy(path.with_name("other") / MODEL, path / MODEL)


def newer(path: Path) -> None:
    """A later version of lanes has written it, and tells of its files in another way."""
    facts = json.loads((path / MANIFEST).read_text())
    later = {"format": "lanes-checkpoint/9", "versions": {"lanes": "7.1"}, "files": ["parts"], "step": facts["step"]}
    (path / MANIFEST).write_text(json.dumps(later))


def no_manifest(path: Path) -> None:
    """It was never finished, or somebody took the file away."""
    (path / MANIFEST).unlink()


DAMAGES: dict[str, tuple[Callable[[Path], None], list[str]]] = {
    "cut off": (cut_off, [f"is damaged: {MODEL} has ", " bytes, not the "]),
    "swapped": (swapped, [f"is damaged: {MODEL} is not what was written with it", "comes from another checkpoint"]),
    "newer": (newer, ["has the format 'lanes-checkpoint/9', of lanes 7.1; this version reads", "update lanes"]),
    "no manifest": (no_manifest, ["is no whole checkpoint: it has no manifest.json, which is written last"]),
}
WAY_OUT = "the newest whole checkpoint beside it is "  # of what is damaged
