"""Checkpoints in the plain model's names and shapes, whatever the layout that wrote them.

A checkpoint is a folder::

    model.safetensors      parameters and buffers: the plain model's state_dict
    optimizer.safetensors  optimizer tensors, named <parameter>.<key>, e.g. conv1.weight.momentum_buffer
    <name>.safetensors     further sets of tensors that the caller keeps, e.g. "average": the averaged weights
    state.json             everything else: learning rates, counters, the caller's state
    manifest.json          sizes and SHA-256 of those files, the step, the layout, versions, what the caller tells

The first process writes, beside, synced to disk, the manifest last, and then renames: a folder under its name is whole,
and a manifest tells if it no longer is. ``torch.distributed.checkpoint`` reads, on any layout, each process just its
own slices. (Its writer joins the parts of torch 2.13 wrongly: it refuses integers and writes tensors without dimensions
as zero.) Nothing is pickled.
"""

from lanes.checkpoint.folders import check_file as check_file
from lanes.checkpoint.folders import newest_whole as newest_whole
from lanes.checkpoint.loading import check_checkpoint as check_checkpoint
from lanes.checkpoint.loading import extra_sets as extra_sets
from lanes.checkpoint.loading import is_checkpoint as is_checkpoint
from lanes.checkpoint.loading import load_checkpoint as load_checkpoint
from lanes.checkpoint.manifest import MANIFEST as MANIFEST
from lanes.checkpoint.manifest import MODEL as MODEL
from lanes.checkpoint.manifest import STATE as STATE
from lanes.checkpoint.manifest import SUFFIX as SUFFIX
from lanes.checkpoint.manifest import DamagedError as DamagedError
from lanes.checkpoint.manifest import read_manifest as read_manifest
from lanes.checkpoint.manifest import shapes as shapes
from lanes.checkpoint.saving import BackgroundWriter as BackgroundWriter
from lanes.checkpoint.saving import save_checkpoint as save_checkpoint
from lanes.checkpoint.snapshot import take_snapshot as take_snapshot
