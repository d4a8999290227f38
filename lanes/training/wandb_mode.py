"""Whether to log to Weights & Biases online or offline.

Here: what can be asked for, what wandb's configuration says, and whether the server's port answers. Kept out: opening
a run, which is the only proof.
"""

import socket
import threading
import urllib.parse
import urllib.request
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from lightning_utilities.core.imports import lazy_import

from lanes.words import near

if TYPE_CHECKING:
    import wandb
else:  # importing it takes most of a second, and only the process that logs needs it
    wandb = lazy_import("wandb")

MODES = ("auto", "online", "offline", "disabled")
FORBIDDEN = "/\\#?%:;,'"  # wandb refuses these in project names or ids, but only when the run is opened
PROBE_TIMEOUT_S = 2.0


def check_arguments(save_dir: Path, mode: str, project: str, run_id: str | None) -> None:
    """Refuse what wandb would refuse later.

    Raises:
        ValueError: an argument cannot be used; the message says what can.
    """
    if mode not in MODES:
        hint = near(str(mode).lower(), MODES)
        raise ValueError(f"mode={mode!r} is not a logging mode{hint} (allowed: {', '.join(MODES)})")
    for name, text in (("project", project), ("run_id", run_id)):
        if text is not None and (not text.strip() or set(FORBIDDEN) & set(text)):
            raise ValueError(f"{name}={text!r} must not be empty nor contain any of {' '.join(FORBIDDEN)}")
    if save_dir.exists() and not save_dir.is_dir():
        raise ValueError(f"save_dir={str(save_dir)!r} is a file; name a folder, which is created when needed")


def find_mode(probe: bool) -> tuple[str, str]:
    """Online, offline or disabled, and why; asks only the configuration and, with `probe`, the server's port."""
    try:
        # Silent, or else login asks the server for the account's name, without a time limit, only to print it.
        settings = wandb.setup(wandb.Settings(silent=True)).settings
        if settings.mode in ("disabled", "offline", "dryrun"):
            return "disabled" if settings.mode == "disabled" else "offline", "wandb's own settings say so"
        if not wandb.login(prompt=False, verify=False):
            return "offline", "no API key is configured; `wandb login` stores one"
        if probe and not answers(settings.base_url):
            return "offline", f"{settings.base_url} does not answer"
    except Exception as error:
        return "offline", in_short(error)
    return "online", "an API key is configured"


def answers(url: str) -> bool:
    """Whether something listens behind `url`; a configured proxy is taken at its word."""
    parts = urllib.parse.urlsplit(url)
    host, port = parts.hostname or "", parts.port or (80 if parts.scheme == "http" else 443)
    if parts.scheme in urllib.request.getproxies() and not urllib.request.proxy_bypass(host):
        return True
    answered = threading.Event()

    def connect() -> None:
        with suppress(OSError), socket.create_connection((host, port), timeout=PROBE_TIMEOUT_S):
            answered.set()

    prober = threading.Thread(target=connect, daemon=True)  # looking up a name has no time limit of its own
    prober.start()
    prober.join(PROBE_TIMEOUT_S)
    return answered.is_set()


def in_short(error: Exception) -> str:
    """One line of at most 200 characters."""
    return " ".join(f"{type(error).__name__}: {error}".split())[:200]
