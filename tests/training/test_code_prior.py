"""Quantizer, cached codes, prior: one run in two stages that goes on wherever it was cut off."""

import json
import math
import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import torch

import varflow as vf
from varflow import priors
from varflow.cli import main
from varflow.core import random
from varflow.core.errors import DataError, NonFiniteError, RunError, SpecError
from varflow.data import from_codes, from_tensor
from varflow.posteriors import Quantizer
from varflow.runs import code_prior
from varflow.runs.folder import METRICS, WEIGHTS
from varflow.settings import recipes
from varflow.training.loop import Loop

TINY = {
    "codes": 6,
    "code_features": 8,
    "blocks": 1,
    "batch": 16,
    "epochs": 3,
    "kmeans": 2,
    "prior_channels": 8,
    "prior_length": 2,
    "prior_kernel": 3,
    "prior_embedding": 4,
    "prior_hidden": 8,
    "prior_epochs": 4,
    "prior_batch": 16,
    "prior_lr": 5e-3,
    "validate_every": "0.5 epochs",
    "threads": 1,
}
TIMES = ("seconds", "steps_per_second")


def pictures(count=80, channels=1, height=8, width=12, classes=2):
    """Smooth random pictures of ``classes`` kinds, bright to the left or to the right."""
    source = torch.Generator().manual_seed(0)
    labels = torch.arange(count) % classes
    coarse = torch.rand(count, channels, 2, 3, generator=source)
    x = torch.nn.functional.interpolate(coarse, (height, width), mode="bilinear")
    ramp = torch.linspace(0.3, 1.0, width)
    x = x * torch.where(labels[:, None] == 0, ramp, ramp.flip(0))[:, None, None]
    return from_tensor((255 * x).byte(), labels, protocol="symmetric", name="ramps")


def fit(out=None, data=None, recipe="vq-pixelcnn", **settings):
    spec = recipes.find(recipe).spec.preset(**TINY)
    given = pictures() if data is None else data
    return vf.fit(spec, given, out=out, recipe=recipe, **{"quiet": True, **settings})


