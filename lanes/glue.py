"""What operations between layers mean for lanes: which are exact on each device's own channels.

Everything that is not in these tables is refused when it reads a laned tensor on more than one lane device.
"""

import re
from collections.abc import Callable
from typing import Any, NoReturn

from torch.utils._pytree import tree_leaves

from lanes.ordering import PLAIN, Order, concatenated, flattened
from lanes.tracing import CHANNEL_COUNT, Call, PlanError, Value
from lanes.ways import LANED, WHOLE

# Operations between layers that treat every channel alone, by PyTorch's names (methods, functions and in-place).
ELEMENTWISE = set(
    """relu relu6 leaky_relu elu celu selu gelu silu mish hardswish hardsigmoid hardtanh sigmoid logsigmoid tanh
    softplus softsign abs neg square sqrt rsqrt exp log clamp pow contiguous clone detach to float double half bfloat16
    type""".split()
)
POOL = re.compile(r"(?:adaptive_?)?(?:max|avg)_?pool([123])d(?:_with_indices)?", re.IGNORECASE)  # modules and functions
BINARY = set(
    "add sub mul div true_divide rsub radd rmul iadd isub imul itruediv rtruediv truediv maximum minimum".split()
)
CONCATENATIONS = {"cat", "concat", "concatenate"}


def glue(call: Call, inputs: list[str], orders: dict[Value, Order], batch: int, lane_devices: int) -> tuple[str, Order]:
    """The state of the result of an operation between layers, and the order of its channels.

    Args:
        call: the operation's call.
        inputs: states of the tensors it reads.
        orders: of the channels of laned tensors, where it is not the plain model's.
        batch: N.
        lane_devices: D.

    Raises:
        PlanError: if the operation is not known to be exact on a part of the channels.
    """
    if LANED not in inputs or (lane_devices == 1 and not _keeps_channels(call, inputs, batch)):
        return WHOLE, PLAIN
    if not _keeps_channels(call, inputs, batch):
        _refuse(call)
    if lane_devices == 1 and call.function in CONCATENATIONS:
        return LANED, PLAIN  # one device joins its channels in plain order
    return LANED, _order(call, [orders.get(value, PLAIN) for value in call.inputs], orders)


