"""The estimators for scikit-learn: its own checks, then what it does not check."""

from __future__ import annotations

import copy
import doctest
import pickle
import re
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

sklearn = pytest.importorskip("sklearn", minversion="1.6")

from scipy.stats import multivariate_normal  # noqa: E402
from sklearn.base import clone  # noqa: E402
from sklearn.datasets import load_breast_cancer, load_digits, load_wine  # noqa: E402
from sklearn.exceptions import NotFittedError  # noqa: E402
from sklearn.linear_model import LogisticRegression  # noqa: E402
from sklearn.model_selection import GridSearchCV, KFold, cross_val_score  # noqa: E402
from sklearn.pipeline import make_pipeline  # noqa: E402
from sklearn.preprocessing import StandardScaler  # noqa: E402
from sklearn.utils.estimator_checks import parametrize_with_checks  # noqa: E402

import varflow  # noqa: E402
from varflow.core import random  # noqa: E402
from varflow.core.errors import DataError, RunError, ShapeError, SpecError  # noqa: E402
from varflow.evaluation.importance import importance_sample  # noqa: E402
from varflow.sklearn import FlowDensity, VAETransformer  # noqa: E402

ROOT = Path(__file__).parents[1]


def density(**parameters: Any) -> FlowDensity:
    """A budget of a few updates, which are kept whatever the validation rows say."""
    small = {"flow": "planar", "length": 2, "base": "normal", "steps": 3, "lr": 1e-2, "random_state": 0}
    return FlowDensity(**{**small, **last(parameters)})


def vae(**parameters: Any) -> VAETransformer:
    small = {"latent": 2, "hidden": 8, "layers": 1, "steps": 3, "lr": 1e-2, "importance_samples": 16}
    small["random_state"] = 0
    return VAETransformer(**{**small, **last(parameters)})


def last(parameters: dict[str, Any]) -> dict[str, Any]:
    settings = parameters.get("settings", {})
    return {**parameters, "settings": {"keep": "last", **settings} if isinstance(settings, dict) else settings}


def normal(rows: int = 60, features: int = 3, seed: int = 0) -> np.ndarray:
    """Correlated Gaussian rows far from the standard ones."""
    mix = np.array([[20.0, 0, 0], [3.0, 1.0, 0], [0, 0.02, 0.1]])[:features, :features]
    return np.random.default_rng(seed).normal(size=(rows, features)) @ mix.T + np.array([500.0, -3, 0.5])[:features]


# -- scikit-learn's own checks ---------------------------------------------------------------------

#: Checks that cannot pass, with the reason: none. (The checks of the array API skip themselves unless SCIPY_ARRAY_API
#: is set.)
CANNOT_PASS: dict[str, str] = {}


@parametrize_with_checks(
    [
        FlowDensity("planar", length=1, base="normal", steps=2),
        VAETransformer(2, hidden=8, layers=1, steps=2, importance_samples=8),
    ],
    expected_failed_checks=lambda estimator: CANNOT_PASS,
)
def test_checks_of_scikit_learn(estimator: Any, check: Callable[[Any], None]) -> None:
    check(estimator)


@pytest.mark.slow
@parametrize_with_checks(
    [FlowDensity(steps=2), VAETransformer(flow="planar", amortized=True, steps=2, importance_samples=8)],
    expected_failed_checks=lambda estimator: CANNOT_PASS,
)
def test_checks_of_scikit_learn_with_other_parts(estimator: Any, check: Callable[[Any], None]) -> None:
    check(estimator)


# -- densities -------------------------------------------------------------------------------------


def test_a_gaussian_is_found_in_its_own_units() -> None:
    """With updates that move nothing the density is the mixture that EM found: of Gaussian rows, their Gaussian."""
    x = normal(2000)
    fitted = density(base="gaussians", lr=1e-12, defensive=0.0).fit(x)
    train, _ = fitted._split(len(x), fitted.run_.spec.training.seed)
    exact = multivariate_normal(x[train].mean(0), np.cov(x[train].T, bias=True)).logpdf(x)
    found = fitted.score_samples(x)
    assert found.dtype == np.float64
    # EM may find several components, and has a prior on covariances: closer than what 2000 rows can tell.
    assert abs(float(np.mean(found - exact))) < 0.05
    assert fitted.score(x) == pytest.approx(found.mean(), abs=1e-12)
    drawn = fitted.sample(4000, random_state=1)
    assert np.allclose(drawn.mean(0), x.mean(0), atol=5 * x.std(0) / 2000**0.5)
    assert np.allclose(drawn.std(0), x.std(0), rtol=0.1)


