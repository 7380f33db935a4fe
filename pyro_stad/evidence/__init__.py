"""The evidence of a model: log of the integral of likelihood times prior."""

from pyro_stad.evidence.compare import EvidenceComparison, compare_evidence
from pyro_stad.evidence.estimate import METHODS, log_evidence
from pyro_stad.evidence.latent import LatentProblem
from pyro_stad.evidence.population import log_evidences
from pyro_stad.evidence.result import EvidenceResult

__all__ = [
    "METHODS",
    "EvidenceComparison",
    "EvidenceResult",
    "LatentProblem",
    "compare_evidence",
    "log_evidence",
    "log_evidences",
]
