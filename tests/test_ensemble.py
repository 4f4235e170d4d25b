"""Many fits in one program: the same as the fits alone."""

from __future__ import annotations

from functools import partial

import pytest
import torch

import varflow as vf
from varflow.core import random
from varflow.core.errors import SpecError
from varflow.runs.folder import WEIGHTS

FLOWS = ["planar", "radial", "nice", "iaf", "householder", "sylvester", "coupling", "spline"]


def one(seed: int, flow: str = "planar", length: int = 3, target: type | None = None) -> vf.Model:
    from varflow.core.lazy import resolve

    torch.manual_seed(seed)
    kind = resolve(vf.flows.TABLE[flow])
    posterior = vf.posteriors.Gaussian(2, flow=partial(kind, length=length))
    model = vf.Model((target or vf.targets.U1)(), None, posterior)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    return model


@pytest.mark.parametrize("flow", FLOWS)
def test_the_terms_are_those_of_the_members(flow: str) -> None:
    models = [one(seed, flow).double() for seed in range(3)]
    ensemble = vf.Ensemble(models)
    with random.stream(5):
        noise = random.normal((3, 7, 2), "posterior", dtype=torch.float64)
    with random.stream(5):
        terms = ensemble.terms(samples=7)
    assert terms.z.shape == (7, 3, 2)
    assert terms.log_weight.shape == (7, 3)
    for fit, model in enumerate(models):
        with random.use(random.Replay([noise[fit]])):
            alone = model.terms(samples=7)
        torch.testing.assert_close(terms.z[:, fit], alone.z)
        torch.testing.assert_close(terms.log_weight[:, fit], alone.log_weight)
        for (name, mine), theirs in zip(
            ensemble.member(fit).state_dict().items(), model.state_dict().values(), strict=True
        ):
            assert torch.equal(mine, theirs), name


def test_structures_stand_side_by_side_in_the_order_given() -> None:
    models = [one(0), one(1, length=5), one(2), one(3, target=vf.targets.U4), one(4, length=5)]
    ensemble = vf.Ensemble(models)
    assert [stack.fits for stack in ensemble.draws] == [[0, 2, 3], [1, 4]]
    assert [stack.fits for stack in ensemble.scores] == [[0, 1, 2, 4], [3]]
    for fit, model in enumerate(models):
        member = ensemble.member(fit)
        assert type(member.prior) is type(model.prior)
        assert torch.equal(member.posterior.flow.u, model.posterior.flow.u)
    terms = ensemble.terms(samples=4)
    log_prior = torch.stack([m.prior.log_prob(terms.z[:, i]) for i, m in enumerate(models)], 1)
    torch.testing.assert_close(terms.log_prior, log_prior)


def test_no_fit_touches_another() -> None:
    ensemble = vf.Ensemble([one(seed) for seed in range(3)])
    ensemble.terms(samples=5).log_weight[:, 1].mean().backward()
    for parameter in ensemble.parameters():
        assert parameter.grad[0].abs().max() == 0
        assert parameter.grad[2].abs().max() == 0
    assert any(parameter.grad[1].abs().max() > 0 for parameter in ensemble.parameters())


def test_gradients_are_clipped_fit_by_fit() -> None:
    ensemble = vf.Ensemble([one(seed) for seed in range(3)])
    (ensemble.terms(samples=5).log_weight.mean(0) * torch.tensor([1e3, 1e-6, 1e3])).sum().backward()
    before = [p.grad.clone() for p in ensemble.parameters()]
    ensemble.clip_gradients(0.5)
    for fit, clipped in enumerate([True, False, True]):
        norm = torch.stack([p.grad[fit].square().sum() for p in ensemble.parameters()]).sum().sqrt()
        if clipped:
            torch.testing.assert_close(norm, torch.tensor(0.5))
        else:
            assert all(
                torch.equal(p.grad[fit], b[fit]) for p, b in zip(ensemble.parameters(), before, strict=True)
            )


def fit(folder, **settings):
    defaults = {"target": "u1", "fits": 3, "length": 4, "samples": 32, "steps": 450, "quiet": True}
    return vf.fit("energy", out=folder, threads=1, **{**defaults, **settings})


