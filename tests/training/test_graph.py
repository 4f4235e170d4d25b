"""A step that can be one CUDA graph: what it may not do, held for every recipe and part, without a GPU."""

from dataclasses import replace

import pytest
import torch
from captured import Case, Tape, Watch, cases, loop_of, pictures, points

import varflow as vf
from varflow import native
from varflow.core import random
from varflow.core.errors import SpecError
from varflow.settings import recipes
from varflow.training.engine import Engine
from varflow.training.graph import WARM_UP, Graphed
from varflow.training.loop import Loop
from varflow.training.optimizers import Rate
from varflow.training.settings import TrainingSettings

CASES = cases()
#: On a CPU these count their updates in Python; on CUDA they are told to count on the device.
COUNTS_IN_PYTHON = ("adamax", "rmsprop")


def every(names):
    return pytest.mark.parametrize("name", sorted(names))


@pytest.fixture
def meta(monkeypatch):
    """Noise on the meta device, which has no generators; and no autocast, which it does not know."""
    fill, generator = random._fill, random.generator

    def empty(request, source):
        if request.device.type != "meta":
            return fill(request, source)
        return torch.empty(request.shape, dtype=request.dtype, device="meta")

    def on_the_cpu(seed, purpose, step=0, device="cpu"):
        return generator(seed, purpose, step)

    monkeypatch.setattr(random, "_fill", empty)
    monkeypatch.setattr(random, "generator", on_the_cpu)
    monkeypatch.setattr(torch, "is_autocast_enabled", lambda *device: False)


def on_meta(name: str) -> None:
    loop = CASES[name].loop("meta")
    # torch updates nothing there.
    loop.optimizer.step = lambda: None
    loop.update()
    watch = Watch()
    with watch():
        loop.update()
    assert not watch.found


#: Each recipe, and each part of some rooms; the others, and parts in another place, are slow tests.
FIRST = [name for name in CASES if name in recipes.TABLE or name.startswith(("flow ", "target ", "likelihood "))]
FIRST = [name for name in FIRST if not name.startswith("target by")]
#: What is captured, and watched on the CPU, in each run of the suite.
FEW = (
    "digits", "dense-amortized", "conv-static", "vq-vae", "density", "energy", "gaussian-separate", "amortized iaf",
    "flow nice", "three fits u2", "clipped fits", "optimizer adam", "warmup=8 steps",
)  # fmt: skip


@every(FIRST)
def test_a_step_reads_no_number_and_takes_none_from_the_host(name, meta):
    """On a device without numbers, on the ways that are not for CPUs."""
    on_meta(name)


@pytest.mark.slow
@every(name for name in CASES if name not in FIRST)
def test_no_part_reads_a_number_in_its_other_places(name, meta):
    on_meta(name)


def watched(case: Case) -> list[str]:
    loop = case.loop(**({"optimizer": "adam"} if case.recipe in recipes.TABLE else {}))
    for _ in range(2):
        loop.update()
    watch = Watch()
    with watch():
        loop.update()
    return watch.found


@every(FEW)
def test_a_step_on_the_cpu_reads_no_number_and_leaves_all_other_random_states_alone(name):
    assert not watched(CASES[name])


@pytest.mark.slow
@every(name for name in CASES if name not in FEW)
def test_no_part_reads_a_number_on_the_cpu(name):
    assert not watched(CASES[name])


def test_the_watch_sees_what_it_looks_for():
    x, watch = torch.arange(6.0), Watch()
    for read in (
        lambda: x.sum().item(),
        lambda: float(x[0]),
        lambda: bool(x[0] > 0),
        lambda: x.tolist(),
        lambda: x.numpy(),
        lambda: x[x > 2],
        lambda: x.nonzero(),
        lambda: x.masked_select(x > 1),
        lambda: x.to("meta"),
        lambda: torch.tensor(1.0),
        lambda: torch.randn(2),
    ):
        watch.found.clear()
        with watch():
            read()
        assert watch.found, read
    watch.found.clear()
    with watch():
        (x * 2 + x.roll(1)).where(x > 1, 0.0).sum()
    assert not watch.found


def graphed(loop, setting="on", say=print):
    made = Graphed(loop._whole_step, setting, Tape(loop), loop.engine.dtype, say)
    loop._graph, loop._steps = made, made
    return made


def pair(case: Case, **settings):
    """Two equal loops, their changing learning rates in tensors, as on CUDA."""
    loops = case.loop(**settings), case.loop(**settings)
    for loop in loops:
        loop._rate._tensor = torch.tensor(loop.spec.optimizer.lr)
    return loops


def assert_equal(name: str) -> None:
    eager, loop = pair(CASES[name], **({"optimizer": "adam"} if name in recipes.TABLE else {}))
    graph = graphed(loop)
    for step in range(WARM_UP + 5):
        one, other = eager.update(), loop.update()
        assert graph.captured == (step >= WARM_UP)
        assert torch.equal(one, other), step
    weights = loop.model.state_dict()
    assert all(torch.equal(tensor, weights[key]) for key, tensor in eager.model.state_dict().items())


