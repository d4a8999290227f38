"""Work handed over to a thread is done in order, and a thread that hangs costs neither time nor memory."""

import threading
import time
from types import SimpleNamespace

import pytest

from lanes.training import courier as module
from lanes.training.courier import Courier


def test_all_is_done_in_order(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_WAITING", 10)
    monkeypatch.setattr(module, "PATIENCE_S", 60)  # more work than room: handing over waits, nothing is dropped
    courier, done = Courier(), []
    assert all(courier.give(done.append, number) for number in range(1000))
    last = courier.ask(lambda: len(done))
    courier.close()
    assert last.result() == 1000
    assert done == list(range(1000))


def test_who_asks_is_told_what_went_wrong() -> None:
    courier = Courier()
    assert courier.give(int, "no number")  # nobody waits for it, and the thread goes on
    with pytest.raises(ValueError, match="nor this"):
        courier.ask(int, "nor this").result()
    courier.close()


def test_a_thread_that_hangs_is_given_up_until_it_gets_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_WAITING", 3)
    naps: list[float] = []
    monkeypatch.setattr(module, "time", SimpleNamespace(monotonic=time.monotonic, sleep=naps.append))
    courier, done, hold = Courier(), [], threading.Event()
    courier.ask(hold.wait)
    assert [courier.give(done.append, number) for number in range(5)] == [True, True, True, False, False]
    num_naps = len(naps)
    assert num_naps > 0
    assert not courier.give(done.append, 5)
    assert len(naps) == num_naps  # it did not wait again
    hold.set()
    courier.ask(lambda: None).result()
    assert courier.give(done.append, 6)
    courier.ask(lambda: None).result()
    courier.close()
    assert done == [0, 1, 2, 6]
