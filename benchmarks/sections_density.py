"""Sections of docs/benchmarks.md: the divergence, the density, and inference with it."""

from __future__ import annotations

from typing import Any

from common import RESULTS
from figures import draw_distillation, draw_error_in_time, draw_scaling
from page import read, section, source, table

from pyro_stad.demo.text import HEADER
from pyro_stad.demo.text import rows as answer_rows


def distillation_rows(measured: list[dict[str, Any]]) -> str:
    rows = [
        [
            row["teacher"],
            str(row["features"]),
            f"{row['stein']['sd']:.3f} ({row['stein']['bias']:+.3f})",
            f"{row['stein_and_polish']['sd']:.3f} ({row['stein_and_polish']['bias']:+.3f})",
            f"{row['hutchinson_one_probe']['sd']:.2f}",
            f"{row['exact_against_truth']['sd']:.2f} ({row['exact_against_truth']['bias']:+.2f})",
            f"{row['stein_and_polish']['seconds']:.0f}",
        ]
        for row in measured
    ]
    header = [
        "teacher",
        "D",
        "Stein: sd (bias)",
        "Stein and polish: sd (bias)",
        "one Hutchinson probe: sd",
        "exact trace against the truth: sd (bias)",
        "seconds of distillation",
    ]
    return table(header, rows)


def objective_rows(measured: list[dict[str, Any]]) -> str:
    rows = []
    for row in measured:
        for name, curve in row["curves"].items():
            if name != "stein and polish" and len(row["curves"]) > 2:
                end = curve[-1]
                errors = f"{end['sd']:.3f} ({end['bias']:+.3f})"
                rows.append([row["teacher"], str(row["features"]), name, errors])
    return table(["teacher", "D", "objective", "sd (bias)"], rows)


@section
def distillation() -> str:
    results = [read(path.stem) for path in RESULTS.glob("distillation*.json")]
    results.sort(key=lambda result: result["provenance"]["date"])
    # A later run replaces what it repeats of an earlier one.
    latest = {(r["features"], r["teacher"]): r for result in results for r in result["rows"]}
    order = {name: index for index, name in enumerate(("vp", "ot", "cnf"))}
    measured = [latest[key] for key in sorted(latest, key=lambda key: (key[0], order[key[1]]))]
    draw_distillation(measured)
    sources = "\n\n".join(source("distillation", result) for result in results)
    return (
        "## Distilled divergence against the exact trace\n\n"
        "Error of log p in nats on 1,000 held-out points of five-component mixtures, against the "
        f"exact trace of the same teacher on the same grid, {results[0]['solver']}. Trunks of "
        "three layers of 128. The probe's error is the root mean square over 16 seeds. The last "
        "error is the teacher's own, against the closed-form density of the data without noise.\n\n"
        f"{distillation_rows(measured)}\n\n"
        "Other objectives, for as many steps as the Stein objective got:\n\n"
        f"{objective_rows(measured)}\n\n"
        f"![Error against training time](distillation.png)\n\n{sources}\n"
    )


@section
def error_in_time() -> str:
    result = read("error_in_time")
    draw_error_in_time(result)
    return (
        "## Where the divergence is off\n\n"
        f"A mixture in {result['features']} dimensions, trained as by the standard budget: error "
        "of the distilled divergence against the exact trace, and the spread of the exact one.\n\n"
        f"![Error against time](error_in_time.png)\n\n{source('error_in_time', result)}\n"
    )


@section
def cost() -> str:
    result = read("cost")
    rows = [
        [
            str(row["features"]),
            f"{row['stein_over_hutchinson']:.2f}",
            f"1/{1 / row['stein_over_exact']:.1f}",
            f"{row['seconds']['stein'] / row['seconds']['flow alone']:.2f}",
            f"{row['seconds']['hutch++ 6'] / row['seconds']['hutchinson']:.2f}",
        ]
        for row in result["rows"]
    ]
    header = [
        "D",
        "Stein / one Hutchinson probe",
        "Stein / exact trace",
        "Stein / flow without a density",
        "Hutch++ (6) / one Hutchinson probe",
    ]
    return (
        "## What a call costs\n\n"
        f"Ratios of times of log p of {result['rows'][0]['batch']} points, {result['solver']}.\n\n"
        f"{table(header, rows)}\n\n{source('cost', result)}\n"
    )


