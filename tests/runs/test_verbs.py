"""What a fitted model does with rows: scores, embeddings, samples, reconstructions, ways, neighbours."""

import math
import shutil
import subprocess
import sys

import numpy as np
import pytest
import torch
from PIL import Image

import varflow as vf
from varflow import cli
from varflow.core.errors import DataError, RunError, ShapeError, SpecError
from varflow.runs.rows import PIECE

MEAN, SCALE = torch.tensor([100.0, -3.0, 0.02]).double(), torch.tensor([5.0, 0.4, 0.001]).double()


def table(rows: int, seed: int = 0) -> torch.Tensor:
    """A factor model in units that differ: MEAN + SCALE (W z + ½ ε)."""
    generator = torch.Generator().manual_seed(seed)
    z = torch.randn(rows, 1, generator=generator, dtype=torch.float64)
    noise = torch.randn(rows, 3, generator=generator, dtype=torch.float64)
    return MEAN + SCALE * (z @ torch.tensor([[1.0, -0.5, 0.8]]).double() + 0.5 * noise)


@pytest.fixture(scope="module")
def vae() -> vf.Run:
    return vf.fit(
        "digits", table(400), likelihood="gaussian", latent=2, hidden=16, protocol="standardize", steps=60,
        precision="float64", quiet=True,
    )  # fmt: skip


@pytest.fixture(scope="module")
def density() -> vf.Run:
    return vf.fit("density", table(400), steps=40, precision="float64", quiet=True)


@pytest.fixture(scope="module")
def pictures() -> vf.Run:
    generator = torch.Generator().manual_seed(0)
    x = torch.randint(0, 256, (60, 8, 8), generator=generator, dtype=torch.uint8)
    data = vf.data.from_tensor(x, labels=torch.arange(60) % 3)
    return vf.fit("digits", data, latent=2, hidden=8, steps=5, quiet=True)


def test_scores_of_a_factor_model_are_its_closed_form_within_their_errors():
    """p(v) = N(m, S (W Wᵀ + s² I) S) for x = W z + s ε, v = m + S x; q(z|x) is kept apart from p(z|x)."""
    run = vf.fit(
        "digits", table(400), likelihood="gaussian", network="mlp", hidden=4, latent=1, protocol="standardize",
        steps=2, precision="float64", quiet=True,
    )  # fmt: skip
    weight, spread = torch.tensor([[1.0], [-0.5], [0.8]]).double(), 0.5

    class Linear(torch.nn.Module):
        def forward(self, z):
            return z @ weight.T

    likelihood = vf.likelihoods.Gaussian(Linear(), 3, scale=spread)
    posterior = vf.posteriors.Gaussian(1, torch.nn.Linear(3, 2).double(), event_shape=3).double()
    model = vf.Model(vf.priors.StandardNormal(1), likelihood.double(), posterior)
    run = vf.Run(run.spec, model.eval(), run.form, preprocessing=run.preprocessing)
    v = table(200, seed=1)
    kept = run.preprocessing
    x = (v - kept.loc) / kept.scale
    covariance = weight @ weight.T + spread**2 * torch.eye(3).double()
    exact = torch.distributions.MultivariateNormal(torch.zeros(3).double(), covariance).log_prob(x)
    exact = exact - kept.scale.log().sum()
    found = run.scores(v, samples=4000)
    trusted = found.khat < 0.5
    assert trusted.sum() > 100
    z = ((found.log_prob - exact) / found.error)[trusted]
    assert z.abs().max() < 5
    assert abs(z.mean()) < 5 / math.sqrt(len(z))
    assert 0.5 < z.square().mean() < 2
    assert torch.equal(run.log_prob(v, samples=4000), found.log_prob)


def test_a_row_scores_the_same_alone_with_others_and_in_any_piece(density):
    x = table(PIECE + 300, seed=2)
    whole = density.log_prob(x)
    tail = density.log_prob(x[PIECE - 5 :])
    torch.testing.assert_close(whole[PIECE - 5 :], tail, rtol=1e-10, atol=1e-10)
    dequantized = vf.fit("density", table(400)[:, :1].round(), steps=5, quiet=True, protocol="table")
    numbers = table(PIECE + 50, seed=3)[:, :1].round()
    assert torch.isfinite(dequantized.log_prob(numbers)).all()


