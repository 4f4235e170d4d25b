"""The vector quantizer: nearest codewords, gradients that go where the paper sends them, a codebook that lives."""

import math
import subprocess
import sys

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.profiler import ProfilerActivity, profile

import varflow as vf
from varflow import priors
from varflow.core import random
from varflow.core.errors import DataError, ShapeError, SpecError
from varflow.networks import VQDecoder, VQEncoder
from varflow.posteriors import Quantizer
from varflow.posteriors.codebook import Codebook, count, kmeans, perplexity, usage


class Scale(nn.Module):
    """z_e = s·x: an encoder with one parameter, on vectors as they are."""

    def __init__(self, shape):
        super().__init__()
        self.out_shape = shape
        self.scale = nn.Parameter(torch.ones(()))

    def forward(self, x):
        return self.scale * x


def build(shape=(3, 2, 4), codes=5, **options):
    options = {"restarts": 0.0, **options}
    return Quantizer(Scale(shape), codes, shape[0], **options).double()


def data(*shape):
    return torch.randn(*shape, dtype=torch.float64)


def brute(vectors, table):
    return torch.cdist(vectors, table).argmin(-1)


@pytest.mark.parametrize("shape", [(3, 2, 4), (1, 3, 3), (5, 1, 1), (4,), (2, 3)])
@pytest.mark.parametrize("codes", [1, 2, 40])
def test_codes_are_the_nearest_and_z_their_codewords(shape, codes):
    posterior = build(shape, codes).eval()
    nn.init.normal_(posterior.codebook.weight)
    x = data(6, *shape)
    q = posterior(x)
    vectors = x.movedim(1, -1)
    expected = brute(vectors.reshape(-1, shape[0]), posterior.codebook.weight)
    assert q.codes.shape == (6, *shape[1:])
    assert torch.equal(q.codes.flatten(), expected)
    assert torch.equal(q.z, posterior.decode_codes(q.codes))
    assert torch.equal(q.z.movedim(1, -1), posterior.codebook.weight[q.codes])


def test_of_ties_the_lowest_code():
    book = Codebook(6, 2)
    with torch.no_grad():
        book.weight.copy_(torch.tensor([[5.0, 5], [1, 0], [1, 0], [0, 1], [-1, 0], [1, 0]]))
    z = torch.tensor([[2.0, 0.0], [0.0, 0.0], [0.0, 3.0]])
    assert book.nearest(z).tolist() == [1, 1, 3]


def test_distances_do_not_need_vectors_by_codes_by_features():
    """2,048 × 1,024 × 512 numbers would be 4 GiB; everything here together is some 40 MiB."""
    posterior = Quantizer(Scale((512, 32, 64)), codes=1024, features=512, restarts=0.0)
    x = torch.randn(1, 512, 32, 64, requires_grad=True)
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as measured:
        q = posterior(x)
        (q.draw().z.sum() + sum(q.auxiliary.values())).backward()
    largest = max(event.cpu_memory_usage for event in measured.events())
    assert 2**20 < largest < 2**27


def test_draws_are_the_point_with_log_q_zero():
    q = build()(data(6, 3, 2, 4))
    draw = q.draw(3)
    assert draw.z.shape == (3, 6, 3, 2, 4)
    assert torch.equal(draw.z, q.z.expand(3, -1, -1, -1, -1))
    assert draw.log_q.shape == (3, 6)
    assert not draw.log_q.any()
    again = build().from_local(q.local)
    assert torch.equal(again.encoded, q.encoded)