def records(folder):
    lines = [json.loads(line) for line in (folder / METRICS).read_text().splitlines()]
    return [{k: v for k, v in line.items() if k not in TIMES} for line in lines]


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The run that nobody interrupts."""
    folder = tmp_path_factory.mktemp("whole") / "run"
    return fit(folder)


class Cut(BaseException):
    """What ends a fit in the middle: nothing is written after it, as after a kill."""


def cut_at(monkeypatch, stage, step):
    """End the first or second fit at an update, or while pictures are coded."""
    if stage == "coding":
        monkeypatch.setattr(code_prior, "encode", lambda *_: (_ for _ in ()).throw(Cut))
        return
    update = Loop.update

    def wrapped(loop):
        first = isinstance(loop.model.posterior, Quantizer)
        if first == (stage == "first") and loop.step == step:
            raise Cut
        return update(loop)

    monkeypatch.setattr(Loop, "update", wrapped)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("stage", "step"),
    [("first", 7), ("first", 11), ("coding", 0), ("second", 1), ("second", 9), ("second", 15)],
)
def test_cut_off_anywhere_and_resumed_is_bit_for_bit_the_same(
    whole, tmp_path, monkeypatch, stage, step
):
    folder = tmp_path / "run"
    with monkeypatch.context() as patched:
        cut_at(patched, stage, step)
        with pytest.raises(Cut):
            fit(folder, save_every=1e-9)
    finished = stage != "first"
    if finished:
        assert not vf.load(folder, data=pictures()).outcome["finished"]
    run = vf.resume(folder, pictures(), quiet=True)
    assert run.outcome["finished"]
    for name in (WEIGHTS, f"prior/{WEIGHTS}", "prior/codes.safetensors"):
        assert (folder / name).read_bytes() == (whole.folder / name).read_bytes(), name
    assert records(folder) == records(whole.folder)
    assert records(folder / "prior") == records(whole.folder / "prior")
    for name, tensor in whole.model.state_dict().items():
        assert torch.equal(tensor, run.model.state_dict()[name]), name


@pytest.mark.slow
def test_signals_in_the_code_prior_leave_a_run_that_goes_on(tmp_path):
    folder = tmp_path / "run"
    flags = ["digits", "--codes", "8", "--code-features", "8", "--prior-channels", "8"]
    flags += ["--prior-length", "1", "--prior-kernel", "3", "--epochs", "1", "--threads", "1"]
    command = [sys.executable, "-m", "varflow", "fit", "vq-pixelcnn", "--data", *flags]
    command += ["--prior-epochs", "2000", "--out", str(folder), "--quiet", "--no-report"]
    process = subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    end = time.monotonic() + 60
    path = folder / "prior" / METRICS
    while not path.exists() or len(path.read_text().splitlines()) < 2:
        assert process.poll() is None, process.communicate()[1]
        assert time.monotonic() < end
        time.sleep(0.01)
    process.send_signal(signal.SIGTERM)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 128 + signal.SIGTERM, err
    assert f"--resume {folder}" in out
    run = vf.load(folder)
    assert isinstance(run.model.prior, priors.PixelCNN)
    done = run.outcome["code_prior"]["step"]
    more = vf.resume(folder, prior_steps=done + 3, quiet=True)
    assert more.outcome["code_prior"]["step"] == done + 3


def test_a_signal_in_the_last_step_of_the_first_stage_ends_there(whole, tmp_path, monkeypatch):
    folder, update = tmp_path / "run", Loop.update

    def wrapped(loop):
        if loop.step == loop.steps - 1:
            os.kill(os.getpid(), signal.SIGINT)
        return update(loop)

    with monkeypatch.context() as patched:
        patched.setattr(Loop, "update", wrapped)
        run = fit(folder)
    assert not (folder / "prior").exists()
    assert (run.outcome["finished"], run.outcome["signal"]) == (False, signal.SIGINT)
    assert "SIGINT received at the end of the quantizer" in run.outcome["reason"]
    # The same at the end of the code prior is a run that is finished.
    with monkeypatch.context() as patched:
        patched.setattr(Loop, "update", wrapped)
        run = vf.resume(folder, pictures(), quiet=True)
    assert (run.outcome["finished"], run.outcome["signal"]) == (True, None)
    assert run.outcome["code_prior"]["signal"] is None
    for name, tensor in whole.model.state_dict().items():
        assert torch.equal(tensor, run.model.state_dict()[name]), name


def test_a_refused_resume_leaves_a_finished_run_as_it_is(tmp_path):
    folder = tmp_path / "run"
    fit(folder, patience="100 epochs")
    names = ("run.json", "spec.json", METRICS, WEIGHTS, f"prior/{METRICS}", f"prior/{WEIGHTS}")
    before = [(folder / name).read_bytes() for name in names]
    assert json.loads(before[0])["outcome"]["finished"]
    for budget in ({}, {"prior_epochs": 1}):
        with pytest.raises(RunError, match="finished in both stages"):
            vf.resume(folder, pictures(), quiet=True, **budget)
        assert [(folder / name).read_bytes() for name in names] == before


def test_the_first_stage_never_moves_while_the_prior_learns(whole):
    first = vf.fit(
        "vq-vae", pictures(), **{k: v for k, v in TINY.items() if not k.startswith("prior_")}
    )
    trained = whole.model.state_dict()
    for name, tensor in first.model.state_dict().items():
        assert torch.equal(tensor, trained[name]), name
    assert isinstance(first.model.prior, priors.UniformCodes)


def test_codes_are_those_of_the_finished_quantizer(whole):
    codes = code_prior.read(whole.folder / "prior/codes.safetensors", whole.model, whole.dataset)
    assert {split: len(x) for split, x in codes.items()} == whole.dataset.sizes
    for split in ("validation", "test"):
        x = whole.dataset.batch(split, torch.arange(8)).x
        assert torch.equal(whole.model.infer(x).codes, codes[split].long())
    assert codes["train"].dtype is torch.uint8


def test_a_loaded_run_has_the_prior_that_was_trained(whole):
    run = vf.load(whole.folder, data=pictures())
    for name, tensor in whole.model.state_dict().items():
        assert torch.equal(tensor, run.model.state_dict()[name]), name
    assert [r["step"] for r in run.code_prior_metrics] == [r["step"] for r in whole.code_prior_metrics]
    validations = [r for r in run.code_prior_metrics if r["split"] == "validation"]
    # Step 0 is before training: the prior starts uniform.
    assert validations[0]["step"] == 0
    assert validations[0]["elbo"] == pytest.approx(-6 * math.log(6), rel=1e-6)
    assert validations[-1]["elbo"] > validations[0]["elbo"] + 1
    assert run.outcome["code_prior"]["best_elbo"] == max(r["elbo"] for r in validations)


def test_without_a_code_prior_there_is_the_uniform_prior(whole, tmp_path, monkeypatch):
    folder = tmp_path / "run"
    with monkeypatch.context() as patched:
        cut_at(patched, "coding", 0)
        with pytest.raises(Cut):
            fit(folder)
    run = vf.load(folder, data=pictures())
    assert isinstance(run.model.prior, priors.UniformCodes)
    assert run.evaluate().estimates["kl"].value == pytest.approx(6 * math.log(6))


def test_the_bound_by_hand(whole):
    """−log p(x|z_q) − log p(codes) in nats, and bits/dim with the transform's ladj, from the weights alone."""
    found = whole.evaluate().estimates
    model, data = whole.model.double(), whole.dataset.to("cpu", torch.float64)
    try:
        batch = data.batch("test", torch.arange(8))
        with torch.no_grad():
            encoded = model.posterior.encoder(batch.x).movedim(1, -1)
            table = model.posterior.codebook.weight
            codes = torch.cdist(encoded.flatten(0, -2), table).argmin(-1).reshape(8, 2, 3)
            mean = model.likelihood.decoder(table[codes].movedim(-1, 1))
            sigma = model.likelihood.log_scale.exp()
            each = torch.distributions.Normal(mean, sigma).log_prob(batch.x).flatten(1).sum(1)
            logits = model.prior.logits(codes)
            p = torch.log_softmax(logits, -1).gather(-1, codes[..., None]).sum((1, 2, 3))
        bound = each + p
        # x = 2(v + u)/256 − 1: log p(v) ≥ log p(x) + D log (2/256), and every bound is of the levels v.
        bound = bound + 96 * math.log(2 / 256)
        assert found["elbo"].value == pytest.approx(bound.mean().item(), rel=1e-5)
        assert found["nll"].value == pytest.approx(-bound.mean().item(), rel=1e-5)
        assert found["kl"].value == pytest.approx(-p.mean().item(), rel=1e-5)
        bits = -bound / (96 * math.log(2))
        assert found["bits_per_dim"].value == pytest.approx(bits.mean().item(), rel=1e-5)
        assert found["code_bits"].value == pytest.approx(
            -p.mean().item() / 6 / math.log(2), rel=1e-5
        )
        error = bits.std().item() / math.sqrt(8)
        assert found["bits_per_dim"].standard_error == pytest.approx(error, rel=1e-4)
        assert found["bits_per_dim"].monte_carlo_error == 0
    finally:
        model.float()


