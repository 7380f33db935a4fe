"""The evidence of a model: log of the integral of likelihood times prior.

What is integrated: ``vectorised`` runs a Pyro model for many draws at once; ``latent`` makes it a
likelihood of standard normal noise, by the ``maps`` of its priors, and ``population`` that of many
objects; ``joint`` makes it a density of unconstrained numbers.

How: ``tempering`` takes particles from the prior to the posterior (``moments``, ``resume``), from
which come ``smc`` and ``importance`` (``proposal``); ``nested`` needs nothing but the likelihood;
``bridge`` starts from draws (``chains``) and is put right by ``correction``.

What comes out: ``estimate`` chooses and cross-checks, ``support`` holds the answer
against the samples of learned priors, ``posterior`` and ``result`` describe, ``compare`` compares.
``analytic`` has the problems whose evidence is known.
"""

from pyro_stad.evidence.compare import EvidenceComparison, compare_evidence
from pyro_stad.evidence.estimate import METHODS, log_evidence
from pyro_stad.evidence.latent import LatentProblem
from pyro_stad.evidence.population import log_evidences
from pyro_stad.evidence.result import EvidenceResult
from pyro_stad.evidence.support import Support, sample_support

__all__ = [
    "METHODS",
    "EvidenceComparison",
    "EvidenceResult",
    "LatentProblem",
    "Support",
    "compare_evidence",
    "log_evidence",
    "log_evidences",
    "sample_support",
]