def test_the_loss_and_its_gradients_are_the_papers():
    """One picture of two vectors, two codes: everything in closed form."""
    posterior = build((2, 1, 2), 2, beta=0.3, weight=1.7)
    with torch.no_grad():
        posterior.codebook.weight.copy_(torch.tensor([[0.0, 0.0], [1.0, 1.0]]))
    # Vectors (0.1, 0.2) and (0.9, 1.2).
    x = torch.tensor([[[[0.1, 0.9]], [[0.2, 1.2]]]], dtype=torch.float64, requires_grad=True)
    q = posterior(x)
    assert q.codes.tolist() == [[[0, 1]]]
    distance = 0.1**2 + 0.2**2 + 0.1**2 + 0.2**2
    assert q.auxiliary["codebook"].item() == pytest.approx(1.7 * distance)
    assert q.auxiliary["commitment"].item() == pytest.approx(1.7 * 0.3 * distance)

    of_x, of_table = torch.autograd.grad(
        q.auxiliary["codebook"], [x, posterior.codebook.weight], retain_graph=True
    )
    assert not of_x.any()
    expected = 2 * 1.7 * torch.tensor([[-0.1, -0.2], [0.1, -0.2]], dtype=torch.float64)
    torch.testing.assert_close(of_table, expected)

    of_x, of_table = torch.autograd.grad(
        q.auxiliary["commitment"], [x, posterior.codebook.weight], retain_graph=True
    )
    assert not of_table.any()
    away = torch.tensor([[[[0.1, -0.1]], [[0.2, 0.2]]]], dtype=torch.float64)
    torch.testing.assert_close(of_x, 2 * 1.7 * 0.3 * away)

    seen = data(1, 2, 1, 2)
    of_x, of_table = torch.autograd.grad((q.draw().z * seen).sum(), [x, posterior.codebook.weight])
    torch.testing.assert_close(of_x, seen)
    assert not of_table.any()


@pytest.mark.parametrize("decay", [None, 0.9])
def test_gradients_are_those_of_the_composed_form(decay):
    posterior = build(codes=7, beta=0.4, weight=0.6, decay=decay).eval()
    nn.init.normal_(posterior.codebook.weight)
    x, seen = data(5, 3, 2, 4).requires_grad_(), data(5, 3, 2, 4)
    table = posterior.codebook.weight
    inputs = [x, posterior.encoder.scale] + ([table] if decay is None else [])
    q = posterior(x)
    got = torch.autograd.grad((q.draw().z * seen).sum() + sum(q.auxiliary.values()), inputs)

    z = posterior.encoder(x)
    words = table[q.codes].movedim(-1, 1)
    loss = ((z + (words - z).detach()) * seen).sum()
    loss = loss + 0.6 * 0.4 * (z - words.detach()).square().sum() / 5
    if decay is None:
        loss = loss + 0.6 * (z.detach() - words).square().sum() / 5
    for one, other in zip(got, torch.autograd.grad(loss, inputs), strict=True):
        torch.testing.assert_close(one, other)


def test_second_derivatives():
    posterior = build(codes=4).eval()
    nn.init.normal_(posterior.codebook.weight)
    x = data(2, 3, 2, 4).requires_grad_()
    table = posterior.codebook.weight
    q = posterior(x)
    loss = sum(q.auxiliary.values())
    of_x, of_table = torch.autograd.grad(loss, [x, table], create_graph=True)
    # ½ of each Hessian is diagonal: β over the batch for z, the counts over the batch for e; nothing is mixed.
    (second,) = torch.autograd.grad(of_x.sum(), x, retain_graph=True)
    torch.testing.assert_close(second, torch.full_like(x, 2 * 0.25 / 2))
    second_of_table = torch.autograd.grad(of_table.sum(), table, retain_graph=True)[0]
    torch.testing.assert_close(second_of_table, (q.counts / 2 * 2)[:, None].expand(4, 3))
    mixed = torch.autograd.grad(of_x.sum(), table, allow_unused=True)[0]
    assert mixed is None or not mixed.any()


def test_many_quantizers_at_once_by_vmap():
    members = [build(codes=4).eval() for _ in range(3)]
    for member in members:
        nn.init.normal_(member.codebook.weight)
    parameters, buffers = torch.func.stack_module_state(members)
    x = data(2, 3, 2, 4)

    def loss(member, state, posterior=members[0]):
        q = torch.func.functional_call(posterior, (member, state), (x,))
        return q.draw().z.square().sum() + sum(q.auxiliary.values())

    got = torch.func.vmap(torch.func.grad(loss))(parameters, buffers)
    for index, member in enumerate(members):
        one = torch.func.grad(loss)(dict(member.named_parameters()), dict(member.named_buffers()))
        for name, value in one.items():
            torch.testing.assert_close(got[name][index], value)


