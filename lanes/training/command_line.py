"""The verbs that read a configuration: LightningCLI, with checks before anything is spent.

Kept out: telling mistakes in one line (commands.py), the verbs' own arguments (verb_arguments.py).
"""

import os
import sys
from pathlib import Path
from typing import Any, NoReturn

import yaml
from lightning.pytorch import Callback, LightningDataModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint, RichProgressBar
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI
from lightning.pytorch.utilities.rank_zero import rank_zero_only

from lanes.checkpoint import check_checkpoint
from lanes.faults.agreement import Agreement
from lanes.faults.last import LastCheckpoint
from lanes.faults.supervisor import supervise
from lanes.faults.watch import Watch
from lanes.jobs.attempts import Attempt
from lanes.training.beginning import begin
from lanes.training.callback_checks import check_callbacks
from lanes.training.callbacks import Health, PlanReport, PredictionWriter, Rates
from lanes.training.checks import check_placed
from lanes.training.features import FeatureWriter
from lanes.training.image_choice import check_images, in_order
from lanes.training.layer_choice import RunLayers, lanes_of
from lanes.training.layout import choose_lane_devices, say_layout, take_layout
from lanes.training.module import Classifier
from lanes.training.progress_file import ProgressFile
from lanes.training.responses import ResponseMeasures
from lanes.training.results import fit_results, near_path
from lanes.training.room import check_room
from lanes.training.run_folders import run_of
from lanes.training.strategy import LaneStrategy
from lanes.training.verb_arguments import add_verb_arguments
from lanes.training.which_run import place_run, steps_of


class Mistake(Exception):
    """Wrong input, told in one line."""


class LostError(RuntimeError):
    """A training has ended, and its last checkpoint could not be written."""


