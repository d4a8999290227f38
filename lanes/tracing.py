"""Reads a plain model: which layers and operations its forward runs, in order, and what flows between them.

The model runs once on the "meta" device (shapes, no numbers, no memory) under a ``TorchFunctionMode``. Modules of known
types are recorded as one opaque call each; everything between them ("glue") is recorded operation by operation as the
user's Python ran it, with the arguments as they were given. ``torch.export`` gives a graph too, but it writes
``x.view(x.size(0), -1)`` and ``x.view(8, 9216)`` alike, and forgets ``if x.shape[1] == 64``: the difference between
glue that may run on a lane device's own channels and glue that would be silently wrong there. So reads of a tensor's
channel count are recorded too, when they are used.

Kept out: what any of this means for lanes (planning.py).
"""

import math
import operator
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import BackwardCFunction
from torch.nn.modules.module import register_module_forward_hook, register_module_forward_pre_hook
from torch.overrides import TorchFunctionMode, resolve_name
from torch.utils._pytree import tree_leaves, tree_map_only


class PlanError(ValueError):
    """A model that cannot be placed exactly: the message names the layer, the numbers and the way out."""


@dataclass(frozen=True)
class Value:
    """A tensor at one moment of the forward (in-place operations make new values of the same tensor)."""

    index: int
    shape: torch.Size
    requires_grad: bool


@dataclass(frozen=True)
class Call:
    """One step of the forward.

    Attributes:
        where: qualified name of the layer, or of the module whose forward ran the operation ("" is the model itself).
        layer: the layer's module, or None for an operation between layers.
        function: the operation's name; a layer's type name.
        inputs: the tensors read, in order of the arguments.
        outputs: the tensors made (or changed in place).
        args: an operation's arguments as given (tensors replaced by their Value).
        kwargs: the same by keyword.
    """

    where: str
    layer: nn.Module | None
    function: str
    inputs: tuple[Value, ...]
    outputs: tuple[Value, ...]
    args: tuple[Any, ...] = ()
    kwargs: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Trace:
    """What :func:`trace` found.

    Attributes:
        calls: the steps in the order in which they ran.
        outputs: the tensors that the model returned.
        batch: N, the images in the example.
        made: names of modules that are no layers -> the tensor that each returned last, if it was one.
    """

    calls: tuple[Call, ...]
    outputs: tuple[Value, ...]
    batch: int
    made: dict[str, Value] = field(default_factory=dict)


CHANNEL_COUNT = "channel count"  # `Call.function` of a use of a tensor's channel count in Python


