"""Parts of a user's own: checked before training, named in the run folder, loaded with ``parts=`` alone."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import varflow as vf
from varflow.core.errors import RunError, SpecError
from varflow.runs.folder import RUN
from varflow.runs.own import import_paths

SETTINGS: dict[str, Any] = {"steps": 3, "threads": 1, "quiet": True}
X = (torch.rand(60, 6, generator=torch.Generator().manual_seed(0)) < 0.5).float()


class Encoder(nn.Module):
    """Six numbers to eight features."""

    def __init__(self, said: int = 8, size: int = 6) -> None:
        super().__init__()
        self.features = said
        self.layer = nn.Linear(size, 8)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x).tanh()


class Laplace(vf.likelihoods.Likelihood):
    """x around the decoder's output."""

    support = ("real", "binary")

    def distribution(self, z: Tensor) -> torch.distributions.Distribution:
        return torch.distributions.Independent(torch.distributions.Laplace(self.decode(z), 1.0), 1)

    def log_prob(self, x: Tensor, z: Tensor) -> Tensor:
        return self.distribution(z).log_prob(x)

    def mean(self, z: Tensor) -> Tensor:
        return self.distribution(z).mean

    def sample(self, z: Tensor) -> Tensor:
        return self.distribution(z).sample()


class Unsummed(Laplace):
    def log_prob(self, x: Tensor, z: Tensor) -> Tensor:
        return (x - self.decode(z)).abs().neg()


class Crooked(Laplace):
    def sample(self, z: Tensor) -> Tensor:
        return self.decode(z)[..., :3]


class Wide(vf.priors.Prior):
    """N(0, 4 I)."""

    def __init__(self, features: int = 2) -> None:
        super().__init__()
        self.event_shape = (features,)
        self.log_scale = nn.Parameter(torch.full((features,), 0.7))

    def log_prob(self, z: Tensor, context: Tensor | None = None) -> Tensor:
        return torch.distributions.Normal(0.0, self.log_scale.exp()).log_prob(z).sum(-1)

    def sample(self, shape: Sequence[int] = ()) -> Tensor:
        return self.log_scale.exp() * torch.randn(*shape, *self.event_shape)


class Short(Wide):
    def sample(self, shape: Sequence[int] = ()) -> Tensor:
        return torch.randn(self.event_shape)


class Flat(Wide):
    def log_prob(self, z: Tensor, context: Tensor | None = None) -> Tensor:
        return z.new_zeros(z.shape)


class NoPrior(nn.Module):
    def log_prob(self, z: Tensor) -> Tensor:
        return -z.square().sum(-1)


def decoder(out: int = 6) -> nn.Module:
    return nn.Sequential(nn.Linear(2, out))


def fit(**parts: Any) -> vf.Run:
    return vf.fit("digits", X, parts=parts, latent=2, hidden=8, **SETTINGS)


def model(**parts: Any) -> vf.Model:
    whole = {
        "prior": vf.priors.StandardNormal(2),
        "likelihood": Laplace(decoder(), (6,)),
        "posterior": vf.posteriors.Gaussian(2, Encoder()),
        **parts,
    }
    return vf.Model(**whole)


