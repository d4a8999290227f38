"""What operations between layers mean for lanes: which are exact on each device's own channels.

Everything that is not in these tables is refused when it reads a laned tensor on more than one lane device.
"""

import re
from typing import Any, NoReturn

from lanes.tracing import CHANNEL_COUNT, Call, PlanError
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
REDUCTIONS = {"mean", "sum", "amax", "amin"}


def glue(call: Call, inputs: list[str], batch: int, lane_devices: int) -> str:
    """The state of the result of an operation between layers.

    Raises:
        PlanError: if the operation is not known to be exact on a part of the channels.
    """
    if LANED not in inputs or lane_devices == 1:
        return LANED if LANED in inputs and _keeps_channels(call, inputs, batch) else WHOLE
    if not _keeps_channels(call, inputs, batch):
        _refuse(call)
    return LANED


def _keeps_channels(call: Call, inputs: list[str], batch: int) -> bool:
    """Whether an operation, run on each device's own channels, gives the own channels of its result."""
    name = call.function.strip("_")
    shapes = [value.shape for value in call.inputs]
    if name in ELEMENTWISE:
        return len(shapes) == 1
    if name in BINARY:
        return inputs.count(LANED) == len(inputs) and len({(len(s), s[1]) for s in shapes}) == 1
    if pool := POOL.fullmatch(name):
        return len(shapes[0]) == int(pool.group(1)) + 2
    if name == "dropout":
        return not _argument(call, 2, "training", True)
    if name == "flatten":
        return int(_argument(call, 1, "start_dim", 0)) % len(shapes[0]) >= 1
    if name in ("view", "reshape"):
        sizes = _argument(call, 1, "shape", ())
        return (tuple(sizes) if isinstance(sizes, tuple | list) else call.args[1:]) == (batch, -1)
    if name in REDUCTIONS:
        dims = _argument(call, 1, "dim", None)
        dims = (dims,) if isinstance(dims, int) else dims
        return bool(dims) and all(dim % len(shapes[0]) >= 2 for dim in dims)
    return False


def _argument(call: Call, position: int, name: str, default: Any) -> Any:
    """An argument of an operation, by position (the tensor is 0) or by keyword."""
    return call.args[position] if len(call.args) > position else call.kwargs.get(name, default)


_WAYS_OUT = {
    CHANNEL_COUNT: "a lane device has only its own channels; write it without x.shape[1] (flatten(1), -1)",
    "dropout": "use an nn.Dropout module, whose mask can be placed",
    "view": "use flatten(1) or nn.Flatten",
    "reshape": "use flatten(1) or nn.Flatten",
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
