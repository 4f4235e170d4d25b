"""A NaN stops the run, is named, and costs nothing that was good."""

import pytest
import torch

import varflow as vf
from varflow.core.errors import NonFiniteError
from varflow.runs.folder import read_state
from varflow.training.guard import Finding, inspect_terms

SETTINGS = {"latent": 3, "hidden": 16, "layers": 1, "threads": 1, "quiet": True}


def test_the_first_module_and_the_step_are_named_and_the_last_good_state_is_kept(tmp_path):
    class Fragile(torch.nn.Module):
        """Its output overflows once its weight has drifted far enough."""

        def __init__(self):
            super().__init__()
            self.inner = vf.networks.MLP(3, (1, 8, 8), hidden=(8,))
            self.drift = torch.nn.Parameter(torch.zeros(()))

        def forward(self, z):
            # An update of Adam moves the parameter by lr; after 250 of them the output is NaN.
            return self.inner(z) + 0.0 * torch.sqrt(0.25 - self.drift)

    class Pushed(vf.likelihoods.Bernoulli):
        def log_prob(self, x, z):
            return super().log_prob(x, z) + self.decoder.drift

    likelihood = Pushed(Fragile(), (1, 8, 8))
    with pytest.raises(NonFiniteError) as error:
        vf.fit(
            "digits",
            parts={"likelihood": likelihood},
            out=tmp_path / "run",
            epochs=30,
            lr=1e-3,
            **SETTINGS,
        )
    message = str(error.value)
    assert "module 'likelihood.decoder' (Fragile)" in message
    assert "a NaN" in message
    assert "smaller lr (was 0.001)" in message
    state = read_state(tmp_path / "run")
    step = int(message.split(":")[0].removeprefix("step "))
    assert 240 <= step <= 262
    assert 0 < state["step"] <= step
    assert all(t.isfinite().all() for t in state["model"].values())
    run = vf.load(tmp_path / "run", parts={"likelihood": Pushed(Fragile(), (1, 8, 8))})
    assert run.model.likelihood.decoder.drift.isfinite()


def test_a_gradient_that_is_not_finite_is_named():
    class Kink(torch.nn.Module):
        """Finite values with an infinite slope."""

        def __init__(self):
            super().__init__()
            self.inner = vf.networks.MLP(3, (1, 8, 8), hidden=(8,))
            self.bend = torch.nn.Parameter(torch.zeros(()))

        def forward(self, z):
            return self.inner(z) + self.bend.abs().sqrt()

    with pytest.raises(NonFiniteError, match=r"gradient of parameter 'likelihood\.decoder\.bend'"):
        vf.fit(
            "digits",
            parts={"likelihood": vf.likelihoods.Bernoulli(Kink(), (1, 8, 8))},
            steps=20,
            **SETTINGS,
        )


def test_a_rate_that_explodes_names_a_term_or_module():
    with pytest.raises(NonFiniteError, match=r"step \d+: .*(term|module|parameter).*The last good"):
        vf.fit("digits", steps=400, lr=1e6, optimizer="sgd", **SETTINGS)


def test_the_flow_is_named_when_the_flow_is_at_fault():
    posterior = vf.posteriors.Gaussian(
        3, vf.networks.MLP((1, 8, 8), hidden=(8,)), flow=vf.flows.Planar(3, length=2)
    )
    with torch.no_grad():
        posterior.flow.b[1] = float("inf")
        posterior.flow.u[1] = 1.0
    with pytest.raises(NonFiniteError, match=r"parameter 'posterior\.flow\.b'"):
        vf.fit("digits", parts={"posterior": posterior}, steps=20, **SETTINGS)


def test_a_number_that_is_not_finite_on_validation_alone_is_named(tmp_path):
    class Careless(vf.likelihoods.Bernoulli):
        """Finite in training, infinite in evaluation once it has been trained."""

        calls = 0

        def log_prob(self, x, z):
            Careless.calls += self.training
            value = super().log_prob(x, z)
            return value if self.training or Careless.calls < 20 else value * float("inf")

    likelihood = Careless(vf.networks.MLP(3, (1, 8, 8), hidden=(8,)), (1, 8, 8))
    with pytest.raises(NonFiniteError, match=r"validation at step \d+: term log_likelihood"):
        vf.fit("digits", parts={"likelihood": likelihood}, epochs=3, **SETTINGS)


@pytest.mark.parametrize("decay", [None, 0.9])
def test_looking_teaches_a_codebook_nothing(decay):
    encoder = vf.networks.VQEncoder((1, 8, 8), features=4)
    posterior = vf.posteriors.Quantizer(encoder, codes=6, features=4, decay=decay, kmeans=2)
    decoder = vf.networks.VQDecoder((1, 8, 8), features=4)
    likelihood = vf.likelihoods.Gaussian(decoder, (1, 8, 8))
    model = vf.Model(vf.priors.UniformCodes(posterior.grid, 6), likelihood, posterior).train()
    x = torch.rand(10, 1, 8, 8)
    model.terms(x, 1)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    finding = Finding()
    inspect_terms(model, x, 1, finding)
    assert finding.where is None
    after = model.state_dict()
    for name, tensor in before.items():
        assert torch.equal(tensor, after[name]), name
    # A step of training does change what was compared.
    model.terms(x, 1)
    assert any(not torch.equal(tensor, after[name]) for name, tensor in before.items())