def test_the_units_of_a_column_shift_its_density() -> None:
    x = normal()
    other = x * np.array([100.0, 1e-3, 7.0]) + 5
    shift = np.log([100.0, 1e-3, 7.0]).sum()
    one, two = density().fit(x).score_samples(x), density().fit(other).score_samples(other)
    assert np.allclose(one, two + shift, atol=1e-3)


def test_a_density_integrates_to_one() -> None:
    x = normal(200, features=1)
    fitted = density(flow="maf", steps=20, lr=1e-2).fit(x)
    grid = np.linspace(x.min() - 400, x.max() + 400, 20_001)
    mass = np.exp(fitted.score_samples(grid[:, None])).sum() * (grid[1] - grid[0])
    assert mass == pytest.approx(1, abs=1e-3)


def test_whole_numbers_have_a_score_of_their_own_and_come_back_whole() -> None:
    rng = np.random.default_rng(0)
    x = np.stack([rng.poisson(4, 200), rng.normal(size=200)], 1).astype(float)
    fitted = density().fit(x)
    assert fitted.run_.preprocessing.name == "table"
    scores = fitted.score_samples(x)
    assert np.array_equal(scores, fitted.score_samples(x))
    assert np.allclose(scores[::-1], fitted.score_samples(x[::-1]), rtol=1e-10)
    # The density goes on between them.
    between = fitted.score_samples(np.array([[3.0, 0], [3.5, 0], [4.0, 0]]))
    assert np.isfinite(between).all()
    drawn = fitted.sample(50)
    assert np.array_equal(drawn[:, 0], drawn[:, 0].round())
    assert not np.array_equal(drawn[:, 1], drawn[:, 1].round())


def test_zeros_and_ones_are_numbers_to_a_density() -> None:
    x = (np.random.default_rng(0).random((60, 3)) < 0.4).astype(float)
    fitted = density().fit(x)
    assert np.isfinite(fitted.score_samples(np.full((1, 3), 0.5))).all()
    assert set(np.unique(fitted.sample(30))) <= {-1.0, 0.0, 1.0, 2.0}


# -- transformers ----------------------------------------------------------------------------------


def test_latents_are_the_means_of_the_posterior() -> None:
    x = normal()
    fitted = vae().fit(x)
    kept = fitted.run_.preprocessing
    seen, _ = kept.encode(torch.tensor(x), None, torch.float64)
    with torch.no_grad():
        expected = fitted.run_.model.infer(seen).mean.numpy()
    assert np.allclose(fitted.transform(x), expected, atol=1e-12)
    z = fitted.transform(x)
    with torch.no_grad():
        decoded = fitted.run_.model.likelihood.mean(torch.tensor(z))
    assert np.allclose(fitted.inverse_transform(z), kept.invert(decoded).numpy(), rtol=1e-12)
    assert fitted.inverse_transform(z.astype(np.float32)).dtype == np.float32
    assert list(fitted.get_feature_names_out()) == ["vaetransformer0", "vaetransformer1"]


def test_latents_behind_a_flow_are_means_of_draws() -> None:
    x = normal(20)
    fitted = vae(flow="planar", amortized=True, steps=30, lr=1e-2).fit(x)
    z = fitted.transform(x)
    assert np.allclose(z[::-1], fitted.transform(x[::-1]), atol=1e-12)
    kept = fitted.run_.preprocessing
    seen, _ = kept.encode(torch.tensor(x), None, torch.float64)
    with random.stream(7):
        draws = fitted.run_.model.encode(seen, 4000).z
    error = draws.std(0).numpy() * (1 / 100 + 1 / 4000) ** 0.5
    assert (np.abs(z - draws.mean(0).numpy()) < 5 * error).all()