class _Parser(LightningArgumentParser):
    """Raises what is wrong instead of printing the usage of two hundred keys; a word cut short is wrong, too."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **{**kwargs, "allow_abbrev": False})

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        raise Mistake(message)


class LanesCLI(LightningCLI):
    """LightningCLI for a :class:`Classifier` on a :class:`LaneStrategy`; every ``fit`` has a folder of its own."""

    def __init__(self, verb: str, args: list[str]) -> None:
        self.checked = False  # once it is, errors are no mistakes of the input any more
        self.attempt: Attempt | None = None  # of a job, on its first process, once training begins
        self.held: Any = None
        self.verb, self.args = verb, args
        lightnings = verb in self.subcommands()
        super().__init__(
            Classifier,
            LightningDataModule,
            subclass_mode_data=True,
            seed_everything_default=0,
            save_config_kwargs={"overwrite": True},
            trainer_defaults={
                "strategy": {"class_path": "lanes.training.LaneStrategy"},
                "logger": {"class_path": "lanes.training.LanesLogger"},
                "default_root_dir": "runs/lanes",
                "enable_model_summary": False,  # the plan tells more
                "callbacks": [*(PlanReport(), Rates(), Health(), PredictionWriter(), RichProgressBar(leave=True))],
            },
            parser_class=_Parser,
            args=[verb, *args] if lightnings else args,
            run=lightnings,
            auto_configure_optimizers=False,
        )

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """The checkpoint callback's keys, and the image size that the data tells the model."""
        parser.add_lightning_class_args(ModelCheckpoint, "checkpoint")
        parser.add_lightning_class_args(Watch, "watch")
        parser.set_defaults(
            {
                "checkpoint.monitor": "val/top1",
                "checkpoint.mode": "max",
                "checkpoint.filename": "epoch={epoch:03d}-step={step:06d}",
                "checkpoint.auto_insert_metric_name": False,
            }
        )
        add_verb_arguments(self.verb, parser)
        # Of every verb, since all of them read the configuration of a training.
        parser.add_argument("--report", type=bool, default=False, help="end fit by writing the run's page, report.html")
        parser.add_argument(
            "--restarts", type=int, default=0, help="how often fit goes on by itself after a process has failed"
        )
        parser.add_argument(
            "--last_every_n_steps",
            type=int,
            default=1000,
            help="how often last.ckpt is written inside an epoch, in steps, beside its end; 0: not",
        )
        parser.add_argument(
            "--run",
            type=str | None,
            default=None,
            help="name of the run's folder, instead of a number; fit goes on with it if it has a checkpoint",
        )
        parser.link_arguments("data.image_shape", "model.image_shape", apply_on="instantiate")

    @property
    def watch(self) -> Watch | None:
        """What watches over training, once it has begun."""
        watch = self._get(self.config_init, "watch") if hasattr(self, "config_init") else None
        return watch if isinstance(watch, Watch) and watch.here else None

    @property
    def _config(self) -> Any:
        """Of the verb."""
        return self.config[self.subcommand] if self.subcommand else self.config

    def before_instantiate_classes(self) -> None:
        """Choose the folder, below trainer.default_root_dir or the checkpoint's; a job of SLURM brings its layout."""
        take_layout(self._config.trainer)
        place_run(self._config, self.verb)
        if self.verb != "fit":
            self.save_config_callback = None

    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        """Beside the best checkpoint keep the last; let processes agree on signals and batches."""
        settings = self._get(self.config_init, "trainer")
        given = settings.callbacks if isinstance(settings.callbacks, list) else [settings.callbacks]
        replaced = {type(callback) for callback in given}  # a default gives way to what the configuration has instead
        if settings.enable_progress_bar is False:
            replaced.add(RichProgressBar)
        callbacks = self.trainer_defaults["callbacks"]
        self.trainer_defaults["callbacks"] = [c for c in callbacks if type(c) not in replaced]
        trainer = super().instantiate_trainer(**kwargs)
        if isinstance(trainer.strategy, LaneStrategy):
            trainer.strategy.goes_on_from = steps_of(self._config.get("ckpt_path"))
            trainer.strategy.about["config"] = yaml.safe_load(self._parser(self.subcommand).dump(self._config))
        for checkpoints in trainer.checkpoint_callbacks:
            if isinstance(checkpoints, ModelCheckpoint) and checkpoints.dirpath is None:  # Lightning's is in the log
                checkpoints.dirpath = os.path.realpath(self._config.checkpoint.dirpath)
        environment = trainer.strategy.cluster_environment  # type: ignore[attr-defined]
        if hasattr(environment, "auto_requeue"):
            environment.auto_requeue = False  # it would save inside a signal handler; slurm/after.sh starts jobs again
        last = LastCheckpoint(self._config.checkpoint.dirpath, self._config.last_every_n_steps)
        trainer.callbacks += [ProgressFile(), Agreement(last), last]  # type: ignore[attr-defined]
        return trainer

    def layout(self) -> int:
        """The number of lane devices that the configuration leads to.

        Raises:
            ValueError: it cannot be.
        """
        strategy = self.trainer.strategy
        if not isinstance(strategy, LaneStrategy):
            raise ValueError(f"trainer.strategy is {type(strategy).__name__}; use lanes.training.LaneStrategy")
        self.model.trainer = self.trainer
        return choose_lane_devices(
            self.model,
            strategy.lane_devices,
            strategy.num_processes,
            self.trainer.num_nodes,
            across_nodes=strategy.across_nodes,
        )

    def check(self) -> None:
        """Find the mistakes that can be found before processes start: layout, network, data, checkpoint.

        Then, of several processes on this node, start them: each runs the verb, and this one watches.

        Raises:
            ValueError: names the value and the way out.
            SystemExit: the processes that this one has started are through.
        """
        model, lane_devices = self.model, self.layout()
        say_layout(self.trainer, model, lane_devices, getattr(self.datamodule, "batch_size", None))
        environment: Any = self.trainer.strategy.cluster_environment  # type: ignore[attr-defined]
        started = environment.creates_processes_externally
        if started:
            self.trainer.strategy.check_network()  # type: ignore[attr-defined]
        self.datamodule.trainer = self.trainer
        self.datamodule.prepare_data()
        classes = getattr(self.datamodule, "num_classes", None)
        if classes is not None and classes != model.num_classes:
            raise ValueError(
                f"the data have {classes} classes, the network tells {model.num_classes} apart; set num_classes to "
                f"{classes}"
            )
        path = self._config.get("ckpt_path")
        if path:
            model.init_from = None  # the checkpoint's weights replace them; the file need not be there any more
        model.check()
        check_callbacks(self.trainer, model, self.datamodule, lane_devices=lane_devices, fits=self.verb == "fit")
        if path and path not in ("best", "hpc"):
            check_checkpoint(path, model.plain_net())
        if self.verb == "fit" and self.trainer.is_global_zero:
            check_room(self.trainer, model, Path(self._config.checkpoint.dirpath))
        supervises = self.trainer.world_size > 1 and not started
        if self.verb == "fit" and self.trainer.is_global_zero and not supervises:
            self.held, self.attempt = begin(self.trainer, self._config.get("ckpt_path"))
        self.checked = True
        if supervises:
            command = [sys.executable, "-m", "lanes", self.verb, *self.args]
            restarts = self._config.restarts if self.verb == "fit" else 0
            patience_s = self._config.watch.start_timeout_s
            raise SystemExit(supervise(command, self.trainer.num_devices, restarts=restarts, patience_s=patience_s))

    before_fit = before_validate = before_test = before_predict = check

    @rank_zero_only
    def after_fit(self) -> None:
        """Say how it went and where everything is."""
        print(fit_results(self.trainer, report=self._config.report))
        strategy = self.trainer.strategy
        assert isinstance(strategy, LaneStrategy)
        if failure := strategy.written():
            raise LostError(failure)
        if self.attempt:
            self.attempt.completed(self.trainer.global_step)

    @rank_zero_only
    def after_predict(self) -> None:
        """Say where the predictions are."""
        print(f"predictions:     {near_path(self.trainer.default_root_dir)}/predictions-*.csv")

    def show_plan(self) -> None:
        """The verb ``plan``."""
        lane_devices = self.layout()
        plan = self.model.plan(lane_devices)
        print(f"mesh: {self.trainer.world_size // lane_devices} x {lane_devices} (replicas x lane devices)\n{plan}")
        if self.config.save:
            plan.save(self.config.save)

    def check_placed(self) -> None:
        """The verb ``check``.

        Raises:
            SystemExit: code 1, the placed network is not the plain one.
        """
        if self.config.images < 1:
            raise ValueError(f"--images {self.config.images} is too few: give at least 1")
        self.check()
        self.checked = False  # what cannot be checked is a mistake of the input too, which all processes find
        report = check_placed(self.trainer, self.model, self.datamodule, self.config.images)
        if self.trainer.is_global_zero:
            print(f"mesh: {report.replicas} x {report.lane_devices} (replicas x lane devices), float64\n{report}")
            raise SystemExit(0 if report.passed else 1)

    def write_features(self) -> None:
        """The verb ``features``."""
        path, layer, split = self.config.ckpt_path, self.config.layer, self.config.split
        folder = Path(self.config.out or run_of(path) / "features")
        writer = FeatureWriter(layer, folder, about={"checkpoint": str(path), "split": split})
        RunLayers(self.model, self.model.plan(self.layout())).check(layer)
        self.check()
        self._predict(writer)
        if self.trainer.is_global_zero:
            print(f"features: {near_path(folder)}/{writer.pattern}")

    def measure_responses(self) -> None:
        """The verb ``responses``."""
        path, split, images = self.config.ckpt_path, self.config.split, self.config.images
        folder = Path(self.config.out or run_of(path) / "responses")
        lane_devices = self.layout()
        check_images(images, replicas=self.trainer.world_size // lane_devices)
        run_layers = RunLayers(self.model, self.model.plan(lane_devices))
        layers = run_layers.chosen(self.config.layers)
        lanes = lanes_of(self.model.plain_net(), self.config.lanes)
        laned = run_layers.divided(layers, lanes)
        if self.config.lanes and not laned:
            raise ValueError(f"--lanes {lanes}: {', '.join(layers)} have no channels that divide over so many lanes")
        measures = ResponseMeasures(
            layers,
            laned=laned,
            lanes=lanes,
            folder=folder,
            about={"checkpoint": str(path), "split": split},
        )
        measures.check(self.model.image_shape, self.datamodule)
        self.check()
        self.datamodule.views = 1  # what is measured is measured on the centre crop
        self._predict(measures, images=images)
        if self.trainer.is_global_zero:
            print(f"{measures.words}\n\nresponses: {near_path(folder)}")

    def _predict(self, looking: Callback, *, images: int | None = None) -> None:
        """Run the checkpoint on the split's images, every one once, and let one callback look on.

        Args:
            looking: the callback.
            images: so many of them, drawn; None: all.
        """
        data, trainer = self.datamodule, self.trainer
        self.model.compile_backend = None  # layers are looked at one by one
        loader = data.train_dataloader if self.config.split == "train" else data.val_dataloader
        as_it_is = self.config.split == "val" and images is None
        data.predict_dataloader = loader if as_it_is else lambda: in_order(loader(), images=images)
        trainer.callbacks = [c for c in trainer.callbacks if not isinstance(c, PredictionWriter)]  # type: ignore[attr-defined]
        trainer.callbacks.append(looking)  # type: ignore[attr-defined]
        trainer.predict(self.model, datamodule=data, ckpt_path=self.config.ckpt_path, return_predictions=False)
