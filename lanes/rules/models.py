"""Rules for a whole model: what it must not hide, and where lanes leave for good."""

from torch import nn

from lanes.rules.kinds import BATCH_NORMS, MIXING, WITH_PARAMETERS, is_layer, names
from lanes.tracing import PlanError, Trace, Value


def check_kinds(model: nn.Module, lane_devices: int) -> None:
    """Refuse layers by name that would be refused by what happens inside them.

    Raises:
        PlanError: names the module and what computes the same.
    """
    for name, module in model.named_modules():
        known = not isinstance(module, nn.InstanceNorm1d | nn.InstanceNorm2d | nn.InstanceNorm3d)
        if not known and (lane_devices > 1 or module.affine):  # on one device an operation may do anything
            count = module.num_features
            raise PlanError(
                f"{name}: {type(module).__name__} cannot be placed; nn.GroupNorm({count}, {count}, "
                f"affine={module.affine}) computes the same, unless running statistics are tracked"
            )


def check_hooks(model: nn.Module) -> None:
    """Refuse what runs unseen inside or behind layers: it would work on a part of the channels, or on its gradient.

    Raises:
        PlanError: names the module.
    """
    for name, module in model.named_modules():
        unseen = [module._backward_hooks, module._backward_pre_hooks]
        unseen += [module._forward_pre_hooks] if is_layer(module) else []
        if any(unseen):
            raise PlanError(
                f"{name or 'the model'}: has pre-forward or backward hooks, which would see a part of the channels"
            )
        if is_layer(module) and "forward" in vars(module):
            raise PlanError(f"{name}: its forward was replaced on the instance; write a module of its own")


def check_parameters(model: nn.Module, traced: Trace) -> None:
    """Refuse parameters and buffers that no rule covers: they would be left behind, or silently differ.

    Raises:
        PlanError: names the parameter and its owner.
    """
    run = {call.where for call in traced.calls if call.layer is not None}
    own_name = {id(module): name for name, module in model.named_modules()}
    owners: dict[int, str] = {}
    for name, module in model.named_modules():
        tensors = dict(module.named_parameters(recurse=False)) | dict(module.named_buffers(recurse=False))
        for key, tensor in tensors.items():
            full = f"{name}.{key}".lstrip(".")
            if not is_layer(module) or key not in (
                "weight",
                "bias",
                "running_mean",
                "running_var",
                "num_batches_tracked",
            ):
                raise PlanError(
                    f"{name or 'the model'}: a {type(module).__name__} with {full!r} {list(tensor.shape)} cannot be "
                    f"placed; layers with parameters can be {names(WITH_PARAMETERS)}"
                )
            if own_name[id(module)] not in run:
                raise PlanError(f"{name}: the layer has parameters but the forward never runs it; remove it")
            if owners.setdefault(id(tensor), own_name[id(module)]) != own_name[id(module)]:
                raise PlanError(f"{name}: {full!r} is shared with {owners[id(tensor)]}; give each layer its own")


def last_mixing_calls(traced: Trace) -> set[int]:
    """Positions of the calls of layers with weights that no other such layer follows: the heads."""
    feeding: set[Value] = set()
    last: set[int] = set()
    for position in reversed(range(len(traced.calls))):
        call = traced.calls[position]
        leads_on = any(value in feeding for value in call.outputs)
        if type(call.layer) in MIXING and not leads_on:
            last.add(position)
        if leads_on or type(call.layer) in MIXING:
            feeding.update(call.inputs)
    return last


def last_to_leave(traced: Trace, value: Value, leaving: set[str], lane_devices: int) -> str:
    """The last layer before a laned output of the model from which it can be gathered whole.

    Of a sum one tensor alone can be; on one device, where laned and whole are the same, that will do.

    Raises:
        PlanError: if there is none.
    """
    producers = {output: call for call in traced.calls for output in call.outputs}
    while value in producers:
        call = producers[value]
        if type(call.layer) in (*MIXING, *BATCH_NORMS) and call.where not in leaving:
            return call.where
        if lane_devices > 1 and len(set(call.inputs)) > 1:
            raise PlanError(
                f"the model's output {list(call.outputs[0].shape)} is made by {call.function.strip('_')} of "
                f"{len(set(call.inputs))} tensors, of which each lane device holds its own channels only; end in a "
                "dense layer"
            )
        value = call.inputs[0]
    raise PlanError("the model's output is laned and no layer before it can make it whole; end in a dense layer")
