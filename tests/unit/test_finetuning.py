"""Starting from plain weights: what fits, what does not, and what is said of it."""

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from lanes.checkpoint import DamagedError, save_checkpoint
from lanes.models import SmallAlexNet
from lanes.training import Classifier
from lanes.training.finetuning import check_weights, load_weights


def small(seed: int = 0, classes: int = 10) -> SmallAlexNet:
    torch.manual_seed(seed)
    return SmallAlexNet(classes, 2, image_size=32)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """A net of seven classes."""
    save_file(small(5, 7).state_dict(), tmp_path / "seven.safetensors")
    return tmp_path / "seven.safetensors"


def test_all_but_what_is_skipped(file: Path, tmp_path: Path) -> None:
    save_checkpoint(tmp_path / "last.ckpt", small(5, 7))
    theirs, fresh = load_file(file), small().state_dict()
    for path in (file, tmp_path / "last.ckpt"):
        net = small()
        load_weights(net, path, ["fc8.*"])
        for name, tensor in net.state_dict().items():
            assert torch.equal(tensor, fresh[name] if name.startswith("fc8.") else theirs[name]), name


def test_what_is_read_of_a_checkpoint_must_be_what_was_written(tmp_path: Path) -> None:
    """The averaged weights, if it has any; whatever has become of the rest."""
    average = small(7).state_dict()
    path, net = tmp_path / "last.ckpt", small(3)
    save_checkpoint(path, small(5), extra={"average": average})
    (path / "state.json").unlink()
    (path / "model.safetensors").write_text("junk")
    load_weights(net, path)
    assert all(torch.equal(tensor, average[name]) for name, tensor in net.state_dict().items())
    (path / "average.safetensors").unlink()
    with pytest.raises(DamagedError, match=r"average\.safetensors is missing; no checkpoint beside it is whole"):
        load_weights(net, path)
    for given in (path, path / "model.safetensors"):
        with pytest.raises(DamagedError, match=r"is missing|has 4 bytes"):
            check_weights(net, given)
    assert all(torch.equal(tensor, average[name]) for name, tensor in net.state_dict().items())


def test_half_precision_is_widened(tmp_path: Path) -> None:
    weights = {name: t.half() for name, t in small(5).state_dict().items()}
    save_file(weights, tmp_path / "half.safetensors")
    net = small()
    load_weights(net, tmp_path / "half.safetensors")
    assert net.conv1.weight.dtype == torch.float32
    assert torch.equal(net.conv1.weight, weights["conv1.weight"].float())


def without(name: str) -> dict[str, Tensor]:
    return {key: t for key, t in small().state_dict().items() if key != name}


@pytest.mark.parametrize(
    ("weights", "skip", "words"),
    [
        (small(0, 7).state_dict(), [], ["'fc8.weight' is [7, 256] in it and [10, 256] in", "init_skip: ['fc8.*']"]),
        (without("conv3.bias"), [], ["has no 'conv3.bias', which the network has", "init_skip: ['conv3.*']"]),
        (small().state_dict() | {"fc9.bias": torch.ones(3)}, [], ["it has 'fc9.bias', which the network has not"]),
        (without("fc8.bias") | {"fc8.bais": torch.ones(10)}, [], ["no 'fc8.bias'", "did you mean 'fc8.bais'?"]),
        (small().state_dict(), ["fc8.wieght"], ["init_skip: no parameter matches 'fc8.wieght'; did you mean 'fc8.w"]),
        (small().state_dict(), ["*"], ["leaves nothing of"]),
    ],
)
def test_what_does_not_fit(tmp_path: Path, weights: dict[str, Tensor], skip: list[str], words: list[str]) -> None:
    path = tmp_path / "some.safetensors"
    save_file(weights, path)
    net, fresh = small(), small().state_dict()
    with torch.device("meta"):
        shapes_only = SmallAlexNet(10, 2, image_size=32)
    for call, model in ((load_weights, net), (check_weights, shapes_only)):
        with pytest.raises(ValueError, match=re.escape(words[0])) as error:
            call(model, path, skip)
        assert all(word in str(error.value) for word in words)
        assert "\n" not in str(error.value)
    assert all(torch.equal(t, fresh[name]) for name, t in net.state_dict().items()), "left as it was"


def test_skipping_covers_both_sides(tmp_path: Path) -> None:
    save_file(without("fc8.bias") | {"aux.weight": torch.ones(3)}, tmp_path / "some.safetensors")
    check_weights(small(), tmp_path / "some.safetensors", ["fc8.bias", "aux.*"])


def test_no_file_and_no_safetensors(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"nowhere is neither a \.safetensors file nor a checkpoint folder"):
        check_weights(small(), tmp_path / "nowhere")
    (tmp_path / "junk.safetensors").write_text("junk")
    with pytest.raises(ValueError, match="is no safetensors file"):
        check_weights(small(), tmp_path / "junk.safetensors")


@pytest.mark.parametrize("suffix", [".pt", ".pth"])
def test_pickled_weights_are_refused_and_the_line_that_is_told_converts_them(tmp_path: Path, suffix: str) -> None:
    pickled = tmp_path / f"a net{suffix}"
    torch.save(small(5).state_dict(), pickled)
    with pytest.raises(ValueError, match="is pickled") as error:
        check_weights(small(), pickled)
    command = shlex.split(str(error.value).split("once: ")[1])
    subprocess.run([sys.executable, *command[1:]], check=True, timeout=120)
    net = small()
    load_weights(net, pickled.with_suffix(".safetensors"))
    assert torch.equal(net.fc8.weight, small(5).fc8.weight)


def test_a_net_on_meta_is_refused(file: Path) -> None:
    with torch.device("meta"):
        net = SmallAlexNet(7, 2, image_size=32)
    with pytest.raises(ValueError, match="built on the CPU"):
        load_weights(net, file)


def test_the_classifier_checks_before_anything_starts(file: Path) -> None:
    good = Classifier(small, image_shape=(3, 32, 32), init_from=file, init_skip=["fc8.*"])
    good.check()
    with pytest.raises(ValueError, match="does not fit the network"):
        Classifier(small, image_shape=(3, 32, 32), init_from=file).check_init()
    with pytest.raises(ValueError, match="no meaning without init_from"):
        Classifier(small, image_shape=(3, 32, 32), init_skip=["fc8.*"])


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"label_smoothing": 1.0}, "label_smoothing=1.0 must be from 0 to below 1"),
        ({"compile_backend": "indcutor"}, "there is no 'indcutor'; did you mean 'inductor'"),
    ],
)
def test_bad_arguments_of_the_classifier(arguments: dict, words: str) -> None:
    with pytest.raises(ValueError, match=re.escape(words)):
        Classifier(small, **arguments)
