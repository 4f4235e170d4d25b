"""The gallery of a fit to a target, from the run folder to the report."""

from __future__ import annotations

import json
from functools import partial

import numpy as np
import pytest
import torch

import varflow as vf
from varflow import figures
from varflow.cli import main
from varflow.core.errors import SpecError
from varflow.core.form import Form
from varflow.figures import gallery_scene as scene
from varflow.figures import gallery_target as target_gallery

METRICS = [{"step": 200 * k, "split": "train", "elbo": -1.0 - 1 / k} for k in range(1, 4)]
NOWHERE = Form((2,), "none")
SETTINGS = {"threads": 1, "quiet": True, "length": 2, "samples": 16, "anneal": 100}


def spec_of(**settings):
    return vf.RunSpec().replace(**settings)


@pytest.fixture(autouse=True)
def _small_files(monkeypatch) -> None:
    monkeypatch.setattr(scene, "save", partial(figures.save, dpi=40))
    monkeypatch.setattr(target_gallery, "_CELLS", 24)
    monkeypatch.setattr(target_gallery, "_FRAME", 16)
    monkeypatch.setattr(target_gallery, "_SAMPLES", 2000)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("target") / "run"
    vf.fit("energy", target="u1", steps=420, out=folder, **SETTINGS)
    return folder


def test_a_run_is_evaluated_reported_and_sampled(folder, capsys) -> None:
    for words in (
        ["evaluate", str(folder), "--samples", "500", "--grid", "6"],
        ["sample", str(folder), "--count", "7"],
    ):
        with pytest.raises(SystemExit) as ended:
            main(words)
        assert ended.value.code == 0, capsys.readouterr().err
    out = capsys.readouterr().out
    assert "kl_q_p" in out
    assert "kl_q_p_grid" in out
    assert np.load(folder / "figures" / "sample.npy").shape == (7, 2)
    listed = json.loads((folder / "figures" / "index.json").read_text())
    assert [e["file"] for e in listed] == ["densities.png", "flow.png", "bound.png", "training.gif"]
    page = (folder / "report.html").read_text()
    assert "<h1>u1 in 2 dimensions: a Gaussian base, 2 planar steps</h1>" in page
    assert "Against the exact answers" in page
    assert "KL(q‖p)" in page
    # In place of the animation the page has its draws, which can be paused: the target twice, and a still.
    assert "data:image/gif" not in page
    assert page.count("data:image/png") == 3 + 3
    assert json.loads((folder / "figures" / "film.json").read_text())["steps"] == [0, 200, 400, 420]
    assert "± unknown" not in page
    # Without a validation there is no best one, and a target has no networks.
    assert "best_elbo" not in page
    assert "weight_norm" not in page
    captions = {e["file"]: e["caption"] for e in listed}
    assert "log Z = 1.8775 nats" in captions["bound.png"]
    assert "its exact density" in captions["densities.png"]
    # 0, 200, 400 and the end.
    assert "4 steps of training" in captions["training.gif"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["evaluate", "--split", "test"], "split: was test; a target has no data"),
        (["evaluate", "--limit", "5"], "limit: was 5; a target has no data"),
        (["evaluate", "--samples", "0"], "samples: was 0"),
        (["reconstruct"], "which has no data; varflow sample draws from q"),
        (["sample", "--mean"], "mean: a target has no likelihood"),
    ],
)
def test_what_a_target_has_not_is_refused_in_one_sentence(folder, words, message, capsys) -> None:
    with pytest.raises(SystemExit) as ended:
        main([words[0], str(folder), *words[1:]])
    assert ended.value.code == 2
    said = capsys.readouterr().err
    assert message in said
    assert len(said.splitlines()) == 1


def test_a_grid_is_for_targets(tmp_path, capsys) -> None:
    small = {"latent": 2, "hidden": 2, "layers": 1, "threads": 1, "quiet": True}
    vf.fit("digits", steps=2, out=tmp_path / "run", **small)
    with pytest.raises(SystemExit):
        main(["evaluate", str(tmp_path / "run"), "--grid", "4"])
    assert "grid: was 4; it is for targets" in capsys.readouterr().err


def test_the_end_of_a_fit_is_told_without_a_validation(folder, capsys) -> None:
    from varflow.cli.fit import Fit, _finish

    run = vf.load(folder)
    assert _finish(run, Fit(report=False)) == 0
    said = capsys.readouterr().out
    assert "last training ELBO" in said
    assert "validation" not in said
    assert "inf" not in said


def test_the_name_of_a_folder_says_what_is_inferred() -> None:
    from varflow.cli.fit import _flow_name, _subject

    spec = vf.RunSpec().replace(target="funnel", dimensions=10, leapfrog=4)
    assert (_subject(spec), _flow_name(spec)) == ("funnel-10d", "none-leapfrog4")
    spec = vf.RunSpec().replace(target="u1", flow="planar", length=3)
    assert (_subject(spec), _flow_name(spec)) == ("u1", "planar3")


