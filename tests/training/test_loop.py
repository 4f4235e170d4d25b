"""The loop: budgets, warm-up, early stopping, optimizers, precision, randomness."""

import math
import os
import subprocess
import sys

import numpy as np
import pytest
import torch

import varflow as vf
from varflow.core import random
from varflow.core.errors import SpecError
from varflow.runs.assemble import spec_data
from varflow.runs.folder import Memory
from varflow.settings.spec import RunSpec
from varflow.training import Loop, Progress
from varflow.training.engine import Engine, denormals_flushed
from varflow.training.optimizers import learning_rate
from varflow.training.settings import TrainingSettings

SMALL = {"data": "digits", "latent": 2, "hidden": 16, "layers": 1, "batch": 64, "threads": 1}


def make(**settings) -> Loop:
    spec = RunSpec().replace(**{**SMALL, "steps": 30, **settings})
    spec.validate()
    engine = Engine.start(spec.training)
    dataset = spec_data(None, spec).to(engine.device, engine.dtype)
    model = vf.build(spec, dataset).to(engine.device, engine.dtype)
    return Loop(model, dataset, spec, engine, Memory(), Progress(0, quiet=True))


def weights(loop: Loop) -> torch.Tensor:
    return torch.cat([p.detach().flatten() for p in loop.model.parameters()])


def test_training_improves_the_validation_elbo():
    loop = make(steps=None, epochs=15)
    outcome = loop.run()
    curve = {r["step"]: r["elbo"] for r in loop.sink.records if r["split"] == "validation"}
    assert curve[300] > curve[0] + 10
    assert outcome.best_elbo == curve[outcome.best_step]
    # What was better than that was better by less than the standard error of the difference.
    assert outcome.best_elbo > max(curve.values()) - 0.5
    assert outcome.finished


def test_the_same_seed_gives_the_same_weights_and_another_seed_others():
    first, again, other = make(seed=1), make(seed=1), make(seed=2)
    for loop in (first, again, other):
        loop.run()
    assert torch.equal(weights(first), weights(again))
    assert not torch.equal(weights(first), weights(other))


def test_validation_noise_does_not_depend_on_the_seed_of_the_run():
    records = []
    for seed in (1, 2):
        loop = make(seed=seed)
        with torch.no_grad():
            for parameter in loop.model.parameters():
                parameter.fill_(0.01)
        loop._validate()
        records.append(loop.sink.records[-1]["elbo"])
    assert records[0] == records[1]


def test_an_epoch_visits_every_example_at_most_once_and_epochs_differ():
    loop = make()
    epoch = torch.cat([loop.indices(s) for s in range(loop.steps_per_epoch)])
    assert len(epoch.unique()) == len(epoch) == loop.steps_per_epoch * 64
    following = torch.cat(
        [loop.indices(s + loop.steps_per_epoch) for s in range(loop.steps_per_epoch)]
    )
    assert not torch.equal(epoch, following)


def test_records_hold_the_terms_and_they_add_up():
    loop = make(flow="planar", amortized=True)
    loop.run()
    for record in loop.sink.records:
        assert record["elbo"] == pytest.approx(record["log_likelihood"] - record["kl"], rel=1e-6)
    assert {"step", "epoch", "split", "elbo", "ladj", "steps_per_second", "lr", "beta"} <= set(
        next(r for r in loop.sink.records if r["split"] == "train")
    )


def spoilt(**settings) -> Loop:
    """A loop whose updates lead away from the optimum after step 40."""
    loop = make(lr=1e-2, steps=60, validate_every="20 steps", **settings)
    update = loop.update

    def spoil() -> torch.Tensor:
        row = update()
        if loop.step > 40:
            with torch.no_grad():
                for parameter in loop.model.parameters():
                    parameter.mul_(1.1)
        return row

    loop.update = spoil
    return loop


def test_best_weights_are_kept_and_last_on_request():
    best, last = spoilt(seed=3), spoilt(seed=3, keep="last")
    best.run()
    outcome = last.run()
    assert outcome.best_step == 40
    assert not torch.equal(weights(best), weights(last))
    best._validate()
    assert best.sink.records[-1]["elbo"] == pytest.approx(outcome.best_elbo, abs=1e-4)


