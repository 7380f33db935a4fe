"""Claim: a call of the distilled divergence grows like the number of pixels, an exact trace faster.

Milliseconds of one call of the network of images, for each image of a batch of sixteen, from 8 x 8
to 40 x 40: velocity alone, with the distilled divergence, with one probe, and with the exact trace;
and the slopes of their logarithms against that of D. On paper, from counted operations, what a
density would take on a GPU: see the page for what that supposes.
"""

from __future__ import annotations

import math
from functools import partial
from typing import Any

import torch
from common import arguments, median_seconds, provenance, write
from page import read, section, source, table
from torch.utils.flop_counter import FlopCounterMode

from pyro_stad.divergence import Exact, Hutchinson, ImageHead, Stein
from pyro_stad.fields import ImageField
from pyro_stad.paths import OptimalTransport

RUNS = {
    "long": ("",),
    "smoke": ("--sides 8 10 --exact 8 --name smoke_image_cost",),
}  # fmt: skip
_BATCH, _CALLS = 16, 32
# An H100 multiplies 494 tera a second in TF32, as its maker says; a third of that is usual.
_SPEED, _SHARE = 494e12, 0.3
_PAPER = {(3, 32, 32): (24, 128), (3, 64, 64): (24, 128)}


def ways(shape: tuple[int, int, int], width: int) -> dict[str, Any]:
    """Return calls of a field by name, of ``(t, x)``."""
    source = torch.Generator().manual_seed(0)
    field = ImageField(OptimalTransport(), shape, width, 3, source)
    stein = Stein(ImageHead.for_field(field, source))
    field.requires_grad_(False)
    stein.requires_grad_(False)
    found = {"velocity": field.velocity}
    for name, way in {"distilled": stein, "one probe": Hutchinson(1), "exact": Exact()}.items():
        found[name] = lambda t, x, way=way: way.velocity_and_divergence(field, t, x)
    return found


def operations(shape: tuple[int, int, int], width: int) -> dict[str, float]:
    """Return the operations of a call, for one image; those of an exact trace by its products."""
    calls, t, x = ways(shape, width), torch.tensor(0.5), torch.randn(1, *shape)
    found = {}
    for name in ("velocity", "distilled", "one probe"):
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            calls[name](t, x)
        found[name] = float(counter.get_total_flops())
    product = found["one probe"] - found["velocity"]
    found["exact"] = found["velocity"] + math.prod(shape) * product
    return found


def slope(rows: list[dict[str, Any]], name: str) -> float:
    """Return the slope of log time against log D, by least squares."""
    known = [(math.log(row["size"]), math.log(row[name])) for row in rows if name in row]
    x, y = (torch.tensor(each, dtype=torch.float64) for each in zip(*known))
    x = x - x.mean()
    return (x @ (y - y.mean()) / (x @ x)).item()


def main() -> None:
    parser = arguments(__doc__, "image_cost")
    parser.add_argument("--sides", type=int, nargs="+", default=[8, 12, 16, 20, 28, 40])
    parser.add_argument("--exact", type=int, default=20, help="largest side with an exact trace")
    parser.add_argument("--width", type=int, default=24)
    options = parser.parse_args()
    torch.set_num_threads(1)
    made, rows = provenance(options.seed), []
    for side in options.sides:
        calls = ways((1, side, side), options.width)
        if side > options.exact:
            del calls["exact"]
        t, x = torch.tensor(0.5), torch.randn(_BATCH, 1, side, side)
        with torch.no_grad():
            runs = {name: partial(call, t, x) for name, call in calls.items()}
            times = median_seconds(runs, 3)
        milli = {name: 1000 * seconds / _BATCH for name, seconds in times.items()}
        rows.append({"size": side * side, **milli})
        print(rows[-1], flush=True)
    names = ("velocity", "distilled", "one probe", "exact")
    paper = [
        {"shape": list(shape), "width": width, **operations(shape, width)}
        for shape, widths in _PAPER.items()
        for width in widths
    ]
    write(options.name, {
        "provenance": made, "rows": rows, "width": options.width, "paper": paper,
        "slopes": {name: slope(rows, name) for name in names},
    })  # fmt: skip


@section(97)
def page() -> str:
    result = read("image_cost")
    names = ("velocity", "distilled", "one probe", "exact")
    rows = [
        [str(row["size"]), *(f"{row[name]:.2f}" if name in row else "" for name in names)]
        for row in result["rows"]
    ]
    rows.append(["slope", *(f"{result['slopes'][name]:.2f}" for name in names)])
    speed = _SPEED * _SHARE
    paper = []
    for row in result["paper"]:
        times = [f"{_CALLS * row[name] / speed * 1000:.3g}" for name in names[1:]]
        shape = " x ".join(map(str, row["shape"]))
        paper.append([shape, str(row["width"]), f"{row['velocity'] / 1e9:.2g}", *times])
    header = ["images", "width", "10^9 operations of a call", *(f"{n}, ms" for n in names[1:])]
    return (
        "## Images: what a call costs\n\n"
        f"Milliseconds for an image, a U-Net of width {result['width']}; slopes are of the "
        f"logarithm of time against that of D.\n\n{table(['D', *names], rows)}\n\n"
        f"On paper, a log-density of {_CALLS} calls on a GPU, for an image of a batch large enough "
        f"to fill it: operations that torch counts, at {_SHARE:.0%} of the {_SPEED / 1e12:.0f} "
        "tera a second that an H100 has in TF32. Nobody has measured it: the share is what "
        "convolutions of this kind usually reach, and reading and writing maps, which the count "
        f"leaves out, may take as long again.\n\n{table(header, paper)}\n\n"
        f"{source('image_cost', result)}\n"
    )


if __name__ == "__main__":
    main()