def test_a_density_is_exact_and_integrates_to_one():
    generator = torch.Generator().manual_seed(0)
    x = 7 + 3 * torch.randn(300, 1, generator=generator).double()
    run = vf.fit("density", x, steps=30, precision="float64", quiet=True)
    grid = torch.linspace(-40, 60, 20_001, dtype=torch.float64)
    found = run.scores(grid[:, None])
    assert found.samples == 0
    assert (found.error == 0).all()
    assert found.khat.isnan().all()
    assert torch.trapezoid(found.log_prob.exp(), grid).item() == pytest.approx(1, abs=1e-3)


def test_what_comes_in_as_an_array_goes_out_as_one(vae):
    x = table(20)
    for verb in (vae.log_prob, vae.embed, vae.reconstruct):
        tensor, array = verb(x), verb(x.numpy())
        assert isinstance(tensor, torch.Tensor)
        assert isinstance(array, np.ndarray)
        np.testing.assert_array_equal(tensor.numpy(), array)


def test_embeddings_are_the_moments_of_the_posterior(vae):
    x = table(30)
    kept = vae.preprocessing
    q = vae.model.infer((x - kept.loc) / kept.scale)
    torch.testing.assert_close(vae.embed(x), q.mean.detach())
    torch.testing.assert_close(vae.embed(x, "centre"), q.mean.detach())
    torch.testing.assert_close(vae.embed(x, "scale"), q.log_scale.exp().detach())
    drawn = torch.stack([vae.embed(x, "sample", seed=seed) for seed in range(400)])
    z = (drawn.mean(0) - q.mean) / (q.log_scale.exp() / 20)
    assert z.abs().max() < 5
    with pytest.raises(SpecError, match="what: unknown value 'codes'"):
        vae.embed(x, "codes")


def test_moments_under_a_flow_are_those_of_its_draws():
    run = vf.fit(
        "digits", table(200), likelihood="gaussian", protocol="standardize", latent=2, hidden=8, flow="planar",
        length=4, amortized=True, steps=20, precision="float64", quiet=True,
    )  # fmt: skip
    x = table(5, seed=4)
    kept = run.preprocessing
    with torch.no_grad():
        z = run.model.infer((x - kept.loc) / kept.scale).draw(20_000).z
    error = z.std(0) / math.sqrt(2000)
    assert (((run.embed(x, "mean", samples=2000) - z.mean(0)) / error).abs() < 5.5).all()
    q = run.model.infer((x - kept.loc) / kept.scale)
    torch.testing.assert_close(run.embed(x, "centre"), q.flow.push(q.mean, q.flow_local)[0].detach())


