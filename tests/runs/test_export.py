"""Exported graphs give what torch gives, for any number of rows, with the preprocessing inside."""

import json
import logging
import os
import subprocess
import sys

import numpy as np
import pytest
import torch

import varflow as vf
from varflow import cli
from varflow.core.errors import SpecError

torch.set_num_threads(1)
BATCHES = (1, 7, 64)
SMALL = {"steps": 2, "quiet": True}


def rows(count: int = 120) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(count, 3, generator=generator)
    x = torch.tensor([10.0, -3.0, 40.0]) + torch.tensor([2.0, 0.4, 9.0]) * (x + 0.5 * x.roll(1, 1))
    return x.double()


def special_rows(count: int = 300) -> torch.Tensor:
    """A rounded column, one with heavy tails and a plain one."""
    x, generator = rows(count), torch.Generator().manual_seed(1)
    heavy = torch.randn(count, generator=generator) / torch.rand(count, generator=generator).sqrt()
    return torch.stack([x[:, 0].round(), heavy, x[:, 2]], 1)


def pictures(count: int = 64) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, (count, 8, 8), generator=generator, dtype=torch.uint8)


def shaken(run: vf.Run) -> vf.Run:
    """Parameters away from where they start, so that a flow is not the identity."""
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for parameter in run.model.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator, dtype=parameter.dtype))
    return run


def onnx_graph(folder, name):
    onnxruntime = pytest.importorskip("onnxruntime")
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(str(folder / f"{name}.onnx"), options, ["CPUExecutionProvider"])

    def call(**given):
        names = [out.name for out in session.get_outputs()]
        found = session.run(names, {key: np.asarray(value) for key, value in given.items()})
        return dict(zip(names, map(torch.as_tensor, found), strict=True))

    return call


def close(found, expected):
    """To 1e-5 of the larger of 1 and the largest number: what float32 leaves of numbers in the units of the data."""
    scale = max(1.0, float(expected.abs().max()))
    assert found.shape == expected.shape
    assert found.dtype == expected.dtype
    assert float((found - expected).abs().max()) < 1e-5 * scale


def normal(*shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(5))


def q_of(run, x):
    """q(z|x) of the expected x."""
    return run.model.posterior(run.preprocessing.expected(x).float())


def mean_of(run, z):
    """The mean of p(x|z) in the units of the data; of levels a real number."""
    mean, p = run.model.likelihood.mean(z), run.preprocessing
    if p.source_levels is None:
        return p.invert(mean.double() if p.learned() else mean)
    if p.purpose == "dequantize":
        return (p.decode_point(mean) - 0.5).clamp(0, p.top)
    return p.invert(mean) * p.top


@torch.no_grad()
def check_vae(run, x, tmp_path):
    """Encoder and decoder in ONNX against torch."""
    about = run.export(tmp_path)
    encode, decode = (onnx_graph(tmp_path, name) for name in ("encoder", "decoder"))
    features = run.model.prior.event_shape[0]
    for batch in BATCHES:
        part = x[:batch]
        q, found = q_of(run, part), encode(x=part)
        flow = q.flow is not None
        close(found["base_mean" if flow else "mean"], q.mean)
        close(found["base_scale" if flow else "scale"], q.log_scale.exp())
        z = normal(batch, features)
        close(decode(z=z)["x"], mean_of(run, z))
        if flow:
            close(found["centre"], q.centre)
            drawn = onnx_graph(tmp_path, "posterior")(x=part, noise=z)
            moved, ladj = q.flow.push(q.mean + q.log_scale.exp() * z, q.flow_local)
            close(drawn["z"], moved)
            base = torch.distributions.Normal(0.0, 1.0).log_prob(z).sum(-1) - q.log_scale.sum(-1)
            close(drawn["log_q"], base - ladj)
    return about


@pytest.fixture(scope="module", autouse=True)
def exporters():
    pytest.importorskip("onnx")
    pytest.importorskip("onnxscript")


def test_dense_pictures(tmp_path):
    x = pictures()
    run = vf.fit("digits", vf.data.from_tensor(x), latent=2, hidden=8, **SMALL)
    about = check_vae(run, x.unsqueeze(1), tmp_path)
    assert json.loads((tmp_path / "export.json").read_text()) == about
    assert "at the expected x, where training binarizes" in about["graphs"]["encoder"]["does"]
    (given,) = about["graphs"]["encoder"]["inputs"]
    assert given == {"name": "x", "dtype": "uint8", "shape": ["batch", 1, 8, 8], "unit": "levels 0 to 255"}
    assert about["preprocessing"]["protocol"] == run.preprocessing.name
    assert about["left_out"] == {}


