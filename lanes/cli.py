"""The command ``lanes``: a thin dispatcher that imports nothing heavy until it knows what is asked for."""

import importlib
import sys

from lanes.faults.orphans import end_with_supervisor
from lanes.faults.telling import tell_supervisor
from lanes.jobs.early import look_out
from lanes.words import near

VERBS = {
    "fit": "train a network, e.g.  lanes fit -c configs/photographs.yaml",
    "validate": "evaluate a checkpoint on the validation images",
    "test": "evaluate a checkpoint on the test images",
    "predict": "write a checkpoint's predictions to a CSV file",
    "plan": "show which layers stay in their lane and which cross, without training",
    "check": "compare the placed network with the plain one on this mesh and data, in float64",
    "sweep": "list the runs of a sweep, or train one:  lanes sweep configs/sweeps/lanes.yaml [--run 0]",
    "features": "write a layer's outputs for every image:  lanes features -c CONFIG CHECKPOINT --layer NAME",
    "responses": "measure layers on images, lane by lane:  lanes responses -c CONFIG CHECKPOINT [--layers NAME ...]",
    "models": "list the networks that have a name:  lanes models;  all about one:  lanes models resnext50_32x4d",
    "filters": "a checkpoint's filters lane by lane, as pictures and numbers:  lanes filters runs/photographs/1",
    "workspace": "make a Weights & Biases workspace for runs in lanes:  lanes workspace runs/photographs/1",
    "status": "show jobs and trainings: state, step, time left, last checkpoint:  lanes status [JOB ...]",
    "network": "measure the links between all ranks and name the slow ones:  srun lanes network",
    "report": "show runs on one page, live or as a file:  lanes report RUN [RUN ...] -o report.html",
}

LIGHT = {  # verbs that do without Lightning's parser, and where they are; nothing is imported for the others
    "models": "lanes.listing",
    "report": "lanes.report.command",
    "filters": "lanes.looking.command",
    "workspace": "lanes.workspace.command",
    "network": "lanes.network.command",
    "status": "lanes.status.command",
}

KEYS = {  # of a configuration: the project's own, and those of Lightning that one needs every day
    "-c FILE": "a configuration; any of its keys can be given on the command line as well",
    "--seed_everything": "of weights, order of images, masks and augmentation",
    "--trainer.devices": "processes; with trainer.num_nodes, on every node",
    "--trainer.strategy.lane_devices": "devices over which the lanes of one replica are spread; what is left: replicas",
    "--trainer.accelerator": "cpu, gpu, auto",
    "--trainer.precision": "32-true, bf16-mixed, ...",
    "--trainer.max_epochs": "how long to train; also trainer.max_steps, trainer.max_time",
    "--trainer.gradient_clip_val": "largest norm of all gradients together",
    "--trainer.accumulate_grad_batches": "batches for one optimizer step",
    "--trainer.log_every_n_steps": "how often rates and health are logged",
    "--trainer.default_root_dir": "where runs get their numbered folders",
    "--model.net": "class of the network; its arguments below --model.net.init_args",
    "--model.optimizer": "class of torch.optim; its arguments below --model.optimizer.init_args",
    "--model.schedule": "of the learning rate: lanes.training.WarmupCosine, StepDecay, ...",
    "--model.parameter_groups": "layers with a rate, weight decay or schedule of their own",
    "--model.label_smoothing": "share of the target that is spread over all classes",
    "--model.init_from": "weights to start from (fine-tuning)",
    "--model.override": "layer name: way of placing it, where the planner's choice is not wanted",
    "--model.sync_batch_norm": "batch-norm statistics over all replicas",
    "--data": "lanes.training.Images, Photographs; arguments below --data.init_args",
    "--checkpoint.monitor": "what makes a checkpoint the best; also checkpoint.mode, .save_top_k, ...",
    "--report": "true: end by writing the run's page, report.html (lanes report)",
    "--run": "name of the run's folder, instead of a number; fit goes on with it if it has a checkpoint",
    "--ckpt_path": "the checkpoint to go on from, or to evaluate; last: the newest whole one of the newest run",
}


def _help_of(verb: str) -> str:
    keys = "\n".join(f"  {key:34}{text}" for key, text in KEYS.items())
    return (
        f"usage: lanes {verb} -c CONFIG [--KEY VALUE ...]\n\n{VERBS[verb]}\n\n{keys}\n\n"
        f"lanes {verb} --help_all lists all keys, Lightning's too. lanes {verb} -c CONFIG --print_config shows a\n"
        "configuration with every default."
    )


def _help() -> str:
    verbs = "\n".join(f"  {verb:10}{text}" for verb, text in VERBS.items())
    return (
        "usage: lanes VERB -c CONFIG [--KEY VALUE ...]\n\n"
        "Train convolutional networks in lanes: every channel group on its own device,\n"
        "meeting only at chosen layers.\n\n"
        f"verbs:\n{verbs}\n\n"
        "lanes VERB --help lists the keys that matter, --help_all all of them.\n"
        "lanes --version prints the version. LANES_DEBUG=1 shows the stack trace of an error."
    )


def main(argv: list[str] | None = None) -> None:
    """Run one verb; exit code 0 when it went well, 1 when it did not (check, training), 2 for wrong input."""
    end_with_supervisor()
    argv = sys.argv[1:] if argv is None else argv
    tell_supervisor(gets_on=argv[:1] != ["fit"])  # what else there is has no steps to tell of
    if not argv or argv[0] in ("-h", "--help", "help"):
        print(_help())
        return
    if argv[0] == "--version":
        from lanes import __version__  # noqa: PLC0415

        print(__version__)
        return
    if argv[0] not in VERBS:
        print(
            f"lanes: error: there is no verb {argv[0]!r}{near(argv[0], VERBS)} (lanes --help lists them)",
            file=sys.stderr,
        )
        raise SystemExit(2)
    verb, args = argv[0], argv[1:]
    if verb == "fit":
        look_out()
    if verb in ("fit", "validate", "test", "predict") and {"-h", "--help"} & set(args):
        print(_help_of(verb))
        return
    if verb == "sweep":
        from lanes.sweeps import run as sweep  # noqa: PLC0415

        if command := sweep(args):
            main(command)
        return
    if verb in LIGHT:
        importlib.import_module(LIGHT[verb]).run(args)
        return
    from lanes.training.commands import run  # noqa: PLC0415  (imports Lightning, which takes seconds)

    run(verb, ["--help" if arg == "--help_all" else arg for arg in args])
