"""The launcher of the tests' processes: a process that dies is named, and the next call has all of them again."""

import os
import signal

import pytest
import torch.distributed as dist

from tests.ranks import RankError, Ranks


def rank_of(dying: int | None = None) -> int:
    if dist.get_rank() == dying:
        os.kill(os.getpid(), signal.SIGKILL)
    return dist.get_rank()


def test_a_process_that_dies_is_named() -> None:
    pool = Ranks(2)
    try:
        with pytest.raises(RankError, match="rank 1 died: exit code -9"):
            pool(rank_of, 2, 1)
        assert pool(rank_of, 2) == [0, 1]
    finally:
        pool.stop()