def test_the_score_is_log_p_of_a_model_that_is_known() -> None:
    """A decoder that ignores z has log p(x) = log p(x|z), in whatever units x is."""
    x = normal()
    fitted = vae(steps=1).fit(x)
    with torch.no_grad():
        for parameter in fitted.run_.model.likelihood.parameters():
            parameter.zero_()
        for parameter in fitted.run_.model.posterior.parameters():
            parameter.zero_()
    kept = fitted.run_.preprocessing
    exact = multivariate_normal(kept.loc.numpy(), np.diag(kept.scale.numpy() ** 2)).logpdf(x)
    assert np.allclose(fitted.score_samples(x), exact, atol=1e-9)


def test_more_samples_bring_a_higher_bound_and_a_row_has_its_own() -> None:
    x = normal(40)
    fitted = vae(steps=20).fit(x)
    few, many = fitted.score_samples(x, samples=1), fitted.score_samples(x, samples=500)
    assert few.mean() < many.mean()
    twice = fitted.score_samples(np.concatenate([x, x[:1]]), samples=3)
    assert twice[0] == pytest.approx(twice[-1], rel=1e-12)
    assert len(np.unique(np.round(twice[:-1] - few, 12))) > 10
    with pytest.raises(SpecError, match=r"samples: was 0; use a positive integer"):
        fitted.score_samples(x, samples=0)
    with pytest.raises(SpecError, match=r"importance_samples: was 2\.5; use a positive integer"):
        vae(importance_samples=2.5).fit(x).score_samples(x)


def test_constant_columns_are_put_back() -> None:
    x = np.insert(normal(), 1, 7.0, axis=1)
    fitted = vae().fit(x)
    assert np.array_equal(np.isnan(fitted.constant_features_), [True, False, True, True])
    z = fitted.transform(x)
    assert np.array_equal(fitted.inverse_transform(z)[:, 1], np.full(len(x), 7.0))
    assert fitted.sample(5).shape == (5, 4)
    assert np.allclose(fitted.score_samples(x), vae().fit(normal()).score_samples(normal()))
    other = x[:3].copy()
    other[1, 1] = 8
    assert np.array_equal(fitted.score_samples(other), fitted.score_samples(x[:3]))
    assert np.array_equal(fitted.transform(other), fitted.transform(x[:3]))


def test_zeros_and_ones_have_probabilities() -> None:
    x = (np.random.default_rng(0).random((60, 4)) < 0.4).astype(np.float32)
    fitted = vae().fit(x)
    assert type(fitted.run_.model.likelihood).__name__ == "Bernoulli"
    mean = fitted.inverse_transform(fitted.transform(x))
    assert mean.min() > 0
    assert mean.max() < 1
    assert set(np.unique(fitted.sample(20))) == {0.0, 1.0}
    every = np.array([[int(bit) for bit in f"{i:04b}"] for i in range(16)], float)
    total = np.exp(fitted.score_samples(every, samples=2000)).sum()
    assert total == pytest.approx(1, abs=0.02)
    with pytest.raises(DataError, match=r"X: holds 0\.5, and the estimator was fitted to the levels 0 … 1"):
        fitted.transform(np.full((1, 4), 0.5))


@pytest.mark.parametrize("whole", [True, False])
def test_levels_keep_the_units_they_were_given_in(whole: bool) -> None:
    """Levels may be 0 … 4 or k/4, and a block of rows without the higher ones is read as all others are."""
    levels = np.random.default_rng(0).integers(0, 5, size=(60, 3)).astype(float)
    x = levels if whole else levels / 4
    fitted = vae(likelihood="categorical", settings={"levels": 5}).fit(x)
    top = 4 if whole else 1
    assert set(np.unique(fitted.sample(40))) <= set(np.arange(5) * top / 4)
    assert fitted.inverse_transform(fitted.transform(x)).max() <= top
    dark = np.zeros((2, 3))
    dark[1, 0] = top / 4
    alone, among = fitted.score_samples(dark), fitted.score_samples(np.concatenate([x, dark]))[-2:]
    assert np.allclose(alone, among, rtol=1e-10)


# -- what both do ----------------------------------------------------------------------------------

BOTH = pytest.mark.parametrize("make", [density, vae], ids=["density", "vae"])


@BOTH
def test_before_a_fit_nothing_is_there(make: Callable[..., Any]) -> None:
    for verb, argument in (("score_samples", normal()), ("sample", 3), ("score", normal())):
        with pytest.raises(NotFittedError):
            getattr(make(), verb)(argument)
    assert "run_" not in pickle.loads(pickle.dumps(make())).__dict__


