"""The bottleneck block: against its formula, its three forms against each other, errors that name the way out."""

import itertools

import pytest
import torch
from torch import Tensor, nn

import lanes
from lanes.models import Bottleneck, CifarResNeXt, carry_weights
from lanes.models.bottleneck import grouped_tensors

CARDINALITIES = [(8, 1), (8, 2), (12, 4), (12, 12)]  # width, groups: from dense to depthwise


def shaken(net: nn.Module) -> nn.Module:
    """The network in float64, with parameters and statistics of which none is 0 or 1, as if it had learned."""
    net = net.double()
    with torch.no_grad():
        for tensor in itertools.chain(net.parameters(), net.buffers()):
            if tensor.is_floating_point():
                tensor.add_(torch.rand_like(tensor) * 0.5 + 0.1)
            else:
                tensor.add_(3)
    return net


def run(net: nn.Module, x: Tensor) -> dict[str, dict[str, Tensor]]:
    """One pass in training mode, one in evaluation mode: all that forms must agree in, by the grouped form's names."""
    x = x.clone().requires_grad_()
    net.train()
    y = net(x)
    weights = torch.randn(y.shape, generator=torch.Generator().manual_seed(1), dtype=y.dtype)
    (y * weights).sum().backward()
    gradients = {name: parameter.grad for name, parameter in net.named_parameters()}
    with torch.no_grad():
        evaluated = net.eval()(x)
    return {
        "outputs": {"training": y.detach(), "evaluation": evaluated, "input gradient": x.grad},
        "gradients": grouped_tensors(gradients),
        "state": grouped_tensors(net.state_dict()),
    }


@pytest.mark.parametrize(("strided", "sides"), [("conv2", (8, 4)), ("conv1", (4, 4))])
def test_the_stride_is_where_it_is_asked_for(strided: str, sides: tuple[int, int]) -> None:
    block = Bottleneck(4, 8, 16, stride=2, strided=strided)
    x = torch.randn(2, 4, 8, 8)
    assert tuple(block.conv1(x).shape[2:]) == (sides[0],) * 2
    assert block(x).shape == (2, 16, sides[1], sides[1])
    assert block(torch.randn(2, 4, 7, 9)).shape == (2, 16, 4, 5)


