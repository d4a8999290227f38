"""Looks at the filters of a checkpoint, from its weights alone: no data, no network, no Lightning.

Here: which file is meant (checkpoints.py), which layer and how many lanes (layers.py), its tables (numbers.py), writing
them and the pictures (writing.py), the verb (command.py). Kept out: how filters are measured, tested and drawn.
"""