def test_patience_begins_after_the_warm_up():
    loop = make(lr=0.5, steps=None, epochs=200, patience="3 epochs", warmup="9 epochs", validate_every="1 epoch")
    loop.run()
    assert loop.step >= 12 * loop.steps_per_epoch


def test_patience_stops_early():
    loop = make(lr=0.5, steps=None, epochs=200, patience="3 epochs", validate_every="1 epoch")
    outcome = loop.run()
    assert outcome.finished
    assert "no better validation ELBO" in outcome.reason
    assert outcome.step - outcome.best_step >= 3 * loop.steps_per_epoch
    assert outcome.step < loop.steps


def test_warm_up_is_linear_and_reaches_beta():
    loop = make(warmup="2 epochs", beta=0.5)
    half = loop.steps_per_epoch
    assert loop.objective.weight(0) == 0.0
    assert loop.objective.weight(half) == pytest.approx(0.25)
    assert loop.objective.weight(2 * half) == loop.objective.weight(10 * half) == 0.5


def test_the_objective_is_the_elbo_for_beta_one_and_differs_for_others():
    loop = make()
    x = loop.dataset.batch("validation", torch.arange(20)).x
    with random.stream(0):
        terms = loop.model.terms(x)
    elbo = vf.objectives.ELBO(control=False)
    assert torch.allclose(elbo(terms, 1.0), -terms.log_weight.mean())
    by_hand = (0.3 * (terms.log_q - terms.log_prior) - terms.log_likelihood).mean()
    assert torch.allclose(elbo(terms, 0.3), by_hand)
    assert torch.allclose(elbo(terms, torch.tensor(1.0)), elbo(terms, 1.0), rtol=1e-6)


def test_without_a_flow_the_control_variate_leaves_the_closed_form_kl():
    loop = make(precision="float64")
    x = loop.dataset.batch("validation", torch.arange(20)).x
    q = loop.model.posterior(x)
    terms = loop.model.terms(x, 3, q)
    normal = torch.distributions.Normal
    exact = torch.distributions.kl_divergence(normal(q.mean, q.log_scale.exp()), normal(0.0, 1.0)).sum(-1)
    assert torch.allclose(terms.kl - terms.draw.control, exact.expand(3, -1), atol=1e-12)
    loss = vf.objectives.ELBO()(terms, 0.7)
    assert torch.allclose(loss, (0.7 * exact - terms.log_likelihood).mean(), atol=1e-12)


@pytest.mark.parametrize("flow", [{}, {"flow": "planar", "length": 4}, {"flow": "iaf", "length": 2}])
@pytest.mark.parametrize("amortized", [False, True])
def test_the_control_variate_has_mean_zero_and_so_has_its_gradient(flow, amortized):
    loop = make(amortized=amortized, precision="float64", **flow)
    with torch.no_grad():
        for parameter in loop.model.posterior.parameters():
            parameter += 0.1 * torch.randn_like(parameter)
    x = loop.dataset.batch("validation", torch.arange(4)).x
    with random.stream(3):
        control = loop.model.terms(x, 40_000).draw.control.mean(1)
    error = control.std() / len(control) ** 0.5
    assert abs(control.mean()) < 4 * error
    parameters = list(loop.model.posterior.encoder.parameters())
    slopes = []
    for block in control.chunk(40):
        found = torch.autograd.grad(block.mean(), parameters, retain_graph=True)
        slopes.append(torch.cat([g.flatten() for g in found]))
    slopes = torch.stack(slopes)
    score = slopes.mean(0) / (slopes.std(0) / len(slopes) ** 0.5 + 1e-12)
    # Thousands of correlated components: their mean square is 1 where the mean is zero.
    assert score.square().mean() < 2.5


def test_the_control_variate_lowers_the_noise_of_the_gradient():
    loop = make()
    x = loop.dataset.batch("train", torch.arange(64)).x
    parameters = list(loop.model.posterior.parameters())

    def noise(control: bool) -> float:
        objective, found = vf.objectives.ELBO(control=control), []
        for step in range(200):
            with random.stream(0, step):
                loss = objective(loop.model.terms(x), 1.0)
            gradient = torch.autograd.grad(loss, parameters)
            found.append(torch.cat([g.flatten() for g in gradient]))
        return torch.stack(found).var(0).sum().item()

    assert noise(True) < 0.5 * noise(False)