@pytest.mark.parametrize(
    ("parts", "said"),
    [
        (
            {"posterior": vf.posteriors.Gaussian(2, Encoder(said=16))},
            r"^encoder: Encoder makes \[2, 8\] of x \[2, 6\], and the posterior was built for 16 features",
        ),
        (
            {"posterior": vf.posteriors.Gaussian(2, Encoder(size=5))},
            r"^encoder: Encoder fails on x \[2, 6\] \(RuntimeError: mat1 and mat2",
        ),
        (
            {"posterior": vf.posteriors.Gaussian(3, Encoder()), "prior": Wide(2)},
            r"^prior: is over events of shape \(2,\), the posterior draws \(3,\)",
        ),
        (
            {"likelihood": Unsummed(decoder(), (6,))},
            r"^likelihood: Unsummed.log_prob makes \[3, 2, 6\] of x \[2, 6\] and z \[3, 2, 2\]; .* be \[3, 2\]",
        ),
        (
            {"likelihood": Laplace(decoder(5), (6,))},
            r"^decoder: Sequential makes \[3, 2, 5\] of z \[3, 2, 2\]; it should be \[3, 2, 6\], what Laplace reads",
        ),
        (
            {"likelihood": Laplace(nn.Linear(4, 6), (6,))},
            r"^decoder: Linear fails on z \[3, 2, 2\] \(RuntimeError",
        ),
        (
            {"likelihood": Crooked(decoder(), (6,))},
            r"^likelihood: Crooked.sample makes \[3, 2, 3\] of z \[3, 2, 2\]; it should be \[3, 2, 6\]",
        ),
        ({"likelihood": nn.Linear(2, 6)}, r"^likelihood: Linear has no log_prob; write that method, in a class"),
        ({"likelihood": Laplace}, r"^likelihood: was the class Laplace; give an object of it, Laplace\(\.\.\.\)"),
        ({"likelihood": torch.sin}, r"^likelihood: was .*; give a torch.nn.Module"),
        (
            {"prior": NoPrior()},
            r"^prior: NoPrior has no sample; write that method, in a class NoPrior\(varflow.priors.Prior\)$",
        ),
        (
            {"prior": Short()},
            r"^prior: Short.sample makes \[2\] of the shape \(2,\); it should be \[2, 2\], a draw each",
        ),
        (
            {"prior": Flat()},
            r"^prior: Flat.log_prob makes \[3, 2, 2\] of z \[3, 2, 2\]; it should be \[3, 2\], the sum over",
        ),
        ({"posterior": Encoder()}, r"^posterior: Encoder is no varflow.posteriors.Posterior; write it as a class"),
    ],
)
def test_a_part_that_does_not_fit_is_named_with_its_shape(parts: dict[str, Any], said: str) -> None:
    with pytest.raises(SpecError, match=said):
        fit(**parts)


def test_the_dry_run_leaves_everything_as_it_was() -> None:
    class Counting(Encoder):
        def forward(self, x: Tensor) -> Tensor:
            modes.append(self.training)
            torch.rand(3)
            return super().forward(x)

    modes: list[bool] = []
    whole = model(posterior=vf.posteriors.Gaussian(2, Counting()))
    whole.posterior.encoder.layer.eval()
    from varflow.runs.own import dry_run

    data = vf.data.from_tensor(X)
    before, state = {k: v.clone() for k, v in whole.state_dict().items()}, torch.get_rng_state()
    dry_run(whole, data)
    assert modes == [False, False]
    assert whole.training
    assert not whole.posterior.encoder.layer.training
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(value, before[name]) for name, value in whole.state_dict().items())


@pytest.mark.parametrize(
    ("own", "given", "said"),
    [
        ("model", {"flow": "planar"}, r"^flow: is a setting of q\(z\|x\), and the posterior is your own; set"),
        ("model", {"latent": 3}, r"^latent: is a setting of q\(z\|x\), and the posterior is your own"),
        ("model", {"hidden": 3}, r"^hidden: is a setting of the networks, and posterior and likelihood are your own"),
        ("model", {"prior": "maf"}, r"^prior: is a setting of p\(z\), and the prior is your own"),
        ("model", {"likelihood": "gaussian"}, r"^likelihood: is a setting of p\(x\|z\), and the likelihood is"),
        ("model", {"leapfrog": 3}, r"^leapfrog: is a setting of the Hamiltonian posterior, and the posterior is"),
        ("posterior", {"flow": "planar", "length": 3}, r"^flow: is a setting of q\(z\|x\)"),
        ("likelihood", {"scale": "learned", "likelihood": "gaussian"}, r"^(scale|likelihood): is a setting of p"),
        ("target", {"target": "u1"}, r"^target: is a setting of the target, and the prior is your own"),
        ("ensemble", {"base_moments": "fixed", "target": "u1"}, r"^(target|base_moments): is a setting of"),
    ],
)
def test_settings_of_the_parts_that_are_replaced_are_refused(own: str, given: dict[str, Any], said: str) -> None:
    on_target = vf.Model(vf.targets.Ring(), None, vf.posteriors.Gaussian(2))
    what: Any = {"model": model(), "target": on_target, "ensemble": vf.Ensemble([on_target])}.get(own, "digits")
    parts = {
        "posterior": {"posterior": vf.posteriors.Gaussian(2, Encoder())},
        "likelihood": {"likelihood": Laplace(decoder(), (6,))},
    }.get(own)
    data = None if own in ("target", "ensemble") else X
    with pytest.raises(SpecError, match=said):
        vf.fit(what, data, parts=parts, **given, **SETTINGS)


def test_settings_that_other_parts_read_are_taken() -> None:
    posterior = vf.posteriors.Gaussian(5, Encoder())
    run = vf.fit("digits", X, parts={"posterior": posterior}, latent=5, hidden=8, flow="none", lr=1e-2, **SETTINGS)
    assert run.model.members()[0].prior.event_shape == (5,)
    # The settings of a recipe are not said by the user.
    assert vf.fit("iwae", X, parts={"likelihood": Laplace(nn.Linear(50, 6), (6,))}, **SETTINGS).outcome["finished"]


