"""Files of chains as their own writers make them, by the writers themselves where they install.

Each maker writes the values ``(N, 3)`` into a folder and returns what ``read_chain`` is given.
"""

import json
import warnings

import numpy as np
import pytest

NAMES = ["a", "b", "c"]
_STAN_HEAD = """\
# stan_version_major = 2
# stan_version_minor = 35
# model = eight_model
# method = sample (Default)
#   sample
#     num_samples = {draws}
#     num_warmup = {warmup}
#     save_warmup = {save}
#     thin = {thin}
"""


def write_getdist(folder, values, weights, chains=2):
    """Write what GetDist's ``saveAsText`` writes: two chains, a derived parameter, ranges."""
    table = np.column_stack([weights, -np.log(weights) - 5, values, values.sum(1)])
    for number, part in enumerate(np.array_split(table, chains), 1):
        np.savetxt(folder / f"root_{number}.txt", part, fmt="%.17g")
    (folder / "root.paramnames").write_text(
        "a\t\\alpha\nb\nc\t\\gamma  # a remark\nsum*\t\\Sigma\n"
    )
    (folder / "root.ranges").write_text(
        "   a  -5.0000000E+01    N\n   b   -7.0  7.0  periodic\n  sum   N   N\n  d  3.0  3.0\n"
    )
    return folder / "root"


def write_cobaya(folder, values, weights, chains=2):
    """Write Cobaya's text collection and its yaml, code within it included."""
    names = [*NAMES, "sum", "minuslogprior", "minuslogprior__0", "chi2", "chi2__one"]
    header = "#" + " ".join(f"{name:>16}" for name in ["weight", "minuslogpost", *names])
    zeros = np.zeros(len(values))
    table = np.column_stack([weights, -np.log(weights), values, values.sum(1)] + 4 * [zeros])
    for number, part in enumerate(np.array_split(table, chains), 1):
        rows = "\n".join(" ".join(f"{v:>25.17g}" for v in row) for row in part)
        (folder / f"root.{number}.txt").write_text(f"{header}\n{rows}\n")
    (folder / "root.updated.yaml").write_text(
        "likelihood:\n  one: {external: 'lambda a: __import__(\"os\").abort()'}\n"
        "params:\n"
        "  a: {prior: {min: -50, max: 1e3}, latex: \\alpha, proposal: 0.1}\n"
        "  b: {prior: {dist: norm, loc: 0, scale: 1}}\n"
        "  c: {prior: [-600.0, 700.0]}\n"
        "  fixed: {value: 3.0}\n"
        "  sum: {derived: 'lambda a, b, c: a + b + c', latex: \\Sigma}\n"
        "sampler: {mcmc: {temperature: 1}}\n"
    )
    return folder / "root"


def write_polychord(folder, values, weights):
    """Write PolyChord's ``root.txt``: weight, minus twice the log likelihood, parameters."""
    table = np.column_stack([weights / weights.max(), -2 * np.log(weights), values])
    rows = (" ".join(f"{v:24.15E}" for v in row) for row in table)
    (folder / "run.txt").write_text("\n".join(rows) + "\n")
    np.savetxt(folder / "run_dead-birth.txt", np.ones((4, 5)))
    (folder / "run.paramnames").write_text("a a\nb b\nc c\n")
    return folder / "run"


def write_multinest(folder, values, weights):
    """Write MultiNest's files as its Python wrapper leaves them, names in JSON."""
    table = np.column_stack([weights / weights.sum(), -2 * np.log(weights), values])
    np.savetxt(folder / "1-.txt", table, fmt="%25.18E")
    (folder / "1-params.json").write_text(json.dumps(NAMES))
    return folder / "1-"


def write_ultranest(folder, values, weights):
    """Write the folder of an UltraNest run."""
    (folder / "chains").mkdir()
    table = np.column_stack([weights / weights.sum(), np.log(weights), values])
    header = " ".join(["weight", "logl", *NAMES])
    np.savetxt(folder / "chains" / "weighted_post.txt", table, header=header, comments="")
    np.savetxt(folder / "chains" / "weighted_post_untransformed.txt", table)
    return folder


def write_ultranest_short_header(folder, values, weights):
    """Write the table of older versions, whose header names the parameters alone."""
    root = write_ultranest(folder, values, weights)
    file = root / "chains" / "weighted_post.txt"
    file.write_text(file.read_text().replace("weight logl ", "", 1))
    return root


