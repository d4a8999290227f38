"""Remarks of the libraries that do not help somebody who trains in lanes.

Kept out: everything else that they say.
"""

import logging
import warnings

_UNHELPFUL = (
    ".*does not have many workers.*",
    ".*LightningCLI's args parameter.*",
    ".*isinstance.treespec, LeafSpec.*",
    ".*`srun` command is available.*",
    ".*across ranks is.*",
    ".*Checkpoint directory .* exists and is not empty.*",
    ".*The dirpath has changed from.*",
    ".*could not find the monitored key.*",
    ".*It is recommended to use .*sync_dist=True.*",
    ".*During `trainer.(validate|test).*it is recommended to use.*",
)


def hush() -> None:
    """Leave them out."""
    for message in _UNHELPFUL:
        warnings.filterwarnings("ignore", message)
    logging.getLogger("lightning.pytorch.utilities.rank_zero").addFilter(lambda r: "💡" not in r.getMessage())