def test_parts_that_nothing_reads_are_refused() -> None:
    with pytest.raises(SpecError, match=r"^likelihood: given as an object, and likelihood=identity fits the prior"):
        vf.fit("density", torch.randn(40, 6), parts={"likelihood": Laplace(decoder(), (6,))}, **SETTINGS)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("own") / "run"
    parts = {"likelihood": Laplace(decoder(), (6,)), "prior": Wide()}
    vf.fit("digits", X, parts=parts, latent=2, out=out, **SETTINGS)
    return out


def test_the_folder_names_the_classes(folder: Path) -> None:
    own = json.loads((folder / RUN).read_text())["own_parts"]
    assert own == {"likelihood": [f"{__name__}:Laplace"], "prior": [f"{__name__}:Wide"]}
    posterior = vf.posteriors.Gaussian(2, Encoder())
    assert import_paths(posterior) == ["varflow.posteriors.gaussian:Gaussian", f"{__name__}:Encoder"]


def test_a_missing_part_is_named_with_its_import_path(folder: Path) -> None:
    said = (
        rf"^parts: the run was fitted with its own likelihood \({__name__}:Laplace\) and prior \({__name__}:Wide\); "
        r"pass parts=\{'likelihood': \.\.\., 'prior': \.\.\.\}$"
    )
    with pytest.raises(RunError, match=said):
        vf.load(folder)
    with pytest.raises(RunError, match=rf"its own prior \({__name__}:Wide\); pass parts=\{{'prior': \.\.\.\}}$"):
        vf.resume(folder, X, parts={"likelihood": Laplace(decoder(), (6,))}, steps=5, quiet=True)


def test_loading_imports_nothing_that_the_folder_names(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "an_own_module.py").write_text("raise SystemExit('imported')\n")
    monkeypatch.syspath_prepend(tmp_path)
    changed = shutil.copytree(folder, tmp_path / "run")
    about = json.loads((changed / RUN).read_text())
    own = {"likelihood": ["an_own_module:Likelihood"], "prior": ["an_own_module:Prior"]}
    (changed / RUN).write_text(json.dumps(about | {"own_parts": own}))
    with pytest.raises(RunError, match=r"its own likelihood \(an_own_module:Likelihood\)"):
        vf.load(changed)
    with pytest.raises(RunError, match=r"the likelihood of the run was \(an_own_module:Likelihood\)"):
        vf.load(changed, parts={"likelihood": Laplace(decoder(), (6,)), "prior": Wide()})
    assert "an_own_module" not in sys.modules


def test_given_parts_are_those_of_the_run(folder: Path) -> None:
    parts = {"likelihood": Laplace(decoder(), (6,)), "prior": Wide()}
    run = vf.load(folder, parts=parts)
    assert run.log_prob(X[:5], samples=20).isfinite().all()
    assert run.sample(3).shape == (3, 6)

    class Moved:
        """A class of the same name elsewhere, as from a script to a module."""

        class Wide(Wide):
            pass

    assert vf.load(folder, parts={**parts, "prior": Moved.Wide()}).model
    with pytest.raises(RunError, match=r"prior of the run was \(.*:Wide\), the one given is \(.*:Flat\); pass"):
        vf.load(folder, parts={**parts, "prior": Flat()})
    with pytest.raises(RunError, match=r"^parts: 'posterior' is given, and the run was fitted with the one of"):
        vf.load(folder, parts={**parts, "posterior": vf.posteriors.Gaussian(2, Encoder())})


def test_a_folder_from_before_import_paths_still_opens(folder: Path, tmp_path: Path) -> None:
    old = shutil.copytree(folder, tmp_path / "old")
    about = json.loads((old / RUN).read_text())
    (old / RUN).write_text(json.dumps(about | {"own_parts": ["likelihood", "prior"]}))
    with pytest.raises(RunError, match=r"its own likelihood and prior; pass parts="):
        vf.load(old)
    assert vf.load(old, parts={"likelihood": Laplace(decoder(), (6,)), "prior": Wide()}).model
    for wrong in ({"decoder": []}, {"prior": "x"}, 3):
        (old / RUN).write_text(json.dumps(about | {"own_parts": wrong}))
        with pytest.raises(RunError, match="not what varflow wrote"):
            vf.load(old)
