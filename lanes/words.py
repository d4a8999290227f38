"""Words for messages: hints and lists."""

import difflib
from typing import Any


def near(word: str, words: Any) -> str:
    """A hint for a mistyped word: ``"; did you mean 'conv3'?"`` or nothing."""
    matches = difflib.get_close_matches(word, list(words), n=1)
    return f"; did you mean {matches[0]!r}?" if matches else ""


def one_of(choices: list[int]) -> str:
    """Spell the ways out of an error: ``[1, 2, 4]`` -> ``"1, 2 or 4"``."""
    words = [str(choice) for choice in choices]
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} or {words[-1]}"
