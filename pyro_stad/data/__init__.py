"""Samples to tensors: containers, bounds, margins, standardisation, batches."""

from pyro_stad.data.angles import Angle, Periodic, Wrap
from pyro_stad.data.batches import Batches, balanced_noise, between, split, stratified
from pyro_stad.data.bounds import (
    Bounds,
    box,
    check_inside,
    open_box,
    outer_transforms,
    parse_bounds,
    support_of,
    to_line,
    wind,
)
from pyro_stad.data.chain import Chain
from pyro_stad.data.effective import correlation_time
from pyro_stad.data.images import bits_per_dimension
from pyro_stad.data.intake import Intake, take_in
from pyro_stad.data.layout import Layout
from pyro_stad.data.margin_fit import fit_margins
from pyro_stad.data.margins import Margins, Splines
from pyro_stad.data.read import read_chain
from pyro_stad.data.repeats import merge_repeats
from pyro_stad.data.samples import Samples, as_samples
from pyro_stad.data.scale import check_margins, check_whitening
from pyro_stad.data.standardise import (
    AbstractWhitening,
    Rescale,
    Standardise,
    StandardiseRows,
    affine,
    real_events,
    whitening,
)

__all__ = [
    "AbstractWhitening",
    "Rescale",
    "affine",
    "real_events",
    "Angle",
    "Batches",
    "Bounds",
    "Chain",
    "Intake",
    "Layout",
    "Margins",
    "Periodic",
    "Samples",
    "Splines",
    "Standardise",
    "StandardiseRows",
    "Wrap",
    "as_samples",
    "balanced_noise",
    "between",
    "bits_per_dimension",
    "box",
    "check_inside",
    "check_margins",
    "check_whitening",
    "correlation_time",
    "fit_margins",
    "merge_repeats",
    "open_box",
    "outer_transforms",
    "parse_bounds",
    "read_chain",
    "split",
    "stratified",
    "support_of",
    "take_in",
    "to_line",
    "whitening",
    "wind",
]
