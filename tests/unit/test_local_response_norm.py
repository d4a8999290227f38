"""LocalResponseNorm against PyTorch's own, applied to each lane's channels alone."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from lanes.models import LocalResponseNorm

CONSTANTS = {"alpha": 0.3, "beta": 0.75, "k": 1.7}


def by_blocks(x: Tensor, size: int, lanes: int, **constants: float) -> Tensor:
    """PyTorch's local response norm of each channel block; its own refuses [N, C], hence the extra dim."""
    blocks = (x.unsqueeze(-1) if x.dim() == 2 else x).chunk(lanes, dim=1)
    y = torch.cat([F.local_response_norm(block, size, **constants) for block in blocks], dim=1)
    return y.reshape(x.shape)


def output_and_gradient(function, x: Tensor, seed: Tensor) -> tuple[Tensor, Tensor]:
    x = x.detach().clone(memory_format=torch.preserve_format).requires_grad_()
    y = function(x)
    (dx,) = torch.autograd.grad(y, x, seed)
    return y.detach(), dx


@pytest.mark.parametrize("lanes", [1, 2, 4])
@pytest.mark.parametrize("size", [1, 2, 3, 4, 5, 6])
def test_equals_torch_in_each_lane(size: int, lanes: int) -> None:
    torch.manual_seed(size)
    x, seed = torch.randn(2, 2, 12, 4, 3, dtype=torch.float64)
    ours = output_and_gradient(LocalResponseNorm(size, **CONSTANTS, lanes=lanes), x, seed)
    theirs = output_and_gradient(lambda x: by_blocks(x, size, lanes, **CONSTANTS), x, seed)
    torch.testing.assert_close(ours, theirs, rtol=1e-13, atol=1e-14)


@pytest.mark.parametrize("spatial", [(), (5,), (4, 3), (2, 3, 2)])
def test_any_number_of_spatial_dims(spatial: tuple[int, ...]) -> None:
    x, seed = torch.randn(2, 3, 8, *spatial, dtype=torch.float64)
    ours = output_and_gradient(LocalResponseNorm(5, **CONSTANTS, lanes=2), x, seed)
    theirs = output_and_gradient(lambda x: by_blocks(x, 5, 2, **CONSTANTS), x, seed)
    torch.testing.assert_close(ours, theirs, rtol=1e-13, atol=1e-14)


@pytest.mark.parametrize(("dims", "memory_format"), [(4, torch.channels_last), (5, torch.channels_last_3d)])
@pytest.mark.parametrize("seed_is_channels_last", [True, False])
def test_keeps_the_memory_format(dims: int, memory_format: torch.memory_format, seed_is_channels_last: bool) -> None:
    x, seed = torch.randn(2, 2, 12, *(4, 3, 5)[: dims - 2], dtype=torch.float64)
    theirs = output_and_gradient(lambda x: by_blocks(x, 4, 2, **CONSTANTS), x, seed)
    seed = seed.contiguous(memory_format=memory_format) if seed_is_channels_last else seed
    norm = LocalResponseNorm(4, **CONSTANTS, lanes=2)
    ours = output_and_gradient(norm, x.contiguous(memory_format=memory_format), seed)
    assert all(tensor.is_contiguous(memory_format=memory_format) for tensor in ours)
    torch.testing.assert_close(ours, theirs, rtol=1e-13, atol=1e-14)


def test_reads_slices_and_expanded_gradients() -> None:
    wide = torch.randn(2, 16, 6, 6, dtype=torch.float64)
    x = wide[:, 4:12, ::2].detach().requires_grad_()
    LocalResponseNorm(5, **CONSTANTS, lanes=2)(x).sum().backward()
    _, dx = output_and_gradient(lambda x: by_blocks(x, 5, 2, **CONSTANTS), x, torch.ones_like(x))
    torch.testing.assert_close(x.grad, dx, rtol=1e-13, atol=1e-14)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_rounds_once(dtype: torch.dtype) -> None:
    x, seed = torch.randn(2, 2, 8, 5, 5).to(dtype)
    norm = LocalResponseNorm(5, **CONSTANTS, lanes=2)
    half = output_and_gradient(norm, x, seed)
    full = output_and_gradient(norm, x.float(), seed.float())
    assert [tensor.dtype for tensor in half] == [dtype, dtype]
    torch.testing.assert_close(half, tuple(tensor.to(dtype) for tensor in full), rtol=0, atol=0)


def test_float32_error_is_torchs() -> None:
    torch.manual_seed(0)
    x = 10 * torch.randn(2, 96, 13, 13)
    constants = {"alpha": 5e-4, "beta": 0.75, "k": 2.0}
    exact = F.local_response_norm(x.double(), 5, **constants)
    error = ((LocalResponseNorm(5, **constants)(x) - exact) / exact).abs().max() / torch.finfo(torch.float32).eps
    assert error < 2  # measured 1.3, PyTorch's own 1.1


@pytest.mark.parametrize("beta", [0.75, 1.3])
@pytest.mark.parametrize("size", [4, 5])
def test_gradcheck(size: int, beta: float) -> None:
    x = torch.randn(2, 8, 2, 2, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(LocalResponseNorm(size, 0.8, beta, 1.2, lanes=2), x)


def test_second_derivative_is_refused() -> None:
    x = torch.randn(1, 4, 2, 2, requires_grad=True)
    (dx,) = torch.autograd.grad(LocalResponseNorm(3)(x).square().sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        dx.sum().backward()


def test_does_not_write_its_input() -> None:
    x, seed = torch.randn(2, 2, 8, 3, 3)
    before = x.clone(), seed.clone()
    output_and_gradient(LocalResponseNorm(5, lanes=2), x, seed)
    torch.testing.assert_close((x, seed), before, rtol=0, atol=0)


def test_meta_tensors_and_empty_batches() -> None:
    x = torch.empty(2, 8, 3, 3, device="meta", requires_grad=True)
    y = LocalResponseNorm(5, lanes=4)(x)
    assert y.shape == x.shape
    y.backward(torch.empty_like(y))
    assert x.grad is not None
    assert LocalResponseNorm(5, lanes=4)(torch.empty(0, 8, 3, 3)).shape == (0, 8, 3, 3)


def test_compiles_in_one_graph() -> None:
    norm = LocalResponseNorm(5, **CONSTANTS, lanes=2)
    x, seed = torch.randn(2, 2, 8, 3, 3)
    compiled = torch.compile(norm, backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(output_and_gradient(compiled, x, seed), output_and_gradient(norm, x, seed))


def test_shows_its_constants() -> None:
    norm = LocalResponseNorm(5, 5e-4, 0.75, 2.0, lanes=2)
    assert (norm.size, norm.alpha, norm.beta, norm.k, norm.lanes) == (5, 5e-4, 0.75, 2.0, 2)
    assert repr(norm) == "LocalResponseNorm(5, alpha=0.0005, beta=0.75, k=2.0, lanes=2)"


@pytest.mark.parametrize("arguments", [{"size": 0}, {"size": 2.5}, {"size": 5, "lanes": 0}, {"size": 5, "lanes": 1.0}])
def test_refuses_bad_arguments(arguments: dict) -> None:
    with pytest.raises(ValueError, match="whole number"):
        LocalResponseNorm(**arguments)


def test_refuses_bad_inputs() -> None:
    with pytest.raises(ValueError, match="96 channels do not divide over 5 lanes"):
        LocalResponseNorm(5, lanes=5)(torch.zeros(1, 96, 2, 2))
    with pytest.raises(ValueError, match=r"shape \[96\]"):
        LocalResponseNorm(5)(torch.zeros(96))