def _order(call: Call, inputs: list[Order], orders: dict[Value, Order]) -> Order:
    """The order of the channels of the result.

    Raises:
        PlanError: if the operation would bring together channels that lie in different orders.
    """
    name, order = call.function.strip("_"), inputs[0]
    found: Order | None = order
    if name in CONCATENATIONS:
        parts = tree_leaves(call.args[0] if call.args else call.kwargs["tensors"])
        found = concatenated([orders.get(part, PLAIN) for part in parts], [part.shape[1] for part in parts])
    elif any(other != order for other in inputs):
        found = None
    elif name in ("flatten", "view", "reshape") and call.outputs[0].shape[1] != call.inputs[0].shape[1]:
        found = flattened(order, call.outputs[0].shape[1] // call.inputs[0].shape[1])
    if found is None:
        where = f"{call.where}: " if call.where else "the model's forward: "
        shapes = " and ".join(str(list(value.shape)) for value in call.inputs)
        raise PlanError(
            f"{where}does {name} on {shapes}, whose channels lie in the orders "
            f"{' and '.join(str(other) or 'plain' for other in inputs)}; put them in plain order first, by "
            "lanes.models.Concat() instead of torch.cat"
        )
    return found


def _keeps_channels(call: Call, inputs: list[str], batch: int) -> bool:
    """Whether an operation, run on each device's own channels, gives the own channels of its result."""
    name = call.function.strip("_")
    shapes = [value.shape for value in call.inputs]
    if name in ELEMENTWISE:
        return len(shapes) == 1
    if name in BINARY:
        return inputs.count(LANED) == len(inputs) and len({(len(s), s[1]) for s in shapes}) == 1
    if name in CONCATENATIONS:
        return set(inputs) == {LANED} and _dim(call, 0) % len(shapes[0]) == 1 and "out" not in call.kwargs
    if pool := POOL.fullmatch(name):
        return len(shapes[0]) == int(pool.group(1)) + 2
    judged = _JUDGED.get(name)
    return judged is not None and judged(call, len(shapes[0]), batch)


def _dim(call: Call, default: int) -> int:
    return int(_argument(call, 1, "dim", default))


def _keeps_evaluation(call: Call, dims: int, batch: int) -> bool:
    return not _argument(call, 2, "training", True)


def _flattens_behind_images(call: Call, dims: int, batch: int) -> bool:
    return int(_argument(call, 1, "start_dim", 0)) % dims >= 1


def _views_as_vectors(call: Call, dims: int, batch: int) -> bool:
    sizes = _argument(call, 1, "shape", ())
    return (tuple(sizes) if isinstance(sizes, tuple | list) else call.args[1:]) == (batch, -1)


def _adds_a_place(call: Call, dims: int, batch: int) -> bool:
    return _dim(call, 0) % (dims + 1) >= 2


def _drops_a_place(call: Call, dims: int, batch: int) -> bool:
    return _dim(call, 0) % dims >= 2


def _reduces_places(call: Call, dims: int, batch: int) -> bool:
    over = _argument(call, 1, "dim", None)
    over = (over,) if isinstance(over, int) else over
    return bool(over) and all(dim % dims >= 2 for dim in over)


def _slices_places(call: Call, dims: int, batch: int) -> bool:
    return _takes_all_channels(call.args[1], dims)


def _takes_all_channels(index: Any, dims: int) -> bool:
    """Whether an index takes all images and channels of a tensor of so many dimensions, and slices of the others."""
    index = index if isinstance(index, tuple) else (index,)
    if not all(part is None or part is ... or isinstance(part, slice) for part in index):
        return False
    if ... in index:
        place = index.index(...)
        used = sum(part is not None for part in index) - 1
        index = (*index[:place], *[slice(None)] * (dims - used), *index[place + 1 :])
    return len(index) >= 2 and index[0] == index[1] == slice(None)


def _argument(call: Call, position: int, name: str, default: Any) -> Any:
    """An argument of an operation, by position (the tensor is 0) or by keyword."""
    return call.args[position] if len(call.args) > position else call.kwargs.get(name, default)


# What depends on the arguments: name -> whether it is exact, given its call, its tensor's dimensions and N.
_JUDGED: dict[str, Callable[[Call, int, int], bool]] = {
    "dropout": _keeps_evaluation,
    "flatten": _flattens_behind_images,
    "view": _views_as_vectors,
    "reshape": _views_as_vectors,
    "unsqueeze": _adds_a_place,
    "squeeze": _drops_a_place,
    "getitem": _slices_places,
    **dict.fromkeys(("mean", "sum", "amax", "amin"), _reduces_places),
}


_WAYS_OUT = {
    CHANNEL_COUNT: "a lane device has only its own channels; write it without x.shape[1]: flatten(1), "
    "y[:, :, None, None] for maps, the module nn.ChannelShuffle for a shuffle",
    "dropout": "use an nn.Dropout module, whose mask can be placed",
    **dict.fromkeys(
        ("view", "reshape"),
        "use flatten(1) for vectors, y[:, :, None, None] for maps, the module nn.ChannelShuffle for a shuffle",
    ),
    "channel_shuffle": "use the module nn.ChannelShuffle",
    "group_norm": "use the module nn.GroupNorm",
    "expand_as": "leave it out where tensors are multiplied or added: they broadcast by themselves",
    "local_response_norm": "use lanes.models.LocalResponseNorm(..., lanes=...)",
}


def _refuse(call: Call) -> NoReturn:
    where = f"{call.where}: " if call.where else "the model's forward: "
    name = call.function if call.function == CHANNEL_COUNT else call.function.strip("_")
    shapes = " and ".join(str(list(value.shape)) for value in call.inputs)
    way_out = _WAYS_OUT.get(
        name, "use a layer or operation that treats every channel alone, or let a dense layer come first"
    )
    verb = "uses the" if name == CHANNEL_COUNT else "does"
    raise PlanError(
        f"{where}{verb} {name} on {shapes}, of which each lane device holds its own channels only; {way_out}"
    )