@section
def scaling() -> str:
    result = read("scaling")
    calls, slopes = result["rows"], result["slopes"]
    names = list(slopes)
    rows = [
        [str(row["features"]), *(f"{row['over_velocity'][name]:.1f}" for name in names)]
        for row in calls
    ]
    rows.append(["slope of what is added", *(f"{slopes[name]:.2f}" for name in names)])
    points = [
        [
            f"{row['points']:,}",
            row["way"],
            f"{row['microseconds_per_point']:.0f}",
            f"{row['gigabytes']:.2f}",
            "yes" if row["bitwise"] else "no",
        ]
        for row in result["points"]
    ]
    header = ["points", "density", "microseconds a point", "most memory so far, GB", "bitwise"]
    draw_scaling(result)
    return (
        "## How cost grows\n\n"
        "Velocity and divergence, one call, 64 points, over the velocity alone; and the slope in D "
        "of what the divergence adds, from D = 16 on.\n\n"
        f"{table(['D', *names], rows)}\n\n![Cost against D and batch](scaling.png)\n\n"
        "Log-density of many points in 16 dimensions; bitwise: the first and last hundred are what "
        f"they are on their own.\n\n{table(header, points)}\n\n{source('scaling', result)}\n"
    )


@section
def accuracy() -> str:
    results = [read(path.stem) for path in RESULTS.glob("accuracy*.json")]
    results.sort(key=lambda result: result["provenance"]["date"])
    # A later run replaces what it repeats of an earlier one.
    latest = {row["problem"]: row for result in results for row in result["rows"]}
    rows = []
    for row in latest.values():
        cells = []
        for found in row["densities"].values():
            cell = f"{found['log_likelihood']:.3f}"
            cells.append(
                f"{cell}, {found['sd']:.2f} ({found['bias']:+.2f})" if "sd" in found else cell
            )
        gain = f"{row['gain_over_peer']:+.3f} +- {row['gain_error']:.3f}"
        way = row["likelihood"].replace("Stein(TrunkHead), ", "")
        size = f"{row['rows']:,} x {row['features']}"
        rows.append([row["problem"], size, f"{row['seconds']:.0f}", way, *cells, gain])
    known = [
        [
            row["problem"],
            f"{row['bound']['median']:.2f}",
            f"{row['bound']['coverage']:.3f}",
            f"{row['bound']['rank_exact']:.2f}",
            f"{row['bound']['rank_truth']:.2f}" if "rank_truth" in row["bound"] else "-",
        ]
        for row in latest.values()
    ]
    bounds = ["data", "median bound", "coverage", "rank, exact trace", "rank, truth"]
    names = list(next(iter(latest.values()))["densities"])
    header = ["data", "rows x D", "seconds", "density", *names, "gain over NSF"]
    sources = " ".join(source("accuracy", result) for result in results)
    versions = ", ".join(f"{k} {v}" for k, v in results[-1]["provenance"]["peers"].items())
    return (
        "## How well the law is learned\n\n"
        "Mean held-out log-density in nats; for mixtures also sd (bias) of its error against the "
        "truth. As many seconds of training for `fit`, calibration included, as for the spline "
        f"flow; {versions}.\n\n{table(header, rows)}\n\n"
        "What `surrogate_error`, a bound for 95 percent of data, is worth on the same held-out "
        "rows: its median, the share of errors against the exact trace within it, and its rank "
        "correlation with the sizes of the errors against the exact trace and against the truth."
        f"\n\n{table(bounds, known)}\n\n{sources}\n"
    )


@section
def latency() -> str:
    result = read("latency")
    sizes = [row["features"] for row in result["rows"]]
    names = list(result["rows"][0]["over_normal"])
    rows = [
        [name, *(f"{row['over_normal'][name]:.1f}" for row in result["rows"])] for name in names
    ]
    header = ["log-density", *(f"D = {features}" for features in sizes)]
    versions = ", ".join(f"{k} {v}" for k, v in result["peers"].items())
    return (
        "## What a leapfrog step pays\n\n"
        "Time of value and gradient at one point, over that of a multivariate normal. Networks of "
        f"default size, untrained; {versions}.\n\n"
        f"{table(header, rows)}\n\n{source('latency', result)}\n"
    )