@BOTH
@pytest.mark.parametrize("precision", ["float32", "float64"])
def test_pickles_and_copies_are_the_same_to_the_bit(make: Callable[..., Any], precision: str, tmp_path: Path) -> None:
    joblib = pytest.importorskip("joblib")
    x = normal()
    fitted = make(flow="planar", settings={"precision": precision}).fit(x)
    joblib.dump(fitted, tmp_path / "fitted.joblib")
    # A pickle of a pickle too: what was loaded is as good as what was fitted.
    again = pickle.loads(pickle.dumps(fitted))
    twice, loaded = pickle.loads(pickle.dumps(again)), joblib.load(tmp_path / "fitted.joblib")
    for other in (again, twice, loaded, copy.deepcopy(fitted)):
        assert np.array_equal(other.score_samples(x), fitted.score_samples(x))
        assert np.array_equal(other.sample(5), fitted.sample(5))
        if make is vae:
            assert np.array_equal(other.transform(x), fitted.transform(x))
            assert np.array_equal(other.inverse_transform(x[:, :2]), fitted.inverse_transform(x[:, :2]))
    mapped = joblib.load(tmp_path / "fitted.joblib", mmap_mode="r")
    assert np.array_equal(mapped.score_samples(x), fitted.score_samples(x))


@pytest.mark.parametrize(
    "parts",
    [
        {"flow": "maf", "length": 2, "amortized": True},
        {"settings": {"prior": "maf"}},
        {"settings": {"prior": "vamp"}},
        {"settings": {"leapfrog": 2}},
        {"settings": {"top_latent": 1}},
        {"likelihood": "student-t"},
    ],
    ids=str,
)
def test_other_parts_are_functions_of_the_row_too(parts: dict[str, Any]) -> None:
    x = normal()
    fitted = vae(**parts).fit(x)
    scores, z = fitted.score_samples(x), fitted.transform(x)
    assert np.allclose(fitted.score_samples(x[::-3]), scores[::-3], rtol=1e-10)
    assert np.allclose(fitted.transform(x[::-3]), z[::-3], atol=1e-10)
    assert fitted.inverse_transform(z).shape == fitted.sample(60).shape == x.shape
    again = pickle.loads(pickle.dumps(fitted))
    assert np.array_equal(again.score_samples(x), scores)
    assert np.array_equal(again.transform(x), z)


@BOTH
def test_a_pickle_holds_plain_values_and_not_the_rows(make: Callable[..., Any]) -> None:
    x = np.random.default_rng(0).normal(size=(3000, 3))
    fitted = make().fit(x)
    held = fitted.__getstate__()["run_"]

    def check(value: Any) -> None:
        if isinstance(value, dict):
            assert all(isinstance(key, str) for key in value)
            for item in value.values():
                check(item)
        elif isinstance(value, list):
            for item in value:
                check(item)
        else:
            assert value is None or type(value) in (bool, int, float, str, np.ndarray)

    check(held)
    assert all(weights.dtype == np.float32 for weights in held["weights"].values())
    assert b"torch" not in pickle.dumps(held)
    assert len(pickle.dumps(fitted)) < x.nbytes / 3
    with pytest.raises(RunError, match="does not keep the data"):
        _ = fitted.run_.dataset


def test_a_pickle_of_other_weights_is_refused() -> None:
    state = density().fit(normal()).__getstate__()
    state["run_"]["weights"].popitem()
    with pytest.raises(RunError, match="the pickled estimator: does not belong to this spec"):
        FlowDensity().__setstate__(state)


@BOTH
def test_the_seed_decides_and_global_generators_are_left_alone(make: Callable[..., Any]) -> None:
    x = normal()
    before = torch.get_rng_state(), np.random.get_state()[1].copy()  # noqa: NPY002
    one = make(random_state=3).fit(x)
    first = one.score_samples(x), one.sample(4)
    if make is vae:
        one.inverse_transform(one.transform(x))
    assert torch.equal(torch.get_rng_state(), before[0])
    assert np.array_equal(np.random.get_state()[1], before[1])  # noqa: NPY002
    torch.manual_seed(99)
    two = clone(one).fit(x)
    assert np.array_equal(first[0], two.score_samples(x))
    assert np.array_equal(first[1], two.sample(4))
    assert not np.array_equal(first[0], make(random_state=4).fit(x).score_samples(x))
    # A generator goes on from fit to fit, as scikit-learn has it.
    source = np.random.RandomState(0)
    one, two = make(random_state=source).fit(x), make(random_state=source).fit(x)
    assert not np.array_equal(one.score_samples(x), two.score_samples(x))