@pytest.mark.parametrize("protocol", [pytest.param("standardize", marks=pytest.mark.slow), "table"])
def test_tables(protocol, tmp_path):
    x = special_rows() if protocol == "table" else rows()
    run = vf.fit("digits", x, likelihood="gaussian", latent=2, hidden=8, protocol=protocol, **SMALL)
    about = check_vae(run, x, tmp_path)
    assert about["preprocessing"]["scale"] == run.preprocessing.scale.tolist()
    decoded = onnx_graph(tmp_path, "decoder")(z=normal(4, 2))["x"]
    assert protocol == "standardize" or torch.equal(decoded[:, 0], decoded[:, 0].round())


FLOWS = [
    pytest.param("planar", True, marks=pytest.mark.slow),
    pytest.param("iaf", True, marks=pytest.mark.slow),
    pytest.param("nice", False, marks=pytest.mark.slow),
    pytest.param("householder", True, marks=pytest.mark.slow),
    pytest.param("sylvester", True, marks=pytest.mark.slow),
    pytest.param("radial", True, marks=pytest.mark.slow),
    pytest.param("planar", False, marks=pytest.mark.slow),
    pytest.param("coupling", True, marks=pytest.mark.slow),
    pytest.param("triangular", True, marks=pytest.mark.slow),
    pytest.param("maf", False, marks=pytest.mark.slow),
]


@pytest.mark.parametrize(("flow", "amortized"), FLOWS)
def test_flows(flow, amortized, tmp_path):
    run = vf.fit(
        "digits", rows(), likelihood="gaussian", latent=3, hidden=8, flow=flow, length=2, amortized=amortized,
        protocol="standardize", **SMALL,
    )  # fmt: skip
    check_vae(shaken(run), rows(), tmp_path)


