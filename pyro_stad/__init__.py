"""Samples become priors for Pyro.

.. code-block:: python

    prior = pyro_stad.fit(samples)           # learn the density, distil its divergence, audit it
    theta = pyro.sample("theta", prior)      # a TorchDistribution, inside any Pyro model
    prior.save("prior.safetensors")
"""

from pyro_stad import divergence, drawing, likelihood, paths
from pyro_stad.data import Chain, bits_per_dimension, read_chain
from pyro_stad.density import (
    ConditionalFlow,
    ConditionalGenerator,
    FlowPrior,
    GivenPrior,
    OneStepGenerator,
    TruncatedPrior,
    choose_sampler,
    load,
)
from pyro_stad.errors import (
    AccuracyWarning,
    CheckpointError,
    EvidenceError,
    EvidenceWarning,
    OutOfDistributionWarning,
    SampleWarning,
    TrainingError,
    TrainingWarning,
)
from pyro_stad.evidence import (
    EvidenceComparison,
    EvidenceResult,
    Support,
    compare_evidence,
    log_evidence,
    log_evidences,
    sample_support,
)
from pyro_stad.fields import from_denoiser, from_noise, from_score, from_velocity
from pyro_stad.fitting import BUDGETS, FitSettings, distil_divergence, distil_one_step, fit
from pyro_stad.infer import (
    AmortizedGuide,
    CombinedPosterior,
    CorrectedPosterior,
    FlowGuide,
    FlowReparam,
    PosteriorEmulator,
    Ranks,
    SampledPosterior,
    SampledPosteriors,
    Simulations,
    Tension,
    choose_form,
    combine,
    correct,
    distil_posterior,
    sample_posterior,
    sample_posteriors,
    simulate,
    tension,
)
from pyro_stad.interop import posterior_summary, to_arviz
from pyro_stad.learn import EMSettings, TrainingSettings

__all__ = [
    "BUDGETS",
    "AccuracyWarning",
    "AmortizedGuide",
    "Chain",
    "CheckpointError",
    "CombinedPosterior",
    "ConditionalFlow",
    "ConditionalGenerator",
    "CorrectedPosterior",
    "EMSettings",
    "EvidenceComparison",
    "EvidenceError",
    "EvidenceResult",
    "EvidenceWarning",
    "FitSettings",
    "FlowGuide",
    "FlowPrior",
    "FlowReparam",
    "GivenPrior",
    "OneStepGenerator",
    "PosteriorEmulator",
    "Ranks",
    "SampledPosterior",
    "SampledPosteriors",
    "OutOfDistributionWarning",
    "SampleWarning",
    "Simulations",
    "Support",
    "Tension",
    "TrainingError",
    "TrainingSettings",
    "TrainingWarning",
    "TruncatedPrior",
    "bits_per_dimension",
    "choose_form",
    "choose_sampler",
    "combine",
    "compare_evidence",
    "correct",
    "distil_divergence",
    "distil_one_step",
    "distil_posterior",
    "divergence",
    "drawing",
    "fit",
    "from_denoiser",
    "from_noise",
    "from_score",
    "from_velocity",
    "likelihood",
    "load",
    "log_evidence",
    "log_evidences",
    "paths",
    "posterior_summary",
    "read_chain",
    "sample_posterior",
    "sample_posteriors",
    "sample_support",
    "simulate",
    "tension",
    "to_arviz",
]
__version__ = "0.1.0"
