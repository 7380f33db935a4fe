"""The evidence of a model: log of the integral of likelihood times prior.

``estimate`` chooses among ``smc``, ``importance`` (``proposal``), ``nested``, ``twisted``, along
the diffusion of a prior, and ``bridge``, which starts from draws and is put right by
``correction``; ``population`` does so for many objects at once. ``support`` holds the answer
against the samples of learned priors, ``posterior`` and ``result`` describe, ``compare`` compares.
"""

from pyro_stad.evidence.bridge import Bridge
from pyro_stad.evidence.compare import EvidenceComparison, compare_evidence
from pyro_stad.evidence.estimate import log_evidence
from pyro_stad.evidence.importance import Importance
from pyro_stad.evidence.method import METHODS, AbstractMethod
from pyro_stad.evidence.nested import Nested
from pyro_stad.evidence.population import log_evidences
from pyro_stad.evidence.result import EvidenceResult
from pyro_stad.evidence.smc import SMC
from pyro_stad.evidence.support import sample_support
from pyro_stad.evidence.support_record import Support
from pyro_stad.evidence.twisted import Twisted

__all__ = [
    "METHODS",
    "SMC",
    "AbstractMethod",
    "Bridge",
    "Importance",
    "Nested",
    "EvidenceComparison",
    "EvidenceResult",
    "Support",
    "Twisted",
    "compare_evidence",
    "log_evidence",
    "log_evidences",
    "sample_support",
]
