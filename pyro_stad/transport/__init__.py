"""Noise to data, and back where there is a way."""

from pyro_stad.transport.base import AbstractInvertible, AbstractTransport
from pyro_stad.transport.flow import Flow

__all__ = ["AbstractInvertible", "AbstractTransport", "Flow"]
