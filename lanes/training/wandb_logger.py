"""Logging to Weights & Biases that never stands in the way of training.

Here: one Lightning logger that keeps everything on disk when there is no account, no network or a sick server, and
survives the death of wandb's own process. One thread alone talks to wandb; training hands rows and pictures over to it,
since the run that takes over needs a second or more to open.

Kept out: tables and matplotlib figures (they cost the training thread 0.6 s to 3 s each and may call the server
synchronously) and uploads of checkpoints (a run folder can be uploaded whole, later, with ``wandb sync``).
"""

import logging
import os
import time
from collections import deque
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lightning.fabric.loggers.logger import rank_zero_experiment
from lightning.pytorch.loggers import WandbLogger
from lightning.pytorch.loggers.logger import DummyLogger
from lightning_utilities.core.imports import lazy_import
from lightning_utilities.core.rank_zero import rank_zero_info, rank_zero_only
from PIL import Image

from lanes.training.courier import Courier
from lanes.training.hyperparameters import plain
from lanes.training.wandb_log import mend_log
from lanes.training.wandb_mode import check_arguments, find_mode, in_short

if TYPE_CHECKING:
    import wandb
else:  # as in wandb_mode
    wandb = lazy_import("wandb")

log = logging.getLogger(__name__)
INIT_TIMEOUT_S = 20
FINISH_TIMEOUT_S = 60
FLUSH_EVERY_S = 1  # wandb's own default is 15; what it holds back is lost when this process is killed as well
KEPT_S, KEPT_ROWS = 30, 1000  # written again if wandb's process dies; beyond either, wandb has flushed
STEP_KEY = "trainer/global_step"


