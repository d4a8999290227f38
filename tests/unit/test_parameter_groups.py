"""Parameter groups: who gets which parameters, and what the optimizer makes of them."""

from functools import partial

import pytest
import torch
from torch import nn
from torch.optim import SGD, AdamW, Rprop

from lanes.models import SmallAlexNet
from lanes.training import Classifier, Linear, ParameterGroup
from lanes.training.parameter_groups import divide, make_optimizer

NAMES = ["conv1.weight", "conv1.bias", "conv2.weight", "conv2.bias", "fc8.weight", "fc8.bias"]
BIASES_OF_2012 = ParameterGroup("*.bias", lr_factor=2, weight_decay=0)


def small() -> nn.Module:
    with torch.device("meta"):
        return SmallAlexNet(10, 2)


def test_the_first_that_matches_takes_it_and_the_rest_comes_first() -> None:
    first, second = ParameterGroup(["conv1.*", "fc?.bias"]), ParameterGroup("*.bias")
    assert divide(NAMES, [first, second]) == [
        (None, ["conv2.weight", "fc8.weight"]),
        (first, ["conv1.weight", "conv1.bias", "fc8.bias"]),
        (second, ["conv2.bias"]),
    ]
    assert divide(NAMES, []) == [(None, NAMES)]
    everything = ParameterGroup("*")
    assert divide(NAMES, [everything]) == [(everything, NAMES)], "no empty group"


def test_biases_at_twice_the_rate_without_decay() -> None:
    net, own = small(), Linear(10)
    groups = [ParameterGroup("fc8.bias", schedule=own, settings={"momentum": 0.5}), BIASES_OF_2012]
    optimizer, schedules = make_optimizer(partial(SGD, lr=0.01, momentum=0.9, weight_decay=5e-4), net, groups)
    names = {id(p): name for name, p in net.named_parameters()}
    made = [
        ([names[id(p)] for p in g["params"]], g["lr"], g["weight_decay"], g["momentum"]) for g in optimizer.param_groups
    ]
    layers = ["conv1", "conv2", "conv3", "conv4", "conv5", "fc6", "fc7", "fc8"]
    assert made == [
        ([f"{layer}.weight" for layer in layers], 0.01, 5e-4, 0.9),
        (["fc8.bias"], 0.01, 5e-4, 0.5),
        ([f"{layer}.bias" for layer in layers[:-1]], 0.02, 0, 0.9),
    ]
    assert schedules == [None, own, None]


def test_rates_that_are_tensors_are_not_shared() -> None:
    optimizer, _ = make_optimizer(partial(AdamW, lr=torch.tensor(0.5)), small(), [BIASES_OF_2012])
    assert [float(group["lr"]) for group in optimizer.param_groups] == [0.5, 1.0]


def test_without_groups_the_optimizer_gets_the_parameters() -> None:
    net = small()
    optimizer, schedules = make_optimizer(lambda parameters: SGD([p for p in parameters if p.dim() > 1]), net, [])
    assert [p.dim() > 1 for p in optimizer.param_groups[0]["params"]] == [True] * 8
    assert schedules == [None]


@pytest.mark.parametrize(
    ("groups", "words"),
    [
        ([ParameterGroup("fc9.*")], r"no parameter matches 'fc9\.\*'; the nearest are .*fc8\.bias"),
        ([ParameterGroup(["*.bias", "conv2.wieght"])], r"no parameter matches 'conv2\.wieght'; .*conv2\.weight"),
        ([ParameterGroup("*"), ParameterGroup("*.bias")], r"'\*\.bias': earlier groups took all"),
    ],
)
def test_groups_that_match_nothing(groups: list[ParameterGroup], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        divide(NAMES, groups)
    classifier = Classifier(lambda: SmallAlexNet(10, 2), image_shape=(3, 64, 64), parameter_groups=groups)
    with pytest.raises(ValueError, match=words.split(";", maxsplit=1)[0]):
        classifier.check()


def test_settings_that_the_optimizer_does_not_know() -> None:
    with pytest.raises(ValueError, match=r"SGD has no setting 'momentun'; did you mean 'momentum'\?"):
        make_optimizer(partial(SGD, lr=0.1), small(), [ParameterGroup("*.bias", settings={"momentun": 0.5})])
    with pytest.raises(ValueError, match="Rprop has no setting 'weight_decay'"):
        make_optimizer(Rprop, small(), [BIASES_OF_2012])


@pytest.mark.parametrize(
    "make",
    [
        lambda: ParameterGroup([]),
        lambda: ParameterGroup(""),
        lambda: ParameterGroup("*.bias", lr_factor=-1),
        lambda: ParameterGroup("*.bias", weight_decay=-1e-4),
    ],
)
def test_senseless_groups(make: partial) -> None:
    with pytest.raises(ValueError, match=r"parameter group.*(at least one pattern|must not be negative)"):
        make()
