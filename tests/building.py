"""Networks built on "meta" and given memory later, tiny trainings, and weights of which none is 0 or 1."""

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn


def on_meta(model: Callable[..., nn.Module], *args: Any, **arguments: Any) -> Any:
    """The model without memory."""
    with torch.device("meta"):
        return model(*args, **arguments)


def check_deferred_building(model: Callable[..., nn.Module], *args: Any, **arguments: Any) -> None:
    """Built at once, or on "meta" and then layer by layer: the same weights and the same draws."""
    torch.manual_seed(3)
    at_once = model(*args, **arguments)
    after_building = torch.get_rng_state()
    deferred = on_meta(model, *args, **arguments)
    assert all(parameter.is_meta for parameter in deferred.parameters())
    assert torch.equal(after_building, torch.get_rng_state())
    torch.manual_seed(3)
    for name, layer in deferred.named_modules():
        if next(layer.parameters(recurse=False), None) is not None:
            layer.to_empty(device="cpu", recurse=False)
            deferred.init_layer(name, layer)
    assert torch.equal(after_building, torch.get_rng_state())
    torch.testing.assert_close(deferred.state_dict(), at_once.state_dict(), rtol=0, atol=0)


def loss_after(net: Any, optimizer: torch.optim.Optimizer, steps: int) -> float:
    """The loss with which a network of four classes is left after some steps on eight inputs; chance is ln 4 = 1.39."""
    inputs, labels = torch.randn(8, *net.image_shape), torch.arange(8) % 4
    for _ in range(steps):
        optimizer.zero_grad()
        loss = F.cross_entropy(net(inputs), labels)
        loss.backward()
        optimizer.step()
    return loss.item()


def randomised(layer: nn.Module) -> nn.Module:
    """The layer in float64 and evaluation mode, with statistics and weights that are not 0 and 1."""
    torch.manual_seed(0)
    for name, tensor in layer.double().eval().state_dict().items():
        if tensor.is_floating_point():
            tensor.copy_(torch.rand_like(tensor) + 0.5 if "var" in name else torch.randn_like(tensor))
    return layer
