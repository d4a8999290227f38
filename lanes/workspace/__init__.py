"""A Weights & Biases workspace for runs in lanes, made by code (the extra ``workspace``: wandb-workspaces).

Here: which panels the logged keys ask for (panels.py), the workspace's specification (specification.py), saving it
(saving.py), the verb (command.py). Kept out: logging, and a page of one's own (lanes.report).
"""