def test_what_is_recorded_while_sampling_is_log_prob(whole):
    with random.stream(3):
        z, recorded = whole.model.prior.sample_and_log_prob((50,))
    torch.testing.assert_close(recorded, whole.model.prior.log_prob(z), atol=1e-5, rtol=0)
    x = whole.model.sample(5, temperature=0.7, top_k=2)
    assert x.shape == (5, 1, 8, 12)


def test_budgets_of_the_code_prior_alone_can_grow(whole, tmp_path):
    folder = tmp_path / "run"
    short = fit(folder, prior_epochs=2)
    with pytest.raises(RunError, match="finished in both stages"):
        vf.resume(folder, pictures(), quiet=True)
    with pytest.raises(RunError, match="the quantizer, which cannot go on"):
        vf.resume(folder, pictures(), epochs=9, quiet=True)
    with pytest.raises(SpecError, match="only epochs, steps, prior_epochs, prior_steps can grow"):
        vf.resume(folder, pictures(), prior_lr=1e-4, quiet=True)
    run = vf.resume(folder, pictures(), prior_epochs=4, quiet=True)
    assert records(folder / "prior")[-1]["step"] == 2 * short.outcome["code_prior"]["step"]
    for name, tensor in whole.model.state_dict().items():
        assert torch.equal(tensor, run.model.state_dict()[name]), name


def test_a_run_of_one_stage_has_no_second_budget(tmp_path):
    fit(tmp_path / "run", recipe="vq-vae", epochs=1)
    with pytest.raises(SpecError, match="no code prior"):
        vf.resume(tmp_path / "run", pictures(), prior_epochs=9, quiet=True)
    assert vf.resume(tmp_path / "run", pictures(), epochs=2, quiet=True).outcome["finished"]