class LanesLogger(WandbLogger):
    """Lightning's wandb logger with a mode that decides by itself and a guard around every write.

    Only the process of global rank 0 opens a run, when it first needs one. ``mode="auto"`` goes online if an API key
    is configured and the server answers, else offline, and says which and why in one line; it never asks anything.

    Every `log_...` call returns at once; a thread writes. If wandb's process dies, one fresh offline run with the same
    id takes over and begins with the rows of the last half minute, which wandb may not have written: none is lost, some
    are in both folders. If that fails too, logging stops with one warning. If the training process itself is killed,
    what it logged in the last second or so is lost. Calls on `experiment` are not guarded.

    A finished run is reopened when something is logged later (``trainer.test`` after ``trainer.fit``): online it
    continues, offline it becomes a second folder with the same id. Entity, group and tags come from ``WANDB_ENTITY``,
    ``WANDB_RUN_GROUP`` and ``WANDB_TAGS``.

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
        check_arguments(Path(save_dir), mode, project, run_id)
        super().__init__(name=name, save_dir=save_dir, project=project, id=run_id)
        self._mode = mode
        self._probe = probe
        self._folder = Path(save_dir).absolute()
        self._folders: list[Path] = []
        self._hyperparams: dict[str, Any] = {}
        self._courier: Courier | None = None
        self._recent: deque[tuple[float, Callable[[Any], None]]] = deque(maxlen=KEPT_ROWS)
        self._next_row = self._num_failures = 0
        self._opened = self._stopped = False
        self._said: set[str] = set()

    @property
    @rank_zero_experiment
    def experiment(self) -> Any:
        """The wandb run, opened at the first use; a dummy on other ranks and once logging has stopped."""
        if self._experiment is None and not self._stopped:
            self._thread.ask(self._ensure_open).result()
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
            picture: the picture; a copy is kept until the thread has encoded it.
            step: the global step that it shows.
            caption: the line under it.
        """
        key, copy = key.replace(".", "_"), picture.copy()
        self._write(lambda run: run.log({key: wandb.Image(copy, caption=caption), STEP_KEY: step}))

    @rank_zero_only
    def log_hyperparams(self, params: Any) -> None:
        """Record the run's configuration; what is not JSON is recorded as text. Never calls what it is given."""
        self._hyperparams.update(plain(params))
        config = dict(self._hyperparams)
        self._write(lambda run: run.config.update(config, allow_val_change=True))

    @rank_zero_only
    def finalize(self, status: str) -> None:
        """Write what waits and finish the run; wandb ends an upload after a minute and keeps the rest on disk."""
        if self._courier is None:
            return
        courier, self._courier = self._courier, None
        finished = courier.ask(self._finish, 0 if status == "success" else 1)
        courier.close()
        try:
            finished.result(timeout=FINISH_TIMEOUT_S + 30)
        except TimeoutError:
            self._stopped = True  # the thread may still wait for wandb: leave the run to it
            log.warning("wandb does not answer; what it wrote is in %s", self.run_folder)

    def __getstate__(self) -> dict[str, Any]:
        # Lightning's own would open a run here; ours is opened by whichever process turns out to be rank 0.
        recent: deque[Any] = deque(maxlen=KEPT_ROWS)
        return {**self.__dict__, "_experiment": None, "_courier": None, "_opened": False, "_recent": recent}

    def _write(self, write: Callable[[Any], None]) -> None:
        """Have `write` called with the run, soon; only opening a run is waited for, and only that may raise."""
        if not self._opened:
            self._thread.ask(self._ensure_open).result()
        if not self._thread.give(self._write_now, write):
            self._warn_once("wandb does not get on: what is logged meanwhile is lost")

    @property
    def _thread(self) -> Courier:
        if self._courier is None:
            self._courier = Courier()
        return self._courier

    # All below runs on the thread.

    def _ensure_open(self) -> None:
        if self._experiment is None and not self._stopped:
            try:
                self._experiment = self._open()
            except Exception as error:
                if not self._folders:  # nothing is lost yet: better an error before the first step than no record
                    raise
                self._stop(error)
        self._opened = True

    def _open(self) -> Any:
        os.environ.setdefault("WANDB_ERROR_REPORTING", "false")
        if self._mode != "disabled":
            self._folder.mkdir(parents=True, exist_ok=True)  # wandb would silently use the temporary folder
            os.environ.setdefault("WANDB_DATA_DIR", str(self._folder / "wandb" / "data"))
        mode, reason = self._mode, "as configured"
        if mode in ("auto", "online"):
            mode, reason = find_mode(self._probe and mode == "auto")
        if self._mode == "online" and mode != "online":
            raise ValueError(f"mode='online' is not possible: {reason}; use mode='auto' or 'offline' to go on without")
        try:
            run = self._start(mode)
        except Exception as error:
            if mode != "online" or self._mode == "online":
                raise
            mode, reason = "offline", f"could not start online: {in_short(error)}"
            _forget_service()  # it holds on to the id of the run that it could not start
            run = self._start(mode)
        where = run.url if mode == "online" else self.run_folder or "nothing is written"
        rank_zero_info("wandb: %s (%s): %s", mode, reason, where)
        return run

    def _start(self, mode: Any) -> Any:
        settings = wandb.Settings(
            silent=True, console="off", init_timeout=INIT_TIMEOUT_S, finish_timeout=FINISH_TIMEOUT_S
        )
        with suppress(AttributeError, ValueError):  # a private setting of wandb 0.31
            settings.x_transaction_log_flush_interval = FLUSH_EVERY_S
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
        if self._next_row:  # the rows go on, so that syncing a second folder writes over none of the first
            run.log({}, step=self._next_row)
        return run

    def _write_now(self, write: Callable[[Any], None]) -> None:
        """Hand the run to `write`, whatever happens to wandb meanwhile."""
        if self._stopped:
            return
        now = time.monotonic()
        while self._recent and now - self._recent[0][0] > KEPT_S:
            self._recent.popleft()
        self._recent.append((now, write))
        try:
            self._try(write)
        except Exception as error:
            self._replace_run(error)

    def _try(self, write: Callable[[Any], None]) -> None:
        """Let `write` raise only what is wandb's fault."""
        try:
            write(self._experiment)
        except (TypeError, ValueError) as error:
            self._warn_once("wandb refused a value, which is not logged", in_short(error))

    def _replace_run(self, error: Exception) -> None:
        self._num_failures += 1
        run: Any = self._experiment
        with suppress(Exception):
            run.finish(exit_code=1)  # else wandb tries again when this process exits
        self._let_go()
        _forget_service()
        if self._num_failures > 1:
            self._stop(error)
            return
        try:
            if self._folders and not any(mend_log(path) for path in self._folders[-1].glob("*.wandb")):
                self._folders.pop()
            self._experiment = self._start("offline")
            log.warning("wandb failed (%s): a fresh offline run takes over: %s", in_short(error), self.run_folder)
            for _, write in self._recent:
                self._try(write)
        except Exception as second_error:
            self._stop(second_error)

    def _finish(self, exit_code: int) -> None:
        while self._experiment is not None:
            try:
                self._experiment.finish(exit_code=exit_code)
                self._let_go()
            except Exception as error:
                self._replace_run(error)
        self._opened = False
        self._recent.clear()

    def _let_go(self) -> None:
        self._next_row = max(self._next_row, getattr(self._experiment, "_local_step", 0))
        self._experiment = None

    def _stop(self, error: Exception) -> None:
        self._experiment, self._stopped = None, True
        _forget_service()
        log.warning("wandb failed again (%s): nothing more is logged after %s", in_short(error), self.run_folder)

    def _warn_once(self, text: str, detail: str = "") -> None:
        if text not in self._said:
            log.warning("%s (said once) %s", text, detail)
        self._said.add(text)


def _forget_service() -> None:
    """Let go of wandb's process, dead or sick, so that the next run starts a new one and exiting stays quiet."""
    with suppress(Exception, SystemExit):
        wandb.teardown()