def test_moving_averages_in_closed_form():
    posterior = build((2, 1, 3), 2, decay=0.8)
    book = posterior.codebook
    with torch.no_grad():
        book.weight.copy_(torch.tensor([[0.0, 0.0], [4.0, 4.0]]))
    vectors = torch.tensor([[1.0, 0.0], [0.0, 1.0], [3.0, 3.0]], dtype=torch.float64)
    before = book.weight.clone()
    q = posterior(vectors.T.reshape(1, 2, 1, 3))
    # Coded with the old table, which also is what z holds.
    assert torch.equal(q.z[0, :, 0].T, before[[0, 0, 1]])
    n = torch.tensor([0.8 * 1.5 + 0.2 * 2, 0.8 * 1.5 + 0.2 * 1], dtype=torch.float64)
    m = torch.tensor([[0.2, 0.2], [0.8 * 6 + 0.6, 0.8 * 6 + 0.6]], dtype=torch.float64)
    torch.testing.assert_close(book.counts, n)
    torch.testing.assert_close(book.sums, m)
    smooth = (n + 1e-5) / (n.sum() + 2e-5) * n.sum()
    torch.testing.assert_close(book.weight, m / smooth[:, None])
    assert not book.weight.requires_grad
    assert "codebook" not in q.auxiliary


@pytest.mark.parametrize("decay", [None, 0.9])
def test_nothing_is_learned_in_evaluation_or_without_gradients(decay):
    posterior = build(decay=decay, restarts=0.5, kmeans=3)
    x = data(6, 3, 2, 4)
    posterior(x)
    before = {name: value.clone() for name, value in posterior.state_dict().items()}
    with torch.no_grad():
        posterior(x + 1)
    posterior.eval()(x + 1)
    for name, value in posterior.state_dict().items():
        assert torch.equal(value, before[name]), name


@pytest.mark.parametrize("decay", [None, 0.9])
def test_backward_after_the_codebook_has_moved_on(decay):
    posterior = build(decay=decay, restarts=0.5)
    first, second = posterior(data(6, 3, 2, 4)), posterior(data(6, 3, 2, 4))
    (sum(first.auxiliary.values()) + sum(second.auxiliary.values())).backward()
    assert posterior.encoder.scale.grad.isfinite()


@pytest.mark.parametrize(("decay", "steps"), [(None, 500), (0.9, 60)])
def test_a_codebook_driven_to_collapse_recovers_by_restarts(decay, steps):
    def run(restarts):
        torch.manual_seed(0)
        posterior = Quantizer(
            Scale((2, 4, 4)), codes=16, features=2, decay=decay, restarts=restarts
        )
        with torch.no_grad():
            # All but one codeword far from everything: one takes it all.
            posterior.codebook.weight.fill_(1e3)
            posterior.codebook.weight[3] = 0
        # The codebook alone learns: an encoder could go to the one codeword by itself.
        optimizer = (
            torch.optim.Adam([posterior.codebook.weight], lr=1e-2) if decay is None else None
        )
        for step in range(steps):
            with random.stream(0, step):
                q = posterior(random.normal((16, 2, 4, 4), "data"))
            if optimizer is not None:
                optimizer.zero_grad()
                sum(q.auxiliary.values()).backward()
                optimizer.step()
        return q.metrics

    collapsed, recovered = run(0.0), run(0.05)
    assert collapsed["perplexity"] == pytest.approx(1.0)
    assert collapsed["usage"] == pytest.approx(1 / 16)
    assert recovered["perplexity"] > 10
    assert recovered["usage"] > 0.9


def test_a_restart_resets_the_moving_averages():
    book = Codebook(4, 2, decay=0.9, restarts=0.1)
    z = torch.randn(20, 2)
    book.prepare(z)
    with torch.no_grad():
        book.counts.copy_(torch.tensor([10.0, 0.1, 7.9, 2.0]))
    kept = book.weight.clone()
    book.prepare(z)
    assert book.counts.tolist() == pytest.approx([10.0, 5.0, 7.9, 2.0])
    assert torch.equal(book.weight[[0, 2, 3]], kept[[0, 2, 3]])
    assert (z == book.weight[1]).all(-1).any()
    torch.testing.assert_close(book.sums[1], 5 * book.weight[1])


