"""Problems of known answer."""

from pyro_stad.testing.evidence import KnownEvidence

__all__ = ["KnownEvidence"]
