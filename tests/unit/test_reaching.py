"""Nodes connect to one another before Gloo does; both nodes are this machine."""

import socket
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta

import pytest
import torch.distributed as dist

from lanes.network import reaching
from lanes.network.reaching import Member, wrong_link

TWO = [Member("a", "node1", "127.0.0.1"), Member("b", "node1", "127.0.0.1"), Member("c", "node2", "127.0.0.1")]


@pytest.fixture
def store(monkeypatch: pytest.MonkeyPatch) -> dist.Store:
    monkeypatch.setattr(reaching, "is_loopback", lambda address: False)
    found = dist.HashStore()
    found.set_timeout(timedelta(seconds=1))
    return found


def test_all_reach_all(store: dist.Store) -> None:
    with ThreadPoolExecutor(3) as pool:
        assert list(pool.map(lambda rank: wrong_link(TWO, rank, store, "127.0.0.1"), range(3))) == [None] * 3


@pytest.mark.parametrize("told", [[], ["listens"]])
def test_a_node_that_falls_silent_is_named(store: dist.Store, told: list[str]) -> None:
    """As if its process had ended, or hung, after all had met."""
    with socket.create_server(("127.0.0.1", 0)) as listens:
        for step in told:
            store.set(f"2 {step}", str(listens.getsockname()[1]))
        with ThreadPoolExecutor(2) as pool:
            words = pool.map(lambda rank: wrong_link(TWO, rank, store, "127.0.0.1"), range(2))
        said = next(words)
    assert said is not None
    assert "rank 2 on node2 has come, but then hung or ended" in said
    assert "see what it says there" in said
