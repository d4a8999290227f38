"""Decoded images, from a cache of bytes on disk or decoded as they are asked for; both give the same, bit for bit.

The cache of a split is a folder:

    images.u8        uint8 [N, C, S, S], one after the other; bad images are zeros
    about.json       what it is, and which images are bad, with why
    statistics.json  mean and covariance of the colours, if they were asked for

A file is written beside its place and renamed when it is whole. Processes of a node build it once (a lock), and then
share its bytes through the operating system's page cache. The folder's name holds the fingerprint of the files, the
split and the form: nothing in it ever becomes outdated, and deleting it only costs the time to build it.

Legend: N images of the split, n good images, C channels, S stored_size in pixels.
"""

import hashlib
import json
import os
import re
import shutil
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from filelock import FileLock
from numpy.typing import NDArray
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from torch import Tensor
from torch.utils.data import Dataset

from lanes.data.decoding import BadImageError, Form, decode_row
from lanes.data.sources import Split
from lanes.data.statistics import Statistics, measure

VERSION = 1  # of the files, and of what decoding does to an image
CHUNK = 64  # images that a thread reads, decodes and writes at once
Cache = Literal["auto", "disk", "off"]
OnBadImage = Literal["stop", "skip"]


def default_cache_dir() -> Path:
    """$LANES_CACHE, else the folder "lanes" in the user's cache folder."""
    if folder := os.environ.get("LANES_CACHE"):
        return Path(folder).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "lanes"


class ImageSet(Dataset[tuple[Tensor, Tensor]]):
    """The good images of a split with their classes; a batch is one operation (``__getitems__``).

    Attributes:
        rows: int64 ``[n]``, which images of the split are good.
        labels: int64 ``[n]``.
        stored_in: the cached bytes; None: images are decoded as they are asked for.
    """

    def __init__(self, split: Split, form: Form, bad: list[int], stored_in: Path | None) -> None:
        self.split, self.form, self.stored_in = split, form, stored_in
        self.rows = np.setdiff1d(np.arange(len(split)), bad)
        self.labels = torch.from_numpy(split.labels[self.rows])
        self._stored: Tensor | None = None

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        images, labels = self.__getitems__([index])
        return images[0], labels[0]

    def __getitems__(self, indices: list[int]) -> tuple[Tensor, Tensor]:
        """uint8 images ``[N, C, S, S]`` and int64 labels ``[N]``."""
        rows = self.rows[indices]
        if self.stored_in is not None:
            if self._stored is None:
                shape = (len(self.split), *self.form.shape)
                # "c", private copies on writing: a tensor cannot be told that its memory must not be written.
                self._stored = torch.from_numpy(np.memmap(self.stored_in, dtype=np.uint8, mode="c", shape=shape))
            return self._stored[torch.from_numpy(rows)], self.labels[indices]
        decoded = [decode_row(self.split, *pair, self.form) for pair in zip(rows, self.split.read(rows), strict=True)]
        return torch.from_numpy(np.stack(decoded)), self.labels[indices]

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_stored": None}  # loader processes open the file anew instead of being sent its bytes


