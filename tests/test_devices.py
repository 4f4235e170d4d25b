"""What holds on every device: on the CPU in each run of the suite, on a CUDA device by ``make gpu``.

A part computes there what it computes on the CPU; a fit is repeatable, resumes, and is the same captured and eager.
"""

import os
import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest
import torch

import varflow as vf
from training.captured import cases, pictures
from varflow.core import random
from varflow.evaluation.importance import importance_sample
from varflow.training.callbacks import Callback

CASES = cases()
CUDA = [
    pytest.mark.cuda,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="this machine has no CUDA device"),
]
#: Few of them on the CPU, where the same numbers are compared with themselves.
ON_CPU = ("digits", "flow planar", "vq-vae", "target mixture", "three fits u2")
SMALL = {"latent": 3, "hidden": 16, "layers": 1, "batch": 16, "steps": 24, "quiet": True, "validate_every": "8 steps"}


def terms_and_gradients(name: str, device: str, noise: list | None = None):
    """Loss, metrics and gradients of a case's first batch in float64, under noise that is drawn on the CPU."""
    loop = CASES[name].loop(precision="float64", optimizer="adam")
    model, dataset = loop.model.to(device), loop.dataset.to(device, torch.float64)
    rows = loop.own_rows(0).to(device)
    if noise is None:
        source = random.Recorder(random.Stream(0))
    else:
        source = random.Replay([tensor.to(device) for tensor in noise])
    drawn = []

    class Kept:
        def draw(self, request):
            drawn.append(source.draw(request))
            return drawn[-1]

    with random.use(Kept()):
        batch = dataset.batch("train", rows)
        loss, row = loop.forward(batch, 0.7, source)
    loss.backward()
    found = {"loss": loss.detach(), "metrics": row}
    found |= {key: p.grad for key, p in model.named_parameters() if p.grad is not None}
    return {key: tensor.cpu() for key, tensor in found.items()}, drawn


@pytest.mark.parametrize(
    ("name", "device"),
    [*((name, "cpu") for name in ON_CPU), *(pytest.param(name, "cuda", marks=CUDA) for name in sorted(CASES))],
)
def test_terms_and_gradients_are_those_of_the_cpu(name, device):
    expected, noise = terms_and_gradients(name, "cpu")
    found, _ = terms_and_gradients(name, device, noise)
    assert found.keys() == expected.keys()
    for key, tensor in found.items():
        named = partial("{}: {}".format, key)
        torch.testing.assert_close(tensor, expected[key], rtol=1e-6, atol=1e-8, msg=named)


@pytest.mark.parametrize("name", [pytest.param(name, marks=CUDA) for name in sorted(CASES)])
def test_captured_steps_on_cuda_are_eager_steps(name):
    """With ``graph`` on, which refuses what cannot be captured."""
    found = []
    for graph in ("off", "on"):
        loop = CASES[name].loop("cuda", graph=graph)
        found.append([loop.update().clone() for _ in range(8)])
        found.append(list(loop.model.state_dict().values()))
    assert loop._graph is not None
    assert loop._graph.captured
    # Rounding alone, where a library chooses another algorithm in a graph; most are equal to the bit.
    torch.testing.assert_close(found[2:], found[:2], rtol=1e-4, atol=1e-5)


def fit(device: str, **settings):
    data = pictures(rows=120)
    return vf.fit("digits", data, device=device, **{**SMALL, **settings})


def assert_same(one, other) -> None:
    assert [r["elbo"] for r in one.metrics] == [r["elbo"] for r in other.metrics]
    weights = other.model.state_dict()
    assert all(torch.equal(tensor, weights[key]) for key, tensor in one.model.state_dict().items())


@pytest.mark.parametrize(
    "settings", [{}, {"flow": "iaf", "length": 2, "amortized": True}, {"precision": "bf16"}], ids=str
)
def test_the_same_fit_twice_is_the_same_fit(settings, device):
    assert_same(fit(device, **settings), fit(device, **settings))


class StopsAt(Callback):
    def __init__(self, step: int) -> None:
        self.step = step

    def recorded(self, fitting, record) -> None:
        if fitting.step >= self.step:
            raise RuntimeError("enough")


