"""The small layers against formulas written by hand and PyTorch's own: values, half precision, draws, errors."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lanes.models import ChannelLayerNorm, Concat, DropPath, LayerScale, SqueezeExcitation
from tests.building import on_meta

HALVES = [torch.float16, torch.bfloat16]
SPATIAL = [(), (5,), (4, 3), (2, 3, 2)]


def gradients(function, x: Tensor, seed: Tensor) -> tuple[Tensor, Tensor]:
    """The function's output for x, and the gradient of x for the output's gradient `seed`."""
    x = x.detach().clone(memory_format=torch.preserve_format).requires_grad_()
    y = function(x)
    (dx,) = torch.autograd.grad(y, x, seed)
    return y.detach(), dx


# --- Concat


def test_concat_keeps_the_order_and_hands_every_branch_its_gradient() -> None:
    parts = [torch.randn(2, channels, 3, 3, requires_grad=True) for channels in (4, 1, 3)]
    joined = Concat()(*parts)
    assert joined.shape == (2, 8, 3, 3)
    for found, part in zip(joined.split([4, 1, 3], dim=1), parts, strict=True):
        assert torch.equal(found, part)
    seed = torch.randn(2, 8, 3, 3)
    joined.backward(seed)
    assert torch.equal(torch.cat([part.grad for part in parts], 1), seed)
    assert torch.equal(Concat()(parts[0]), parts[0])


def test_concat_refuses_lists_and_nothing() -> None:
    with pytest.raises(ValueError, match=r"expected tensors, got a list; .*concat\(\*branches\)"):
        Concat()([torch.zeros(1, 2), torch.zeros(1, 2)])
    with pytest.raises(ValueError, match="one or more tensors, got none"):
        Concat()()


# --- ChannelLayerNorm


@pytest.mark.parametrize("affine", [True, False])
@pytest.mark.parametrize("spatial", SPATIAL)
def test_layer_norm_is_torchs_with_channels_moved_to_the_end(spatial: tuple[int, ...], affine: bool) -> None:
    torch.manual_seed(0)
    norm = ChannelLayerNorm(12, eps=1e-3, affine=affine).double()
    for parameter in norm.parameters():
        nn.init.normal_(parameter)
    weights = (norm.weight, norm.bias)
    x, seed = 3 + 2 * torch.randn(2, 3, 12, *spatial, dtype=torch.float64)

    def torchs(x: Tensor) -> Tensor:
        return F.layer_norm(x.movedim(1, -1), (12,), *weights, eps=1e-3).movedim(-1, 1)

    torch.testing.assert_close(gradients(norm, x, seed), gradients(torchs, x, seed), rtol=1e-12, atol=1e-13)
    if affine:
        ours = torch.autograd.grad(norm(x), weights, seed)
        theirs = torch.autograd.grad(torchs(x), weights, seed)
        torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-13)


def test_layer_norm_uses_no_other_pixel() -> None:
    x = torch.randn(2, 6, 4, 4, requires_grad=True)
    ChannelLayerNorm(6)(x)[1, :, 2, 3].square().sum().backward()
    assert x.grad.abs().sum(1).nonzero().tolist() == [[1, 2, 3]]


@pytest.mark.parametrize("dtype", HALVES)
def test_layer_norm_of_half_precision_rounds_once(dtype: torch.dtype) -> None:
    x = (300 * torch.randn(2, 8, 4, 4)).to(dtype)  # squares overflow float16
    norm = ChannelLayerNorm(8)
    assert norm(x).dtype == dtype
    assert torch.equal(norm(x), norm(x.float()).to(dtype))
    assert norm.to(dtype)(x).dtype == dtype


def test_layer_norm_keeps_channels_last() -> None:
    x = torch.randn(2, 8, 4, 4).contiguous(memory_format=torch.channels_last)
    assert ChannelLayerNorm(8)(x).is_contiguous(memory_format=torch.channels_last)


def test_layer_norm_starts_as_no_change_and_resets() -> None:
    norm = ChannelLayerNorm(4)
    nn.init.normal_(norm.weight)
    nn.init.normal_(norm.bias)
    norm.reset_parameters()
    assert norm.weight.tolist() == [1.0] * 4
    assert norm.bias.tolist() == [0.0] * 4
    assert list(ChannelLayerNorm(4, affine=False).parameters()) == []
    assert repr(ChannelLayerNorm(4, affine=False)) == "ChannelLayerNorm(4, eps=1e-06, affine=False)"


def test_layer_norm_refuses() -> None:
    with pytest.raises(ValueError, match=r"num_channels must be a whole number .*, got 0"):
        ChannelLayerNorm(0)
    with pytest.raises(ValueError, match=r"expected \[N, 4, \.\.\.\], got shape \[2, 3, 4\]"):
        ChannelLayerNorm(4)(torch.zeros(2, 3, 4))
    with pytest.raises(ValueError, match=r"got shape \[4\]"):
        ChannelLayerNorm(4)(torch.zeros(4))


# --- LayerScale


@pytest.mark.parametrize("spatial", SPATIAL)
def test_layer_scale_multiplies_dimension_1(spatial: tuple[int, ...]) -> None:
    scale = LayerScale(3, initial=0.5).double()
    with torch.no_grad():
        scale.weight.copy_(torch.tensor([2.0, -1.0, 0.25]))
    x, seed = torch.randn(2, 4, 3, *spatial, dtype=torch.float64)
    y, dx = gradients(scale, x, seed)
    scale(x).backward(seed)
    for channel, factor in enumerate([2.0, -1.0, 0.25]):
        assert torch.equal(y[:, channel], factor * x[:, channel])
        assert torch.equal(dx[:, channel], factor * seed[:, channel])
        expected = (x[:, channel] * seed[:, channel]).sum()
        torch.testing.assert_close(scale.weight.grad[channel], expected, rtol=1e-13, atol=1e-14)


def test_layer_scale_starts_near_zero_and_resets() -> None:
    scale = LayerScale(4)
    assert scale.weight.tolist() == pytest.approx([1e-6] * 4)
    nn.init.normal_(scale.weight)
    scale.reset_parameters()
    assert scale.weight.tolist() == pytest.approx([1e-6] * 4)
    assert repr(scale) == "LayerScale(4, initial=1e-06)"


@pytest.mark.parametrize("dtype", HALVES)
def test_layer_scale_of_half_precision_does_not_lose_small_factors(dtype: torch.dtype) -> None:
    x = torch.randn(2, 4, 3, 3).to(dtype)
    assert torch.equal(LayerScale(4)(x), x.float() * 1e-6)
    assert LayerScale(4).to(dtype)(x).dtype == dtype


def test_layer_scale_refuses() -> None:
    with pytest.raises(ValueError, match=r"num_channels must be a whole number of at least 1, got 2\.5"):
        LayerScale(2.5)
    with pytest.raises(ValueError, match=r"expected \[N, 4, \.\.\.\], got shape \[2, 3, 4\]"):
        LayerScale(4)(torch.zeros(2, 3, 4))


# --- DropPath


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, *HALVES])
@pytest.mark.parametrize("spatial", SPATIAL)
def test_drop_path_draws_one_number_per_image(spatial: tuple[int, ...], dtype: torch.dtype) -> None:
    x, seed = torch.randn(2, 64, 3, *spatial).to(dtype)
    torch.manual_seed(1)
    y, dx = gradients(DropPath(0.25), x, seed)
    after = torch.get_rng_state()
    torch.manual_seed(1)
    kept = torch.empty(64, 1, *(1 for _ in spatial), dtype=dtype).bernoulli_(0.75)
    assert torch.equal(torch.get_rng_state(), after)
    assert 0 < kept.sum() < 64  # some images are dropped, not all
    factors = kept / 0.75
    assert torch.equal(y, x * factors)
    assert torch.equal(dx, seed * factors)


def test_drop_path_draws_the_same_whatever_the_number_of_channels() -> None:
    outputs = []
    for channels in (1, 8):
        torch.manual_seed(2)
        outputs.append(DropPath(0.5)(torch.ones(32, channels, 2, 2)))
    assert torch.equal(outputs[0].expand(-1, 8, -1, -1), outputs[1])


def test_drop_path_keeps_the_mean() -> None:
    torch.manual_seed(3)
    y = DropPath(0.2)(torch.ones(20_000, 1))
    assert set(y.unique().tolist()) == {0.0, 1.25}
    assert y.mean().item() == pytest.approx(1, abs=0.02)  # one standard deviation is 0.0035


@pytest.mark.parametrize("layer", [DropPath(0.5).eval(), DropPath(0)])
def test_drop_path_is_the_identity_without_drawing(layer: DropPath) -> None:
    x, before = torch.randn(4, 3), torch.get_rng_state()
    assert layer(x) is x
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("p", [-0.1, 1, 1.5, float("nan")])
def test_drop_path_refuses(p: float) -> None:
    with pytest.raises(ValueError, match=f"p must be at least 0 and less than 1, got {p}"):
        DropPath(p)
    with pytest.raises(ValueError, match="single number"):
        DropPath(0.5)(torch.tensor(1.0))


# --- SqueezeExcitation


def test_squeeze_excitation_is_the_papers_formula() -> None:
    torch.manual_seed(4)
    layer = SqueezeExcitation(8, 2).double()
    x, seed = torch.randn(2, 3, 8, 5, 4, dtype=torch.float64)

    def by_hand(x: Tensor) -> Tensor:
        z = x.mean((2, 3))
        hidden = (z @ layer.fc1.weight[:, :, 0, 0].T + layer.fc1.bias).clamp(min=0)
        factors = 1 / (1 + torch.exp(-(hidden @ layer.fc2.weight[:, :, 0, 0].T + layer.fc2.bias)))
        return x * factors[:, :, None, None]

    torch.testing.assert_close(gradients(layer, x, seed), gradients(by_hand, x, seed), rtol=1e-12, atol=1e-13)
    assert sum(p.numel() for p in layer.parameters()) == 2 * 8 * 2 + 2 + 8


@pytest.mark.parametrize("dtype", HALVES)
def test_squeeze_excitation_in_half_precision(dtype: torch.dtype) -> None:
    torch.manual_seed(5)
    layer, x = SqueezeExcitation(8, 2), torch.randn(3, 8, 5, 4)
    full = layer(x)
    half = layer.to(dtype)(x.to(dtype))
    assert half.dtype == dtype
    torch.testing.assert_close(half.float(), full, rtol=8 * torch.finfo(dtype).eps, atol=torch.finfo(dtype).eps)


@pytest.mark.parametrize("arguments", [(0, 4), (8, 0), (8, 0.5)])
def test_squeeze_excitation_refuses(arguments: tuple[int, int]) -> None:
    with pytest.raises(ValueError, match=r"SqueezeExcitation: (channels|squeezed) must be a whole number .*, got 0"):
        SqueezeExcitation(*arguments)


# --- all


@pytest.mark.parametrize("layer", [(ChannelLayerNorm, 8), (LayerScale, 8), (DropPath, 0.5), (SqueezeExcitation, 8, 2)])
def test_layers_run_without_memory_for_a_dry_run(layer: tuple) -> None:
    x = torch.empty(2, 8, 3, 3, device="meta", requires_grad=True)
    y = on_meta(*layer)(x)
    y.backward(torch.empty_like(y))
    assert y.shape == x.grad.shape == x.shape


@pytest.mark.parametrize(
    "layer", [ChannelLayerNorm(4), ChannelLayerNorm(4, affine=False), LayerScale(4, 0.7), SqueezeExcitation(4, 2)]
)
def test_gradcheck(layer: nn.Module) -> None:
    torch.manual_seed(6)
    x = torch.randn(2, 4, 2, 2, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(layer.double(), x)
