"""How a prior was made, and how well it describes its samples."""

from pyro_stad.report.fit import FitReport, Stage
from pyro_stad.report.goodness import Goodness, goodness

__all__ = ["FitReport", "Goodness", "Stage", "goodness"]