@pytest.fixture
def torch_alone():
    """Compiled code leaves no operations to capture, and is for CPUs."""
    before = native._wanted
    native.use(False)
    yield
    native.use(before)


@every(FEW)
def test_a_captured_step_is_the_eager_step_to_the_bit(name, torch_alone):
    assert_equal(name)


@pytest.mark.slow
@every(name for name in CASES if name not in FEW and not any(o in name for o in COUNTS_IN_PYTHON))
def test_every_captured_step_is_the_eager_step_to_the_bit(name, torch_alone):
    assert_equal(name)


def test_a_captured_fit_is_resumed_and_validated_like_an_eager_one(torch_alone):
    settings = {
        "warmup": "30 steps", "decay": "linear", "validate_every": "6 steps", "flow": "planar", "keep": "last",
    }  # fmt: skip
    eager, whole = pair(Case("digits", pictures()), **settings)
    graphed(whole)
    first, second = pair(Case("digits", pictures()), **settings)
    for loop in (first, second):
        graphed(loop)
    for _ in range(17):
        first.update()
    second.load_state(first.state())
    for loop in (eager, whole, second):
        loop.run()
    for other in (whole, second):
        weights = other.model.state_dict()
        assert all(torch.equal(tensor, weights[key]) for key, tensor in eager.model.state_dict().items())
    assert [r["elbo"] for r in eager.sink.records] == [r["elbo"] for r in whole.sink.records]


def test_what_cannot_be_captured_says_so_and_runs_eagerly_or_is_refused(torch_alone):
    class Fails(Tape):
        def capture(self):
            try:
                raise RuntimeError("operation not permitted when stream is capturing\nand more")
            finally:
                raise RuntimeError("the capture was invalidated")

    eager, loop = pair(Case("digits", pictures()))
    said = []
    graph = graphed(loop, "auto", said.append)
    graph._recorder = Fails(loop)
    for _ in range(WARM_UP + 3):
        assert torch.equal(eager.update(), loop.update())
    assert said == [
        "note: the step is not captured as a CUDA graph (operation not permitted when stream is capturing); it runs "
        "eagerly"
    ]
    refused = loop_of("digits", pictures())
    graphed(refused)._recorder = Fails(refused)
    for _ in range(WARM_UP):
        refused.update()
    with pytest.raises(SpecError, match=r"graph: was on, and this step cannot be captured.*graph=auto"):
        refused.update()


def test_a_step_that_asks_for_other_noise_each_time_is_not_captured(torch_alone):
    loop, said = loop_of("digits", pictures()), []
    graph = graphed(loop, "auto", said.append)
    whole = graph._step

    def step(rows, weight, noise):
        random.normal((loop.step + 1,), "more")
        return whole(rows, weight, noise)

    graph._step = step
    for _ in range(WARM_UP + 2):
        loop.update()
    assert not graph.captured
    assert "other random numbers from one step to the next" in said[0]


def test_a_fit_that_went_astray_is_diagnosed_eagerly(torch_alone):
    loop = loop_of("digits", pictures(), steps=30)
    graph, update = graphed(loop), loop.update

    def spoilt():
        row = update()
        if loop.step == 9:
            with torch.no_grad():
                next(iter(loop.model.parameters())).fill_(torch.nan)
        return row

    loop.update = spoilt
    with pytest.raises(vf.errors.NonFiniteError):
        loop.run()
    assert graph.reason == "a step that is looked at runs eagerly"


def test_rows_that_are_read_as_they_come_are_not_captured():
    """A graph would read those of its capture again and again."""
    loop, said = loop_of("digits", pictures()), []
    loop.dataset.resident = False
    loop.progress.say = said.append
    for graph in ("auto", "on"):
        engine = replace(loop.engine, graph=graph)
        parts = (loop.model, loop.dataset, loop.spec, engine, loop.sink, loop.progress)
        if graph == "on":
            with pytest.raises(SpecError, match=r"graph: was on, .*rows do not lie on the device"):
                Loop(*parts)
        else:
            Loop(*parts).update()
    assert said == [
        "note: the step is not captured as a CUDA graph (its rows do not lie on the device); it runs eagerly"
    ]


def test_graph_on_needs_a_cuda_device_and_auto_is_off_without_one():
    assert Engine.start(TrainingSettings(device="cpu", threads=1)).graph == "off"
    with pytest.raises(SpecError, match="graph: was on, and the device is cpu; use graph=auto"):
        Engine.start(TrainingSettings(device="cpu", graph="on", threads=1))
    with pytest.raises(SpecError, match="graph: was on, and the device is cpu"):
        vf.fit("digits", points(), graph="on", device="cpu", steps=1, quiet=True)


def test_a_rate_is_a_number_on_a_cpu_and_one_tensor_elsewhere():
    optimizer = torch.optim.SGD([torch.zeros(2, requires_grad=True)], lr=0.1)
    Rate("cpu", 0.1).set(optimizer, 0.05)
    assert optimizer.param_groups[0]["lr"] == 0.05
    rate = Rate("meta", 0.1)
    rate.set(optimizer, 0.02)
    assert optimizer.param_groups[0]["lr"] is rate._tensor