@pytest.mark.slow
def test_student_t(tmp_path):
    options = {"likelihood": "student-t", "latent": 2, "hidden": 8, "protocol": "standardize"}
    check_vae(vf.fit("digits", rows(), **options, **SMALL), rows(), tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("protocol", ["threshold", "levels", "uniform", "symmetric", "logit"])
def test_pictures_under_each_protocol(protocol, tmp_path):
    """uint8 levels in; a mean in levels out, which rounds to the picture that the run reconstructs."""
    x = pictures()[:, :4, :4]
    continuous = protocol in ("uniform", "symmetric", "logit")
    likelihood = {"likelihood": "gaussian"} if continuous else {}
    data = vf.data.from_tensor(x, protocol=protocol)
    run = shaken(vf.fit("digits", data, latent=2, hidden=8, **likelihood, **SMALL))
    about = check_vae(run, x.unsqueeze(1), tmp_path)
    assert ("dequantizes" in about["graphs"]["encoder"]["does"]) == continuous
    z = normal(16, 2)
    found = onnx_graph(tmp_path, "decoder")(z=z)["x"]
    with torch.no_grad():
        levels = run.preprocessing.stored_means(run.model.likelihood.mean(z))
    near = (found - found.floor() - 0.5).abs() < 1e-3
    assert bool(((found.round() == levels) | near).all())


def test_a_float64_model(tmp_path):
    run = vf.fit(
        "digits", rows(), likelihood="gaussian", latent=2, hidden=8, precision="float64", protocol="standardize",
        **SMALL,
    )  # fmt: skip
    run.export(tmp_path, format="torch")
    with torch.no_grad():
        mean, _ = torch.export.load(tmp_path / "encoder.pt2").module()(rows())
        assert mean.dtype is torch.float64
        expected = run.model.posterior(run.preprocessing.expected(rows())).mean
        torch.testing.assert_close(mean, expected, rtol=1e-12, atol=1e-12)


def test_large_numbers_keep_their_digits(tmp_path):
    """float32 has steps of 64 at 10⁹."""
    x = rows(200) + torch.tensor([1e9, 0.0, 0.0])
    run = vf.fit("density", x, prior_length=1, prior_hidden=4, protocol="standardize", **SMALL)
    run.export(tmp_path, format="torch")
    score, draw = (torch.export.load(tmp_path / f"{name}.pt2").module() for name in ("log_prob", "sampler"))
    with torch.no_grad():
        torch.testing.assert_close(score(x[:20]).double(), run.log_prob(x[:20]), rtol=1e-5, atol=1e-4)
        drawn = draw(normal(400, 3), torch.full((400,), 0.5), torch.full((400,), 0.99))
    assert drawn.dtype is torch.float64
    assert len(drawn[:, 0].unique()) == 400


@pytest.mark.slow
def test_convolutions(tmp_path):
    x = pictures()
    run = vf.fit("digits", vf.data.from_tensor(x), network="conv", latent=2, base=4, **SMALL)
    check_vae(run, x.unsqueeze(1), tmp_path)


@pytest.mark.slow
def test_quantizer(tmp_path):
    x = pictures()
    data = vf.data.from_tensor(x, protocol="uniform")
    run = vf.fit("vq-vae", data, codes=8, code_features=4, batch=16, **SMALL)
    about = run.export(tmp_path)
    encode, decode = (onnx_graph(tmp_path, name) for name in ("encoder", "decoder"))
    for batch in BATCHES:
        part = x[:batch].unsqueeze(1)
        codes = encode(x=part)["codes"]
        with torch.no_grad():
            assert torch.equal(codes, q_of(run, part).codes)
            words = run.model.posterior.decode_codes(codes)
            found = decode(codes=codes)["x"]
            close(found, mean_of(run, words))
            # What is not a level is one when it is rounded: that of the reconstruction.
            assert not torch.equal(found, found.round())
            off = (found.round() - run.reconstruct(part).float()).abs()
            assert float((off > 0).float().mean()) < 1e-3
    assert "one after the other" in about["left_out"]["prior"]


def check_density(run, x, tmp_path):
    about = run.export(tmp_path)
    score = onnx_graph(tmp_path, "log_prob")
    p = run.distribution()
    with torch.no_grad():
        for batch in BATCHES:
            close(score(x=x[:batch])["log_prob"], p.log_prob(x[:batch]))
    return about


@pytest.mark.slow
def test_density_with_a_sampler(tmp_path):
    x = special_rows()
    run = shaken(vf.fit("density", x, prior_length=2, prior_hidden=8, protocol="table", **SMALL))
    about = check_density(run, x, tmp_path)
    assert [port["name"] for port in about["graphs"]["sampler"]["inputs"]] == ["noise", "component", "defensive"]
    draw, prior = onnx_graph(tmp_path, "sampler"), run.model.prior
    for batch in BATCHES:
        noise, uniform = normal(batch, 3), torch.linspace(0.001, 0.999, batch)
        found = draw(noise=noise, component=uniform, defensive=torch.full((batch,), 0.9))["x"]
        with torch.no_grad():
            which = (uniform.unsqueeze(-1) >= prior.base.log_weights.exp().cumsum(0)[:-1]).sum(-1)
            spread = torch.linalg.solve_triangular(prior.base.whitening[which], noise.unsqueeze(-1), upper=False)
            e = prior.base.means[which] + spread.squeeze(-1)
            close(found, run.preprocessing.invert(prior.decode(e).double()))
            base = draw(noise=noise, component=uniform, defensive=torch.zeros(batch))["x"]
            close(base, run.preprocessing.invert(e.double()))


@pytest.mark.slow
@pytest.mark.parametrize("prior", ["iaf", "coupling", "planar", "spline"])
def test_other_densities(prior, tmp_path):
    run = shaken(vf.fit("density", rows(), prior=prior, prior_length=2, **SMALL))
    check_density(run, rows(), tmp_path)


@pytest.mark.slow
def test_density_of_levels(tmp_path):
    x = pictures()[:, :2, :2]
    run = vf.fit("density", vf.data.from_tensor(x, protocol="logit"), prior_length=1, prior_hidden=8, **SMALL)
    check_density(run, x.unsqueeze(1), tmp_path)


def test_target(tmp_path):
    run = vf.fit("energy", target="u1", length=4, **SMALL)
    run.export(tmp_path)
    found = onnx_graph(tmp_path, "sampler")(noise=normal(7, 2))
    expected = run.model.posterior().log_prob(found["z"]).detach()
    assert float((found["log_q"] - expected).abs().max()) < 1e-4


def test_torch_graphs_take_any_number_of_rows(tmp_path):
    run = vf.fit("digits", rows(), likelihood="gaussian", latent=2, hidden=8, protocol="standardize", **SMALL)
    run.export(tmp_path, format="torch")
    encode = torch.export.load(tmp_path / "encoder.pt2").module()
    with torch.no_grad():
        for batch in BATCHES:
            mean, scale = encode(rows()[:batch])
            q = q_of(run, rows()[:batch])
            close(mean, q.mean)
            close(scale, q.log_scale.exp())


@pytest.mark.slow
def test_a_file_of_torch_needs_torch_alone(tmp_path):
    run = vf.fit(
        "digits", rows(), likelihood="gaussian", latent=2, hidden=8, flow="iaf", length=1, protocol="standardize",
        **SMALL,
    )  # fmt: skip
    run.export(tmp_path, format="torch")
    program = (
        "import sys, torch\n"
        "draw = torch.export.load(sys.argv[1]).module()\n"
        "z, log_q = draw(torch.zeros(5, 3, dtype=torch.float64), torch.zeros(5, 2))\n"
        "assert 'varflow' not in sys.modules\n"
        "print(tuple(z.shape), tuple(log_q.shape))\n"
    )
    bare = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    call = [sys.executable, "-c", program, str(tmp_path / "posterior.pt2")]
    done = subprocess.run(call, capture_output=True, text=True, env=bare, cwd=tmp_path)
    assert done.stdout.strip() == "(5, 2) (5,)", done.stderr


def test_a_wide_network_holds_no_operator_of_ours():
    """Its products are large enough for the other library in training."""
    network = vf.networks.MLP(400, hidden=(400, 400)).eval()
    batch = torch.export.Dim("batch")
    program = torch.export.export(network, (torch.zeros(64, 400),), dynamic_shapes=({0: batch},))
    assert not [node for node in program.graph.nodes if "varflow" in str(node.target)]
    for size in BATCHES:
        x = normal(size, 400)
        torch.testing.assert_close(program.module()(x), network(x), rtol=1e-5, atol=1e-5)


def test_the_command_line(tmp_path, capsys):
    vf.fit("digits", rows(), likelihood="gaussian", latent=2, hidden=8, out=tmp_path / "run", **SMALL)
    with pytest.raises(SystemExit) as ended:
        cli.main(["export", str(tmp_path / "run"), "--format", "torch", "--out", str(tmp_path / "out")])
    said = capsys.readouterr()
    assert ended.value.code == 0, said.err
    assert "encoder.pt2: x -> mean, scale" in said.out
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"encoder.pt2", "decoder.pt2", "export.json"}