@pytest.mark.parametrize("name", ["adam", "adamw", "adamax", "rmsprop", "sgd"])
def test_every_optimizer_takes_its_options(name):
    own = {"beta1": 0.8, "beta2": 0.9, "eps": 1e-3, "momentum": 0.5, "alpha": 0.7}
    spec = RunSpec().replace(optimizer=name, lr=0.01, weight_decay=0.1).preset(**own)
    layer = torch.nn.Linear(3, 2)
    optimizer = spec.optimizer.build(layer)
    group = optimizer.param_groups[0]
    assert group["weight_decay"] == 0.1
    if name.startswith("ada"):
        assert group["betas"] == (0.8, 0.9)
        assert group["eps"] == 1e-3
    if name == "rmsprop":
        assert (group["alpha"], group["momentum"], group["eps"]) == (0.7, 0.5, 1e-3)
    if name == "sgd":
        assert group["momentum"] == 0.5
    assert group.get("fused") is (True if name in ("adam", "adamw", "sgd") else None)
    layer(torch.ones(1, 3)).sum().backward()
    before = layer.weight.detach().clone()
    optimizer.step()
    assert not torch.equal(before, layer.weight)


def test_gain_decay_reaches_the_gains_alone():
    network = vf.networks.ConvEncoder((1, 8, 8), base=4, scales=1, weight_norm=True)
    groups = RunSpec().replace(gain_decay=1e-4).optimizer.build(network).param_groups
    assert [g["weight_decay"] for g in groups] == [0.0, 1e-4]
    gains = {id(p) for n, p in network.named_parameters() if n.endswith("original0")}
    assert gains
    assert {id(p) for p in groups[1]["params"]} == gains


def test_learning_rates_decay_to_zero():
    spec = RunSpec().replace(lr=2.0, decay="cosine").optimizer
    assert learning_rate(spec, 0, 10) == 2.0
    assert learning_rate(spec, 5, 10) == pytest.approx(1.0)
    assert learning_rate(spec, 10, 10) == pytest.approx(0.0)
    assert learning_rate(RunSpec().replace(lr=2.0, decay="linear").optimizer, 5, 10) == 1.0
    loop = make(decay="linear", lr=1e-3)
    loop.run()
    rates = [r["lr"] for r in loop.sink.records if r["split"] == "train"]
    assert rates[-1] == pytest.approx(1e-3 * (1 - 29 / 30))


def test_clipping_bounds_the_gradient():
    loop = make(clip=1e-3, optimizer="sgd", lr=1.0)
    before = weights(loop)
    loop.update()
    assert (weights(loop) - before).norm() <= 1e-3 * 1.001


def test_float64_is_float64_throughout():
    loop = make(precision="float64", flow="iaf", amortized=True, length=2)
    row = loop.update()
    assert row.dtype == torch.float64
    assert {p.dtype for p in loop.model.parameters()} == {torch.float64}


def test_bf16_keeps_densities_in_float32():
    loop = make(precision="bf16", flow="iaf", amortized=True, length=2)
    x = loop.dataset.batch("validation", torch.arange(20)).x
    with loop.engine.autocast():
        terms = loop.model.terms(x)
    for name in ("z", "log_likelihood", "log_prior", "log_q"):
        assert getattr(terms, name).dtype == torch.float32, name
    with random.stream(0):
        exact = loop.model.terms(x).log_weight.mean()
    with random.stream(0), loop.engine.autocast():
        rounded = loop.model.terms(x).log_weight.mean()
    assert rounded != exact
    assert abs(rounded - exact) < 0.02 * abs(exact)
    assert loop.run().finished


def test_more_samples_lower_the_variance_of_the_bound():
    one, many = make(samples=1), make(samples=64)
    x = one.dataset.batch("validation", torch.arange(50)).x

    def spread(loop: Loop) -> float:
        values = []
        for step in range(40):
            with random.stream(0, step), torch.no_grad():
                values.append(
                    loop.model.terms(x, loop.spec.objective.samples).log_weight.mean().item()
                )
        return torch.tensor(values, dtype=torch.float64).std().item()

    many.model.load_state_dict(one.model.state_dict())
    assert spread(many) < 0.4 * spread(one)


