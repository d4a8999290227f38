"""Checkpoints as folders: beside first and renamed when whole, mended after a kill, and the newest that is whole.

While NAME is written it is ``.NAME.partial``, and the one that it replaces is for a moment ``.NAME.old``; one that goes
is ``.NAME.removed``. A kill may leave each of them behind; what has a manifest that holds is whole, whatever its name.
"""

import shutil
from contextlib import suppress
from pathlib import Path
from typing import Any

from safetensors.torch import save_file

from lanes.checkpoint.manifest import (
    MANIFEST,
    MODEL,
    STATE,
    SUFFIX,
    DamagedError,
    read_manifest,
    seal,
    sync_folder,
    verify,
)
from lanes.checkpoint.snapshot import Snapshot

PARTIAL, OLD, REMOVED = ".partial", ".old", ".removed"
LOOKS = 5  # at a folder in which a training writes meanwhile
UNFINISHED = ".tmp"  # so safetensors calls a file until it is written


def write_folder(path: Path, snapshot: Snapshot) -> None:
    """Write a checkpoint; whatever was called so before stays until the new one is whole on the disk.

    Raises:
        OSError: it could not be written; what was there is there still, and nothing half-written beside it.
    """
    partial = _beside(path, PARTIAL)
    mend(path.parent)
    try:
        partial.mkdir(parents=True)
        for file, tensors in snapshot.tensors.items():
            _save(tensors, partial / file)
        (partial / STATE).write_text(snapshot.state)
        seal(partial, snapshot.about)
        _replace(path, partial)
    except OSError:
        shutil.rmtree(partial, ignore_errors=True)
        raise


def _save(tensors: dict, file: Path) -> None:
    try:
        save_file(tensors, file)
    except OSError:
        raise
    except Exception as mistake:  # safetensors has a kind of its own for a full disk
        raise OSError(f"{file.name}: {mistake}") from mistake


def remove_folder(path: Path) -> None:
    """Remove a checkpoint: its name first, so that a kill meanwhile leaves nothing damaged under it."""
    removed = _beside(path, REMOVED)
    with suppress(OSError):
        path.rename(removed)
        shutil.rmtree(removed, ignore_errors=True)


def mend(folder: Path) -> None:
    """Put right what a kill left behind: a whole checkpoint gets its name back, half-written ones go; nothing else."""
    if not folder.is_dir():
        return
    for remains in filter(_ours, folder.glob(f".*{REMOVED}")):
        shutil.rmtree(remains, ignore_errors=True)
    for ending in (PARTIAL, OLD):  # if both are whole, the newer
        for remains in filter(_ours, sorted(folder.glob(f".*{ending}"))):
            path = remains.with_name(remains.name.removeprefix(".").removesuffix(ending))
            if not path.exists() and _whole(remains):
                remains.rename(path)
            else:
                shutil.rmtree(remains, ignore_errors=True)


def newest_whole(folder: Path) -> tuple[Path | None, list[str]]:
    """The newest whole checkpoint in a folder, by its step; and what is wrong with those that would be newer.

    Changes nothing: a checkpoint that a kill left under another name is found under that. A training may write there
    meanwhile: what is found wrong while a checkpoint takes another's place is looked at again.
    """
    for _ in range(LOOKS):
        before = _written(folder)
        path, wrong = _look(folder)
        if (path and not wrong) or _written(folder) == before:
            break
    return path, wrong


def _written(folder: Path) -> dict[Path, tuple[int, int]]:
    """What tells that a checkpoint is another than that which had its name."""
    found = {}
    for path in folder.glob("*"):
        with suppress(OSError):
            status = path.stat()
            found[path] = status.st_ino, status.st_mtime_ns
    return found


def _look(folder: Path) -> tuple[Path | None, list[str]]:
    found = []
    for path in filter(_looks_like_one, folder.glob("*")):
        try:
            facts = read_manifest(path)
        except (ValueError, OSError) as mistake:
            found.append((float("inf"), "", path, str(mistake)))
        else:
            found.append((facts.get("step") or 0, facts.get("written", ""), path, ""))
    wrong: list[str] = []
    for *_, path, problem in sorted(found, reverse=True):
        try:
            if not problem:
                verify(path)
                return path, wrong
        except (ValueError, OSError) as mistake:
            problem = str(mistake)  # noqa: PLW2901
        if not path.name.startswith("."):  # else it is under way or was interrupted
            wrong.append(problem)
    return None, wrong


def check_whole(path: Path, *, thorough: bool = True, only: str | None = None) -> dict[str, Any]:
    """`lanes.checkpoint.manifest.verify`; of a damaged checkpoint also tells which one to take instead."""
    try:
        return verify(path, thorough=thorough, only=only)
    except DamagedError as mistake:
        other, _ = newest_whole(path.parent)
        way_out = f"the newest whole checkpoint beside it is {other}" if other else "no checkpoint beside it is whole"
        raise DamagedError(f"{mistake}; {way_out}") from mistake


def check_file(file: Path) -> None:
    """Check one file of a checkpoint that is to be read alone; a file that lanes did not write is its owner's matter.

    Raises:
        DamagedError: it is not what was written; names the newest whole checkpoint beside it.
        ValueError: the checkpoint is of another format.
    """
    if (file.parent / MANIFEST).is_file() and file.name in read_manifest(file.parent)["files"]:
        check_whole(file.parent, only=file.name)


def _looks_like_one(path: Path) -> bool:
    """Without a manifest only under a name of its own: what a kill interrupted was never a checkpoint."""
    return (path / MANIFEST).is_file() or ((path / MODEL).is_file() and not path.name.startswith("."))


def _ours(remains: Path) -> bool:
    """Whether a folder holds nothing but files of a checkpoint: others may lie there whose names end alike."""
    return remains.is_dir() and all(
        file.is_file() and (file.suffix == SUFFIX or file.name in (STATE, MANIFEST) or file.name.startswith(UNFINISHED))
        for file in remains.iterdir()
    )


def _whole(path: Path) -> bool:
    with suppress(ValueError, OSError):
        verify(path)
        return True
    return False


def _beside(path: Path, ending: str) -> Path:
    return path.with_name(f".{path.name}{ending}")


def _replace(path: Path, new: Path) -> None:
    old = _beside(path, OLD)
    if path.exists():
        path.rename(old)
    new.rename(path)
    sync_folder(path.parent)
    shutil.rmtree(old, ignore_errors=True)
