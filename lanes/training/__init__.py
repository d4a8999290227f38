"""Training with Lightning and logging with Weights & Biases: the only room that knows them."""

from lanes.training.averaging import WeightAverage
from lanes.training.callbacks import FilterPictures, Health, PlanReport, PredictionWriter, Rates, Specialisation
from lanes.training.image_data import ImageData
from lanes.training.images import Images
from lanes.training.layer_squares import LayerSquares
from lanes.training.module import Classifier
from lanes.training.parameter_groups import ParameterGroup
from lanes.training.photographs import Photographs
from lanes.training.sample_predictions import SamplePredictions
from lanes.training.schedules import DiscreteExponential, Exponential, Linear, Schedule, StepDecay, WarmupCosine
from lanes.training.strategy import LaneStrategy
from lanes.training.wandb_logger import LanesLogger

__all__ = [
    "Classifier",
    "DiscreteExponential",
    "Exponential",
    "FilterPictures",
    "Health",
    "ImageData",
    "Images",
    "LaneStrategy",
    "LanesLogger",
    "LayerSquares",
    "Linear",
    "ParameterGroup",
    "Photographs",
    "PlanReport",
    "PredictionWriter",
    "Rates",
    "SamplePredictions",
    "Schedule",
    "Specialisation",
    "StepDecay",
    "WarmupCosine",
    "WeightAverage",
]
