"""Checks of constructor arguments that several networks and layers share.

What is here: what refuses a value with its name and the way out. What is kept out: checks that one network alone has,
which stand in its file.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable


def check_counts(owner: str = "", /, **counts: int) -> None:
    """Raises ValueError unless all are whole numbers of at least 1; owner, if any, is named first."""
    for name, count in counts.items():
        if not isinstance(count, int) or count < 1:
            who = f"{owner}: " if owner else ""
            raise ValueError(f"{who}{name} must be a whole number of at least 1, got {count!r}")


def check_choice(argument: str, value: object, allowed: Iterable[object]) -> None:
    """Raises ValueError unless value is one of the allowed ones."""
    if value not in (allowed := tuple(allowed)):
        raise ValueError(f"{argument} must be one of {', '.join(map(repr, allowed))}, got {value!r}")


def check_reaches(image_size: int, total_stride: int) -> None:
    """Raises ValueError if a map so much smaller than the images would have nothing left."""
    if image_size < total_stride:
        raise ValueError(
            f"image_size must be at least total_stride, got {image_size} pixels and {total_stride}; "
            "use larger images or a smaller total_stride"
        )


def did_you_mean(word: object, words: Iterable[str]) -> str:
    """A hint for a mistyped word, ``"; did you mean 'conv3'?"``, or nothing; `lanes.words.near` for networks.

    The networks import nothing else of the package, so that each can be read, and taken along, by itself.
    """
    match = difflib.get_close_matches(str(word), list(words), n=1)
    return f"; did you mean {match[0]!r}?" if match else ""
