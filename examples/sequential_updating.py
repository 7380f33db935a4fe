"""Yesterday's posterior as today's prior: the demonstration, with its knobs in reach.

The package's own ``pyro_stad.demo`` does the work; this script shows what there is to turn, and
prints how far each answer is from the truth.
"""

from __future__ import annotations

import argparse

from pyro_stad.demo import DemoSettings, run_demo, text


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", default="demo")
    parser.add_argument("--budget", default="standard", help="of the fit to the enzyme's ridge")
    parser.add_argument("--regression-budget", default="quick", help="of the fit to the other")
    parser.add_argument("--draws", type=int, default=20_000, help="of A's posterior")
    parser.add_argument("--samples", type=int, default=1000, help="of NUTS, per chain")
    parser.add_argument("--warmup", type=int, default=200)
    parser.add_argument("--chains", type=int, default=2)
    parser.add_argument("--particles", type=int, default=1000, help="of each run of an evidence")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--seed", type=int, default=0)
    options = vars(parser.parse_args())
    print(text(run_demo(options.pop("out"), DemoSettings(**options))))


if __name__ == "__main__":
    main()