def test_a_batch_larger_than_the_data_is_the_data():
    loop = make(batch=10_000, steps=2)
    assert loop.steps_per_epoch == 1
    assert loop.run().step == 2


def test_slices_of_ranks_are_the_global_draw():
    def draw(rank: int, world: int) -> torch.Tensor:
        with random.stream(5, 7, rank, world):
            return random.normal((2, 6 // world, 3), "posterior", batch_dim=1)

    whole = draw(0, 1)
    assert torch.equal(torch.cat([draw(0, 2), draw(1, 2)], 1), whole)
    with random.stream(5, 8):
        assert not torch.equal(random.normal((2, 6, 3), "posterior"), whole)


def test_denormals_are_flushed_here():
    assert denormals_flushed()


def test_devices_that_do_not_exist_are_refused():
    with pytest.raises(SpecError, match="device: unknown device 'gpu0'"):
        Engine.start(TrainingSettings(device="gpu0"))
    if not torch.cuda.is_available():
        with pytest.raises(SpecError, match="no CUDA device"):
            Engine.start(TrainingSettings(device="cuda"))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_cuda_trains():
    loop = make(device="cuda", flow="planar", amortized=True)
    outcome = loop.run()
    assert math.isfinite(outcome.best_elbo)
    assert {p.device.type for p in loop.model.parameters()} == {"cuda"}


@pytest.mark.slow
def test_denormals_that_cannot_be_flushed_are_noticed():
    # A pool started before the flag was set keeps its own: the flag belongs to each thread.
    script = (
        "import torch; torch.ones(1 << 22).add_(1.0)\n"
        "from varflow.training.settings import TrainingSettings\nfrom varflow.training import Engine\n"
        "print(torch.get_num_threads(), Engine.start(TrainingSettings()).denormals_flushed)"
    )
    environment = {**os.environ, "OMP_NUM_THREADS": "2"}
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, env=environment, check=True
    )
    assert done.stdout.split() == ["2", "False"]


@pytest.mark.parametrize("options", [{}, {"weight_decay": 0.1}, {"amsgrad": True}, {"gain_decay": 0.2}])
def test_adam_is_that_of_torch_to_the_bit(options):
    def train(kind):
        torch.manual_seed(0)
        network = torch.nn.utils.parametrizations.weight_norm(torch.nn.Linear(5, 3))
        network.unused = torch.nn.Parameter(torch.ones(2))
        spec = RunSpec().replace(lr=0.05, **options).optimizer
        made = spec.build(network)
        assert isinstance(made, torch.optim.Adam)
        if kind is not None:
            first = made.param_groups
            shared = ("lr", "betas", "eps", "weight_decay", "amsgrad", "fused")
            made = kind([{key: g[key] for key in ("params", *shared)} for g in first])
        for step in range(6):
            made.zero_grad()
            network(torch.randn(4, 5)).square().sum().backward()
            made.step()
            if step == 3:
                state = made.state_dict()
                made.load_state_dict(state)
        return made, network

    ours, network = train(None)
    theirs, twin = train(torch.optim.Adam)
    assert type(ours) is not type(theirs)
    for p, q in zip(network.parameters(), twin.parameters(), strict=True):
        assert torch.equal(p, q)
        for key, value in theirs.state.get(q, {}).items():
            assert torch.equal(ours.state[p][key], value)


def test_the_bound_of_every_update_is_kept():
    x = (torch.rand(300, 6) < 0.5).float()
    run = vf.fit("digits", x, latent=2, hidden=8, steps=23, batch=16, epochs=None, quiet=True,
                 validate_every="10 steps")  # fmt: skip
    rows = [row for row in run.metrics if row["split"] == "train"]
    assert sum(len(row["elbos"]) for row in rows) == 23
    assert [row["step"] for row in rows] == list(np.cumsum([len(row["elbos"]) for row in rows]))
    for row in rows:
        assert np.mean(row["elbos"]) == pytest.approx(row["elbo"], rel=1e-5)
    assert next(row["step"] for row in run.metrics if row["split"] == "validation") == 0
