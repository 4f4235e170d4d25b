"""How the codebook is used, with errors that are checked against resampling."""

import math

import pytest
import torch

import varflow as vf
from varflow.core.errors import NonFiniteError, SpecError
from varflow.data import from_codes, from_tensor
from varflow.evaluation import evaluate_codes
from varflow.evaluation.codes import used_alike, used_at_all


def histograms(points=400, codes=12, positions=9):
    source = torch.Generator().manual_seed(0)
    # Unequal on the whole: where all codes are used alike, the first order of the error vanishes.
    logits = torch.randn(points, codes, generator=source) + torch.linspace(-2, 2, codes)
    shares = torch.softmax(logits, 1)
    drawn = torch.multinomial(shares, positions, True, generator=source)
    return torch.nn.functional.one_hot(drawn, codes).sum(1).double()


def test_the_error_of_the_perplexity_is_that_of_resampled_examples():
    counts = histograms()
    value, error = used_alike(counts)
    p = counts.sum(0) / counts.sum()
    assert value == pytest.approx(math.exp(-(p * p.log()).sum()))
    source = torch.Generator().manual_seed(1)
    rows = torch.randint(len(counts), (500, len(counts)), generator=source)
    resampled = torch.tensor([used_alike(counts[row])[0] for row in rows])
    # 500 resamples know a standard deviation to 3 %.
    assert error == pytest.approx(resampled.std().item(), rel=0.15)


def test_the_jackknife_of_the_usage_leaves_out_each_example():
    counts = torch.zeros(30, 50)
    source = torch.Generator().manual_seed(2)
    counts.scatter_(1, torch.randint(50, (30, 3), generator=source), 1.0)
    value, error = used_at_all(counts)
    left_out = torch.tensor(
        [used_at_all(torch.cat([counts[:i], counts[i + 1 :]]))[0] for i in range(30)],
        dtype=torch.float64,
    )
    expected = math.sqrt(29 / 30 * (left_out - left_out.mean()).square().sum())
    assert value == pytest.approx((counts.sum(0) > 0).double().mean().item())
    assert error == pytest.approx(expected)
    assert error > 0


def test_one_example_has_no_error():
    assert used_alike(torch.tensor([[1.0, 1.0, 0.0]])) == (pytest.approx(2), None)
    assert used_at_all(torch.tensor([[1.0, 1.0, 0.0, 0.0]])) == (0.5, None)


def coded():
    codes = torch.arange(18).remainder(5).reshape(3, 2, 3)
    return from_codes(dict.fromkeys(("train", "validation", "test"), codes))


def test_uniform_codes_cost_their_logarithm():
    found = evaluate_codes(vf.density(vf.priors.UniformCodes((2, 3), 5)), coded()).estimates
    assert found["nll"].value == pytest.approx(6 * math.log(5))
    assert found["nll"].standard_error == 0
    assert found["code_bits"].value == pytest.approx(math.log2(5))
    assert found["usage"].value == 1


def test_what_cannot_be_evaluated_is_named():
    model = vf.density(vf.priors.UniformCodes((2, 3), 5))
    with pytest.raises(SpecError, match="limit: was 4; codes has 3"):
        evaluate_codes(model, coded(), limit=4)
    with pytest.raises(SpecError, match="split: unknown"):
        evaluate_codes(model, coded(), split="tset")
    with pytest.raises(SpecError, match="data: are real, and this model is over grids of codes"):
        evaluate_codes(model, from_tensor(torch.randn(20, 2, 3)))
    plain = vf.build(vf.RunSpec().replace(latent=2, hidden=4), vf.Form((6,), "binary"))
    with pytest.raises(SpecError, match="its latents are no codes"):
        evaluate_codes(plain, coded())
    prior = vf.priors.PixelCNN((2, 3), 5, channels=4, layers=1, kernel=3)
    with torch.no_grad():
        prior.head[-1].bias.fill_(math.nan)
    with pytest.raises(NonFiniteError, match=r"log p\(codes\): was NaN at point 0"):
        evaluate_codes(vf.density(prior), coded())


@pytest.mark.parametrize("likelihood", ["logistics", "categorical"])
def test_levels_are_scored_under_a_quantizer(likelihood):
    """Probabilities of the stored levels: bits/dim are −ELBO over D log 2, with nothing of a transform in it."""
    source = torch.Generator().manual_seed(0)
    x = torch.randint(0, 256, (60, 1, 8, 8), dtype=torch.uint8, generator=source)
    run = vf.fit(
        "vq-vae", x, protocol="levels", likelihood=likelihood, codes=4, code_features=4, blocks=1, batch=16,
        epochs=1, threads=1, quiet=True,
    )  # fmt: skip
    assert run.dataset.support == "levels"
    result = run.evaluate()
    found = result.estimates
    assert (result.per_example["data_ladj"] == 0).all()
    nats = found["bits_per_dim"].value * 64 * math.log(2)
    assert nats == pytest.approx(-found["elbo"].value)
    batch = run.dataset.batch("test", torch.arange(run.dataset.sizes["test"]))
    with torch.no_grad():
        z = run.model.infer(batch.x).z
        expected = run.model.likelihood.log_prob(batch.x, z[None])[0]
    assert found["log_likelihood"].value == pytest.approx(expected.double().mean().item(), rel=1e-5)
    # A mass cannot be above 1.
    assert (expected < 0).all()
