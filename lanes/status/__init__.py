"""Trainings at a glance, from what they tell in their folders and from SLURM. Imports nothing that takes long."""