def test_members_are_the_fits_in_order() -> None:
    run = vf.fit("energy", target="u2", steps=5, fits=3, **SETTINGS)
    members = run.members()
    assert len(members) == 3
    for k, member in enumerate(members):
        assert torch.equal(member.posterior.flow.u, run.model.member(k).posterior.flow.u)
    found = run.evaluate(samples=200)
    assert found.data["name"] == "u2"
    assert found.estimates["elbo"].points == 3
    with pytest.raises(SpecError, match="split: was test"):
        run.evaluate("test")


@pytest.mark.parametrize("batches", ["full", "separate"])
def test_fits_of_the_gaussian_model_are_evaluated_and_reported(tmp_path, batches) -> None:
    run = vf.fit(
        "gaussian-model", dimensions=2, observations=50, batch=20, batches=batches, steps=210, fits=2,
        out=tmp_path / "run", threads=1, quiet=True,
    )  # fmt: skip
    found = vf.load(run.folder).evaluate(samples=300)
    assert found.data["batches"] == batches
    assert found.estimates["kl_q_p"].points == 2
    # Two seeds of the data.
    assert len(set(found.per_example["log_evidence"])) == 2
    page = run.report().read_text()
    assert "‖σ − σ*‖²" in page
    listed = json.loads((run.folder / "figures" / "index.json").read_text())
    assert [e["file"] for e in listed] == ["draws.png", "bound.png"]
    told = listed[1]["caption"]
    assert ("mean over the 3 blocks" in told) == (batches == "separate")


def gallery(model, tmp_path, metrics=(), **more):
    entries = figures.target_gallery(model, metrics, tmp_path, **more)
    return {e.path.name: e.caption for e in entries}


def test_several_fits_stand_side_by_side_with_their_kl(tmp_path) -> None:
    models = [
        vf.build(spec_of(target="u3", flow="planar", length=1), NOWHERE, seed=k) for k in range(6)
    ]
    model = vf.Ensemble(models)
    from varflow.evaluation import evaluate_target

    found = evaluate_target(model, 300)
    drawn = gallery(model, tmp_path, METRICS, evaluation=found)
    assert list(drawn) == ["densities.png", "flow.png", "bound.png"]
    assert "The first 4 of 6 fits" in drawn["densities.png"]
    assert "of the first fit" in drawn["flow.png"]


def test_a_hamiltonian_posterior_is_drawn_from_its_samples(tmp_path) -> None:
    model = vf.build(spec_of(target="u1", leapfrog=2, flow="planar", length=1), NOWHERE)
    drawn = gallery(model, tmp_path)
    assert list(drawn) == ["densities.png", "flow.png"]
    assert "histogram of 2,000 draws" in drawn["densities.png"]
    assert "leapfrog steps that follow are not drawn" in drawn["flow.png"]


def test_other_dimensions_get_draws(tmp_path) -> None:
    model = vf.build(spec_of(target="funnel", dimensions=5), NOWHERE)
    drawn = gallery(model, tmp_path, METRICS)
    assert list(drawn) == ["draws.png", "bound.png"]
    assert "log Z = 0.0000" in drawn["bound.png"]


def test_a_callable_is_normalised_over_its_picture(tmp_path) -> None:
    target = vf.targets.Callable(lambda z: -z.square().sum(-1), 2)
    model = vf.Model(target, None, vf.posteriors.Gaussian(2))
    drawn = gallery(model, tmp_path, METRICS)
    assert list(drawn) == ["densities.png"]
    assert "normalised over this window" in drawn["densities.png"]


def test_the_gaussian_model_has_its_exact_references(tmp_path) -> None:
    spec = spec_of(target="gaussian-model", dimensions=3, observations=40, precision="float64")
    rows = [{**row, "log_evidence": -9.0, "elbo": -9.5} for row in METRICS]
    drawn = gallery(vf.build(spec, NOWHERE), tmp_path, rows)
    assert list(drawn) == ["draws.png", "bound.png"]
    assert "exact log p(D) at the parameters of the record" in drawn["bound.png"]
    (tmp_path / "none").mkdir()
    assert "bound.png" not in gallery(vf.build(spec, NOWHERE), tmp_path / "none", METRICS)


def test_the_same_seed_gives_the_same_files_and_the_model_is_left_alone(tmp_path) -> None:
    model = vf.build(spec_of(target="u1", leapfrog=1), NOWHERE).train()
    state = torch.random.get_rng_state()

    def files(name: str, seed: int) -> bytes:
        gallery(model, tmp_path / name, seed=seed)
        return (tmp_path / name / "densities.png").read_bytes()

    assert files("a", 0) == files("b", 0) != files("c", 1)
    assert model.training
    assert next(model.parameters()).dtype == torch.float32
    assert torch.equal(state, torch.random.get_rng_state())