def test_the_base_of_a_density_is_where_its_rows_come_from(density):
    x = table(50, seed=5)
    e = density.embed(x)
    again = density.preprocessing.invert(density.model.prior.decode(e.double())).detach()
    torch.testing.assert_close(again, x, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(density.reconstruct(x), x, rtol=1e-6, atol=1e-6)


def test_a_way_begins_and_ends_at_its_two_rows(density, vae, pictures):
    a, b = table(2, seed=6)
    for way in ("straight", "sphere", "base"):
        path = density.interpolate(a, b, steps=7, way=way)
        assert path.shape == (7, 3)
        torch.testing.assert_close(path[[0, -1]], torch.stack([a, b]), rtol=1e-5, atol=1e-5)
    ends = vae.interpolate(a, b, steps=3)
    kept = vae.preprocessing
    means = vae.model.likelihood.mean(vae.embed(torch.stack([a, b]), "centre"))
    torch.testing.assert_close(ends[[0, -1]], kept.invert(means).detach())
    x = pictures.dataset.raw("test")
    assert pictures.interpolate(x[0], x[1], steps=4).shape == (4, 1, 8, 8)
    assert pictures.interpolate(x[0, 0].numpy(), x[1, 0].numpy(), steps=4).dtype == np.uint8
    with pytest.raises(SpecError, match="way: unknown value 'base'"):
        vae.interpolate(a, b, way="base")
    with pytest.raises(ShapeError, match="a: holds several rows"):
        vae.interpolate(table(3), b)


def test_the_ends_of_a_way_are_pictures_in_any_form_or_their_files(tmp_path):
    x = np.random.default_rng(0).integers(0, 256, (30, 8, 8, 3), dtype=np.uint8)
    folder = tmp_path / "run"
    run = vf.fit("digits", x, out=folder, latent=2, hidden=4, steps=2, quiet=True)
    files = [tmp_path / name for name in ("a.png", "b.png")]
    for file, picture in zip(files, x, strict=False):
        Image.fromarray(picture).save(file)
    expected = run.interpolate(x[:1].transpose(0, 3, 1, 2), x[1:2].transpose(0, 3, 1, 2), steps=4)
    assert expected.shape == (4, 3, 8, 8)
    for a, b in (files, [str(file) for file in files], x[:2], x[:2].transpose(0, 3, 1, 2), map(Image.open, files)):
        np.testing.assert_array_equal(np.asarray(run.interpolate(a, b, steps=4)), expected)
    words = [str(folder), *map(str, files), "--steps", "4", "--out", str(tmp_path / "way.npy")]
    with pytest.raises(SystemExit) as ended:
        cli.main(["interpolate", *words])
    assert ended.value.code == 0
    np.testing.assert_array_equal(np.load(tmp_path / "way.npy"), expected)
    with pytest.raises(ShapeError, match="a: was None; give one row or picture"):
        run.interpolate(None, x[1])
    with pytest.raises(DataError, match=r"no file or folder nope\.png"):
        run.interpolate("nope.png", files[1])


def test_nearest_rows_are_those_of_smallest_distance(vae):
    x, among = table(10, seed=7), table(90, seed=8)
    found = vae.nearest(x, k=4, among=among)
    distance = torch.cdist(vae.embed(x, "centre"), vae.embed(among, "centre"))
    expected = distance.sort(1)
    assert found.rows == expected.indices[:, :4].tolist()
    torch.testing.assert_close(found.distance, expected.values[:, :4])
    assert found.label is None
    with pytest.raises(SpecError, match="k: was 91; there are 90 rows"):
        vae.nearest(x, k=91, among=among)


def test_a_training_row_is_its_own_nearest_neighbour_under_its_own_number(pictures):
    train = pictures.dataset.raw("train")
    found = pictures.nearest(train, k=1)
    torch.testing.assert_close(found.distance, torch.zeros_like(found.distance), rtol=0, atol=1e-4)
    assert [row for (row,) in found.rows] == pictures.dataset.origins("train", torch.arange(len(train)))
    assert torch.equal(found.label[:, 0], torch.tensor([row for (row,) in found.rows]) % 3)


def test_samples_are_in_the_units_of_the_data(density, pictures):
    drawn = density.sample(3000)
    z = (drawn.mean(0) - table(400).mean(0)) / table(400).std(0)
    assert z.abs().max() < 0.3
    assert torch.equal(drawn, density.sample(3000))
    assert pictures.sample(3).dtype == torch.uint8
    assert pictures.sample(3, mean=True).shape == (3, 1, 8, 8)


def test_ranks_count_the_training_rows_that_are_at_most_as_likely(density):
    train = density.dataset.raw("train")
    scores = density.log_prob(train)
    found = density.scores(train, anomaly=True)
    expected = (scores[None] <= scores[:, None]).double().mean(1)
    torch.testing.assert_close(found.rank, expected)
    far = density.scores(table(3) + 1000 * SCALE, anomaly=True)
    assert (far.rank == 0).all()


def test_a_folder_alone_serves_every_verb_to_the_bit(tmp_path):
    """Another process, another place, and the data gone."""
    data = tmp_path / "data.csv"
    np.savetxt(data, table(300).numpy(), delimiter=",", header="weight,charge,width", comments="")
    new = table(20, seed=9)
    np.save(tmp_path / "new.npy", new.numpy())
    program = (
        "import sys, numpy as np, torch, varflow as vf\n"
        "torch.set_num_threads(1)\n"
        "x = np.load(sys.argv[2]); out = []\n"
        "for name in ('vae', 'density'):\n"
        "    run = vf.load(sys.argv[1] + '/' + name)\n"
        "    s = run.scores(x, anomaly=True); n = run.nearest(x, k=3)\n"
        "    out += [s.log_prob, s.error, s.khat, s.rank, run.embed(x), run.reconstruct(x), run.sample(5),\n"
        "            run.interpolate(x[0], x[1]), n.distance, n.rows]\n"
        "np.savez(sys.argv[3], *[np.asarray(o) for o in out])\n"
    )
    settings = {"likelihood": "gaussian", "protocol": "standardize", "latent": 2, "hidden": 8}
    vf.fit("digits", str(data), out=tmp_path / "here/vae", steps=20, quiet=True, **settings)
    vf.fit("density", str(data), out=tmp_path / "here/density", steps=20, quiet=True)
    found = []
    for place in ("here", "there"):
        if place == "there":
            shutil.copytree(tmp_path / "here", tmp_path / "there")
            shutil.rmtree(tmp_path / "here")
            data.unlink()
        out = tmp_path / f"{place}.npz"
        subprocess.run([sys.executable, "-c", program, tmp_path / place, tmp_path / "new.npy", out], check=True)
        held = np.load(out)
        found.append([held[key] for key in held.files])
    for first, second in zip(*found, strict=True):
        np.testing.assert_array_equal(first, second)


def test_training_rows_that_were_scored_otherwise_are_no_measure(tmp_path):
    run = vf.fit(
        "digits", table(100), out=tmp_path, likelihood="gaussian", protocol="standardize", latent=1, hidden=4,
        steps=2, quiet=True,
    )  # fmt: skip
    assert run.scores(table(3), anomaly=True).rank.shape == (3,)
    with pytest.raises(RunError, match="samples: was 7; the training rows of this run were scored with 100"):
        run.scores(table(3), samples=7, anomaly=True)
    (tmp_path / "training_scores.json").write_text('{"samples": 100, "log_prob": "no"}')
    with pytest.raises(RunError, match=r"training_scores\.json: not what varflow wrote"):
        run.scores(table(3), anomaly=True)


def test_a_quantizer_is_embedded_as_codes():
    generator = torch.Generator().manual_seed(0)
    x = torch.randint(0, 256, (40, 1, 16, 16), generator=generator, dtype=torch.uint8)
    run = vf.fit("vq-vae", x, codes=5, steps=2, quiet=True)
    codes = run.embed(x[:7])
    assert codes.shape == (7, *run.model.posterior.grid)
    assert not codes.is_floating_point()
    assert 0 <= int(codes.min()) <= int(codes.max()) < 5
    assert torch.equal(run.embed(x[:7], "centre"), run.model.posterior.decode_codes(codes))
    assert run.reconstruct(x[:7]).shape == x[:7].shape
    assert run.nearest(x[:2], k=2).distance.shape == (2, 2)
    assert run.interpolate(x[0], x[1], steps=3).shape == (3, 1, 16, 16)
    assert run.scores(x[:4]).samples == 0


def test_a_target_has_samples_and_the_density_of_q_alone():
    run = vf.fit("energy", fits=2, length=2, steps=3, quiet=True)
    z = run.sample(6, seed=1)
    assert z.shape == (2, 6, 2)
    found = run.log_q(z[0])
    assert found.shape == (2, 6)
    for fit, member in enumerate(run.members()):
        torch.testing.assert_close(found[fit], member.posterior().log_prob(z[0]).double().detach())
    for verb in (run.embed, run.reconstruct, run.nearest, run.log_prob):
        with pytest.raises(SpecError, match="this is a fit to a target, which has no x"):
            verb(z[0])
