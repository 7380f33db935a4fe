"""Learned priors in inference: the coordinates they are sampled in, and what corrects them."""

from pyro_stad.infer.correct import CorrectedPosterior, correct
from pyro_stad.infer.reparam import FORMS, FlowReparam

__all__ = ["FORMS", "CorrectedPosterior", "FlowReparam", "correct"]