def test_what_cannot_be_exported_says_so(tmp_path):
    run = vf.fit("digits", rows(), likelihood="gaussian", latent=2, hidden=8, **SMALL)
    with pytest.raises(SpecError, match="choices: onnx, torch"):
        run.export(tmp_path, format="tflite")
    leapfrog = vf.fit("digits", rows(), likelihood="gaussian", latent=2, hidden=8, leapfrog=1, **SMALL)
    about = leapfrog.export(tmp_path / "leapfrog", format="torch")
    assert list(about["graphs"]) == ["decoder"]
    assert "q(z|x) of Hamiltonian is no Gaussian under a flow" in about["left_out"]["encoder"]
    several = vf.fit("energy", target="u1", length=2, fits=2, **SMALL)
    with pytest.raises(SpecError, match="several fits"):
        several.export(tmp_path)


class Branching(torch.nn.Module):
    """An encoder that looks at its numbers."""

    features = 4

    def __init__(self):
        super().__init__()
        self.layer = torch.nn.Linear(3, 4)

    def forward(self, x):
        return self.layer(x if float(x.sum()) > 0 else -x)


def test_a_network_that_branches_is_left_out(tmp_path, capfd):
    likelihood = vf.likelihoods.Gaussian(vf.networks.MLP(2, 3, hidden=(4,)), 3)
    model = vf.Model(vf.priors.StandardNormal(2), likelihood, vf.posteriors.Gaussian(2, Branching()))
    run = vf.fit(model, rows().float(), **SMALL)
    capfd.readouterr()
    about = run.export(tmp_path, format="torch")
    assert list(about["graphs"]) == ["decoder"]
    assert about["left_out"]["encoder"] == (
        "encoder: cannot be exported: its code takes one way or another by the numbers that go in, "
        "which a graph cannot"
    )
    assert capfd.readouterr().err == ""


def test_another_torch_says_so(tmp_path, monkeypatch):
    run = vf.fit("digits", rows(), likelihood="gaussian", latent=2, hidden=8, **SMALL)
    monkeypatch.delattr(torch.compiler, "is_exporting", raising=False)
    with pytest.raises(SpecError, match=r"needs torch 2\.7 or later"):
        run.export(tmp_path)
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_exports_are_silent(tmp_path, capfd, caplog):
    """A split whose halves are folded is what onnxscript's optimizer warns of."""
    run = vf.fit("density", rows(), prior_length=1, prior_hidden=4, **SMALL)
    capfd.readouterr()
    caplog.clear()
    run.export(tmp_path)
    said = capfd.readouterr()
    assert said.out == said.err == ""
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING]