def test_a_fit_trains_each_as_if_it_were_alone() -> None:
    """The same noise, the same first model: what stands beside it makes no difference."""
    runs = [
        vf.fit(vf.Ensemble([one(0), one(seed)]), samples=16, steps=30, objective="annealed", keep="last",
               quiet=True, threads=1)
        for seed in (1, 2)
    ]  # fmt: skip
    first, second = (run.model.member(0).state_dict() for run in runs)
    for name in first:
        torch.testing.assert_close(first[name], second[name], rtol=1e-5, atol=1e-6)
    assert not torch.equal(runs[0].model.member(1).posterior.flow.u, runs[1].model.member(1).posterior.flow.u)


@pytest.mark.slow
def test_a_run_of_several_fits_is_saved_loaded_and_resumed(tmp_path) -> None:
    # A shorter budget would have another schedule of learning rates.
    whole = fit(tmp_path / "whole", decay="none")
    fit(tmp_path / "parts", decay="none", steps=250)
    vf.resume(tmp_path / "parts", steps=450, quiet=True)
    assert (tmp_path / "whole" / WEIGHTS).read_bytes() == (tmp_path / "parts" / WEIGHTS).read_bytes()
    run = vf.load(tmp_path / "parts")
    assert isinstance(run.model, vf.Ensemble)
    assert run.model.fits == 3
    assert whole.model.fits == 3
    kept = sorted(path.name for path in (tmp_path / "whole" / "snapshots").iterdir())
    assert kept[0] == "step-00000000.safetensors"


def test_seeds_differ_and_data_sets_too() -> None:
    run = fit(None, steps=3)
    weights = [member.posterior.flow.w for member in run.model.members()]
    assert not torch.equal(weights[0], weights[1])
    alone = fit(None, steps=3, fits=1, seed=1)
    assert isinstance(alone.model, vf.Model)
    run = vf.fit("gaussian-model", dimensions=3, observations=50, fits=2, steps=3, quiet=True, threads=1)
    means = [member.likelihood.exact().mean for member in run.model.members()]
    assert not torch.allclose(means[0], means[1])


def test_a_nan_names_its_fit() -> None:
    models = [one(seed) for seed in range(3)]
    with torch.no_grad():
        models[1].posterior.flow.w[0, 0] = torch.nan
    with pytest.raises(vf.errors.NonFiniteError, match="NaN"):
        vf.fit(vf.Ensemble(models), steps=3, quiet=True, threads=1)

    class Broken(vf.targets.U1):
        def log_prob(self, z, context=None):
            return super().log_prob(z) + torch.where(z[..., 0] > -100, torch.nan, 0.0)

    with pytest.raises(vf.errors.NonFiniteError, match="log_prior of fit 1"):
        vf.fit(vf.Ensemble([one(0), one(1, target=Broken)]), steps=3, quiet=True, threads=1)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"fits": 0}, "fits: was 0"),
        ({"target": "u5"}, "u"),
        ({"amortized": True}, "amortized: .* a target has .* no x"),
        ({"target": "u1", "dimensions": 3}, "2"),
    ],
)
def test_what_a_target_cannot_have_is_refused(settings: dict, message: str) -> None:
    with pytest.raises(SpecError, match=message):
        fit(None, **settings)


def test_data_beside_a_target_are_refused() -> None:
    with pytest.raises(SpecError, match="data: given beside target=u1"):
        vf.fit("energy", torch.randn(10, 2), quiet=True)
    with pytest.raises(SpecError, match="models: was empty"):
        vf.Ensemble([])
    with pytest.raises(SpecError, match="one shape"):
        vf.Ensemble([one(0), vf.Model(vf.targets.Funnel(3), None, vf.posteriors.Gaussian(3))])
    decoder = vf.networks.MLP(2, 5)
    vae = vf.Model(
        vf.priors.StandardNormal(2),
        vf.likelihoods.Gaussian(decoder, 5, 1.0),
        vf.posteriors.Gaussian(2, vf.networks.MLP(5)),
    )
    with pytest.raises(SpecError, match="reads x"):
        vf.Ensemble([vae, vae])


def off_start(model: vf.Model, seed: int) -> vf.Model:
    torch.manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(0.8 * torch.randn_like(parameter))
    return model


def _iaf(**options: object) -> partial:
    return partial(vf.flows.InverseAutoregressive, **options)


AFFINE = torch.distributions.AffineTransform

