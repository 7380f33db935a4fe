"""Claim: bits per dimension of images beside a normal law and a flow of as much training.

Reads what ``images.py`` has recorded, and trains zuko's neural spline flow and masked
autoregressive flow for as many seconds as that fit took, on the same images, made continuous and
whitened the same way; the one that its own held-out images prefer is taken.
"""

from __future__ import annotations

import torch
import zuko
from common import arguments, provenance, write
from images import bits, images
from page import read, section, source, table
from peers import zuko_flow

from pyro_stad.data.images import image_whitening

RUNS = {
    "long": ("",),
}  # fmt: skip
_KINDS = {"zuko NSF": zuko.flows.NSF, "zuko MAF": zuko.flows.MAF}


def main() -> None:
    parser = arguments(__doc__, "image_flows")
    parser.add_argument("--of", default="images")
    parser.add_argument("--mnist", action="store_true")
    parser.add_argument("--share", type=float, default=1.0, help="of the seconds of the fit")
    options = parser.parse_args()
    torch.set_num_threads(1)
    made = provenance(options.seed)
    ours = read(options.of)
    kept, held, levels = images(options)
    whiten = image_whitening(kept)
    x, y = (whiten.inv(part).flatten(1) for part in (kept, held))
    seconds = options.share * sum(stage[2] for stage in ours["stages"])
    rows = {}
    for name, kind in _KINDS.items():
        density, did = zuko_flow(x, seconds, options.seed, kind)
        with torch.no_grad():
            log_p = torch.cat([density(part) for part in y.split(100)]) - whiten.log_det
        rows[name] = {**did, "bits": bits(log_p, levels, y.shape[1])}
        print(name, rows[name], flush=True)
    best = min(rows, key=lambda name: rows[name]["validation"])
    write(options.name, {
        "provenance": made, "rows": rows, "best": best, "seconds": seconds, "of": options.of,
    })  # fmt: skip


@section(98)
def page() -> str:
    result = read("image_flows")
    ours, best = read(result["of"]), result["rows"][result["best"]]
    cells = [[
        str(ours["size"]), f"{ours['bits_all']:.3f}", f"{best['bits']:.3f} ({result['best']})",
        f"{ours['normal_all']:.3f}", f"{result['seconds']:.0f}",
    ]]  # fmt: skip
    header = ["pixels", "ours", "zuko's best flow", "normal law", "seconds of training, each"]
    return (
        "## Images: bits for each number\n\n"
        "All held-out images, made continuous the same way; ours by the distilled divergence.\n\n"
        f"{table(header, cells)}\n\n{source('image_flows', result)}\n"
    )


if __name__ == "__main__":
    main()
