"""Logging to Weights & Biases that never stands in the way of training.

Here: one Lightning logger that picks online or offline by itself, keeps everything on disk when there is no account,
no network or a sick server, and survives the death of wandb's own process. Pictures go in as one PNG each.

Kept out: tables and matplotlib figures (they cost the training thread 0.6 s to 3 s each and may call the server
synchronously) and uploads of checkpoints (a run folder can be uploaded whole, later, with ``wandb sync``).
"""

import logging
import math
import os
import socket
import threading
import urllib.parse
import urllib.request
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import wandb
from lightning.fabric.loggers.logger import rank_zero_experiment
from lightning.pytorch.loggers import WandbLogger
from lightning.pytorch.loggers.logger import DummyLogger
from lightning_utilities.core.rank_zero import rank_zero_info, rank_zero_only
from PIL import Image

from lanes.words import near

log = logging.getLogger(__name__)
MODES = ("auto", "online", "offline", "disabled")
INIT_TIMEOUT_S = 20
FINISH_TIMEOUT_S = 60
PROBE_TIMEOUT_S = 2.0
STEP_KEY = "trainer/global_step"
FORBIDDEN = "/\\#?%:;,'"  # wandb refuses these in project names or ids, but only when the run is opened


class LanesLogger(WandbLogger):
    """Lightning's wandb logger with a mode that decides by itself and a guard around every write.

    Only the process of global rank 0 opens a run, when it first needs one. ``mode="auto"`` goes online if an API key
    is configured and the server answers, else offline, and says which and why in one line; it never asks anything.

    Every `log_...` call is guarded: if wandb's process dies, one fresh offline run with the same id takes over (what
    wandb had not flushed, at most 15 s or 32 KiB, is lost); if that fails too, logging stops with one warning. Calls
    on `experiment` itself are not guarded. A finished run is reopened when something is logged later
    (``trainer.test`` after ``trainer.fit``): online it continues, offline it becomes a second folder with the same
    id. Entity, group and tags come from ``WANDB_ENTITY``, ``WANDB_RUN_GROUP`` and ``WANDB_TAGS``.

    Args:
        save_dir: folder for the run's files; wandb makes its own ``wandb/`` inside. Created when needed.
        name: the run's name; wandb invents one when it is absent.
        project: the project that the run belongs to.
        mode: "auto", "online" (refuses to start without a key or a server), "offline" or "disabled" (writes nothing).
        probe: with "auto", try for 2 s to reach the server before wandb does. A configured proxy skips this.
        run_id: a fixed id, so that a resumed job continues its run; wandb draws one when it is absent.

    Raises:
        ValueError: an argument cannot be used; the message says what can.
    """

    def __init__(
        self,
        save_dir: str | Path = "runs",
        name: str | None = None,
        project: str = "lanes",
        mode: str = "auto",
        *,
        probe: bool = True,
        run_id: str | None = None,
    ) -> None:
        _check_arguments(Path(save_dir), mode, project, run_id)
        super().__init__(name=name, save_dir=save_dir, project=project, id=run_id)
        self._mode = mode
        self._probe = probe
        self._folder = Path(save_dir).absolute()
        self._folders: list[Path] = []
        self._hyperparams: dict[str, Any] = {}
        self._num_failures = 0
        self._stopped = False
        self._value_refused = False

    @property
    @rank_zero_experiment
    def experiment(self) -> Any:
        """The wandb run, opened at the first use; a dummy on other ranks and once logging has stopped."""
        if self._experiment is None and not self._stopped:
            try:
                self._experiment = self._open()
            except Exception as error:
                if not self._folders:  # nothing is lost yet: better an error before the first step than no record
                    raise
                self._stop(error)
        return DummyLogger().experiment if self._stopped else self._experiment

    @property
    def run_folder(self) -> Path | None:
        """Where the newest run lies on disk; None on other ranks, when disabled, or before anything was logged."""
        return self._folders[-1] if self._folders else None

    @property
    def run_folders(self) -> tuple[Path, ...]:
        """All folders that this logger wrote, oldest first: they share one id and are one run."""
        return tuple(self._folders)

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """Log scalars (or wandb media) at a global step; failures of wandb do not reach the caller."""
        row = dict(metrics) if step is None else {**metrics, STEP_KEY: step}
        self._write(lambda run: run.log(row))

    @rank_zero_only
    def log_picture(self, key: str, picture: Image.Image, step: int, caption: str) -> None:
        """Log one picture as a PNG of its own size; does nothing on ranks other than 0.

        Args:
            key: such as ``filters/lane0/conv1``; a "." in it becomes "_", since wandb reads it as nesting.
            picture: the picture; it is encoded here, in the calling thread.
            step: the global step that it shows.
            caption: the line under it.
        """
        key = key.replace(".", "_")
        self._write(lambda run: run.log({key: wandb.Image(picture, caption=caption), STEP_KEY: step}))

    @rank_zero_only
    def log_hyperparams(self, params: Any) -> None:
        """Record the run's configuration; what is not JSON is recorded as text. Never calls what it is given."""
        self._hyperparams.update(_plain(params))
        self._write(lambda run: run.config.update(dict(self._hyperparams), allow_val_change=True))

    @rank_zero_only
    def finalize(self, status: str) -> None:
        """Finish the run as successful or failed; wandb ends an upload after a minute and keeps the rest on disk."""
        run, self._experiment = self._experiment, None
        if run is None:
            return
        try:
            run.finish(exit_code=0 if status == "success" else 1)
        except Exception as error:
            _forget_service()
            log.warning("wandb could not finish (%s); what was written is in %s", _short(error), self.run_folder)

    def __getstate__(self) -> dict[str, Any]:
        # Lightning's own would open a run here; ours is opened by whichever process turns out to be rank 0.
        return {**self.__dict__, "_experiment": None}

    def _open(self) -> Any:
        os.environ.setdefault("WANDB_ERROR_REPORTING", "false")
        if self._mode != "disabled":
            self._folder.mkdir(parents=True, exist_ok=True)  # wandb would silently use the temporary folder
            os.environ.setdefault("WANDB_DATA_DIR", str(self._folder / "wandb" / "data"))
        mode, reason = self._mode, "as configured"
        if mode in ("auto", "online"):
            mode, reason = _find_mode(self._probe and mode == "auto")
        if self._mode == "online" and mode != "online":
            raise ValueError(f"mode='online' is not possible: {reason}; use mode='auto' or 'offline' to go on without")
        try:
            run = self._start(mode)
        except Exception as error:
            if mode != "online" or self._mode == "online":
                raise
            mode, reason = "offline", f"could not start online: {_short(error)}"
            _forget_service()  # it holds on to the id of the run that it could not start
            run = self._start(mode)
        where = run.url if mode == "online" else self.run_folder or "nothing is written"
        rank_zero_info("wandb: %s (%s): %s", mode, reason, where)
        return run

    def _start(self, mode: Any) -> Any:
        settings = wandb.Settings(
            silent=True, console="off", init_timeout=INIT_TIMEOUT_S, finish_timeout=FINISH_TIMEOUT_S
        )
        run = wandb.init(
            mode=mode,
            project=self._project,
            name=self._name,
            dir=None if mode == "disabled" else str(self._folder),
            id=self._id,
            resume="allow" if mode == "online" else None,
            reinit="create_new",
            settings=settings,
        )
        run.define_metric(STEP_KEY)
        run.define_metric("*", step_metric=STEP_KEY, step_sync=True)
        self._id = run.id
        if mode != "disabled":
            self._folders.append(Path(run.dir).parent.resolve())
        if self._hyperparams:
            run.config.update(dict(self._hyperparams), allow_val_change=True)
        return run

    def _write(self, write: Callable[[Any], None]) -> None:
        """Hand the run to `write`, whatever happens to wandb meanwhile."""
        run = self.experiment  # raises only where no run at all could be opened
        try:
            write(run)
        except (TypeError, ValueError) as error:  # the value is at fault, the run is not
            if not self._value_refused:
                log.warning("wandb refused a value, which is not logged (said once): %s", _short(error))
            self._value_refused = True
        except Exception as error:
            if not self._stopped:
                self._replace_run(error, write)

    def _replace_run(self, error: Exception, write: Callable[[Any], None]) -> None:
        self._num_failures += 1
        run, self._experiment = self._experiment, None
        with suppress(Exception):
            run.finish(exit_code=1)  # type: ignore[union-attr]
        _forget_service()
        if self._num_failures > 1:
            self._stop(error)
            return
        try:
            self._experiment = self._start("offline")
            log.warning("wandb failed (%s): a fresh offline run takes over: %s", _short(error), self.run_folder)
            write(self._experiment)
        except Exception as second_error:
            self._stop(second_error)

    def _stop(self, error: Exception) -> None:
        self._experiment, self._stopped = None, True
        _forget_service()
        log.warning("wandb failed again (%s): nothing more is logged after %s", _short(error), self.run_folder)