def test_k_means_finds_clusters_and_codes_start_there():
    centres = 10 * torch.eye(5, dtype=torch.float64)
    z = (centres.repeat(30, 1) + 0.01 * data(150, 5))[torch.randperm(150)]
    with random.stream(0):
        found, sizes = kmeans(z, 5, 5)
    assert sizes.tolist() == [30] * 5
    order = found.argmax(-1).argsort()
    torch.testing.assert_close(found[order], centres, atol=0.01, rtol=0)
    posterior = build((5, 3, 10), 5, kmeans=5, decay=0.99)
    q = posterior(z.reshape(5, 3, 10, 5).movedim(-1, 1))
    assert q.metrics["usage"] == 1
    assert q.auxiliary["commitment"] < 30 * 0.25 * 5 * 0.01**2 * 3


@pytest.mark.parametrize("vectors", [1, 3, 200])
def test_k_means_with_fewer_vectors_than_codes_or_with_equal_ones(vectors):
    posterior = build((2, 1, 1), 9, kmeans=4, decay=0.9)
    x = data(1, 2, 1, 1).expand(vectors, 2, 1, 1) if vectors == 200 else data(vectors, 2, 1, 1)
    q = posterior(x)
    assert torch.isfinite(posterior.codebook.weight).all()
    torch.testing.assert_close(q.z, x.contiguous())
    posterior(x)
    assert torch.isfinite(posterior.codebook.weight).all()


def test_k_means_looks_at_a_sample_of_many_vectors():
    book = Codebook(2, 3, decay=0.9, kmeans=3)
    book.prepare(torch.randn(1000, 3))
    assert book.counts.sum().item() == pytest.approx(1000)


@given(counts=st.lists(st.integers(0, 10**6), min_size=1, max_size=50).filter(sum))
@settings(deadline=None, max_examples=50)
def test_perplexity_lies_between_one_and_the_codes_in_use(counts):
    numbers = torch.tensor(counts, dtype=torch.float64)
    value, used = perplexity(numbers).item(), sum(c > 0 for c in counts)
    assert 1 - 1e-9 <= value <= used + 1e-9
    assert usage(numbers).item() == pytest.approx(used / len(counts))
    assert perplexity((numbers > 0).double()).item() == pytest.approx(used)


def test_metrics_come_with_every_batch():
    posterior = build(codes=4).eval()
    q = posterior(data(6, 3, 2, 4))
    assert torch.equal(q.counts, torch.bincount(q.codes.flatten(), minlength=4).double())
    assert torch.equal(count(q.codes, 4, torch.float64), q.counts)
    p = q.counts[q.counts > 0] / q.counts.sum()
    assert q.metrics["perplexity"].item() == pytest.approx(math.exp(-(p * p.log()).sum()))


def test_half_precision_networks_are_quantized_in_float32():
    posterior = Quantizer(VQEncoder((1, 8, 8), features=4), 8, 4)
    x = torch.randn(3, 1, 8, 8)
    with torch.autocast("cpu", torch.bfloat16):
        q = posterior(x)
    assert q.z.dtype is q.auxiliary["commitment"].dtype is torch.float32
    expected = brute(
        q.encoded.movedim(1, -1).reshape(-1, 4).double(), posterior.codebook.weight.double()
    )
    assert torch.equal(q.codes.flatten(), expected)


@pytest.mark.parametrize("decay", [None, 0.9])
def test_state_is_kept_and_a_loaded_codebook_does_not_start_again(decay):
    first = build(decay=decay, kmeans=3, restarts=0.2)
    x = data(6, 3, 2, 4)
    first(x)
    second = build(decay=decay, kmeans=3, restarts=0.2)
    second.load_state_dict(first.state_dict())
    with random.stream(1):
        first(x + 0.5)
    with random.stream(1):
        second(x + 0.5)
    for name, value in first.state_dict().items():
        assert torch.equal(value, second.state_dict()[name]), name


SCRIPT = """
import sys, torch, torch.distributed as dist
from varflow.core import random
from varflow.posteriors.codebook import Codebook

rank, world, out = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3]
torch.set_num_threads(1)
if world > 1:
    dist.init_process_group("gloo", init_method=f"file://{out}/meet", rank=rank, world_size=world)
book = Codebook(12, 4, decay=0.9, restarts=0.5, kmeans=4).double()
for step in range(30):
    whole = torch.randn(64, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(step))
    z = whole.chunk(world)[rank]
    with random.stream(3, step, rank, world):
        book.prepare(z)
        counts = book.observe(z, book.nearest(z))
torch.save([book.weight, book.counts, book.sums, counts], f"{out}/{world}-{rank}")
"""


