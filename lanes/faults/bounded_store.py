"""A store of torch.distributed that is asked for no longer than a while.

A store whose holder is stopped (SIGSTOP, a machine that hangs) never answers, whatever time-out it was given: torch
2.13 waits again, without one, for the end of the question that has timed out.
"""

import queue
import threading
from collections.abc import Callable
from typing import Any, TypeVar

T = TypeVar("T")


class SilentStoreError(RuntimeError):
    """The store does not answer."""


class BoundedStore:
    """Asks a store on a thread of its own, which may hang for ever.

    Args:
        store: a connection that nobody else uses.
        within_s: how long an answer may take; longer than the store's own time-out.
    """

    def __init__(self, store: Any, within_s: float) -> None:
        self._store, self._within_s = store, within_s
        self._asked: queue.SimpleQueue[tuple[Callable[[Any], Any], queue.SimpleQueue[Any]]] = queue.SimpleQueue()
        self._silent = False
        threading.Thread(target=self._answer, name="store", daemon=True).start()

    def ask(self, question: Callable[[Any], T]) -> T:
        """What a question gets of the store.

        Raises:
            SilentStoreError: it does not answer, or has not answered once before.
            RuntimeError: the store's own.
        """
        if self._silent:
            raise SilentStoreError
        answers: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self._asked.put((question, answers))
        try:
            answer, error = answers.get(timeout=self._within_s)
        except queue.Empty:
            self._silent = True
            raise SilentStoreError from None
        if error is not None:
            raise error
        found: T = answer
        return found

    def _answer(self) -> None:
        while True:
            question, answers = self._asked.get()
            try:
                answers.put((question(self._store), None))
            except RuntimeError as error:
                answers.put((None, error))
