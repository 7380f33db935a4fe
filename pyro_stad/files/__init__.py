"""Priors in files: safetensors, a JSON description, a checksum."""

from pyro_stad.files.prior import StoredPrior, read, write
from pyro_stad.files.region import StoredRegion

__all__ = ["StoredPrior", "StoredRegion", "read", "write"]
