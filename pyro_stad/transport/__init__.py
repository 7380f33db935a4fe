"""Noise to data, and back where there is a way."""

from pyro_stad.transport.base import AbstractInvertible, AbstractTransport
from pyro_stad.transport.flow import Flow
from pyro_stad.transport.one_step import OneStep

__all__ = ["AbstractInvertible", "AbstractTransport", "Flow", "OneStep"]