@pytest.mark.parametrize("damage", ["cut", "short", "beyond"])
def test_a_damaged_cache_is_named(tmp_path, damage, monkeypatch):
    folder = tmp_path / "run"
    with monkeypatch.context() as patched:
        cut_at(patched, "second", 2)
        with pytest.raises(Cut):
            fit(folder)
    path = folder / "prior/codes.safetensors"
    blob = path.read_bytes()
    if damage == "cut":
        path.write_bytes(blob[: len(blob) // 2])
    else:
        codes = code_prior.read_weights(path)
        codes["train"] = codes["train"][1:] if damage == "short" else codes["train"] + 100
        code_prior.save_weights(path, codes, 0)
    with pytest.raises(RunError, match=r"codes\.safetensors"):
        vf.resume(folder, pictures(), quiet=True)
    path.unlink()
    assert vf.resume(folder, pictures(), quiet=True).outcome["finished"]
    assert path.read_bytes() == blob


def test_an_overwritten_run_forgets_its_codes(tmp_path):
    fit(tmp_path / "run", epochs=1, prior_epochs=1)
    fit(tmp_path / "run", recipe="vq-vae", epochs=1, overwrite=True)
    assert not (tmp_path / "run" / "prior").exists()


def test_a_prior_by_class_learns_what_classes_look_like(tmp_path):
    # The whole budget and its last weights: where the few validation pictures stop a fit differs among processors.
    run = fit(tmp_path / "run", classes=2, prior_epochs=30, patience=None, keep="last")
    prior = run.model.prior
    assert isinstance(prior, priors.ByClass)
    assert prior.shares.tolist() == pytest.approx([0.5, 0.5])
    codes = code_prior.read(tmp_path / "run/prior/codes.safetensors", run.model, run.dataset)
    z, labels = codes["train"].long(), run.dataset.labels("train")
    with torch.no_grad():
        own, other = prior.log_prob(z, labels), prior.log_prob(z, 1 - labels)
        both = prior.log_prob(z)
    assert (own - other).mean() > 1
    joint = torch.logsumexp(torch.stack([own, other]), 0) - math.log(2)
    torch.testing.assert_close(both, joint)
    again = vf.load(tmp_path / "run", data=pictures())
    assert torch.equal(again.model.prior.shares, prior.shares)
    x = again.model.sample(4, labels=torch.tensor([0, 0, 1, 1]), mean=True)
    assert x.shape == (4, 1, 8, 12)


def test_labels_that_do_not_fit_are_named(tmp_path):
    with pytest.raises(DataError, match="classes=2"):
        fit(tmp_path / "run", classes=1)
    bare = from_tensor(
        torch.randint(0, 256, (40, 1, 8, 8), dtype=torch.uint8), protocol="symmetric"
    )
    with pytest.raises(DataError, match="has no labels"):
        fit(data=bare, classes=2)
    # What was done before is kept: the codes need no second first stage.
    assert (tmp_path / "run/prior/codes.safetensors").exists()


@pytest.mark.parametrize(
    ("shape", "settings"),
    [
        ((1, 9, 7), {}),
        ((3, 8, 8), {"scales": 1}),
        ((1, 5, 4), {"codes": 1}),
        ((1, 8, 8), {"codes": 300, "batch": 4}),
        ((1, 4, 4), {"prior": "gated-pixelcnn"}),
        ((3, 4, 4), {"codebook": "average", "restarts": 0.0, "kmeans": 0}),
        ((1, 8, 8), {"normalization": "batch", "scale": 1}),
        ((1, 8, 8), {"precision": "bf16"}),
        ((1, 8, 8), {"precision": "float64", "scale": "per-dimension"}),
    ],
)
def test_sizes_and_settings(shape, settings):
    source = torch.Generator().manual_seed(1)
    x = torch.randint(0, 256, (40, *shape), dtype=torch.uint8, generator=source)
    data = from_tensor(x, protocol="symmetric")
    run = fit(data=data, **{"epochs": 1, "prior_epochs": 1, **settings})
    found = run.evaluate().estimates
    wanted = torch.float64 if settings.get("precision") == "float64" else torch.float32
    terms = run.model.terms(run.dataset.batch("test", torch.arange(4)).x)
    assert terms.log_weight.dtype is wanted
    assert math.isfinite(found["elbo"].value)
    assert 1 - 1e-9 <= found["perplexity"].value <= run.spec.get("codes")
    if run.spec.get("codes") == 1:
        assert found["kl"].value == 0
        assert found["perplexity"].value == 1
        assert found["usage"].value == 1
    assert run.model.sample(2).shape == (2, *shape)
    assert all(math.isfinite(r["perplexity"]) for r in run.metrics)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"prior": "normal"}, "prior: normal is not over codes"),
        ({"network": "mlp"}, "network: mlp makes no grid"),
        ({"flow": "planar"}, r"flow: belongs to q\(z\|x\), and a quantizer has no flow"),
        ({"leapfrog": 2}, "leapfrog: belongs to .*, and a quantizer has no flow, no leapfrog"),
        ({"samples": 3}, "samples: was 3"),
        ({"posterior": "gaussian", "network": "mlp"}, "prior: pixelcnn is over the codes"),
        ({"posterior": "gaussian", "prior": "normal"}, "network: grid makes grids"),
        ({"prior": "uniform-codes", "classes": 3}, "classes: is .* prior=uniform-codes has none"),
        ({"codebook_decay": 1.0}, "codebook_decay: was 1.0"),
        ({"restarts": 1.0}, "restarts: was 1.0"),
        ({"prior_kernel": 4}, "prior_kernel: was 4"),
        ({"codes": 0}, "codes: was 0"),
        ({"prior_lr": 0.0}, "prior_lr: was 0.0"),
        ({"prior_epochs": None, "prior_steps": None}, "prior_epochs: no budget"),
        (
            {"prior_optimizer": "adamm"},
            "prior_optimizer: unknown value 'adamm'; did you mean 'adam",
        ),
        ({"likelihood": "identity"}, "prior: pixelcnn is over the codes of a quantizer, and there is none"),
        ({"target": "u1"}, "posterior: a quantizer codes data"),
        ({"initial_scale": 0.0}, "initial_scale: was 0.0"),
        ({"top_latent": 2}, "top_latent: belongs to a second .* a quantizer has no"),
        ({"free_bits": 0.1}, "free_bits: need a closed form for each latent, which the posterior Quantizer"),
        ({"objective": "iwae"}, "objective: q of a quantizer"),
        ({"scales": 5}, "scales: was 5; pictures of 8×12"),
    ],
)
def test_what_does_not_go_together_is_refused_before_anything_is_done(settings, words, tmp_path):
    with pytest.raises(SpecError, match=words):
        fit(tmp_path / "run", **settings)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(("setting", "words"), [("lr", "posterior"), ("prior_lr", "prior")])