@section
def batched() -> str:
    result = read("batched")
    micro = "microseconds"
    prices = [
        [row["density"], f"{row[micro]:.1f}", f"{row[f'{micro}_with_gradient']:.1f}"]
        for row in result["prices"]
    ]
    rows = [[row["density"], f"{row['bias']:+.2f}", f"{row['sd']:.2f}"] for row in result["rows"]]
    sizes = list(next(iter(result["chunks"].values())))
    chunks = [
        [name, *(f"{found[size]:.1f}" for size in sizes)]
        for name, found in result["chunks"].items()
    ]
    size, points = result["features"], result["points"]
    return (
        "## What a batch costs\n\n"
        f"Microseconds a point, for {points} points in {size} dimensions, one thread; networks "
        "of default size.\n\n"
        f"{table(['log-density', 'value', 'with its gradient'], prices)}\n\n"
        "The same law learned from 10,000 samples, each peer in the time of our fit: error "
        "against the truth. The mass is divided out of the fit's own choice alone.\n\n"
        f"{table(['log-density', 'bias, nat', 'sd, nat'], rows)}\n\n"
        "Microseconds a point, with its gradient, by the rows that are worked on at a time "
        "(`chunk_size`).\n\n"
        f"{table(['log-density', *sizes], chunks)}\n\n{source('batched', result)}\n"
    )


@section
def draws() -> str:
    result = read("draws")
    rows = [
        [
            of_law["samples"],
            f"{row['grid']}{', chosen' if row['grid'] == of_law['chosen'] else ''}",
            str(row["calls"]),
            f"{row['displacement']:.4f}",
            f"{row['p_value']:.2g}",
            f"{row['there_and_back']:.4f}",
            f"{row['back_on_the_density_grid']:.4f}",
        ]
        for of_law in result["rows"]
        for row in of_law["rows"]
    ]
    header = ["samples", "grid", "calls", "displacement", "p", "there and back", "back, finer"]
    times = [
        [of_law["samples"], of_law["chosen"], of_law["density"]]
        + [f"{found:.1f}" for found in of_law["microseconds"].values()]
        for of_law in result["rows"]
    ]
    heads = ["samples", "for draws", "for the density", *result["rows"][0]["microseconds"]]
    return (
        "## Draws\n\n"
        "Flows of 10,000 samples. How far draws on a grid are from those of the same noise on 64 "
        "steps (root mean square a whitened coordinate); the chance of a test of 2,000 of them "
        "against 2,000 other ones of 64 steps; and how far their noise comes back from where it "
        "was, on the same grid and on the density's.\n\n"
        f"{table(header, rows)}\n\n"
        "Microseconds a draw, of 10,000, beside peers of default size, untrained.\n\n"
        f"{table(heads, times)}\n\n{source('draws', result)}\n"
    )


@section
def nuts() -> str:
    results = [read(path.stem) for path in RESULTS.glob("nuts*.json")]
    results.sort(key=lambda result: result["provenance"]["date"])
    rows = [
        [
            row["posterior"],
            row["prior"],
            row["likelihood"],
            f"{row['effective']:.0f}",
            str(row["divergences"]),
            f"{row['over_normal']:.2f}",
            f"{row['over_law']:.2f}",
        ]
        for result in results
        for row in result["rows"]
    ]
    sources = " ".join(source("nuts", result) for result in results)
    header = ["posterior", "prior", "density", "ESS", "divergences"]
    header += ["time per ESS, over a normal", "over the law itself"]
    return (
        "## What an effective sample costs\n\n"
        "NUTS with the learned prior, by both routes, beside a multivariate normal of the same "
        "moments, whose posterior is another one, and beside the law of the samples in closed "
        "form. Smallest bulk effective sample size.\n\n"
        f"{table(header, rows)}\n\n{sources}\n"
    )


