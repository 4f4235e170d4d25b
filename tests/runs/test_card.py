"""The model card: its numbers are those of the files, its five lines run, and the user's words stay."""

import json
import re
import shutil

import pytest
import torch

import varflow as vf
from varflow.core.errors import RunError
from varflow.evaluation import Estimate
from varflow.report.card import BEGIN, CARD, END, card, write_card
from varflow.report.names import NAMES

SMALL = {"quiet": True, "threads": 1}
VAE = {"latent": 2, "hidden": 8, "layers": 1, **SMALL}


def rows(count=60, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return 7 + 3 * torch.randn(count, 3, generator=generator).double()


def pictures(count=60):
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, (count, 8, 8), generator=generator, dtype=torch.uint8)


@pytest.fixture(scope="module")
def density(tmp_path_factory):
    """A density of a table of one's own, evaluated."""
    folder = tmp_path_factory.mktemp("density")
    lines = ["height,width | <b>,`count`"]
    lines += [f"{a:.5f},{b:.5f},{round(c)}" for a, b, c in rows().tolist()]
    (folder / "mine.csv").write_text("\n".join(lines))
    run = vf.fit("density", folder / "mine.csv", steps=5, out=folder / "run", **SMALL)
    run.evaluate()
    return folder / "run"


@pytest.fixture
def copied(density, tmp_path):
    """A copy that a test may change."""
    return shutil.copytree(density, tmp_path / "run")


def tables(text):
    """Every table of a card as rows of cells, without what Markdown escapes."""
    found, lines = [], text.splitlines()
    for above, line in zip(["", *lines], lines, strict=False):
        if line.startswith("|") and not above.startswith("|"):
            found.append([])
        if line.startswith("|") and not line.startswith("|---"):
            cells = re.split(r"(?<!\\)\|", line)[1:-1]
            found[-1].append([re.sub(r"\\(.)", r"\1", cell.strip()) for cell in cells])
    return found


def table(text, first):
    """The one table whose first head is this."""
    (found,) = [t for t in tables(text) if t[0][0] == first]
    return found


def lines_of_use(text):
    return re.search(r"```python\n(.*?)```", text, re.DOTALL).group(1)


def test_every_number_is_that_of_its_file(density):
    text = (density / CARD).read_text()
    held = json.loads((density / "evaluation" / "test.json").read_text())["estimates"]
    heads, *shown = table(text, "quantity")
    assert len(shown) == len(held)
    for name, row in zip(held, shown, strict=True):
        stored, cells = Estimate.from_dict(held[name]), dict(zip(heads, row, strict=True))
        assert cells["quantity"] == NAMES[name]
        value, _, error = cells["value ± standard error"].partition(" ± ")
        half = 0.5 * 10.0 ** -len(value.partition(".")[2])
        assert abs(float(value) - stored.value) <= half * 1.0001
        assert float(error) == pytest.approx(stored.standard_error, rel=0.05)
        assert float(cells["Monte-Carlo error"]) == pytest.approx(stored.monte_carlo_error, rel=0.05)
        assert [cells["samples"], cells["points"]] == [f"{stored.samples:,}", f"{stored.points:,}"]
        assert cells["unit"] == (stored.unit or "–")
        assert cells["estimator"] == stored.estimator
    assert f"Protocol: {stored.protocol}. Seed of the estimates: {stored.seed}." in text


def test_the_data_and_what_was_learned_of_them_stand_there(density):
    text = (density / CARD).read_text()
    data, kept = (json.loads((density / name).read_text()) for name in ("data.json", "preprocessing.json"))
    for split, size in data["sizes"].items():
        assert f"{size:,} {split}" in text
    assert data["checksums"]["mine.csv"]["md5"] in text
    assert str(density.parent) not in text
    heads, *shown = table(text, "column")
    assert heads == ["column", "location", "scale", "step"]
    assert [row[0] for row in shown] == ["height", "width | <b>", "`count`"]
    for name, head in (("loc", "location"), ("scale", "scale"), ("step", "step")):
        values = [float(row[heads.index(head)]) for row in shown]
        assert values == pytest.approx(kept["learned"][name], rel=1e-5)


def test_files_have_their_sizes(density):
    for name, size, _ in table((density / CARD).read_text(), "file")[1:]:
        assert (density / name.strip("`")).stat().st_size == int(size.replace(",", ""))


def test_words_of_the_data_mean_nothing_to_markdown_or_html(density):
    text = (density / CARD).read_text()
    body = re.sub(r"<!-- varflow.*?-->", "", text)
    assert "<" not in re.sub(r"\\<|`[^`\n]*`", "", re.sub(r"```.*?```", "", body, flags=re.DOTALL))


def test_the_front_matter_is_what_the_hub_reads(density):
    yaml = pytest.importorskip("yaml")
    _, front, _ = (density / CARD).read_text().split("---\n", 2)
    assert yaml.safe_load(front) == {
        "library_name": "varflow",
        "tags": ["varflow", "density-estimation", "normalizing-flows"],
    }