def write_stan(folder, values, weights=None, *, warmup=10, thin=3, save="true"):
    """Write two chains of CmdStan, warm-up saved, comments everywhere."""
    saved = -(-warmup // thin) if save == "true" else 0
    for number, part in enumerate(np.array_split(values, 2), 1):
        head = _STAN_HEAD.format(draws=len(part) * thin, warmup=warmup, save=save, thin=thin)
        rows = [f"-7.1,0.9,{a:.17g},{b:.17g},{c:.17g}" for a, b, c in part]
        lines = ["lp__,accept_stat__,a,b,c", *["-900,0.1,50,50,50"] * saved]
        lines += [
            "# Adaptation terminated",
            "# Step size = 0.8",
            *rows,
            "# ",
            "#  Elapsed Time: 1 s",
        ]
        (folder / f"fit_{number}.csv").write_text(head + "\n".join(lines) + "\n")
    return folder / "fit"


def write_emcee(folder, values, weights=None):
    """Write emcee's backend with its own writer, longer than the run got."""
    backends = pytest.importorskip("emcee").backends
    import emcee

    backend = backends.HDFBackend(str(folder / "run.h5"))
    walkers = values.reshape(4, -1, 3)
    backend.reset(4, 3)
    backend.grow(walkers.shape[1] + 20, None)
    accepted = np.zeros(4)
    for step in range(walkers.shape[1]):
        state = emcee.State(walkers[:, step], log_prob=np.zeros(4), random_state=())
        backend.save_step(state, accepted)
    return folder / "run.h5"


def dataset(values):
    """Return the posterior as xarray's, in two chains, with names that are labels."""
    import xarray

    drawn = values.reshape(2, -1, 3)
    return xarray.Dataset(
        {"a": (("chain", "draw"), drawn[..., 0]), "v": (("chain", "draw", "k"), drawn[..., 1:])},
        coords={"chain": [0, 1], "draw": np.arange(drawn.shape[1]), "k": ["b", "c"]},
    )


def write_netcdf(folder, values, weights=None):
    dataset(values).to_netcdf(folder / "idata.nc", group="posterior", engine="h5netcdf")
    return folder / "idata.nc"


def write_flat_netcdf(folder, values, weights=None):
    dataset(values).to_netcdf(folder / "flat.nc", engine="h5netcdf")
    return folder / "flat.nc"


def write_zarr(folder, values, weights=None):
    pytest.importorskip("zarr")
    with warnings.catch_warnings():
        # Labels of fixed length are not in the third specification of zarr yet.
        warnings.simplefilter("ignore")
        dataset(values).to_zarr(folder / "idata.zarr", group="posterior", consolidated=False)
    return folder / "idata.zarr"


def write_bilby(folder, values, weights=None):
    """Write a result of bilby, with all that its reader would import and call."""
    columns = dict(zip(NAMES, values.T.tolist()))
    count = len(values)
    columns |= {"log_likelihood": [0.0] * count, "sum": values.sum(1).tolist()}
    columns["z"] = [{"__complex__": True, "real": 1.0, "imag": 2.0}] * count
    columns["name"] = ["IMR"] * count
    uniform = {
        "__prior__": True,
        "__module__": "bilby.core.prior.analytical",
        "__name__": "Uniform",
    }
    priors = {
        "__prior_dict__": True,
        "__module__": "no_such_module_to_import",
        "__name__": "PriorDict",
        "a": {**uniform, "kwargs": {"minimum": -50, "maximum": 60.0, "boundary": None}},
        "b": {**uniform, "kwargs": {"minimum": -7.0, "maximum": 7, "boundary": "periodic"}},
        "c": "__import__('os').abort()",
    }
    result = {
        "label": "run",
        "priors": priors,
        "posterior": {"__dataframe__": True, "content": columns},
        "search_parameter_keys": NAMES,
        "parameter_labels": ["$a$", "$b$", "$c$"],
        "samples": {"__array__": True, "content": values.tolist()},
        "version": "bilby=2.8.2",
        "log_evidence": float("nan"),
    }
    (folder / "run_result.json").write_text(json.dumps(result, indent=2))
    return folder / "run_result.json"


def write_csv(folder, values, weights):
    import pandas

    pandas.DataFrame(values, columns=NAMES).assign(weights=weights).to_csv(folder / "t.csv")
    return folder / "t.csv"


def write_dat(folder, values, weights=None):
    np.savetxt(folder / "t.dat", values, header=" ".join(NAMES))
    return folder / "t.dat"


def write_parquet(folder, values, weights):
    pytest.importorskip("pyarrow")
    import pandas

    frame = pandas.DataFrame(values, columns=NAMES, index=np.arange(len(values))[::-1])
    frame.assign(log_weight=np.log(weights)).to_parquet(folder / "t.parquet")
    return folder / "t.parquet"


def write_fits(folder, values, weights=None):
    table = pytest.importorskip("astropy.table").Table
    table(values, names=NAMES).write(folder / "t.fits")
    return folder / "t.fits"


def write_npy(folder, values, weights=None):
    np.save(folder / "t.npy", values)
    return folder / "t.npy"


def write_npz(folder, values, weights):
    np.savez(folder / "t.npz", a=values[:, 0], v=values[:, 1:], logwt=np.log(weights))
    return folder / "t.npz"


def write_anesthetic(folder, values, weights):
    samples = pytest.importorskip("anesthetic").MCMCSamples
    labels = ["$a$", "$b$", "$c$"]
    samples(data=values, columns=NAMES, weights=weights, labels=labels).to_csv(folder / "an.csv")
    return folder / "an.csv"
