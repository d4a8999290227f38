"""Runs a function on several real processes that talk over Gloo: the one launcher of ranks in the tests.

The processes start once and serve many tests (importing torch takes seconds); every call makes a fresh process group on
a fresh file, so that nothing is shared between tests and no port is fixed. The first traceback is raised again in the
test; a call that outlasts its time-out, or in which a process dies, ends the processes, by their own ids, and the next
call starts new ones.
"""

import faulthandler
import gc
import multiprocessing
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch


class RankError(AssertionError):
    """A rank raised; carries its traceback."""


def _serve(connection: Any, rank: int) -> None:
    faulthandler.enable()  # a death in native code says where
    import torch.distributed as dist  # noqa: PLC0415

    while True:
        try:
            function, world, store, args = connection.recv()
        except EOFError:
            return
        torch.set_num_threads(1)  # a Trainer of an earlier call may have changed it
        try:
            dist.init_process_group(
                "gloo", init_method=f"file://{store}", rank=rank, world_size=world, timeout=timedelta(seconds=60)
            )
            dist.barrier()  # all have connected before the first may leave
            result, failure = function(*args), None
        except BaseException:
            result, failure = None, f"rank {rank} of {world}:\n{traceback.format_exc()}"
        finally:
            if dist.is_initialized():
                dist.destroy_process_group()
            _let_go_of_groups()
        connection.send((result, failure, time.time()))


def _let_go_of_groups() -> None:
    """Frees the groups of a call, whose threads keep polling: a thousand, after as many tests, take a core.

    A placed network and its hooks hold each other; DTensor's caches, which have no public way to be emptied, hold the
    meshes of the tensors that they have seen.
    """
    with suppress(ImportError, AttributeError):  # private names, of torch 2.13
        from torch.distributed.tensor import _redistribute  # noqa: PLC0415
        from torch.distributed.tensor.debug import _clear_sharding_prop_cache  # noqa: PLC0415

        _clear_sharding_prop_cache()
        _redistribute._gen_transform_infos.cache_clear()
        _redistribute.clear_redistribute_planner_cache()
    gc.collect()
    gc.freeze()  # what is left, the modules above all, is not looked through again: that takes longer than most tests


class Ranks:
    """A pool of processes; call it with a function, a number of ranks and arguments."""

    def __init__(self, most: int = 4) -> None:
        self.most = most
        self._members: list[tuple[Any, Any]] = []

    def _start(self) -> None:
        context = multiprocessing.get_context("spawn")
        for rank in range(self.most):
            ours, theirs = context.Pipe()
            process = context.Process(target=_serve, args=(theirs, rank), daemon=True)
            process.start()
            theirs.close()
            self._members.append((process, ours))

    def __call__(self, function: Callable[..., Any], world: int, *args: Any, timeout_s: float = 120) -> list[Any]:
        """Run ``function(*args)`` on ``world`` ranks; returns their results by rank."""
        if not self._members:
            self._start()
        with tempfile.TemporaryDirectory() as folder:
            members = self._members[:world]
            call = (function, world, str(Path(folder) / "store"), args)
            for rank, (process, connection) in enumerate(members):
                with self._noticing_death(rank, process):
                    connection.send(call)
            answers = self._answers(members, time.monotonic() + timeout_s)
        failures = sorted((when, failure) for _, failure, when in answers if failure)
        if failures:
            raise RankError(failures[0][1])
        return [result for result, _, _ in answers]

    def _answers(self, members: list[tuple[Any, Any]], deadline: float) -> list[Any]:
        answers = []
        for rank, (process, connection) in enumerate(members):
            if not connection.poll(max(0.0, deadline - time.monotonic())):
                self.stop()
                raise RankError(f"rank {rank} did not answer in time; the others said: {answers}")
            with self._noticing_death(rank, process):
                answers.append(connection.recv())
        return answers

    @contextmanager
    def _noticing_death(self, rank: int, process: Any) -> Iterator[None]:
        try:
            yield
        except (EOFError, BrokenPipeError, ConnectionResetError) as error:
            process.join(5)
            died_of = process.exitcode
            self.stop()
            raise RankError(f"rank {rank} died: exit code {died_of} (a negative one is a signal)") from error

    def stop(self) -> None:
        """End the processes."""
        for process, connection in self._members:
            connection.close()
            process.terminate()
            process.join()
        self._members = []
