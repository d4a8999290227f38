"""Checkpoints as folders: beside first and renamed when whole, mended after a kill, and the newest that is whole.

While NAME is written it is ``.NAME.partial``, and the one that it replaces is for a moment ``.NAME.old``. A kill may
leave either behind; what has a manifest that holds is whole, whatever it is called.
"""

import shutil
from contextlib import suppress
from pathlib import Path

from safetensors.torch import save_file

from lanes.checkpoint.manifest import MANIFEST, STATE, SUFFIX, DamagedError, read_manifest, seal, sync_folder, verify
from lanes.checkpoint.snapshot import Snapshot

PARTIAL, OLD = ".partial", ".old"
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


def mend(folder: Path) -> None:
    """Put right what a kill left behind: a whole checkpoint gets its name back, half-written ones go; nothing else."""
    if not folder.is_dir():
        return
    for ending in (PARTIAL, OLD):  # if both are whole, the newer
        for remains in filter(_ours, sorted(folder.glob(f".*{ending}"))):
            path = remains.with_name(remains.name.removeprefix(".").removesuffix(ending))
            if not path.exists() and _whole(remains):
                remains.rename(path)
            else:
                shutil.rmtree(remains, ignore_errors=True)


def newest_whole(folder: Path) -> tuple[Path | None, list[str]]:
    """The newest whole checkpoint in a folder, by its step; and what is wrong with those that would be newer.

    Changes nothing: a checkpoint that a kill left under another name is found under that.
    """
    found = []
    for path in [path.parent for path in folder.glob(f"*/{MANIFEST}")] if folder.is_dir() else []:
        try:
            facts = read_manifest(path)
        except ValueError as mistake:
            found.append((float("inf"), "", path, str(mistake)))
        else:
            found.append((facts.get("step") or 0, facts["written"], path, ""))
    wrong: list[str] = []
    for *_, path, problem in sorted(found, reverse=True):
        try:
            if not problem:
                verify(path)
                return path, wrong
        except ValueError as mistake:
            wrong.append(str(mistake))
        else:
            wrong.append(problem)
    return None, wrong


def with_way_out(path: Path, mistake: DamagedError) -> DamagedError:
    """The same mistake, with the checkpoint to take instead."""
    other, _ = newest_whole(path.parent)
    way_out = f"the newest whole checkpoint beside it is {other}" if other else "no checkpoint beside it is whole"
    return DamagedError(f"{mistake}; {way_out}")


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
