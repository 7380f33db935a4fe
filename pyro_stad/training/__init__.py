"""The training loop that teacher and divergence share."""

from pyro_stad.training.loop import History, train
from pyro_stad.training.settings import TrainingSettings

__all__ = ["History", "TrainingSettings", "train"]