def test_denormal_numbers_are_left_as_they_were() -> None:
    x, smallest = normal(), np.array([1]).view(np.float64)

    def kept() -> bool:
        return bool((smallest * 1.0).view(np.int64).any())

    before = kept()
    try:
        for wanted in (False, True):
            torch.set_flush_denormal(wanted)
            density().fit(x).score_samples(x)
            assert kept() is not wanted
    finally:
        torch.set_flush_denormal(not before)


@BOTH
def test_three_rows_are_the_fewest(make: Callable[..., Any]) -> None:
    x = normal(3)
    assert np.isfinite(make(random_state=1).fit(x).score_samples(x)).all()
    with pytest.raises(ValueError, match=r"Found array with 2 sample\(s\).*a minimum of 3 is required"):
        make().fit(x[:2])


@BOTH
@pytest.mark.parametrize(
    ("parameters", "sentence"),
    [
        ({"flow": "plannar"}, "did you mean 'planar'"),
        ({"settings": {"lr": 0.1}}, "settings: 'lr' is the parameter lr; give {name}(lr=...)"),
        ({"settings": {"seed": 1}}, "settings: 'seed' is the parameter random_state; give {name}(random_state=...)"),
        ({"settings": {"data": "mnist"}}, "settings: 'data' cannot be chosen for {name}; leave it out"),
        ({"settings": {"wieght_decay": 0.1}}, "did you mean 'weight_decay'"),
        ({"settings": ["clip"]}, "settings: was list; use a dict of settings by their names"),
        ({"validation_fraction": 1.0}, "validation_fraction: was 1.0; use a number between 0 and 1"),
        ({"length": 0}, "length: was 0; use 1 or more"),
        ({"steps": None, "settings": {"epochs": 1, "steps": 2}}, "settings: 'steps' is the parameter steps"),
        ({"device": "gpu"}, "device: unknown device 'gpu'"),
    ],
)
def test_impossible_parameters_are_refused(
    make: Callable[..., Any], parameters: dict[str, Any], sentence: str
) -> None:
    if make is vae and "length" in parameters:
        parameters = {"flow": "planar", **parameters}
    made = make(**parameters)
    with pytest.raises(SpecError, match=re.escape(sentence.format(name=type(made).__name__))):
        made.fit(normal())


def test_what_one_of_them_cannot_be_is_refused() -> None:
    with pytest.raises(SpecError, match="flow: unknown value 'normal'"):
        density(flow="normal").fit(normal())
    with pytest.raises(SpecError, match="settings: 'likelihood' cannot be chosen for FlowDensity"):
        density(settings={"likelihood": "gaussian"}).fit(normal())
    with pytest.raises(SpecError, match="likelihood: identity has no latents; use FlowDensity"):
        vae(likelihood="identity").fit(normal())
    with pytest.raises(SpecError, match="prior_hidden: is a setting of prior="):
        density(hidden=8).fit(normal())
    with pytest.raises(SpecError, match="n_samples: was 0; use a positive integer"):
        density().fit(normal()).sample(0)
    with pytest.raises(ShapeError, match=r"Z: shape \[1, 3\]; should be \[n_samples, 2\]"):
        vae().fit(normal()).inverse_transform(np.zeros((1, 3)))