@section
def fit_budget() -> str:
    result = read("fit_budget")
    row = result["rows"][0]
    audit = row["calibration"]["audit"]
    return (
        "## What a fit costs\n\n"
        f"The default fit of {row['samples']:,} samples in {row['features']} dimensions, audit "
        f"included: {row['seconds']:.0f} s. Against the exact trace on held-out samples: bias "
        f"{audit['bias']:+.3f}, sd {audit['sd']:.3f} nat; normaliser {audit['normaliser']:.3f} "
        f"+- {audit['normaliser_error']:.3f}.\n\n{source('fit_budget', result)}\n"
    )


@section
def demo() -> str:
    result = read("demo")
    summary = result["rows"][0]
    kinetics, regression = summary["kinetics"], summary["regression"]
    seconds = sum(sum(part["seconds"].values()) for part in (kinetics, regression))
    rows = [
        [cells[0], *_errors_in_v_and_k(answer, kinetics["parameters"]), *cells[3:]]
        for answer, cells in zip(kinetics["answers"].values(), answer_rows(kinetics))
    ]
    header = ["answer", "V: mean", "V: sd", "K: mean", "K: sd", *HEADER[3:]]
    return (
        "## What a learned prior does to a posterior\n\n"
        f"The demo, {seconds:.0f} s. First the enzyme: errors against the grid, of means in "
        f"posterior standard deviations. {summary['says']['kinetics']}\n\n"
        f"{table(header, rows)}\n\n"
        "Its evidences, against quadrature; those of normal fits are by quadrature, too.\n\n"
        f"{table(['evidence', 'truth', 'log Z', 'error'], _evidence_rows(kinetics))}\n\n"
        f"Then the regression, the worst of {len(regression['parameters'])} parameters. "
        f"{summary['says']['regression']}\n\n"
        f"{table(list(HEADER), [list(cells) for cells in answer_rows(regression)])}\n\n"
        f"{source('demo', result)}\n"
    )


def _errors_in_v_and_k(answer: dict[str, Any], names: list[str]) -> list[str]:
    places = [names.index(name) for name in ("V", "K")]
    pairs = [(answer["mean_error"][i], answer["sd_error"][i]) for i in places]
    return [cell for mean, sd in pairs for cell in (f"{mean:+.3f}", f"{sd:+.1%}")]


def _evidence_rows(kinetics: dict[str, Any]) -> list[list[str]]:
    of_b = kinetics["evidence"]
    found = {"B given A, learned prior": of_b}
    for name, value in of_b["normal fits"].items():
        found[f"B given A, {name}"] = {"truth": of_b["truth"], "log_z": value}
    found |= {f"all data, {name}": value for name, value in kinetics["comparison"].items()}
    rows = []
    for name, z in found.items():
        error = f" +- {z['log_z_err']:.3f}" if "log_z_err" in z else ""
        cells = (f"{z['truth']:.3f}", f"{z['log_z']:.3f}{error}", f"{z['log_z'] - z['truth']:+.3f}")
        rows.append([name, *cells])
    return rows


@section
def identity() -> str:
    result = read("identity")
    rows = [
        [
            row["objective"],
            str(row["features"]),
            f"{row['relative_error_of_mean']:+.2%}",
            f"{row['relative_sd']:.2%}",
        ]
        for row in result["rows"]
    ]
    header = ["objective", "D", "error of the mean", "sd over points"]
    return (
        "## The divergence of v = x under N(0, I) is D\n\n"
        "The test that tells the right loss from the tempting wrong one. Relative to D.\n\n"
        f"{table(header, rows)}\n\n{source('identity', result)}\n"
    )


@section
def oracle() -> str:
    result = read("oracle")
    rows = [
        [
            row["path"],
            str(row["features"]),
            "Gaussian" if row["components"] == 1 else "mixture",
            f"{row['worst']:.1e}",
            f"{row['blur_bias']:+.1e}",
            f"{row['blur_sd']:.1e}",
        ]
        for row in result["rows"]
    ]
    header = ["path", "D", "law", "worst error", "bias of the blur", "sd of the blur"]
    return (
        "## Exact trace against closed forms\n\n"
        "Exact field and exact trace in float64: the largest error of log p in nats over 64 "
        "points, against the closed-form density at the path's data end; and what the blur of that "
        "end costs, against the density of the data without noise.\n\n"
        f"{table(header, rows)}\n\n{source('oracle', result)}\n"
    )
