"""What grouping saves: parameters and multiply-adds of a plain model, layer by layer, as it is and as if it were dense.

What is here: `grouping_report`. What is kept out: devices and placing; the model may be anybody's, it need not be one
that a plan can place.

Shapes: N batch, C channels.
"""

from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from lanes.tables import table

_CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)  # and what derives from them, as GroupedLinear does
_TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
_LAYERS = (*_CONVOLUTIONS, *_TRANSPOSED, nn.Linear)


@dataclass(frozen=True)
class LayerGrouping:
    """What one convolution or linear layer has and does.

    Attributes:
        type: the layer's class name, e.g. "Conv2d".
        groups: in how many groups its channels are cut; 1 is dense.
        weights: number of weights as it is.
        biases: number of biases; the dense layer has as many.
        multiply_adds: per image as it is, one for each use of a weight; None if no example told the sizes. Biases are
            additions only and are not counted.
    """

    type: str
    groups: int
    weights: int
    biases: int
    multiply_adds: int | None

    @property
    def parameters(self) -> int:
        """Weights and biases as it is."""
        return self.weights + self.biases

    @property
    def dense_parameters(self) -> int:
        """Weights and biases of the same layer with one group, in which every output channel reads all channels."""
        return self.weights * self.groups + self.biases

    @property
    def dense_multiply_adds(self) -> int | None:
        """Per image, of the same layer with one group."""
        return None if self.multiply_adds is None else self.multiply_adds * self.groups


@dataclass(frozen=True)
class GroupingReport:
    """What grouping saves in a model; prints as a table.

    Attributes:
        image_shape: (C, ...) of the images for which multiply-adds are counted; None if they are not.
        layers: qualified layer name -> what it has and does, in the order of the model's modules.
        other_parameters: those of layers that know no groups (normalisation, embedding); grouped and dense alike.
    """

    image_shape: tuple[int, ...] | None
    layers: dict[str, LayerGrouping]
    other_parameters: int

    @property
    def parameters(self) -> int:
        """Of the whole model as it is."""
        return sum(layer.parameters for layer in self.layers.values()) + self.other_parameters

    @property
    def dense_parameters(self) -> int:
        """Of the whole model with all its layers in one group."""
        return sum(layer.dense_parameters for layer in self.layers.values()) + self.other_parameters

    @property
    def multiply_adds(self) -> int | None:
        """Per image, of all layers in the table, as they are."""
        counts = [layer.multiply_adds for layer in self.layers.values()]
        return None if self.image_shape is None else sum(count or 0 for count in counts)

    @property
    def dense_multiply_adds(self) -> int | None:
        """Per image, of all layers in the table, in one group."""
        counts = [layer.dense_multiply_adds for layer in self.layers.values()]
        return None if self.image_shape is None else sum(count or 0 for count in counts)

    def __str__(self) -> str:
        rows = [
            (name, layer.type, str(layer.groups), *_counts(layer), f"{layer.groups} x" if layer.groups > 1 else "-")
            for name, layer in self.layers.items()
        ]
        if self.other_parameters:
            others = f"{self.other_parameters:,}"
            rows.append(("(others)", "", "", others, others, "-", "-", "-"))
        rows.append(("total", "", "", *_counts(self), ""))
        return "\n".join([self._title(), table([_HEAD, *rows], "<<>>>>>>", total=True), self._summary()])

    def _title(self) -> str:
        if self.image_shape is None:
            return "multiply-adds are not counted: give an example, a batch of images"
        return f"multiply-adds are per image of {' x '.join(map(str, self.image_shape))}, biases not counted"

    def _summary(self) -> str:
        saved = [f"{_percent(self.parameters, self.dense_parameters)} of the parameters"]
        if self.multiply_adds is not None and self.dense_multiply_adds is not None:
            saved.append(f"{_percent(self.multiply_adds, self.dense_multiply_adds)} of the multiply-adds")
        return f"grouping saves {' and '.join(saved)}"


