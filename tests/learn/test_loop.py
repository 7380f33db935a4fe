"""The training loop: NaN policy, early stopping, and going on after a kill."""

import math
import os
import signal
import subprocess
import sys
import time

import pytest
import torch
from torch import nn

import pyro_stad
from pyro_stad import CheckpointError, TrainingError, TrainingSettings, TrainingWarning
from pyro_stad._files import read_tensors, write_tensors
from pyro_stad.learn import train


def regression(noise=0.0):
    """Return a module, a loss and a validation: learn to multiply by three."""
    module = nn.Linear(1, 1, bias=False)
    nn.init.zeros_(module.weight)

    def loss(m, generator):
        x = torch.randn(32, 1, generator=generator)
        return (m(x) - 3 * x + noise * torch.randn(32, 1, generator=generator)).square().mean()

    fixed = torch.linspace(-2, 2, 9)[:, None]
    return module, loss, lambda m: (m(fixed) - 3 * fixed).square().mean().item()


def run(module, loss, validate, *, seed=0, **changes):
    settings = {"steps": 300, "learning_rate": 0.05, "validate_every": 20, "warmup": 5}
    keep = {k: changes.pop(k) for k in ("resume", "purpose") if k in changes}
    return train(
        module,
        loss,
        validate,
        TrainingSettings(**{**settings, **changes}),
        generator=torch.Generator().manual_seed(seed),
        progress=False,
        **keep,
    )


def test_learns():
    module, loss, validate = regression(noise=0.1)
    history = run(module, loss, validate)
    assert module.weight.item() == pytest.approx(3, abs=0.03)
    assert history.best == pytest.approx(validate(module))


def test_average_forgets_the_start():
    """With a constant decay of 0.999 the weights after 300 steps would still be 74 % the start."""
    module, loss, validate = regression()
    run(module, loss, validate, patience=0)
    assert module.weight.item() > 2.9


def test_global_generator_is_untouched():
    problem = regression()
    state = torch.get_rng_state()
    run(*problem)
    assert torch.equal(torch.get_rng_state(), state)


def test_bad_steps_are_skipped_and_reported():
    module, loss, validate = regression()
    calls = iter(range(10_000))

    def sometimes(m, generator):
        return loss(m, generator) * (math.nan if next(calls) in (3, 50) else 1)

    with pytest.warns(TrainingWarning, match="skipped 2 steps with a non-finite"):
        history = run(module, sometimes, validate)
    assert history.skipped == 2
    assert not history.stopped_early
    # Two halvings of the rate: on the way, not there.
    assert 2 < module.weight.item() < 3


def test_training_that_breaks_keeps_the_last_good_weights():
    module, loss, validate = regression()
    calls = iter(range(10_000))

    def breaks(m, generator):
        return loss(m, generator) * (math.inf if next(calls) >= 100 else 1)

    with pytest.warns(TrainingWarning, match="stopped early, keeping the best weights"):
        history = run(module, breaks, validate)
    assert history.stopped_early
    assert torch.isfinite(module.weight).all()
    assert validate(module) < 9


def test_training_that_never_works_raises():
    module, _, validate = regression()
    with pytest.raises(TrainingError, match="never a finite validation"):
        run(module, lambda m, g: m.weight.sum() * math.nan, validate)


def test_patience_goes_back_three_times_and_then_stops():
    """Validation only gets worse: one that is best, then four times three that are not."""
    module, loss, _ = regression()
    worse, seen = iter(range(1000)), []

    def validate(averaged):
        seen.append(averaged.weight.detach().clone())
        return float(next(worse))

    history = run(module, loss, validate, patience=3)
    assert history.stopped_early
    assert len(history.losses) == 1 + 4 * 3
    assert torch.equal(module.weight, seen[0])
    # After going back, a lower rate leads less far away in as many steps.
    strayed = [(seen[i] - seen[0]).abs().max() for i in (3, 6, 9, 12)]
    assert strayed[3] < strayed[2] < strayed[1] < strayed[0]


def test_a_target_is_enough():
    module, loss, _ = regression()
    better = iter([3.0, 2.0, 1.0, 0.5])
    history = run(module, loss, lambda m: next(better), target=1.5)
    assert history.losses == [3.0, 2.0, 1.0]


