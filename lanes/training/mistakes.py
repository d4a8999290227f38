"""Words for mistakes in configurations: one line, with what was probably meant."""

import difflib
import importlib
import inspect
import re
from collections.abc import Iterable
from pathlib import Path

# What jsonargparse says of a wrong key or class; the group is the word that was wrong.
_UNKNOWN_KEY = (
    re.compile(r"Subcommand '\w+' does not accept option '([\w.]+)'"),
    re.compile(r"[Uu]nrecognized arguments: --([\w.]+)"),
    re.compile(r"[Kk]ey ['\"]([\w.]+)['\"] is not expected"),
    re.compile(r"Option '([\w.]+)' is not accepted"),
    re.compile(r"does not accept option '([\w.]+)'"),
)
_MISSING = re.compile(r"[Kk]ey[s ].*?(?:required|missing).*?: (.+)|required: (.+)")
_NO_CLASS = re.compile(r"Expected a dot import path string: (\w+)")
_UNKNOWN_CLASS = re.compile(r"module '([\w.]+)' has no attribute '(\w+)'")
_CLASS = re.compile(r"\b([a-zA-Z_]\w*(?:\.\w+)+)\b")


def one_line(message: str, keys: Iterable[str], args: list[str]) -> str:
    """Reduce a parser's message to what a person needs, and add the nearest right word.

    Args:
        message: of any number of lines.
        keys: all keys of the configuration, with dots.
        args: the command line, whose classes and files tell further keys.
    """
    text = " ".join(message.split())
    if "Union subtypes" in text:  # of all that did not fit, keep what our own class said
        reasons = [part.split(" Given value")[0] for part in text.split(" - ")[1:]]
        text = next(
            (r for r in reasons if not r.startswith(("Expected", "Type", "Not a valid", "Does not validate"))), text
        )
    for pattern in _UNKNOWN_KEY:
        if found := pattern.search(text):
            wrong = found.group(1)
            known = [key for key in (*keys, *_constructor_keys(args)) if not key.endswith(".help")]
            if any(key.rpartition(".")[2] == wrong for key in known):
                return (
                    f"there is no key {wrong!r} at that place (what is given after a list, such as trainer.callbacks, "
                    "goes to its last entry)"
                )
            return f"there is no key {wrong!r}{_nearest_key(wrong, known)}"
    if found := _UNKNOWN_CLASS.search(text):
        module, wrong = found.groups()
        return f"there is no {wrong!r} in {module}{_nearest(wrong, dir(importlib.import_module(module)))}"
    if found := _NO_CLASS.search(text):
        return f"there is no class {found.group(1)!r}; give the whole path of one, such as lanes.training.Health"
    if found := _MISSING.search(text):
        missing = ", ".join(key.split(".", 1)[-1] for key in re.findall(r"[\w.]+", found.group(1) or found.group(2)))
        has_config = {"-c", "--config"} & set(args)
        remedy = "it belongs into the configuration" if has_config else "give a configuration: -c FILE"
        if found.group(1) is None:  # of the command line alone
            remedy = "give it on the command line"
        return f"{missing} is missing; {remedy}"
    return text


def _nearest_key(wrong: str, keys: list[str]) -> str:
    """Compare whole keys, then their last parts."""
    leaves = {key.rsplit(".", 1)[-1]: key for key in keys}
    return _nearest(wrong, keys) or _nearest(wrong.rsplit(".", 1)[-1], leaves, leaves)


def _nearest(wrong: str, words: Iterable[str], full: dict[str, str] | None = None) -> str:
    match = difflib.get_close_matches(wrong, list(words), n=1)
    return f"; did you mean {(full or {}).get(match[0], match[0])!r}?" if match else ""


def _constructor_keys(args: list[str]) -> list[str]:
    """The argument names of every class that the command line, or a file it names, mentions."""
    texts = [Path(arg).read_text() if Path(arg).is_file() else arg for arg in args]
    keys: list[str] = []
    for path in sorted({name for text in texts for name in _CLASS.findall(text)}):
        module, name = path.rsplit(".", 1)
        try:
            found = getattr(importlib.import_module(module), name)
            keys += inspect.signature(found).parameters
        except (ImportError, AttributeError, TypeError, ValueError):
            continue  # not every dotted word is a class
    return keys