#: flow → two values of one of its options.
OPTIONS = {
    "iaf: gate": (_iaf(gate="bounded"), _iaf(gate="paper")),
    "iaf: bound": (_iaf(bound=3.0), _iaf(bound=0.5)),
    "maf: bound": tuple(partial(vf.flows.MaskedAutoregressive, bound=b) for b in (3.0, 0.5)),
    "coupling: bound": tuple(partial(vf.flows.AffineCoupling, bound=b) for b in (3.0, 0.5)),
    "planar: constraint": tuple(partial(vf.flows.Planar, paper_constraint=p) for p in (False, True)),
    "transform": tuple(
        lambda features, context_features=0, shift=shift: vf.flows.from_transform(
            AFFINE(shift, 2.0), features
        )
        for shift in (0.0, 5.0)
    ),
    "zuko: bins": tuple(partial(vf.flows.spline, length=1, bins=bins) for bins in (4, 8)),
    "sylvester: reflections": tuple(partial(vf.flows.Sylvester, rank=2, reflections=r) for r in (1, 2)),
}


@pytest.mark.parametrize("option", OPTIONS)
def test_fits_that_differ_in_an_option_alone_stay_apart(option: str) -> None:
    models = [
        off_start(vf.Model(vf.targets.U1(), None, vf.posteriors.Gaussian(2, flow=flow)), 3)
        for flow in OPTIONS[option]
    ]
    ensemble = vf.Ensemble(models)
    assert len(ensemble.draws) == 2
    z = torch.tensor([[0.7, -1.3], [2.0, 0.4]])
    found = []
    for model, member in zip(models, ensemble.members(), strict=True):
        (out, ladj), expected = member.posterior.flow(z), model.posterior.flow(z)
        assert torch.equal(out, expected[0])
        assert torch.equal(ladj, expected[1])
        found.append(torch.cat((out, ladj[:, None]), -1))
    assert (found[0] - found[1]).abs().max() > 1e-3
    assert repr(models[0].posterior.flow) != repr(models[1].posterior.flow)


class At(vf.targets.Target):
    """A normal around a plain number."""

    def __init__(self, center: float | torch.Tensor) -> None:
        super().__init__(2)
        self.center = center

    def log_prob(self, z, context=None):
        return -0.5 * (z - self.center).square().sum(-1)


class Around(torch.nn.Module):
    def __init__(self, center: float) -> None:
        super().__init__()
        self.center = center

    def forward(self, z):
        return -0.5 * (z - self.center).square().sum(-1)


@pytest.mark.parametrize(
    "target",
    [At, lambda c: At(torch.tensor(c)), lambda c: vf.targets.Callable(Around(c), 2)],
    ids=["number", "tensor", "module"],
)
def test_own_targets_are_not_taken_for_one_another(target) -> None:
    models = [vf.Model(target(c), None, vf.posteriors.Gaussian(2)) for c in (0.0, 5.0, 0.0)]
    ensemble = vf.Ensemble(models)
    assert len(ensemble.draws) == 1
    z = torch.randn(3, 2)
    for model, member in zip(models, ensemble.members(), strict=True):
        assert torch.equal(member.prior.log_prob(z), model.prior.log_prob(z))
    run = vf.fit(ensemble, samples=64, steps=400, lr=0.05, keep="last", quiet=True, threads=1)
    means = torch.stack([member.posterior.mean.detach() for member in run.model.members()])
    torch.testing.assert_close(means, torch.tensor([[0.0], [5.0], [0.0]]).expand(3, 2), rtol=0, atol=0.2)


def test_equal_own_targets_share_a_program() -> None:
    shared = At(torch.zeros(2))
    targets = [At(1.0), At(1.0), shared, shared, At(torch.zeros(2))]
    ensemble = vf.Ensemble([vf.Model(t, None, vf.posteriors.Gaussian(2)) for t in targets])
    assert [stack.fits for stack in ensemble.scores] == [[0, 1], [2, 3], [4]]


def test_what_one_target_has_computed_is_not_anothers() -> None:
    used = vf.targets.U4()
    weights = used.mode_weights
    targets = [used, vf.targets.U4()]
    ensemble = vf.Ensemble([vf.Model(t, None, vf.posteriors.Gaussian(2)) for t in targets])
    assert len(ensemble.scores) == 1
    for member in ensemble.members():
        assert "moments" not in vars(member.prior)
        torch.testing.assert_close(member.prior.mode_weights, weights)