def test_columns_without_a_density_are_refused_by_their_name() -> None:
    pandas = pytest.importorskip("pandas")
    x = np.insert(normal(), 1, 7.0, axis=1)
    with pytest.raises(DataError, match=r"X: column 1 \(counted from 0\) is constant in the training rows \(7\)"):
        density().fit(x)
    with pytest.raises(DataError, match=r"X: 'b' is constant .*\.VarianceThreshold"):
        density().fit(pandas.DataFrame(x, columns=list("abcd")))
    with pytest.raises(DataError, match="every column is constant"):
        vae().fit(np.ones((5, 2)))
    x[:, 3] = np.where(np.arange(len(x)) % 2, x[:, 3], 0.1234567)
    with pytest.raises(DataError, match=r"x: 'column 3' has the value 0\.123457 in .* drop the column"):
        vae().fit(x)
    with pytest.raises(DataError, match=r"x: 'd' has the value"):
        vae().fit(pandas.DataFrame(x, columns=list("abcd")))


def test_budgets_in_epochs_and_numbers_of_numpy() -> None:
    x = normal()
    numbers = {"batch": np.int64(9), "lr": np.float64(1e-3), "flow": np.str_("planar")}
    fitted = density(steps=None, settings={"epochs": 2}, **numbers)
    assert fitted.fit(x).n_iter_ == 2 * (54 // 9)
    assert vae(latent=np.int32(3), length=np.int64(2), flow="planar").fit(x).transform(x).shape == (60, 3)


def test_an_interrupted_fit_interrupts_its_caller(monkeypatch: pytest.MonkeyPatch) -> None:
    from varflow.training.loop import Loop

    update = Loop.update

    def interrupted(self: Loop) -> torch.Tensor:
        if self.step == 1:
            signal.raise_signal(signal.SIGINT)
        return update(self)

    monkeypatch.setattr(Loop, "update", interrupted)
    fitted = density()
    with pytest.raises(KeyboardInterrupt):
        fitted.fit(normal())
    assert not hasattr(fitted, "run_")


def test_threads_take_turns() -> None:
    joblib = pytest.importorskip("joblib")
    x = normal()
    expected = vae().fit(x).score_samples(x)
    found = joblib.Parallel(n_jobs=2, prefer="threads")(
        joblib.delayed(lambda: vae().fit(x).score_samples(x))() for _ in range(4)
    )
    for scores in found:
        assert np.array_equal(scores, expected)


# -- among scikit-learn's other tools --------------------------------------------------------------


def test_a_scaler_before_a_density_changes_the_units_alone() -> None:
    x = load_wine().data
    pipe = make_pipeline(StandardScaler(), density(protocol="standardize")).fit(x)
    alone = density(protocol="standardize").fit(x)
    shift = np.log(pipe[0].scale_).sum()
    assert pipe.score(x) - shift == pytest.approx(alone.score(x), abs=1e-3)
    scores = cross_val_score(pipe, x, cv=3)
    assert scores.shape == (3,)
    assert np.isfinite(scores).all()


def test_a_search_over_latent_and_flow() -> None:
    x = load_wine().data
    grid = {"vaetransformer__latent": [1, 2], "vaetransformer__flow": ["none", "planar"]}
    search = GridSearchCV(make_pipeline(StandardScaler(), vae(protocol="standardize")), grid, cv=KFold(2)).fit(x)
    assert np.isfinite(search.cv_results_["mean_test_score"]).all()
    assert len(np.unique(search.cv_results_["mean_test_score"])) == 4
    latent = search.best_params_["vaetransformer__latent"]
    assert search.transform(x).shape == (178, latent)
    assert np.array_equal(pickle.loads(pickle.dumps(search)).transform(x), search.transform(x))


def test_before_a_classifier_with_frames_out() -> None:
    pytest.importorskip("pandas")
    x, y = load_wine(return_X_y=True, as_frame=True)
    pipe = make_pipeline(vae(steps=200, lr=1e-2), LogisticRegression())
    pipe[0].set_output(transform="pandas")
    assert pipe.fit(x, y).score(x, y) > 0.8
    frame = pipe[0].transform(x)
    assert list(frame.columns) == ["vaetransformer0", "vaetransformer1"]
    assert pipe[0].inverse_transform(frame).shape == x.shape


@pytest.mark.slow
def test_searches_in_two_processes() -> None:
    x = load_breast_cancer().data
    search = GridSearchCV(density(), {"flow": ["planar", "maf"]}, cv=2, n_jobs=2).fit(x)
    alone = GridSearchCV(density(), {"flow": ["planar", "maf"]}, cv=2).fit(x)
    assert np.allclose(search.cv_results_["mean_test_score"], alone.cv_results_["mean_test_score"], rtol=1e-6)


@pytest.mark.slow
def test_malignant_rows_are_anomalies_to_a_density_of_benign_ones() -> None:
    from sklearn.metrics import roc_auc_score

    x, y = load_breast_cancer(return_X_y=True)
    benign = np.flatnonzero(y == 1)
    fitted = FlowDensity(random_state=0, settings={"threads": 1}).fit(x[benign[:250]])
    test = np.concatenate([benign[250:], np.flatnonzero(y == 0)])
    assert roc_auc_score(y[test] == 0, -fitted.score_samples(x[test])) > 0.9


@pytest.mark.slow
def test_digits_with_their_empty_corners() -> None:
    x = load_digits().data
    fitted = VAETransformer(random_state=0, steps=2000, settings={"threads": 1}).fit(x)
    assert (~np.isnan(fitted.constant_features_)).sum() >= 3
    back = fitted.inverse_transform(fitted.transform(x))
    assert ((back - x) ** 2).sum() < 0.5 * ((x - x.mean(0)) ** 2).sum()


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_the_page_runs(tmp_path: Path) -> None:
    """Each example of docs/sklearn.md in turn; what it prints is what the page says, but for the numbers."""
    page = (ROOT / "docs" / "sklearn.md").read_text()
    blocks = re.findall(r"```python\n(.*?)```\n\n```\n(.*?)```", page, re.DOTALL)
    assert len(blocks) == page.count("```python") == 5

    def words(text: str) -> list[str]:
        return re.sub(r"-?\d+(\.\d*)?|'(none|planar)'", "#", text).split()

    for code, printed in blocks:
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path)
        assert done.returncode == 0, done.stderr
        assert words(done.stdout) == words(printed)