def grouping_report(model: nn.Module, example: Tensor | None = None) -> GroupingReport:
    """Counts parameters and multiply-adds of every convolution and linear layer, grouped and as if dense.

    A grouped layer has exactly `groups` times fewer weights than the dense one, and uses each as often, so it does
    exactly `groups` times fewer multiply-adds; biases it has as many. The forward runs once in evaluation mode on the
    "meta" device, on shapes alone: the model is left as it was, and nothing is drawn.

    Args:
        model: a plain model on any device, also "meta". Its convolutions in 1 to 3 dimensions, transposed ones,
            `GroupedLinear` and linear layers are reported; a layer that the forward does not run does nothing.
        example: a batch of images [N, C, ...]; only its shape and data type count. If None, one image of
            `model.image_shape`; if the model has none, multiply-adds are not counted.

    Raises:
        ValueError: the model is placed, or its forward fails on the example.
    """
    if any(hasattr(parameter, "device_mesh") for parameter in model.parameters()):
        raise ValueError("the model is placed already; ask for the report of the plain model")
    example = _checked_example(model, example)
    modules: dict[str, Any] = {name: module for name, module in model.named_modules() if isinstance(module, _LAYERS)}
    uses = None if example is None else _uses(model, modules, example)
    layers: dict[str, LayerGrouping] = {}
    counted: set[int] = set()
    for name, layer in modules.items():
        weights, biases = _size(layer.weight, counted), _size(layer.bias, counted)
        work = None if uses is None else uses[name] * layer.weight.numel()
        layers[name] = LayerGrouping(type(layer).__name__, getattr(layer, "groups", 1), weights, biases, work)
        counted.update(map(id, layer.parameters()))  # also those of which a parametrized weight is made
    others = sum(_size(parameter, counted) for parameter in model.parameters())
    return GroupingReport(None if example is None else tuple(example.shape[1:]), layers, others)


def _checked_example(model: Any, example: Tensor | None) -> Tensor | None:
    """The example, or if there is none an image of the shape that the model says it reads."""
    if example is None and hasattr(model, "image_shape"):
        floats = (parameter.dtype for parameter in model.parameters() if parameter.is_floating_point())
        return torch.empty(1, *model.image_shape, dtype=next(floats, None), device="meta")
    if example is not None and (not isinstance(example, Tensor) or example.dim() < 2 or len(example) == 0):
        found = list(example.shape) if isinstance(example, Tensor) else type(example).__name__
        raise ValueError(f"example must be a batch of images [N, C, ...], got {found}")
    return example


def _size(tensor: Tensor | None, counted: set[int]) -> int:
    """Elements of a weight or bias; 0 if there is none, or if a layer that shares it has counted it before."""
    return 0 if tensor is None or id(tensor) in counted else tensor.numel()


def _uses(model: nn.Module, layers: dict[str, Any], example: Tensor) -> dict[str, int]:
    """How often, per image, each layer uses each of its weights: at how many places of its map."""
    uses = dict.fromkeys(layers, 0)

    def note(name: str, layer: Any, args: tuple[Tensor, ...], output: Tensor) -> None:
        if isinstance(layer, _TRANSPOSED):
            uses[name] += args[0].numel() // layer.in_channels
        else:
            uses[name] += output.numel() // layer.weight.shape[0]

    state = {name: tensor.detach().to("meta") for name, tensor in model.named_parameters()}
    state |= {name: tensor.detach().to("meta") for name, tensor in model.named_buffers()}
    modes = {module: module.training for module in model.modules()}
    hooks = [layer.register_forward_hook(partial(note, name)) for name, layer in layers.items()]
    try:
        model.eval()
        with torch.device("meta"), torch.no_grad():
            torch.func.functional_call(model, state, (example.detach().to("meta"),))
    except Exception as error:
        said = " ".join(str(error).split())
        raise ValueError(f"the model's forward fails on an example of {list(example.shape)}: {said}") from error
    finally:
        for hook in hooks:
            hook.remove()
        for module, training in modes.items():
            module.training = training
    return {name: count // example.shape[0] for name, count in uses.items()}


_HEAD = ("layer", "type", "groups", "parameters", "if dense", "multiply-adds", "if dense", "saved")


def _counts(counted: LayerGrouping | GroupingReport) -> tuple[str, str, str, str]:
    numbers = (counted.parameters, counted.dense_parameters, counted.multiply_adds, counted.dense_multiply_adds)
    parameters, dense_parameters, work, dense_work = ("-" if number is None else f"{number:,}" for number in numbers)
    return parameters, dense_parameters, work, dense_work


def _percent(part: int, whole: int) -> str:
    return f"{100 * (1 - part / whole) if whole else 0:.1f} %"
