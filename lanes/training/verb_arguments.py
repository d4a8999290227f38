"""The arguments that a verb of our own has beside the keys of a configuration.

Kept out: what the verbs do with them (commands.py).
"""

from lightning.pytorch.cli import LightningArgumentParser


def add_verb_arguments(verb: str, parser: LightningArgumentParser) -> None:
    """Add those of one verb; Lightning's own verbs have none."""
    if verb == "plan":
        parser.add_argument("--save", type=str, default=None, help="also write the plan to this YAML file")
    if verb == "check":
        parser.add_argument("--images", type=int, default=16, help="images that each replica reads, at most")
    if verb == "features":
        _add_images_of_a_checkpoint(parser, folder="features")
        parser.add_argument("--layer", type=str, required=True, help="name of a layer, as lanes plan shows it")
    if verb == "responses":
        _add_images_of_a_checkpoint(parser, folder="responses")
        parser.add_argument(
            "--layers", type=str, nargs="+", default=None, help="names of layers; default: all convolutions"
        )
        parser.add_argument(
            "--images", type=int, default=None, help="so many images, drawn once and for all; default: all of the split"
        )
        parser.add_argument(
            "--lanes", type=int, default=None, help="how many lanes are compared; default: as many as the network says"
        )


def _add_images_of_a_checkpoint(parser: LightningArgumentParser, *, folder: str) -> None:
    parser.add_argument("ckpt_path", type=str, help="the folder of a checkpoint")
    parser.add_argument("--out", type=str, default=None, help=f"folder to write to; default: the run's {folder}/")
    parser.add_argument("--split", choices=["val", "train"], default="val", help="of which images")