def test_a_fit_that_was_cut_off_is_resumed_to_the_bit(device, tmp_path):
    whole = fit(device, out=tmp_path / "whole", decay="cosine", warmup="20 steps")
    with pytest.raises(vf.errors.RunError):
        fit(device, out=tmp_path / "cut", decay="cosine", warmup="20 steps", callbacks=[StopsAt(8)])
    assert_same(vf.resume(tmp_path / "cut", pictures(rows=120), quiet=True), whole)


def test_a_run_is_read_back_on_its_device_and_on_the_cpu(device, tmp_path):
    fit(device, out=tmp_path / "run")
    for home in dict.fromkeys((device, "cpu")):
        again = vf.load(tmp_path / "run", data=pictures(rows=120), device=home)
        assert next(again.model.parameters()).device.type == home
        assert again.sample(3).device.type == home
        assert again.evaluate(samples=5).estimates["elbo"].value < 0


def test_bfloat16_is_near_single_precision(device):
    single, half = fit(device, keep="last"), fit(device, keep="last", precision="bf16")
    assert half.metrics[-1]["elbo"] == pytest.approx(single.metrics[-1]["elbo"], rel=0.05)
    assert all(p.dtype == torch.float32 for p in half.model.parameters())


def test_importance_samples_are_those_of_the_cpu_within_their_error(device):
    model = vf.build(vf.RunSpec().replace(latent=2, hidden=8, layers=1), vf.Form((6,), "binary"))
    x = (torch.rand(40, 6) < 0.5).float()
    expected = importance_sample(model, x, 2000)
    found = importance_sample(model.to(device), x.to(device), 2000)
    error = (expected.log_px_variance + found.log_px_variance.cpu()).sqrt()
    assert ((found.log_px.cpu() - expected.log_px).abs() <= 6 * error + 1e-6).all()


SCRIPT = """
import sys, torch, varflow as vf
torch.use_deterministic_algorithms(sys.argv[3] == "deterministic")
source = torch.Generator().manual_seed(0)
x = torch.randint(0, 256, (90, 3, 16, 16), dtype=torch.uint8, generator=source)
run = vf.fit("vq-vae", x, device=sys.argv[1], blocks=1, codes=6, code_features=4, batch=16, steps=8, quiet=True,
             threads=1)
torch.save({name: tensor.cpu() for name, tensor in run.model.state_dict().items()}, sys.argv[2])
"""


@pytest.mark.slow
@pytest.mark.parametrize("flag", ["default", "deterministic"])
def test_one_process_against_another(flag, device, tmp_path):
    """The codebook counts and adds by index, which on CUDA is repeatable under the flag of torch alone."""
    found = []
    environment = {**os.environ, "CUBLAS_WORKSPACE_CONFIG": ":4096:8"}
    for number in range(2):
        path = tmp_path / f"{number}.pt"
        words = [sys.executable, "-c", SCRIPT, device, str(path), flag]
        done = subprocess.run(words, capture_output=True, text=True, env=environment, timeout=120)
        assert done.returncode == 0, done.stderr[-2000:]
        found.append(torch.load(path))
    exact = device == "cpu" or flag == "deterministic"
    for name, tensor in found[0].items():
        bound = 0.0 if exact else 1e-3
        torch.testing.assert_close(tensor, found[1][name], rtol=bound, atol=bound, equal_nan=True)


@pytest.mark.slow
def test_the_script_behind_make_gpu_runs(tmp_path):
    root = Path(__file__).resolve().parents[1]
    words = [sys.executable, "-m", "benchmarks.gpu", "--device", "cpu", "--quick", "--no-tests", "--threads", "1"]
    done = subprocess.run([*words, "--out", str(tmp_path)], cwd=root, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr[-2000:]
    page = (tmp_path / "gpu-trial.md").read_text()
    for row in ("dense, diagonal: eager", "VQ-VAE: eager", "64 energy fits at once: eager", "plain PyTorch"):
        assert f"| {row}" in page or row in page
    left = page.partition("Left out:")[2]
    assert not [line for line in left.splitlines() if line.startswith("- ") and "pythae" not in line], left
    refused = subprocess.run(words[:3], cwd=root, capture_output=True, text=True, timeout=200)
    assert torch.cuda.is_available() or "no CUDA device is available here" in refused.stderr