@dataclass(frozen=True)
class PixelCache:
    """Where and when decoded images are kept.

    Attributes:
        folder: of all caches.
        mode: "auto": on disk where they fit, "disk": always, "off": never.
        limit_gib: how large "auto" lets the images of one split be; nor does it take more than half of the free disk.
        on_bad_image: "stop" at the first image that cannot be decoded, or "skip" it.
        show_progress: while decoding; for one process of many.
    """

    folder: Path
    mode: Cache = "auto"
    limit_gib: float = 32.0
    on_bad_image: OnBadImage = "stop"
    show_progress: bool = True

    def open(self, split: Split, form: Form) -> ImageSet:
        """Open a split's images, after decoding them all once where that is needed.

        Raises:
            BadImageError: an image cannot be decoded and ``on_bad_image`` is "stop" (without a cache that is found when
                the image is asked for).
            ValueError: the images do not fit on the disk, or all of them are bad.
        """
        folder = self._folder_of(split, form)
        with _locked(folder):
            stored = folder / "images.u8"
            about = folder / "about.json"
            on_disk = self.mode != "off" and (stored.exists() or self._fits(len(split) * form.num_bytes))
            if on_disk and not stored.exists():
                self._decode_all(split, form, folder, store=True)
            elif self.on_bad_image == "skip" and not about.exists():
                self._decode_all(split, form, folder, store=False)
            bad = json.loads(about.read_text())["bad"] if about.exists() else {}
        if bad and self.on_bad_image == "stop":
            raise BadImageError(next(iter(bad.values())))
        if len(bad) == len(split):
            raise ValueError(f"no image of split {split.name!r} can be decoded; the first: {next(iter(bad.values()))}")
        return ImageSet(split, form, [int(row) for row in bad], stored if on_disk else None)

    def statistics(self, images: ImageSet) -> Statistics:
        """Mean and covariance of the colours of a set's images; measured once, then remembered."""
        folder = self._folder_of(images.split, images.form)
        file = folder / "statistics.json"
        with _locked(folder):
            if not file.exists():
                _write(file, asdict(measure(images)))
            found = json.loads(file.read_text())
        return Statistics(tuple(found["mean"]), tuple(map(tuple, found["covariance"])))

    def _folder_of(self, split: Split, form: Form) -> Path:
        told = repr((VERSION, split.fingerprint, form))
        words = f"{Path(split.source).stem}-{split.name}-{form.size}-{form.color}"
        key = hashlib.sha256(told.encode()).hexdigest()[:12]
        return self.folder / (re.sub(r"[^\w.-]+", "_", words) + "-" + key)

    def _fits(self, num_bytes: int) -> bool:
        free = shutil.disk_usage(self.folder).free
        if self.mode == "auto":
            return num_bytes <= min(self.limit_gib * 2**30, free / 2)
        if num_bytes > free:
            raise ValueError(
                f"the decoded images take {num_bytes / 2**30:.1f} GiB, {self.folder} has {free / 2**30:.1f} GiB free: "
                "set cache_dir to another disk, cache to off, or stored_size smaller"
            )
        return True

    def _decode_all(self, split: Split, form: Form, folder: Path, *, store: bool) -> None:
        """Decode every image once; keep the bytes if ``store``, and which images are bad in any case."""
        part = folder / "images.u8.part"
        bad: dict[int, str] = {}
        try:
            with part.open("wb") as file, _progress(split, shown=self.show_progress) as advance:

                def work(start: int) -> int:
                    rows = range(start, min(start + CHUNK, len(split)))
                    pixels = np.zeros((len(rows), *form.shape), dtype=np.uint8)
                    for i, (row, raw) in enumerate(zip(rows, split.read(list(rows)), strict=True)):
                        try:
                            pixels[i] = decode_row(split, row, raw, form)
                        except BadImageError as error:
                            if self.on_bad_image == "stop":
                                raise
                            bad[row] = str(error)
                    if store:
                        # Not through a map of the file: a full disk would kill the process instead of raising.
                        _write_at(file.fileno(), pixels, start * form.num_bytes)
                    return len(rows)

                pool = ThreadPoolExecutor(os.cpu_count())
                try:
                    for count in pool.map(work, range(0, len(split), CHUNK)):
                        advance(count)
                finally:
                    pool.shutdown(cancel_futures=True)
            about = {"source": split.source, "split": split.name, "images": len(split), "form": asdict(form)}
            _write(folder / "about.json", about | {"version": VERSION, "bad": dict(sorted(bad.items()))})
            if store:
                part.replace(folder / "images.u8")
        finally:
            part.unlink(missing_ok=True)


def _write_at(descriptor: int, pixels: NDArray[np.uint8], offset: int) -> None:
    rest = pixels.reshape(-1).data
    while rest:  # one call writes 2 GiB at most, and may write less than it is asked
        written = os.pwrite(descriptor, rest, offset)
        rest, offset = rest[written:], offset + written


def _write(file: Path, content: dict[str, Any]) -> None:
    beside = file.with_suffix(".part")
    beside.write_text(json.dumps(content, indent=1))
    beside.replace(file)


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = FileLock(folder / "lock")
        lock.acquire()
    except OSError as error:
        reason = error.strerror or str(error)
        raise ValueError(f"the cache cannot be written to {folder}: {reason}; set cache_dir or $LANES_CACHE") from None
    try:
        yield
    finally:
        lock.release()


@contextmanager
def _progress(split: Split, *, shown: bool) -> Iterator[Callable[[int], None]]:
    """A bar with images per second and the time left, on stderr."""
    columns = (
        *(TextColumn("decoding {task.description}"), BarColumn(), MofNCompleteColumn()),
        *(TextColumn("{task.fields[rate]} images/s,"), TimeRemainingColumn(), TextColumn("left")),
    )
    with Progress(*columns, console=Console(stderr=True), transient=True, disable=not shown) as progress:
        task = progress.add_task(f"{Path(split.source).name} {split.name}", total=len(split), rate="-")

        def advance(count: int) -> None:
            progress.advance(task, count)
            speed = progress.tasks[0].speed
            progress.update(task, rate=f"{speed:,.0f}" if speed else "-")

        yield advance
