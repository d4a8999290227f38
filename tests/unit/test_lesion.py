"""Silencing lanes of made networks whose answers are known, and luminance."""

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from lanes.analysis.lesion import Accuracies, grey, lesion_table, silenced
from lanes.models import SmallAlexNet

CLASSES = 4


class ColourAndShape(nn.Module):
    """Lane 0 tells red from green, lane 1 a bright left from a bright right; both together tell four classes.

    conv1's channels: red, green; left, right. Class = 2 (green) + (right).
    """

    lanes = 2

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 4, (1, 4), bias=False)
        self.relu = nn.ReLU(inplace=True)
        self.head = nn.Linear(4, CLASSES)
        with torch.no_grad():
            self.conv1.weight.zero_()
            self.conv1.weight[0, 0], self.conv1.weight[1, 1] = 1, 1
            self.conv1.weight[2:, :, 0, :2] = torch.tensor([[1.0], [-1]]).unsqueeze(1)
            self.conv1.weight[2:, :, 0, 2:] = torch.tensor([[-1.0], [1]]).unsqueeze(1)
            self.head.bias.copy_(torch.tensor([0.01, 0.01, 0, 0]))  # in doubt red: ties are no matter of rounding
            self.head.weight.copy_(torch.tensor([[1, -1, 1, -1], [1, -1, -1, 1], [-1, 1, 1, -1], [-1, 1, -1, 1]]))

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.relu(self.conv1(x)).flatten(1))


def scenes(count: int = 40) -> tuple[Tensor, Tensor]:
    """Pictures of 1 x 4 pixels, uint8, of every class as many."""
    labels = torch.arange(count) % CLASSES
    images = torch.zeros(count, 3, 1, 4)
    for image, label in zip(images, labels, strict=True):
        colour, side = divmod(int(label), 2)
        image[colour] = 100
        image[colour, :, 2 * side : 2 * side + 2] = 200
    return images.to(torch.uint8), labels


def as_read(images: Tensor) -> Tensor:
    assert images.dtype == torch.uint8
    return images / 255


def test_each_lane_is_for_what_it_is_for() -> None:
    """Without colour, or the lane for it, half of the images are right; the lane for shape does not read colour."""
    images, labels = scenes()
    batches = list(zip(images.split(16), labels.split(16), strict=True))
    found = lesion_table(ColourAndShape(), batches, "conv1", num_classes=CLASSES, normalise=as_read)
    assert (found.layer, found.images) == ("conv1", 40)
    assert found.intact.colour == 1
    assert found.intact.grey == pytest.approx(0.5)
    without_colour, without_shape = found.without
    assert without_colour == Accuracies(0.5, 0.5), "on grey images nothing is lost"
    assert without_shape.colour == 0.5
    assert without_shape.grey == 0.25, "nothing to tell by"
    lines = str(found).splitlines()
    assert lines[0].split() == ["silenced", "at", "conv1", "colour", "grey"]
    assert lines[2].split() == ["nothing", "100.00", "%", "50.00", "%"]
    assert lines[4].split() == ["lane", "1", "50.00", "%", "25.00", "%"]


def test_the_network_is_left_as_it_was() -> None:
    net, (images, labels) = ColourAndShape(), scenes(4)
    net.head.eval()
    before = net(as_read(images))
    lesion_table(net, [(images, labels)], "relu", num_classes=CLASSES, normalise=as_read)
    assert torch.equal(net(as_read(images)), before)
    assert (net.training, net.conv1.training, net.head.training) == (True, True, False)
    assert not any(module._forward_hooks for module in net.modules())


def test_silenced_as_if_its_weights_were_zero() -> None:
    """At a grouped layer without bias: as if the lane had no weights there, forward and backward, dropout apart."""
    torch.manual_seed(0)
    net = SmallAlexNet(num_classes=3, lanes=2, image_size=32).double()
    images = torch.rand(2, 3, 32, 32, dtype=torch.float64)
    net.eval()
    outputs = []
    with silenced(net, "conv2", 1, lanes=2):
        outputs.append(net(images))
        outputs[0].sum().backward()
    assert net.conv2.weight.grad is not None
    assert net.conv2.weight.grad[48:].abs().max() == 0
    assert net.conv2.weight.grad[:48].abs().max() > 0
    with torch.no_grad():
        net.conv2.weight[48:] = 0
        net.conv2.bias[48:] = 0
        outputs.append(net(images))
    torch.testing.assert_close(*outputs, rtol=0, atol=0)


def test_other_hooks_see_what_the_layers_behind_see() -> None:
    net, seen = ColourAndShape(), []
    net.conv1.register_forward_hook(lambda layer, args, output: seen.append(output.clone()))
    with silenced(net, "conv1", 0, lanes=2):
        net(as_read(scenes()[0]))
    net(as_read(scenes()[0]))
    assert seen[0][:, :2].abs().max() == 0
    assert torch.equal(seen[0][:, 2:], seen[1][:, 2:])
    assert seen[1][:, :2].abs().max() > 0


def test_what_is_not_a_number_is_silenced_too() -> None:
    layer = nn.Sequential(nn.Conv1d(1, 4, 1))
    nn.init.constant_(layer[0].weight, torch.inf)
    with silenced(layer, "0", 2, lanes=4):
        assert layer(torch.ones(1, 1, 3))[0].isinf().all(1).tolist() == [True, True, False, True]


def test_grey() -> None:
    """As Pillow turns pictures grey, which rounds by other means: at most 1 apart; floating point to the last digit."""
    pixels = np.random.default_rng(0).integers(0, 256, (9, 11, 3), dtype=np.uint8)
    images = torch.from_numpy(pixels).permute(2, 0, 1)[None]
    ours = grey(images)
    assert ours.dtype == torch.uint8
    assert (ours[0, 0].numpy().astype(int) - np.asarray(Image.fromarray(pixels).convert("L"))).max() <= 1
    light = grey(images.double() / 255)
    torch.testing.assert_close(
        light[0, 1], (images.double() / 255 * torch.tensor([299, 587, 114]).view(3, 1, 1) / 1000).sum(1)[0]
    )
    for found in (ours, light):
        assert torch.equal(found[:, 0], found[:, 1])
        assert torch.equal(found[:, 0], found[:, 2])
    white = torch.ones(1, 3, 2, 2)
    torch.testing.assert_close(grey(white), white)
    with pytest.raises(ValueError, match="no colour to take out"):
        grey(torch.ones(1, 1, 2, 2))


def test_refused() -> None:
    net, batch = ColourAndShape(), scenes(4)
    how = {"num_classes": CLASSES, "normalise": as_read}
    with pytest.raises(ValueError, match="no layer 'conv2'; did you mean 'conv1'"):
        lesion_table(net, [batch], "conv2", **how)
    with pytest.raises(ValueError, match="4 channels do not divide over 3 lanes"):
        lesion_table(net, [batch], "conv1", lanes=3, **how)
    with pytest.raises(ValueError, match="no images"):
        lesion_table(net, [], "conv1", **how)
    with pytest.raises(ValueError, match="lane 2 of lanes=2 does not exist"), silenced(net, "conv1", 2, lanes=2):
        pass
    with pytest.raises(ValueError, match="Sequential has no attribute lanes"):
        lesion_table(nn.Sequential(net), [batch], "0.conv1", **how)
    assert not net.conv1._forward_hooks, "none is left behind"
