"""The manifest of a checkpoint: what its folder must hold, byte for byte. Written last, read first."""

import hashlib
import importlib.metadata
import json
import os
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from safetensors import safe_open

FORMAT, NUMBER = "lanes-checkpoint", 2
MODEL, OPTIMIZER, STATE, MANIFEST = "model.safetensors", "optimizer.safetensors", "state.json", "manifest.json"
SUFFIX = ".safetensors"
PACKAGES = ("lanes", "torch", "lightning")


class DamagedError(ValueError):
    """A checkpoint that is not, any more or yet, what was written."""


def seal(folder: Path, about: Mapping[str, Any]) -> None:
    """Sync every file of a folder to disk and write its manifest, synced too.

    Args:
        folder: in which nothing is written any more.
        about: further facts, as JSON has them.
    """
    files = {file.name: _synced(file) for file in sorted(folder.iterdir())}
    versions = {package: importlib.metadata.version(package) for package in PACKAGES}
    written = datetime.now(UTC).isoformat(timespec="milliseconds")
    facts = {"format": f"{FORMAT}/{NUMBER}", "written": written, "versions": versions, **about, "files": files}
    (folder / MANIFEST).write_text(json.dumps(facts, indent=1))
    _synced(folder / MANIFEST)
    sync_folder(folder)


def read_manifest(path: str | Path) -> dict[str, Any]:
    """The manifest of a checkpoint of a format that this version reads.

    Raises:
        FileNotFoundError: ``path`` is no checkpoint folder.
        DamagedError: the manifest is damaged.
        ValueError: the checkpoint is of another format.
    """
    path = Path(path)
    if not (path / MODEL).is_file() and not (path / MANIFEST).is_file():
        raise FileNotFoundError(f"{path} is no checkpoint: a folder with {MODEL} and {MANIFEST} is expected")
    if not (path / MANIFEST).is_file():
        raise DamagedError(f"{path} is no whole checkpoint: it has no {MANIFEST}, which is written last")
    try:
        facts = json.loads((path / MANIFEST).read_text())
        name, _, number = str(facts["format"]).partition("/")
        known, newer = (name, int(number)) == (FORMAT, NUMBER), int(number) > NUMBER
        if known:  # another format may tell of its files in another way
            _ = [(wanted["bytes"], wanted["sha256"]) for wanted in facts["files"].values()]
    except (ValueError, KeyError, TypeError, AttributeError) as mistake:
        raise DamagedError(f"{path} is damaged: {MANIFEST} cannot be read ({mistake})") from mistake
    if not known:
        by = facts.get("versions", {}).get("lanes", "?")
        way_out = "update lanes" if newer else f"read it with lanes {by}"
        ours = f"{FORMAT}/{NUMBER}"
        raise ValueError(
            f"{path} has the format {facts['format']!r}, of lanes {by}; this version reads {ours!r}: {way_out}"
        )
    return dict(facts)


def verify(path: Path, *, thorough: bool = True, only: str | None = None) -> dict[str, Any]:
    """Check that a checkpoint is what was written, and return its manifest.

    Args:
        path: its folder.
        thorough: compare checksums too, which reads all of it; else names and sizes.
        only: the one file that is to be read, whatever has become of the others; default: all of them.

    Raises:
        FileNotFoundError: ``path`` is no checkpoint folder.
        DamagedError: names the file and what is wrong with it.
        ValueError: the checkpoint is of another format.
    """
    facts = read_manifest(path)
    for name, wanted in facts["files"].items():
        if only not in (None, name):
            continue
        file = path / name
        if not file.is_file():
            raise DamagedError(f"{path} is damaged: {name} is missing")
        if file.stat().st_size != wanted["bytes"]:
            raise DamagedError(
                f"{path} is damaged: {name} has {file.stat().st_size} bytes, not the {wanted['bytes']} written"
            )
        if thorough and _sha256(file) != wanted["sha256"]:
            raise DamagedError(
                f"{path} is damaged: {name} is not what was written with it: its SHA-256 is another, so it was "
                "changed since or comes from another checkpoint"
            )
    strange = sorted(file.name for file in path.glob(f"*{SUFFIX}") if file.name not in facts["files"])
    if strange and only is None:
        raise DamagedError(f"{path} is damaged: {strange[0]} was not written with it")
    return facts


def shapes(file: Path) -> dict[str, list[int]]:
    """The shapes of the tensors in a safetensors file, by name; reads nothing else of it."""
    with safe_open(file, framework="pt") as opened:
        return {key: opened.get_slice(key).get_shape() for key in opened.keys()}  # noqa: SIM118


def sync_folder(folder: Path) -> None:
    """Have the names in a folder reach the disk."""
    _sync(folder, os.O_RDONLY | os.O_DIRECTORY)


def _synced(file: Path) -> dict[str, Any]:
    _sync(file, os.O_RDONLY)
    return {"bytes": file.stat().st_size, "sha256": _sha256(file)}


def _sync(path: Path, flags: int) -> None:
    descriptor = os.open(path, flags)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _sha256(file: Path) -> str:
    with file.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()
