"""The core dependencies alone: import, fit, save, load, evidence, ArviZ; extras name themselves."""

import subprocess
import sys
from importlib.util import find_spec

import pyro
import pyro.distributions as dist
import torch

import pyro_stad

torch.set_num_threads(1)
prior = pyro_stad.fit(torch.randn(400, 2), names=["a", "b"], budget="tiny", progress=False)
prior.save("core.safetensors")
prior = pyro_stad.load("core.safetensors")


def model(y):
    theta = pyro.sample("theta", prior)
    pyro.sample("y", dist.Normal(theta[..., 0], 1.0), obs=y)


found = pyro_stad.log_evidence(model, torch.tensor(0.3), particles=200, progress=False)
data = pyro_stad.to_arviz(found, prior={"theta": prior})
assert data["posterior"]["theta"].shape[-1] == 2
for module, argument, extra in (("typer", ["--version"], "cli"), ("matplotlib", ["demo"], "demo")):
    if find_spec(module) is None:
        command = [sys.executable, "-m", "pyro_stad", *argument]
        done = subprocess.run(command, capture_output=True, text=True)
        lines = done.stderr.strip().splitlines()
        missing = find_spec("typer") is None
        assert done.returncode, done
        assert len(lines) == 1, done.stderr
        assert ("pyro-stad[cli]" if missing else f"pyro-stad[{extra}]") in lines[0], lines
with open("core.parquet", "wb") as file:
    file.write(b"PAR1" + bytes(100) + b"PAR1")
uses = {
    ("pyarrow", "chains"): lambda: pyro_stad.read_chain("core.parquet"),
    ("nautilus", "evidence"): lambda: pyro_stad.log_evidence(
        model, torch.tensor(0.3), method="nested", progress=False
    ),
}
for (module, extra), use in uses.items():
    if find_spec(module) is None:
        said = ""
        try:
            use()
        except ImportError as error:
            said = str(error)
        assert f"pyro-stad[{extra}]" in said, said
print("core dependencies alone: passed", found.log_z)
