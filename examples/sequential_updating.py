"""Yesterday's posterior as today's prior: the demonstration, with its knobs in reach.

The package's own ``pyro_stad.demo`` does the work; this script shows what it does in which order,
and prints how far each answer is from the closed form.
"""

from __future__ import annotations

import argparse

from pyro_stad.demo import run_demo


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", default="demo")
    parser.add_argument("--budget", default="standard")
    parser.add_argument("--draws", type=int, default=10_000, help="of A's posterior")
    parser.add_argument("--samples", type=int, default=800, help="of NUTS, per chain")
    parser.add_argument("--warmup", type=int, default=200)
    parser.add_argument("--chains", type=int, default=2)
    parser.add_argument("--workers", type=int, default=2)
    options = parser.parse_args()
    summary = run_demo(
        options.out,
        draws=options.draws,
        budget=options.budget,
        warmup=options.warmup,
        samples=options.samples,
        chains=options.chains,
        workers=options.workers,
    )
    for name, answer in summary["answers"].items():
        print(
            f"{name:22} worst mean {answer['worst_mean_error']:.3f} sd, "
            f"worst sd {answer['worst_sd_error']:.1%}"
        )


if __name__ == "__main__":
    main()