@pytest.mark.slow
def test_two_processes_agree_with_one_that_sees_the_global_batch(tmp_path):
    def start(rank, world):
        command = [sys.executable, "-c", SCRIPT, str(rank), str(world), str(tmp_path)]
        return subprocess.Popen(command, stderr=subprocess.PIPE, text=True)

    running = [start(0, 1), start(0, 2), start(1, 2)]
    for process in running:
        _, error = process.communicate(timeout=120)
        assert process.returncode == 0, error[-2000:]
    one, *two = [torch.load(tmp_path / name) for name in ("1-0", "2-0", "2-1")]
    for other in two:
        for expected, got in zip(one, other, strict=True):
            torch.testing.assert_close(got, expected, atol=1e-11, rtol=0)


def test_the_two_stage_bound_in_nats():
    """log w = log p(x|z) + log p(codes): under the uniform prior the codes cost H·W·log K."""
    posterior = Quantizer(VQEncoder((1, 8, 8), features=4), codes=16, features=4)
    likelihood = vf.likelihoods.Bernoulli(VQDecoder((1, 8, 8), features=4), (1, 8, 8))
    prior = priors.UniformCodes(posterior.grid, posterior.codes)
    x = (torch.rand(5, 1, 8, 8) < 0.5).float()
    q = posterior(x)
    draw = q.draw(1)
    log_prior = prior.log_prob(q.codes.expand(1, *q.codes.shape))
    log_w = likelihood.log_prob(x, draw.z) + log_prior - draw.log_q
    expected = likelihood.log_prob(x, posterior.decode_codes(q.codes)[None]) - 4 * math.log(16)
    torch.testing.assert_close(log_w, expected)
    assert log_w.shape == (1, 5)


def test_training_reconstructs():
    """Eight pictures, eight codes and more: the codes learn to tell them apart."""
    posterior = Quantizer(VQEncoder((1, 4, 4), 8, blocks=1), 16, 8, decay=0.9, kmeans=5)
    decoder = VQDecoder((1, 4, 4), 8, blocks=1)
    x = torch.randn(8, 1, 4, 4)
    optimizer = torch.optim.Adam([*posterior.parameters(), *decoder.parameters()], lr=1e-2)
    for step in range(150):
        with random.stream(2, step):
            q = posterior(x)
        misfit = 0.5 * (decoder(q.draw().z[0]) - x).square().sum((1, 2, 3)).mean()
        optimizer.zero_grad()
        (misfit + sum(q.auxiliary.values())).backward()
        optimizer.step()
    assert misfit < 1.0
    assert q.metrics["perplexity"] > 5


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"features": 4}, "encoder: its out_shape is \\(3, 2, 4\\)"),
        ({"codes": 0}, "codes: was 0"),
        ({"decay": 1.0}, "decay: was 1.0"),
        ({"beta": -1.0}, "beta: was -1.0"),
        ({"weight": math.nan}, "weight: was nan"),
        ({"restarts": 1.0}, "restarts: was 1.0"),
        ({"kmeans": -1}, "kmeans: was -1"),
    ],
)
def test_impossible_settings_are_named(options, words):
    with pytest.raises(SpecError, match=words):
        Quantizer(Scale((3, 2, 4)), **{"codes": 5, "features": 3, **options})


def test_what_cannot_be_asked_is_named():
    posterior = build()
    with pytest.raises(SpecError, match="log_prob: the quantizer"):
        posterior(data(1, 3, 2, 4)).log_prob(data(1, 1, 3, 2, 4))
    with pytest.raises(SpecError, match="x: the quantizer reads x"):
        posterior()
    with pytest.raises(SpecError, match="samples: was 0"):
        posterior(data(1, 3, 2, 4)).draw(0)
    with pytest.raises(ShapeError, match="encoder: gave"):
        posterior(data(1, 3, 4, 2))
    with pytest.raises(DataError, match="from 0 to 4"):
        posterior.decode_codes(torch.tensor([[5]]))
    with pytest.raises(ShapeError, match=r"codes: torch\.float32"):
        posterior.decode_codes(torch.zeros(2, 4))