# -- imports and numbers of rows -------------------------------------------------------------------


def test_the_module_is_lazy_and_says_what_is_missing() -> None:
    code = (
        "import sys, varflow; assert 'torch' not in sys.modules and 'sklearn' not in sys.modules\n"
        "sys.modules['sklearn.base'] = None\n"
        "try: varflow.sklearn\n"
        "except ImportError as error: print(error)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == (
        "varflow.sklearn needs scikit-learn 1.6 or newer; install it with: pip install 'varflow[sklearn]'"
    )
    assert varflow.sklearn.FlowDensity is FlowDensity


def test_the_examples_in_the_docstrings_run() -> None:
    from varflow.sklearn import density, transformer

    found = [doctest.testmod(module) for module in (varflow.sklearn, density, transformer)]
    assert (sum(each.failed for each in found), sum(each.attempted for each in found)) == (0, 11)


def test_random_numbers_that_belong_to_rows() -> None:
    draw = {"dtype": torch.float64, "batch_dim": 1}
    with random.use(random.ByRow(0, [5, 9, 5], step=2)):
        one, more = random.normal((4, 3, 2), "posterior", **draw), random.normal((4, 3, 2), "posterior", **draw)
        shared = random.uniform((3,), "other")
    with random.use(random.ByRow(0, [9], step=2)):
        alone = random.normal((4, 1, 2), "posterior", **draw)
    assert torch.equal(one[:, 1], alone[:, 0])
    assert torch.equal(one[:, 0], one[:, 2])
    assert not torch.equal(one[:, 0], one[:, 1])
    assert not torch.equal(one, more)
    with random.stream(0, 2):
        assert torch.equal(shared, random.uniform((3,), "other"))
    with random.use(random.ByRow(0, [1, 2])), pytest.raises(ValueError, match="keys: 2 for a draw"):
        random.normal((4, 3), "posterior", batch_dim=1)


def test_importance_sampling_by_keys_does_not_depend_on_the_place() -> None:
    model = vae().fit(normal()).run_.model
    x = torch.randn(200, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    keys = list(range(200))
    whole = importance_sample(model, x, samples=70, seed=1, keys=keys).log_px
    order = torch.randperm(200, generator=torch.Generator().manual_seed(2))
    moved = importance_sample(model, x[order], samples=70, seed=1, keys=order.tolist()).log_px
    torch.testing.assert_close(moved, whole[order], rtol=0, atol=1e-12)
    assert not torch.allclose(importance_sample(model, x, samples=70, seed=1).log_px, whole)
