"""Going on inside an epoch: loaders that begin where a training stopped, also with another number of replicas."""

from collections.abc import Iterator
from itertools import islice
from typing import Any

from torch.utils.data import DataLoader, Sampler


class _Begun(Sampler[Any]):
    """Leaves out what was read before, the first time; put in front of a sampler's own class."""

    skip: int

    def __iter__(self) -> Iterator[Any]:
        skip, self.skip = self.skip, 0
        return islice(super().__iter__(), skip, None)  # of the class behind


def begin_at(loader: DataLoader[Any], batches: int) -> bool:
    """Have a loader's next iterator begin after a number of batches, which are not read; its length stays.

    Returns:
        False if the loader has no sampler (an iterable data set), so that only its owner can do that.
    """
    sampler: Any = loader.batch_sampler if loader.batch_size is None else loader.sampler
    if sampler is None or not isinstance(sampler, Sampler) or type(sampler).__name__ == "_InfiniteConstantSampler":
        return False
    kind = type(sampler)
    if not issubclass(kind, _Begun):  # a loader's samplers cannot be replaced, and each may be of any kind
        sampler.__class__ = type(kind.__name__, (_Begun, kind), {})
    begun: Any = sampler
    begun.skip = batches * (loader.batch_size or 1)
    return True


def rescaled(loops: dict[str, Any], before: int, now: int) -> None:
    """Where in its epoch a training stands, in batches of another number of replicas; changes Lightning's state.

    As many images were read; batches of all replicas together are larger or smaller.
    """
    current = loops["fit_loop"]["epoch_loop.batch_progress"]["current"]
    for word, count in current.items():
        current[word] = count * before // now
