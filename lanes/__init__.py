"""Train convolutional networks in lanes: every channel group on its own device, meeting only at chosen layers.

The public names are loaded on first use, so that ``import lanes`` and ``lanes --help`` do not wait for torch.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lanes import models as models
    from lanes import training as training
    from lanes.checking import CheckReport as CheckReport
    from lanes.checking import check as check
    from lanes.checkpoint import load_checkpoint as load_checkpoint
    from lanes.checkpoint import save_checkpoint as save_checkpoint
    from lanes.grouping import GroupingReport as GroupingReport
    from lanes.grouping import grouping_report as grouping_report
    from lanes.mesh import init_mesh as init_mesh
    from lanes.mesh import seed_replica as seed_replica
    from lanes.placement import average_statistics as average_statistics
    from lanes.placement import place as place
    from lanes.planning import plan as plan
    from lanes.plans import Plan as Plan
    from lanes.tracing import PlanError as PlanError
    from lanes.traffic import Traffic as Traffic

__version__ = "0.1.0"

_HOMES = {
    "CheckReport": "lanes.checking",
    "check": "lanes.checking",
    "load_checkpoint": "lanes.checkpoint",
    "save_checkpoint": "lanes.checkpoint",
    "models": "lanes.models",
    "training": "lanes.training",
    "Traffic": "lanes.traffic",
    "GroupingReport": "lanes.grouping",
    "grouping_report": "lanes.grouping",
    "init_mesh": "lanes.mesh",
    "seed_replica": "lanes.mesh",
    "average_statistics": "lanes.placement",
    "place": "lanes.placement",
    "Plan": "lanes.plans",
    "PlanError": "lanes.tracing",
    "plan": "lanes.planning",
}

__all__ = sorted([*_HOMES, "__version__"])  # noqa: PLE0605


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'lanes' has no attribute {name!r}")
    home = importlib.import_module(_HOMES[name])
    return home if _HOMES[name] == f"lanes.{name}" else getattr(home, name)


def __dir__() -> list[str]:
    return list(__all__)
