"""Claim: who is killed loses nothing: a run goes on to the same draws, and so does a cluster.

Twenty processes are killed (SIGKILL) at times spread over their runs, ten of one posterior with a
checkpoint and ten of many objects with a store, and started again; their draws are those of a run
that nobody killed, to the last bit, or not. Ten times one of the two workers of a Dask cluster is
killed after its first parts.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import tempfile
import threading
import time
import warnings
from pathlib import Path
from typing import Any

import pyro
import pyro.distributions as dist
import torch
from common import arguments, provenance, write
from page import read, section, source, table
from torch import Tensor

import pyro_stad

RUNS = {"long": ("",), "smoke": ("--kills 2 --cluster 1",)}
_SPAWN = multiprocessing.get_context("spawn")
_Y = torch.linspace(-2, 2, 60)


def model(y: Tensor) -> None:
    x = pyro.sample("x", dist.Normal(torch.tensor(0.0), 1.0))
    scale = pyro.sample("scale", dist.HalfNormal(torch.tensor(1.0)))
    pyro.sample("y", dist.Normal(x, 0.2 + scale), obs=y)


def one(folder: Path) -> Tensor:
    """Return draws of one posterior, kept in a checkpoint."""
    file = None if folder is None else folder / "chains"
    found = pyro_stad.sample_posterior(
        model, torch.tensor(0.7), num_samples=400, checkpoint=file, progress=False
    )
    return found.draws["x"]


def many(folder: Path, **more: Any) -> Tensor:
    """Return draws of many objects, kept in a store."""
    found = pyro_stad.sample_posteriors(
        model, _Y, num_chains=16, num_samples=40, part=5, form="noise", store=folder,
        progress=False, **more,
    )  # fmt: skip
    return found.draws["x"]


KINDS = {"a posterior": one, "many objects": many}


def work(kind: str, folder: Path, began: Any) -> None:
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    began.set()
    KINDS[kind](folder)


def killed(kind: str, share: float, whole: Tensor, seconds: float) -> dict[str, Any]:
    """Kill a process after a share of what it takes, and go on; return whether draws agree.

    One that was done by then is tried again, and killed earlier.
    """
    with tempfile.TemporaryDirectory() as name:
        folder, began = Path(name), _SPAWN.Event()
        process = _SPAWN.Process(target=work, args=(kind, folder, began))
        process.start()
        began.wait()
        time.sleep(share * seconds)
        assert process.pid is not None
        os.kill(process.pid, signal.SIGKILL)
        process.join()
        if process.exitcode != -signal.SIGKILL:
            return killed(kind, 0.7 * share, whole, seconds)
        found = KINDS[kind](folder)
    return {"kind": kind, "share": share, "killed": True, "same": torch.equal(found, whole)}


def kill_a_worker(client: Any, store: Path, parts: int) -> None:
    victim = next(iter(client.run(os.getpid).values()))
    while len(list(store.glob("objects_*"))) < parts:
        time.sleep(0.01)
    os.kill(victim, signal.SIGKILL)


def cluster_killed(index: int, whole: Tensor) -> dict[str, Any]:
    """Kill a worker of two when some parts are done; return whether draws are the same."""
    from dask.distributed import Client, LocalCluster

    with (
        tempfile.TemporaryDirectory() as name,
        LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=":0") as cluster,
        Client(cluster) as client,
    ):
        store = Path(name)
        killer = threading.Thread(target=kill_a_worker, args=(client, store, 1 + index % 4))
        killer.start()
        found = many(store, executor=client.get_executor())
        killer.join()
    return {"kind": "a worker of a cluster", "killed": True, "same": torch.equal(found, whole)}


def main() -> None:
    parser = arguments(__doc__, "killed")
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--cluster", type=int, default=10)
    options = parser.parse_args()
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    made, rows = provenance(options.seed), []
    whole = {}
    for kind, run in KINDS.items():
        started = time.perf_counter()
        with tempfile.TemporaryDirectory() as name:
            whole[kind] = run(Path(name))
        seconds = time.perf_counter() - started
        count = options.kills // len(KINDS)
        for index in range(count):
            rows.append(killed(kind, (index + 0.5) / count, whole[kind], seconds))
            print(rows[-1], flush=True)
    for index in range(options.cluster):
        rows.append(cluster_killed(index, whole["many objects"]))
        print(rows[-1], flush=True)
    write(options.name, {"provenance": made, "rows": rows})


@section(93)
def page() -> str:
    result = read("killed")
    kinds = dict.fromkeys(row["kind"] for row in result["rows"])
    cells = []
    for kind in kinds:
        rows = [row for row in result["rows"] if row["kind"] == kind]
        dead = [row for row in rows if row["killed"]]
        cells.append([kind, str(len(dead)), f"{sum(row['same'] for row in dead)} of {len(dead)}"])
    return (
        "## Killed, and gone on with\n\n"
        "Processes killed at times spread over their runs, and workers of a Dask cluster of two "
        "killed in the middle: how often what came out is, to the last bit, that of a run which "
        f"nobody killed.\n\n{table(['what', 'killed', 'the same'], cells)}\n\n"
        f"{source('killed', result)}\n"
    )


if __name__ == "__main__":
    main()
