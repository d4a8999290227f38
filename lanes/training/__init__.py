"""Training with Lightning and logging with Weights & Biases: the only room that knows them."""

from lanes.training.callbacks import FilterPictures, PlanReport, PredictionWriter, Rates
from lanes.training.module import Classifier
from lanes.training.photographs import Photographs
from lanes.training.schedules import Schedule, StepDecay, WarmupCosine
from lanes.training.strategy import LaneStrategy
from lanes.training.wandb_logger import LanesLogger

__all__ = [
    "Classifier",
    "FilterPictures",
    "LaneStrategy",
    "LanesLogger",
    "Photographs",
    "PlanReport",
    "PredictionWriter",
    "Rates",
    "Schedule",
    "StepDecay",
    "WarmupCosine",
]
