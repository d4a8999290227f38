"""A store that does not answer is asked no more; nobody waits for it."""

import threading
import time

import pytest
from torch.distributed import HashStore

from lanes.faults.bounded_store import BoundedStore, SilentStoreError


def test_a_store_that_answers() -> None:
    store = BoundedStore(HashStore(), within_s=5)
    store.ask(lambda store: store.set("here", "rank 1"))
    assert store.ask(lambda store: store.get("here")) == b"rank 1"
    assert store.ask(lambda store: store.add("count", 2)) == 2


def test_its_errors_are_its_own() -> None:
    def fails(store: HashStore) -> None:
        raise RuntimeError("no such key")

    store = BoundedStore(HashStore(), within_s=5)
    with pytest.raises(RuntimeError, match="no such key"):
        store.ask(fails)
    assert store.ask(lambda store: store.add("count", 1)) == 1


def test_a_store_that_hangs_is_asked_once() -> None:
    hangs = threading.Event()
    store = BoundedStore(HashStore(), within_s=0.2)
    began = time.monotonic()
    for _ in range(50):
        with pytest.raises(SilentStoreError):
            store.ask(lambda store: hangs.wait(60))
    assert time.monotonic() - began < 5
    hangs.set()
