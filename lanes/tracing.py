"""Reads a plain model: which layers and operations its forward runs, in order, and what flows between them.

The model runs once on the "meta" device (shapes, no numbers, no memory) under a ``TorchFunctionMode``. Modules of known
types are recorded as one opaque call each; everything between them ("glue") is recorded operation by operation as the
user's Python ran it, with the arguments as they were given. ``torch.export`` gives a graph too, but it writes
``x.view(x.size(0), -1)`` and ``x.view(8, 9216)`` alike, and forgets ``if x.shape[1] == 64``: the difference between
glue that may run on a lane device's own channels and glue that would be silently wrong there. So reads of a tensor's
channel count are recorded too, when they are used.

Kept out: what any of this means for lanes (planning.py).
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.module import register_module_forward_hook, register_module_forward_pre_hook
from torch.overrides import TorchFunctionMode, resolve_name
from torch.utils._pytree import tree_leaves


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
    """

    calls: tuple[Call, ...]
    outputs: tuple[Value, ...]
    batch: int


CHANNEL_COUNT = "channel count"  # `Call.function` of a use of a tensor's channel count in Python


class _ChannelCount(int):
    """The size of dimension 1 as user code sees it; tells the recorder when something is done with it."""

    _note: Callable[[], None]

    def __new__(cls, value: int, note: Callable[[], None]) -> "_ChannelCount":
        self = super().__new__(cls, value)
        self._note = note
        return self


def _noting(name: str) -> Callable[..., Any]:
    original = getattr(int, name)

    def method(self: _ChannelCount, *args: Any) -> Any:
        self._note()
        return original(self, *args)

    return method


for _name in """__add__ __radd__ __sub__ __rsub__ __mul__ __rmul__ __floordiv__ __rfloordiv__ __truediv__ __rtruediv__
    __mod__ __rmod__ __divmod__ __rdivmod__ __pow__ __rpow__ __lshift__ __rshift__ __and__ __or__ __xor__ __neg__
    __eq__ __ne__ __lt__ __le__ __gt__ __ge__ __bool__ __int__ __float__ __index__ __hash__""".split():
    setattr(_ChannelCount, _name, _noting(_name))


class _Recorder(TorchFunctionMode):
    """Records operations outside of known layers; module hooks tell it where it is."""

    def __init__(self, names: dict[int, str], is_layer: Callable[[nn.Module], bool]) -> None:
        super().__init__()
        self.names, self.is_layer = names, is_layer
        self.calls: list[Call] = []
        self.stack: list[nn.Module] = []
        self.open_layer: tuple[nn.Module, tuple[Value, ...]] | None = None
        self._looking = False  # the recorder itself reads shapes: not the user's doing
        self._count = 0
        self._values: dict[int, tuple[Tensor, Value]] = {}  # holds the tensors, so that ids stay theirs

    def value_of(self, tensor: Tensor) -> Value:
        if id(tensor) not in self._values:
            return self._new_value(tensor)
        return self._values[id(tensor)][1]

    def _new_value(self, tensor: Tensor) -> Value:
        self._looking = True
        value = Value(self._count, tensor.shape, tensor.requires_grad)
        self._looking = False
        self._count += 1
        self._values[id(tensor)] = (tensor, value)
        return value

    def _where(self) -> str:
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
            outputs = tuple(self._new_value(t) for t in tree_leaves(output) if isinstance(t, Tensor))
            self.calls.append(Call(self.names[id(module)], module, type(module).__name__, inputs, outputs))
        if self.open_layer is None and self.stack and self.stack[-1] is module:
            self.stack.pop()

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        if self.open_layer is not None or self._looking:
            return result
        tensors = [t for t in tree_leaves((args, kwargs)) if isinstance(t, Tensor)]
        if isinstance(result, torch.Size | int) and not isinstance(result, bool):
            return self._sizes(func.__name__, result, tensors[0], args[1:]) if tensors else result
        made = [t for t in tree_leaves(result) if isinstance(t, Tensor)]
        if made:
            read = {id(t): self.value_of(t) for t in tensors}
            outputs = tuple(self._new_value(t) for t in made)
            shown = torch.utils._pytree.tree_map_only(Tensor, lambda t: read[id(t)], (args, kwargs))
            name = getattr(func, "__name__", None) or resolve_name(func) or repr(func)
            self.calls.append(Call(self._where(), None, name, tuple(read.values()), outputs, *shown))
        return result

    def _sizes(self, name: str, result: torch.Size | int, tensor: Tensor, dims: tuple[Any, ...]) -> Any:
        """Hand out sizes in which the channel count reports its use."""
        value = self.value_of(tensor)

        def note() -> None:
            self.calls.append(Call(self._where(), None, CHANNEL_COUNT, (value,), ()))

        if isinstance(result, torch.Size):
            return torch.Size([_ChannelCount(n, note) if dim == 1 else n for dim, n in enumerate(result)])
        channels = name in ("numel", "nelement") or (name == "size" and dims[0] in (1, 1 - tensor.dim()))
        return _ChannelCount(result, note) if channels and tensor.dim() > 1 else result


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
        Exception: whatever the model's own forward raises on these shapes.
    """
    state = {name: t.detach().to("meta").requires_grad_(t.requires_grad) for name, t in model.named_parameters()}
    state |= {name: t.detach().to("meta") for name, t in model.named_buffers()}
    image = example.detach().to("meta").requires_grad_(example.requires_grad)
    recorder = _Recorder({id(module): name for name, module in model.named_modules()}, is_layer)
    with _hooked(recorder), torch.device("meta"), torch.enable_grad(), recorder:
        output = torch.func.functional_call(model, state, (image,))
    outputs = tuple(recorder.value_of(t) for t in tree_leaves(output) if isinstance(t, Tensor))
    return Trace(tuple(recorder.calls), outputs, example.shape[0])
