"""Every training: the loop, what it minimises, and what comes out."""

from pyro_stad.learn.clouds import (
    AbstractCloud,
    ConditionalCloud,
    PerturbedCloud,
    Points,
    TeacherCloud,
    cloud_for,
    stein_residual,
)
from pyro_stad.learn.distil import distil
from pyro_stad.learn.distil_density import distil_density
from pyro_stad.learn.em import EMSettings, OneStepEM, pairs_loss
from pyro_stad.learn.loop import History, train
from pyro_stad.learn.matching import match
from pyro_stad.learn.maximum_likelihood import train_free_form
from pyro_stad.learn.members import Member, Resampler, labelled
from pyro_stad.learn.objectives import (
    AbstractObjective,
    ExactLabels,
    HutchinsonLabels,
    SteinObjective,
)
from pyro_stad.learn.settings import TrainingSettings
from pyro_stad.learn.spread import Labels, Spread, distil_spread, joint_log_weights, shifts

__all__ = [
    "AbstractCloud",
    "AbstractObjective",
    "ConditionalCloud",
    "EMSettings",
    "ExactLabels",
    "History",
    "HutchinsonLabels",
    "Labels",
    "Member",
    "OneStepEM",
    "PerturbedCloud",
    "Points",
    "Resampler",
    "Spread",
    "SteinObjective",
    "TeacherCloud",
    "TrainingSettings",
    "cloud_for",
    "distil",
    "distil_density",
    "distil_spread",
    "joint_log_weights",
    "labelled",
    "match",
    "pairs_loss",
    "shifts",
    "stein_residual",
    "train",
    "train_free_form",
]
