"""Writes checkpoints: at once, or on a thread while training goes on."""

import logging
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch.distributed as dist
from torch import nn
from torch.optim import Optimizer

from lanes.checkpoint.folders import remove_folder, write_folder
from lanes.checkpoint.snapshot import Sets, Snapshot, first, take_snapshot

log = logging.getLogger(__name__)
AT_ONCE = 2  # the best and the last of an epoch


def save_checkpoint(
    path: str | Path,
    model: nn.Module,
    optimizers: Sequence[Optimizer] = (),
    state: dict[str, Any] | None = None,
    *,
    extra: Sets | None = None,
    about: Mapping[str, Any] | None = None,
) -> None:
    """Write a checkpoint folder. All processes of the mesh must call it, with the same path on a shared file system.

    Args:
        path: the folder; an earlier checkpoint of that name is replaced once the new one is whole.
        model: placed or plain.
        optimizers: whose tensors and settings are saved too.
        state: plain values and small tensors to get back from :func:`load_checkpoint`.
        extra: further sets of tensors, DTensors or plain, by the name of the set; each becomes a file.
        about: facts for the manifest.

    Raises:
        TypeError: names the value in ``state`` that JSON cannot hold; nothing is written.
        ValueError: a set in ``extra`` has the name of a file that every checkpoint has; nothing is written.
        OSError: on every process, if the first could not write; what was there before is there still.
    """
    snapshot = take_snapshot(model, optimizers, state, extra=extra, about=about)
    failure: list[str | None] = [None]
    if first():
        try:
            write_folder(Path(path), snapshot)
        except OSError as mistake:
            failure = [f"{path} could not be written: {mistake}"]
    if dist.is_initialized():
        dist.broadcast_object_list(failure, src=0)
    if failure[0]:
        raise OSError(failure[0])


class BackgroundWriter:
    """Writes and removes checkpoints on one thread, one after another; for the first process.

    A checkpoint that cannot be written is told of at once, as a warning, and training goes on: the earlier ones stay,
    also those that were to be removed, until one is written again.
    """

    def __init__(self) -> None:
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="checkpoints")
        self._saving: deque[Future[None]] = deque()
        self._last_good: Path | None = None
        self._to_remove: list[Path] = []
        self.failure: str | None = None  # of the newest save, if it failed

    def save(self, path: Path, snapshot: Snapshot, then: Callable[[], None] | None = None) -> None:
        """Have it written; waits while `AT_ONCE` others are not, each of which is a network in memory.

        Args:
            path: of the folder.
            snapshot: what is in it.
            then: called on the thread, once it is whole on the disk.
        """
        while len(self._saving) >= AT_ONCE:
            self._saving.popleft().result()
        self._saving.append(self._thread.submit(self._save, path, snapshot, then))

    def remove(self, path: Path) -> None:
        """Have it removed, once the newest is whole."""
        self._thread.submit(self._remove, path)

    def wait(self) -> None:
        """Return when all that was asked for is done."""
        self._thread.submit(lambda: None).result()

    def _save(self, path: Path, snapshot: Snapshot, then: Callable[[], None] | None) -> None:
        try:
            write_folder(path, snapshot)
        except OSError as mistake:
            good = self._last_good or "none of this training yet"
            self.failure = f"the checkpoint {path} could not be written: {mistake}; the last good one: {good}"
            log.warning("%s", self.failure)
            return
        self._last_good, self.failure = path, None
        if then is not None:
            then()
        for waiting in self._to_remove:
            remove_folder(waiting)
        self._to_remove.clear()

    def _remove(self, path: Path) -> None:
        if self.failure:
            self._to_remove.append(path)
        else:
            remove_folder(path)
