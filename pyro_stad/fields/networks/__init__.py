"""The networks of fields."""

from pyro_stad.fields.networks.perceptron import Trunk

__all__ = ["Trunk"]