class _ChannelCount:
    """The size of dimension 1 as user code sees it: any use of it as a number is noted first.

    No subclass of int: C code (``range``, argument parsing) reads an int without asking it.
    """

    def __init__(self, value: int, note: Callable[[], None]) -> None:
        self._value, self._note = value, note

    def __index__(self) -> int:
        self._note()
        return self._value

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Having this method makes torch take it for an argument; the recorder turns it into a number before."""
        raise NotImplementedError


def _plain(value: Any) -> Any:
    """Arguments with numbers in place of channel counts, each noted."""
    if isinstance(value, dict):
        return {key: _plain(v) for key, v in value.items()}
    if type(value) in (tuple, list, _Sizes):
        return (list if isinstance(value, list) else tuple)(_plain(v) for v in value)
    return _number(value)


def _number(value: Any) -> Any:
    return value.__index__() if isinstance(value, _ChannelCount) else value


def _binary(function: Callable[[Any, Any], Any], *, reflected: bool) -> Callable[[Any, Any], Any]:
    def method(self: _ChannelCount, other: Any) -> Any:
        pair = _number(self), _number(other)
        return function(*pair[::-1]) if reflected else function(*pair)

    return method


def _unary(name: str) -> Callable[..., Any]:
    def method(self: _ChannelCount, *args: Any) -> Any:
        return getattr(int, name)(_number(self), *args)

    return method


for _name in "add sub mul floordiv truediv mod pow lshift rshift and or xor eq ne lt le gt ge".split():
    _function = getattr(operator, f"__{_name}__")
    setattr(_ChannelCount, f"__{_name}__", _binary(_function, reflected=False))
    setattr(_ChannelCount, f"__r{_name}__", _binary(_function, reflected=True))
for _name in "neg pos abs invert round bool int float hash str repr format".split():
    setattr(_ChannelCount, f"__{_name}__", _unary(f"__{_name}__"))


class _Sizes(tuple[Any, ...]):
    """A shape in which the channel count is a :class:`_ChannelCount`."""

    def __getitem__(self, index: Any) -> Any:
        found = super().__getitem__(index)
        return _Sizes(found) if isinstance(index, slice) else found

    def numel(self) -> int:
        return math.prod(operator.index(size) for size in self)


class _Recorder(TorchFunctionMode):
    """Records operations outside of known layers; module hooks tell it where it is."""

    def __init__(self, names: dict[int, str], is_layer: Callable[[nn.Module], bool]) -> None:
        super().__init__()
        self.names, self.is_layer = names, is_layer
        self.calls: list[Call] = []
        self.made: dict[str, Value] = {}
        self.stack: list[nn.Module] = []
        self.open_layer: tuple[nn.Module, tuple[Value, ...]] | None = None
        self._looking = False  # the recorder itself reads shapes: not the user's doing
        self._count = 0
        self._known_makers: set[Any] = set()  # backward nodes of layers that the planner knows
        self._values: dict[int, tuple[Tensor, Value, int]] = {}  # holds the tensors, so that ids stay theirs

    def value_of(self, tensor: Tensor) -> Value:
        self._looking = True
        maker, version = tensor.grad_fn, tensor._version
        self._looking = False
        if isinstance(maker, BackwardCFunction) and maker not in self._known_makers:
            raise PlanError(
                f"{self.where() or 'the model'}: {maker.name()} is an autograd.Function of its own, whose backward "
                "cannot be read; make it a layer that lanes knows"
            )
        if id(tensor) not in self._values:
            return self._new_value(tensor)
        _, value, seen = self._values[id(tensor)]
        if seen != version:
            raise PlanError(
                f"{self.where() or 'the model'}: reads a tensor {list(value.shape)} that was changed in place through "
                "a view of it, which cannot be followed; work on a copy (clone)"
            )
        return value

    def _new_value(self, tensor: Tensor, *, trusted: bool = False) -> Value:
        self._looking = True
        value = Value(self._count, tensor.shape, tensor.requires_grad)
        maker, version = tensor.grad_fn, tensor._version
        self._looking = False
        self._count += 1
        if trusted and maker is not None:
            self._known_makers.add(maker)
        self._values[id(tensor)] = (tensor, value, version)
        return value

    def where(self) -> str:
        """The module whose forward runs."""
        return self.names[id(self.stack[-1])] if self.stack else ""

    def enter_module(self, module: nn.Module, args: tuple[Any, ...]) -> None:
        if self.open_layer is None and id(module) in self.names:
            if self.is_layer(module):
                self.open_layer = (module, tuple(self.value_of(a) for a in args if isinstance(a, Tensor)))
            self.stack.append(module)

    def leave_module(self, module: nn.Module, output: Any) -> None:
        if self.open_layer is not None and self.open_layer[0] is module:
            inputs = self.open_layer[1]
            self.open_layer = None
            outputs = tuple(self._new_value(t, trusted=True) for t in tree_leaves(output) if isinstance(t, Tensor))
            self.calls.append(Call(self.names[id(module)], module, type(module).__name__, inputs, outputs))
        elif self.open_layer is None and id(module) in self.names and isinstance(output, Tensor):
            self.made[self.names[id(module)]] = self.value_of(output)
        if self.open_layer is None and self.stack and self.stack[-1] is module:
            self.stack.pop()

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        args, kwargs = _plain(args), _plain(kwargs or {})
        if self.open_layer is not None or self._looking:
            return func(*args, **kwargs)
        tensors = [t for t in tree_leaves((args, kwargs)) if isinstance(t, Tensor)]
        read = {id(t): self.value_of(t) for t in tensors}
        result = func(*args, **kwargs)
        name = _name_of(func)
        if name in _SIZES and tensors:
            return self._sizes(name, result, tensors[0], args[1:], kwargs)
        if name in _PROPERTIES:
            return result
        outputs = tuple(self._new_value(t) for t in tree_leaves(result) if isinstance(t, Tensor))
        if tensors or outputs:
            shown = tree_map_only(Tensor, lambda t: read[id(t)], (args, kwargs))
            self.calls.append(Call(self.where(), None, name, tuple(read.values()), outputs, *shown))
        return result

    def _sizes(self, name: str, result: Any, tensor: Tensor, dims: Any, kwargs: Any) -> Any:
        """Hand out sizes in which the channel count reports its use."""
        value = self.value_of(tensor)

        def note() -> None:
            self.calls.append(Call(self.where(), None, CHANNEL_COUNT, (value,), ()))

        if tensor.dim() < 2:
            return result
        if isinstance(result, torch.Size):
            return _Sizes(_ChannelCount(n, note) if dim == 1 else n for dim, n in enumerate(result))
        dim = kwargs.get("dim", dims[0] if dims else None)
        if name == "size" and dim not in (1, 1 - tensor.dim()):
            return result
        return _ChannelCount(result, note) if isinstance(result, int) else self._noted(note, result)

    @staticmethod
    def _noted(note: Callable[[], None], result: Any) -> Any:
        note()
        return result


# What tells sizes, and what tells nothing that depends on channels.
_SIZES = {"size", "shape", "numel", "nelement", "nbytes", "stride"}
_PROPERTIES = set(
    """dim ndim ndimension dtype device layout is_floating_point is_complex element_size itemsize requires_grad is_cuda
    is_cpu is_meta is_leaf is_sparse is_quantized is_contiguous is_nested get_device names __len__ __bool__ __hash__
    grad_fn is_inference""".split()
)


def _name_of(func: Any) -> str:
    """The name of an operation; of a property, the property's."""
    name = getattr(func, "__name__", "") or resolve_name(func) or repr(func)
    return str(func.__self__.__name__) if name == "__get__" else str(name)