def test_a_block_computes_what_its_layers_say() -> None:
    """Against the formula, written out with functions: ReLU behind two norms and behind the sum."""
    torch.manual_seed(0)
    block = shaken(Bottleneck(6, 8, 12, groups=2, stride=2))
    x = torch.randn(3, 6, 5, 5, dtype=torch.float64)

    def normed(y: Tensor, norm: nn.BatchNorm2d) -> Tensor:
        mean, var = y.mean((0, 2, 3), keepdim=True), y.var((0, 2, 3), correction=0, keepdim=True)
        return (y - mean) / (var + 1e-5).sqrt() * norm.weight.view(-1, 1, 1) + norm.bias.view(-1, 1, 1)

    conv = nn.functional.conv2d
    y = normed(conv(x, block.conv1.weight), block.bn1).clamp(min=0)
    y = normed(conv(y, block.conv2.weight, stride=2, padding=1, groups=2), block.bn2).clamp(min=0)
    y = normed(conv(y, block.conv3.weight), block.bn3)
    y = y + normed(conv(x, block.downsample[0].weight, stride=2), block.downsample[1])
    torch.testing.assert_close(block(x), y.clamp(min=0), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(("width", "groups"), CARDINALITIES)
@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("strided", ["conv2", "conv1"])
@pytest.mark.parametrize("out_channels", [10, 6])
def test_the_three_forms_are_one(width: int, groups: int, stride: int, strided: str, out_channels: int) -> None:
    """The outputs, statistics and all gradients, in float64; with and without a projection (6 -> 6, stride 1)."""
    torch.manual_seed(0)
    x = torch.randn(4, 6, 7, 7, dtype=torch.float64)
    arguments = {"groups": groups, "stride": stride, "strided": strided}
    blocks = {
        form: shaken(Bottleneck(6, width, out_channels, **arguments, form=form))
        for form in ("sum", "concat", "grouped")
    }
    with torch.no_grad():
        assert not torch.allclose(blocks["sum"](x), blocks["grouped"](x))  # they differ until weights are carried
    carry_weights(blocks["sum"], blocks["concat"])
    carry_weights(blocks["concat"], blocks["grouped"])
    found = {form: run(block, x) for form, block in blocks.items()}
    for form in ("sum", "concat"):
        torch.testing.assert_close(found[form], found["grouped"], rtol=1e-12, atol=1e-12)


def test_weights_are_carried_from_every_form_to_every_form() -> None:
    torch.manual_seed(0)
    forms = ("grouped", "concat", "sum")
    blocks = {form: shaken(Bottleneck(6, 8, 10, groups=4, form=form)) for form in forms}
    for source, target in itertools.product(forms, forms):
        other = Bottleneck(6, 8, 10, groups=4, form=target).double()
        carry_weights(blocks[source], other)
        back = Bottleneck(6, 8, 10, groups=4, form=source).double()
        carry_weights(other, back)
        torch.testing.assert_close(back.state_dict(), blocks[source].state_dict(), rtol=0, atol=0)


def test_whole_networks_are_one_in_three_forms() -> None:
    torch.manual_seed(0)
    arguments = {"depth": 11, "stem_channels": 4, "cardinality": 2, "base_width": 2}
    grouped = CifarResNeXt(**arguments).double()
    x = torch.randn(3, 3, 16, 16, dtype=torch.float64)
    nets = {form: CifarResNeXt(**arguments, form=form).double() for form in ("concat", "sum")}
    for net in nets.values():
        carry_weights(grouped, net)
        found, expected = lanes.grouping_report(net), lanes.grouping_report(grouped)
        assert (found.parameters, found.multiply_adds) == (expected.parameters, expected.multiply_adds)
    computed = run(grouped, x)
    for net in nets.values():
        torch.testing.assert_close(run(net, x), computed, rtol=1e-12, atol=1e-12)


def test_batch_norm_of_each_path_before_the_sum_would_be_another_function() -> None:
    """Why form "sum" has one bn3: normalising what is added is not normalising the sum."""
    torch.manual_seed(0)
    block = Bottleneck(6, 8, 10, groups=2, form="sum").double()
    paths = [path(torch.randn(4, 6, 7, 7, dtype=torch.float64)) for path in block.paths]
    with torch.no_grad():
        assert not torch.allclose(block.bn3(paths[0] + paths[1]), block.bn3(paths[0]) + block.bn3(paths[1]), rtol=0.1)


@pytest.mark.parametrize("other", [{"groups": 2}, {"width": 16}, {"out_channels": 12}, {"in_channels": 10}])
def test_weights_are_not_carried_between_different_blocks(other: dict) -> None:
    arguments = {"in_channels": 6, "width": 8, "out_channels": 10, "groups": 4}
    source, target = Bottleneck(**arguments), Bottleneck(**(arguments | other), form="concat")
    with pytest.raises(
        ValueError, match=r"conv.*weight is .* in the source and .* in the target; carry weights between"
    ):
        carry_weights(source, target)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"groups": 3}, "a 3x3 of 8 channels does not divide into 3 groups; use a number of groups that divides 8"),
        ({"stride": 0}, "stride must be a whole number of at least 1, got 0"),
        ({"width": 0}, "width must be a whole number of at least 1, got 0"),
        ({"form": None}, "form must be one of 'grouped', 'concat', 'sum', got None"),
    ],
)
def test_blocks_refuse_bad_arguments(arguments: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Bottleneck(**({"in_channels": 4, "width": 8, "out_channels": 16} | arguments))