def _find_mode(probe: bool) -> tuple[str, str]:
    """Online, offline or disabled, and why; asks only the configuration and, with `probe`, the server's port."""
    try:
        # Silent, or else login asks the server for the account's name, without a time limit, only to print it.
        settings = wandb.setup(wandb.Settings(silent=True)).settings
        if settings.mode in ("disabled", "offline", "dryrun"):
            return "disabled" if settings.mode == "disabled" else "offline", "wandb's own settings say so"
        if not wandb.login(prompt=False, verify=False):
            return "offline", "no API key is configured; `wandb login` stores one"
        if probe and not _answers(settings.base_url):
            return "offline", f"{settings.base_url} does not answer"
    except Exception as error:
        return "offline", _short(error)
    return "online", "an API key is configured"


def _answers(url: str) -> bool:
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


def _forget_service() -> None:
    """Let go of wandb's process, dead or sick, so that the next run starts a new one and exiting stays quiet."""
    with suppress(Exception, SystemExit):
        wandb.teardown()


def _plain(value: Any, depth: int = 0) -> Any:
    """`value` as JSON would have it: mappings, lists, numbers and text; anything else by its name."""
    value = vars(value) if type(value).__name__ == "Namespace" else value  # argparse's and jsonargparse's
    if isinstance(value, Mapping) and depth < 8:
        return {str(key): _plain(item, depth + 1) for key, item in value.items()}
    if isinstance(value, list | tuple | set | frozenset) and depth < 8:
        return [_plain(item, depth + 1) for item in value]
    with suppress(Exception):  # a tensor with many elements, or on the meta device, has no item
        value = value.item() if hasattr(value, "shape") else value
    if value is None or isinstance(value, bool | int | str) or (isinstance(value, float) and math.isfinite(value)):
        return value
    if isinstance(getattr(value, "shape", None), tuple):
        return f"{type(value).__name__}{tuple(value.shape)}"
    try:
        return str(getattr(value, "__qualname__", value))
    except Exception:
        return type(value).__name__


def _check_arguments(save_dir: Path, mode: str, project: str, run_id: str | None) -> None:
    if mode not in MODES:
        hint = near(str(mode).lower(), MODES)
        raise ValueError(f"mode={mode!r} is not a logging mode{hint} (allowed: {', '.join(MODES)})")
    for name, text in (("project", project), ("run_id", run_id)):
        if text is not None and (not text.strip() or set(FORBIDDEN) & set(text)):
            raise ValueError(f"{name}={text!r} must not be empty nor contain any of {' '.join(FORBIDDEN)}")
    if save_dir.exists() and not save_dir.is_dir():
        raise ValueError(f"save_dir={str(save_dir)!r} is a file; name a folder, which is created when needed")


def _short(error: Exception) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split())[:200]