@contextmanager
def _hooked(recorder: _Recorder) -> Iterator[None]:
    handles = [
        register_module_forward_pre_hook(recorder.enter_module),
        register_module_forward_hook(lambda module, args, output: recorder.leave_module(module, output)),
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def trace(model: nn.Module, example: Tensor, is_layer: Callable[[nn.Module], bool]) -> Trace:
    """Run ``model`` on the shapes of ``example`` and record what it does. The model is left as it was.

    Args:
        model: any single-device module; its weights may be on any device, also "meta".
        example: a batch of inputs [N, C, ...]; only its shape, data type and whether it needs a gradient count.
        is_layer: which modules are recorded as one call.

    Raises:
        PlanError: the forward does what cannot be read, or fails on these shapes.
    """
    state = {name: t.detach().to("meta").requires_grad_(t.requires_grad) for name, t in model.named_parameters()}
    state |= {name: t.detach().to("meta") for name, t in model.named_buffers()}
    image = example.detach().to("meta").requires_grad_(example.requires_grad)
    recorder = _Recorder({id(module): name for name, module in model.named_modules()}, is_layer)
    try:
        with _hooked(recorder), torch.device("meta"), torch.enable_grad(), recorder:
            output = torch.func.functional_call(model, state, (image,))
    except PlanError:
        raise
    except Exception as error:
        where, said = recorder.where() or "the model", " ".join(str(error).split())
        if _ChannelCount.__name__ in said:
            raise PlanError(f"{where}: hands a channel count to an operation: {said}") from error
        shape = list(example.shape)
        raise PlanError(
            f"{where}: the forward fails on an example of {shape}: {said}; check the image size, channels and data type"
        ) from error
    leaves = tree_leaves(output)
    strange = next((leaf for leaf in leaves if not isinstance(leaf, Tensor | int | float | str | None)), None)
    if strange is not None:
        raise PlanError(
            f"the model returns a {type(strange).__name__}; it must return tensors, in tuples, lists or dicts"
        )
    outputs = tuple(recorder.value_of(t) for t in leaves if isinstance(t, Tensor))
    return Trace(tuple(recorder.calls), outputs, example.shape[0], recorder.made)
