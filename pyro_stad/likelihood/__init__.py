"""The log-density of a field's flow, and its error."""

from pyro_stad.likelihood.audit import Audit, SteinResidual, audit, choose_steps
from pyro_stad.likelihood.flow_ode import FlowODE

__all__ = ["Audit", "FlowODE", "SteinResidual", "audit", "choose_steps"]