def test_what_stands_outside_the_marks_is_the_users(copied):
    text = (copied / CARD).read_text()
    mine = text.replace("# license: name the one", "license: mit #").replace(BEGIN, f"# Mine\n\n{BEGIN}")
    (copied / CARD).write_text(mine + "\nAnd below.\n")
    run = vf.load(copied)
    run.evaluate(limit=4)
    again = (copied / CARD).read_text()
    assert again.startswith(mine.partition(BEGIN)[0])
    assert again.endswith(f"{END}\n\nAnd below.\n")
    assert "| 4 |" in again
    assert again.count(BEGIN) == again.count(END) == 1


def test_a_readme_of_the_users_own_is_left_alone(copied):
    (copied / CARD).write_text("# My notes\n")
    assert write_card(copied) is None
    run = vf.fit("density", rows(), steps=1, out=copied, overwrite=True, **SMALL)
    assert (copied / CARD).read_text() == "# My notes\n"
    (copied / CARD).unlink()
    assert write_card(copied) == run.folder / CARD


def test_a_run_that_was_not_evaluated_or_has_gone_on_says_so(tmp_path):
    x = rows()
    run = vf.fit("density", x, steps=2, out=tmp_path / "run", keep="last", **SMALL)
    text = (run.folder / CARD).read_text()
    assert "Not evaluated yet" in text
    assert "`varflow evaluate run`" in text
    assert "quantity" not in text
    run.evaluate()
    assert "has gone on since" not in (run.folder / CARD).read_text()
    vf.resume(run.folder, x, steps=4, quiet=True)
    assert "The run has gone on since" in (run.folder / CARD).read_text()


def test_a_fit_that_was_cut_off_says_so(copied):
    about = json.loads((copied / "run.json").read_text())
    about["outcome"] |= {"finished": False, "reason": "SIGTERM received at step 3"}
    (copied / "run.json").write_text(json.dumps(about))
    assert "The fit is not finished: SIGTERM received at step 3." in card(copied)
    (copied / "run.json").write_text("[]")
    with pytest.raises(RunError, match=r"run\.json: holds a list"):
        write_card(copied)


def test_parts_are_named_with_their_settings(density):
    parts = {row[0]: row[1:] for row in table((density / CARD).read_text(), "part")}
    spec = json.loads((density / "spec.json").read_text())
    assert parts["prior"][0] == "`maf`"
    assert f"prior_length={spec['prior']['prior_length']}" in parts["prior"][1]
    assert parts["likelihood"] == ["`identity`", "–"]
    assert "hamiltonian" not in parts


KINDS = {
    "maf": (lambda: rows(), {"what": "density", "steps": 2}, 3),
    "mixture": (lambda: rows(), {"what": "density", "steps": 2, "prior": "mixture"}, 2),
    "vae": (lambda: rows(), {"what": "digits", "steps": 2, "likelihood": "gaussian", **VAE}, 3),
    "pictures": (pictures, {"what": "digits", "steps": 2, "leapfrog": 2, **VAE}, 3),
    "two layers": (pictures, {"what": "digits", "steps": 2, "top_latent": 1, **VAE}, 3),
    "codes": (
        lambda: vf.data.from_tensor(pictures(), protocol="symmetric"),
        {"what": "vq-vae", "steps": 2, "codes": 4, "code_features": 4, "blocks": 1},
        3,
    ),
    "energy": (lambda: None, {"what": "energy", "steps": 2, "length": 2}, 2),
    "two fits": (lambda: None, {"what": "energy", "steps": 2, "length": 2, "fits": 2}, 2),
    "hamiltonian": (lambda: None, {"what": "gaussian-model", "steps": 2, "leapfrog": 2, "dimensions": 3}, 1),
}


@pytest.mark.parametrize("kind", KINDS)
def test_the_lines_of_use_run(kind, tmp_path, monkeypatch):
    data, settings, verbs = KINDS[kind]
    vf.fit(data=data(), out=tmp_path / "run", **{**SMALL, **settings})
    text = (tmp_path / "run" / CARD).read_text()
    lines = lines_of_use(text)
    assert len(lines.splitlines()) == 2 + verbs
    monkeypatch.chdir(tmp_path)
    made = {}
    exec(lines, made)
    for name in made.keys() & {"x", "log_p", "z", "codes", "log_q"}:
        assert len(made[name]) == (2 if kind == "two fits" else 5), name
        assert torch.isfinite(made[name].double()).all()
    if "log_p" in made:
        assert torch.equal(made["log_p"], made["run"].log_prob(made["x"]))
    assert ("exact" in lines) == (kind in ("maf", "mixture"))


def test_parts_of_ones_own_stand_in_the_lines_of_use(tmp_path, monkeypatch):
    vf.fit(vf.density(vf.priors.Mixture(3, 2), 3), rows(), steps=2, out=tmp_path / "model", quiet=True)
    text = (tmp_path / "model" / CARD).read_text()
    assert "A model whose parts were given in Python." in text
    parts = {row[0]: row[1:] for row in table(text, "part")}
    assert parts["prior"] == ["given in Python", "`varflow.priors.mixture:Mixture`"]
    blank = vf.density(vf.priors.Mixture(3, 2), 3)
    made = {"prior": blank.prior, "likelihood": blank.likelihood, "posterior": blank.posterior}
    monkeypatch.chdir(tmp_path)
    exec(lines_of_use(text), made)
    assert len(made["log_p"]) == 5
