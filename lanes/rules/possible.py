"""In which ways a layer can be placed at all: what a plan may say that somebody has edited."""

from torch import nn

from lanes.rules.kinds import BATCH_NORMS, CHANNEL_NORMS, MIXING, REORDERING, groups_of


def possible_ways(layer: nn.Module, lane_devices: int) -> set[str]:
    """Names of WAYS; which of them is right follows from the tensors around the layer (mixing.py, others.py)."""
    if isinstance(layer, MIXING) and groups_of(layer) == 1:
        return {"whole", "enter", "enter+leave", "gather", "scatter_sum", "leave_sum", "gather+leave"}
    if isinstance(layer, MIXING):
        return {"enter+own", "stays", "stays+leave"} if groups_of(layer) % lane_devices == 0 else set()
    if isinstance(layer, BATCH_NORMS):
        return {"whole", "stays", "stays+leave"}
    if isinstance(layer, CHANNEL_NORMS):
        alone = getattr(layer, "num_groups", 1) % lane_devices == 0
        return {"whole", "sum", "stays"} if alone else {"whole", "sum"}
    if isinstance(layer, REORDERING):
        return {"whole", "shuffle", "passes on"}
    if isinstance(layer, nn.PReLU) and layer.num_parameters == 1:
        return {"whole", "shared"}
    return {"whole", "stays"}
