"""The page: runs in, one HTML file out that fetches nothing; templates lie beside this file.

Everything that comes from a run travels as JSON, in which no "<" is left as it is, and reaches the page as text, never
as HTML. A content security policy forbids whatever is not in the file. Kept out: reading runs, serving.
"""

import base64
import hashlib
import html
import json
from collections import Counter
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from string import Template
from typing import Any

from lanes import __version__
from lanes.report.reading import Picture, Run, find_logs, read_run

HERE = Path(__file__).parent
SCRIPTS = ("vendor/uplot/uPlot.iife.min.js", "model.js", "charts.js", "pictures.js", "tables.js", "page.js")
STYLES = ("vendor/uplot/uPlot.min.css", "page.css")
DIGITS = 6  # of a value in a curve
KINDS = {b"\x89PNG": "png", b"\xff\xd8\xff": "jpeg", b"GIF8": "gif", b"RIFF": "webp"}  # by how the file begins


def write_report(places: Sequence[str | Path], output: str | Path) -> str:
    """Write the page of all runs in some places; say in one line what is in it.

    Args:
        places: run folders or folders in which such are found, see `lanes.report.reading.find_logs`.
        output: the HTML file, replaced if it exists.

    Raises:
        ValueError: there is no run, a run cannot be read or nothing was logged yet, or the file cannot be written.
    """
    runs = [read_run(logs) for logs in find_logs(places).values()]
    shown = [run for run in runs if not run.empty]
    if not shown:
        folders = ", ".join(str(run.folders[-1]) for run in runs)
        raise ValueError(
            f"nothing was logged yet in {folders}: wandb writes every 15 s at the latest, try again, or use --serve"
        )
    try:
        Path(output).write_text(page(shown), encoding="utf-8")
    except OSError as mistake:
        raise ValueError(f"{output} cannot be written: {mistake.strerror}") from mistake
    pictures = sum(len(steps) for run in shown for steps in run.pictures.values())
    curves = sum(len(run.scalars) for run in shown)
    left_out = f"; {len(runs) - len(shown)} without anything logged left out" if len(runs) > len(shown) else ""
    runs_word = f"{len(shown)} run{'s' if len(shown) > 1 else ''}"
    return f"{output}: {runs_word}{left_out}, {pictures} pictures, {curves} curves, {_size(Path(output))}"


def _size(path: Path) -> str:
    return f"{path.stat().st_size / 1e6:.1f} MB"


def page(runs: Sequence[Run], *, live: bool = False) -> str:
    """The whole page as text.

    Args:
        runs: what to show.
        live: it comes from a server that has the pictures (see `serving`), and asks it for news.
    """
    script = "\n".join(_file(name) for name in SCRIPTS)
    made = datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC")
    own = " 'self'; connect-src 'self'" if live else ""
    policy = (
        "default-src 'none'; base-uri 'none'; form-action 'none'; style-src 'unsafe-inline'; "
        f"img-src data:{own}; script-src 'sha256-{_sha256(_on_own_lines(script))}'"
    )
    return Template(_file("page.html")).substitute(
        policy=policy,
        title=html.escape(", ".join(_labels(runs)) or "no runs yet"),
        style="\n".join(_file(name) for name in STYLES),
        data=as_json(content(runs, live_source if live else embedded_source) | {"made": made, "live": live}),
        script=_on_own_lines(script),
    )


def content(runs: Sequence[Run], source: Callable[[Picture], str]) -> dict[str, Any]:
    """All that the page shows, as JSON has it; every picture's source stands there once.

    Args:
        runs: what to show.
        source: where the page finds a picture, as a URL.
    """
    sources: dict[str, str] = {}
    for picture in (p for run in runs for steps in run.pictures.values() for p in steps.values()):
        if picture.digest not in sources:
            sources[picture.digest] = source(picture)
    places = {digest: place for place, digest in enumerate(sources)}
    labels = _labels(runs)
    return {
        "version": __version__,
        "sources": list(sources.values()),
        "runs": [_run(run, label, places) for run, label in zip(runs, labels, strict=True)],
    }


def _run(run: Run, label: str, places: dict[str, int]) -> dict[str, Any]:
    return {
        "id": run.run_id,
        "label": label,
        "ending": run.ending,
        "runtime": run.runtime_s,
        "parts": len(run.folders),
        "facts": {word: text for word, text in run.facts.items() if text},
        "config": _flat(run.config),
        "scalars": {key: [list(steps), [_short(v) for v in steps.values()]] for key, steps in run.scalars.items()},
        "texts": {key: [list(steps), list(steps.values())] for key, steps in run.texts.items()},
        "pictures": {
            key: [[step, places[p.digest], p.caption, p.width, p.height] for step, p in steps.items()]
            for key, steps in run.pictures.items()
        },
    }


def as_json(data: object) -> str:
    """JSON that can stand in a <script> of an HTML page: no "<", ">" or "&" is left as it is."""
    text = json.dumps(data, allow_nan=False, separators=(",", ":"))
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def embedded_source(picture: Picture) -> str:
    """The picture itself, as a data URL."""
    data = picture.path.read_bytes()
    return f"data:image/{kind(data)};base64,{base64.b64encode(data).decode()}"


def live_source(picture: Picture) -> str:
    """Where the server has the picture."""
    return f"pictures/{picture.digest}"


def kind(data: bytes) -> str:
    """What an image file is ("png"), by how it begins; browsers are told so, whatever its name says."""
    return next((name for begin, name in KINDS.items() if data.startswith(begin)), "png")


def _labels(runs: Sequence[Run]) -> list[str]:
    names = [run.name or run.run_id for run in runs]
    often = {name for name, count in Counter(names).items() if count > 1}
    return [f"{name} ({run.run_id})" if name in often else name for run, name in zip(runs, names, strict=True)]


def _flat(config: dict[str, Any], before: str = "") -> dict[str, str]:
    """A nested configuration as one level: "trainer.max_epochs" -> "3"."""
    flat: dict[str, str] = {}
    for key, value in config.items():
        if key == "_wandb" and not before:
            continue
        if isinstance(value, dict) and value:
            flat |= _flat(value, f"{before}{key}.")
        else:
            flat[f"{before}{key}"] = value if isinstance(value, str) else json.dumps(value)
    return flat


def _short(value: float | None) -> float | int | None:
    if value is None:
        return None
    short = float(f"{value:.{DIGITS}g}")
    return int(short) if short.is_integer() and abs(short) < 2**53 else short


def _file(name: str) -> str:
    return (HERE / name).read_text(encoding="utf-8")


def _on_own_lines(script: str) -> str:
    return f"\n{script}\n"  # the policy's hash is of every character between <script> and </script>


def _sha256(text: str) -> str:
    return base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