def test_what_is_not_finite_is_named_in_either_stage(setting, words, tmp_path):
    with pytest.raises(NonFiniteError, match=rf"step \d: .*'{words}\..*NaN.*The last good state"):
        fit(tmp_path / "run", **{setting: 1e30})
    assert (tmp_path / "run/prior/codes.safetensors").exists() == (setting == "prior_lr")


def test_tables_are_no_pictures():
    with pytest.raises(SpecError, match="network: grid needs pictures"):
        fit(data=torch.randn(50, 6), recipe="vq-vae", protocol="none")


def test_a_quantizer_is_not_compiled():
    with pytest.raises(SpecError, match="compile: a quantizer"):
        fit(recipe="vq-vae", compile=True)


def test_the_recipes_are_the_programs_numbers():
    spec = recipes.find("vq-pixelcnn").spec
    names = (
        "codes",
        "code_features",
        "batch",
        "lr",
        "prior_channels",
        "prior_length",
        "prior_kernel",
    )
    assert [spec.get(n) for n in names] == [128, 256, 128, 1e-3, 64, 10, 7]
    gated = recipes.find("vq-gated-pixelcnn").spec
    assert [gated.get(n) for n in names] == [128, 256, 64, 8e-4, 256, 13, 7]
    form = vf.Form((3, 32, 32), "real")
    model = vf.build(spec, form)
    assert model.prior.event_shape == (8, 8)
    assert model.posterior.grid == (8, 8)
    assert isinstance(vf.build(gated, form).prior, priors.GatedPixelCNN)