@pytest.mark.parametrize("optimiser", ["adam", "soap"])
def test_resumed_run_continues_the_same_curve(optimiser, tmp_path):
    """Interrupted by an exception at step 130, with a state saved at every step."""
    module, loss, validate = regression(noise=0.1)
    whole = run(module, loss, validate, optimiser=optimiser)
    second, loss, validate = regression(noise=0.1)
    calls = iter(range(10_000))

    def interrupted(m, generator):
        if next(calls) == 130:
            raise KeyboardInterrupt
        return loss(m, generator)

    file = tmp_path / "state.safetensors"
    with pytest.raises(KeyboardInterrupt):
        run(second, interrupted, validate, resume=file, save_every=0.0, optimiser=optimiser)
    third, loss, validate = regression(noise=0.1)
    resumed = run(third, loss, validate, resume=file, save_every=0.0, optimiser=optimiser)
    assert resumed.steps == whole.steps
    torch.testing.assert_close(torch.tensor(resumed.losses), torch.tensor(whole.losses))
    torch.testing.assert_close(third.weight, module.weight)


def test_state_of_another_run_is_refused(tmp_path):
    file = tmp_path / "state.safetensors"
    run(*regression(), resume=file, purpose={"data": 1})
    with pytest.raises(ValueError, match="belongs to a run with other settings or data"):
        run(*regression(), resume=file, purpose={"data": 2})


SPOILS = {
    "no history": lambda tensors, document: document.pop("history"),
    "a word for a count": lambda tensors, document: document.update(step="12"),
    "more steps than there are": lambda tensors, document: document.update(step=10**9),
    "words for losses": lambda tensors, document: document["history"].update(losses=["low"]),
    "a missing tensor": lambda tensors, document: tensors.pop("module.weight"),
    "a tensor that would be broadcast": (
        lambda tensors, document: tensors.update({"module.weight": torch.ones(1)})
    ),
    "no state of a generator": (
        lambda tensors, document: tensors["generator"].fill_(255)
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", SPOILS)
def test_a_state_that_is_none_is_refused(name, tmp_path):
    file = tmp_path / "state.safetensors"
    run(*regression(), resume=file)
    tensors, document = read_tensors(file)
    SPOILS[name](tensors, document)
    write_tensors(file, tensors, document)
    with pytest.raises(CheckpointError, match="does not hold the state of such a run"):
        run(*regression(), resume=file)


@pytest.mark.parametrize("context", [torch.no_grad, torch.inference_mode])
def test_gradients_turned_off_do_not_stop_training(context):
    module, loss, validate = regression(noise=0.1)
    with context():
        run(module, loss, validate)
    assert module.weight.item() == pytest.approx(3, abs=0.03)


SCRIPT = """
import sys, torch, pyro_stad
from dataclasses import replace
torch.set_num_threads(1)
g = torch.Generator().manual_seed(0)
x = torch.randn(500, 2, generator=g) ** 3
tiny = pyro_stad.BUDGETS["tiny"]
slow = replace(tiny.teacher, steps=250, save_every=0.0, patience=0)
prior = pyro_stad.fit(
    x, budget=replace(tiny, teacher=slow, stein=slow), progress=False, resume=sys.argv[1]
)
prior.save(sys.argv[2])
"""


@pytest.mark.parametrize(
    "delay", [0.4, *(pytest.param(0.1 * i, marks=pytest.mark.slow) for i in range(20))]
)
def test_fit_goes_on_after_a_kill(tmp_path, delay):
    """SIGKILL at some moment; the prior is the one of an undisturbed run."""
    command = [sys.executable, "-c", SCRIPT]
    subprocess.run([*command, tmp_path / "a", tmp_path / "undisturbed"], check=True)
    process = subprocess.Popen([*command, tmp_path / "b", tmp_path / "killed"])
    deadline = time.monotonic() + 60
    while not list((tmp_path).glob("b/*.safetensors")) and time.monotonic() < deadline:
        time.sleep(0.02)
    time.sleep(delay)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    assert not (tmp_path / "killed").exists(), "the run ended before it was killed"
    subprocess.run([*command, tmp_path / "b", tmp_path / "killed"], check=True)
    first, second = (pyro_stad.load(tmp_path / name) for name in ("undisturbed", "killed"))
    value = torch.randn(20, 2, dtype=torch.float32)
    torch.testing.assert_close(first.log_prob(value), second.log_prob(value), rtol=0, atol=1e-5)
    losses = [[s.validation_loss for s in p.report.stages] for p in (first, second)]
    assert losses[0] == pytest.approx(losses[1], abs=1e-6)