def test_a_prior_is_fitted_to_codes_that_come_from_elsewhere():
    source = torch.Generator().manual_seed(2)
    first = torch.randint(0, 3, (200, 1, 1), generator=source)
    codes = first.expand(200, 2, 2)
    data = from_codes({"train": codes[:150], "validation": codes[150:], "test": codes[150:]})
    prior = priors.PixelCNN((2, 2), 3, channels=8, layers=1, kernel=3, embedding=4, hidden=8)
    run = vf.fit(vf.density(prior), data, epochs=40, batch=50, lr=1e-2, quiet=True, threads=1)
    found = run.evaluate().estimates
    # The first code is one of three, all others follow from it.
    assert found["nll"].value == pytest.approx(math.log(3), abs=0.15)
    assert "bits_per_dim" not in found


# -- command line ------------------------------------------------------------------------------


def call(capsys, *arguments):
    with pytest.raises(SystemExit) as end:
        main([str(a) for a in arguments])
    out, err = capsys.readouterr()
    return end.value.code, out, err


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    out = tmp_path_factory.mktemp("cli") / "run"
    settings = {
        **TINY,
        "classes": 10,
        "batch": 64,
        "epochs": 1,
        "prior_epochs": 1,
        "prior_batch": 64,
    }
    vf.fit("vq-gated-pixelcnn", data="digits", out=out, **settings)
    return out


def test_sample_writes_codes_with_their_log_prob(folder, capsys, tmp_path):
    target = tmp_path / "drawn"
    flags = ["--count", 9, "--temperature", 0.5, "--top-k", 3, "--label", 4, "--out", target]
    code, out, err = call(capsys, "sample", folder, *flags)
    assert code == 0, err
    assert str(tmp_path / "drawn.png") in out
    with np.load(tmp_path / "drawn-codes.npz") as file:
        codes, recorded = torch.tensor(file["codes"]), torch.tensor(file["log_prob"])
    assert codes.shape == (9, 2, 2)
    with torch.no_grad():
        expected = vf.load(folder).model.prior.log_prob(codes, torch.full((9,), 4))
    torch.testing.assert_close(recorded, expected, atol=1e-5, rtol=0)


def test_evaluate_prints_the_bound_and_the_use_of_the_codebook(folder, capsys):
    code, out, err = call(capsys, "evaluate", folder)
    assert code == 0, err
    for name in ("bits_per_dim", "perplexity", "usage", "code_bits", "of 6 codes"):
        assert name in out
    page = (folder / "report.html").read_text()
    assert "code prior, validation, best" in page
    assert "6 codes of 8 features" in page


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("sample", "--temperature", "0"), "temperature: was 0.0"),
        (("sample", "--top-k", "7"), "top_k: was 7; use 1 to 6"),
        (("sample", "--label", "10"), "label: was 10; the labels of this prior are 0 to 9"),
        (("evaluate", "--samples", "5"), "samples: was 5"),
        (("anneal",), "its latents are codes"),
        (("gaps",), "its latents are codes"),
        (("curve",), "its latents are codes"),
    ],
)
def test_mistakes_are_one_sentence(folder, capsys, arguments, words):
    command, *flags = arguments
    code, _, err = call(capsys, command, folder, *flags)
    assert code == 2
    assert words in err
    assert len(err.splitlines()) == 1


def test_temperature_is_for_codes_alone(tmp_path, capsys):
    vf.fit("digits", out=tmp_path / "run", latent=2, hidden=8, steps=2, quiet=True)
    code, _, err = call(capsys, "sample", tmp_path / "run", "--temperature", "0.5")
    assert code == 2
    assert "it is for priors over codes" in err


def test_a_class_conditional_prior_is_scored_without_labels(folder):
    """The bound of the evaluation is on log p(x), not on log p(x | label)."""
    run = vf.load(folder)
    result = run.evaluate(limit=20)
    x = run.dataset.batch("test", torch.arange(20)).x
    with torch.no_grad():
        q = run.model.infer(x)
        each = torch.stack(
            [run.model.prior.log_prob(q.codes, torch.full((20,), y)) for y in range(10)]
        )
        expected = torch.logsumexp(each + run.model.prior.shares.log()[:, None], 0)
    got = torch.tensor(result.per_example["log_prior"])
    torch.testing.assert_close(got, expected.double(), atol=1e-5, rtol=1e-5)
