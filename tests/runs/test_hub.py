"""Runs on the hub: opened from its cache and from a small server, put there, and what is said when that fails."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from small_hub import SmallHub

import varflow as vf
from varflow.cli import main
from varflow.core.errors import RunError, SpecError
from varflow.core.files import ARTEFACT, TRAINING_ROWS, present
from varflow.report.card import CARD
from varflow.runs.hub import Address, address, is_address

huggingface_hub = pytest.importorskip("huggingface_hub")
from huggingface_hub import constants  # noqa: E402

COMMIT = "c0ffee" * 6 + "beef"
SMALL = {"quiet": True, "threads": 1}


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A density of points that are made on the spot, evaluated and drawn."""
    folder = tmp_path_factory.mktemp("finished")
    run = vf.fit("density", steps=3, data="gaussian-1", train_limit=200, out=folder / "run", **SMALL)
    run.evaluate(limit=50)
    (run.folder / "figures").mkdir()
    (run.folder / "figures" / "points.png").write_bytes(b"\x89PNG")
    return run.folder


@pytest.fixture(scope="module")
def own(tmp_path_factory):
    """A density of a table of one's own."""
    folder = tmp_path_factory.mktemp("own")
    x = torch.randn(60, 2, generator=torch.Generator().manual_seed(0))
    (folder / "mine.csv").write_text("\n".join(f"{a:.5f},{b:.5f}" for a, b in x.tolist()))
    run = vf.fit("density", folder / "mine.csv", steps=2, out=folder / "run", **SMALL)
    run.evaluate()
    return run.folder


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """An empty cache of the hub."""
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def offline(cache, monkeypatch):
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    return cache


@pytest.fixture
def hub(cache, monkeypatch):
    """A server in place of the hub."""
    small = SmallHub()
    monkeypatch.setattr(constants, "ENDPOINT", small.address)
    url = small.address + "/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", url)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    # The client waits for a server that is out of order.
    monkeypatch.setattr("huggingface_hub.utils._http.time.sleep", lambda seconds: None)
    huggingface_hub.utils.disable_progress_bars()
    yield small
    huggingface_hub.utils.enable_progress_bars()
    small.close()


def lay(cache, folder, repository="lab/points", below="", names=None):
    """A repository in a cache as the hub's client lays it: refs, blobs, and snapshots of links."""
    home = cache / f"models--{repository.replace('/', '--')}"
    for room in ("refs", "blobs"):
        (home / room).mkdir(parents=True, exist_ok=True)
    (home / "refs" / "main").write_text(COMMIT)
    for name in present(folder, [*ARTEFACT, *TRAINING_ROWS]) if names is None else names:
        blob = home / "blobs" / name.replace("/", "-")
        shutil.copy(folder / name, blob)
        link = home / "snapshots" / COMMIT / below / name
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(os.path.relpath(blob, link.parent))
    return home


def content(folder):
    """path → bytes of everything in a folder."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def call(capsys, *arguments):
    with pytest.raises(SystemExit) as end:
        main([str(word) for word in arguments])
    out, err = capsys.readouterr()
    return end.value.code, out, err


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("hf://lab/points", Address("lab/points")),
        ("hf://lab/points@v1", Address("lab/points", "", "v1")),
        ("hf://lab/points@refs/pr/3", Address("lab/points", "", "refs/pr/3")),
        ("hf://lab/points/runs/a@v1", Address("lab/points", "runs/a", "v1")),
        ("hf://models/lab/my.points_2", Address("lab/my.points_2")),
        (Path("hf://lab/points"), Address("lab/points")),
    ],
)
def test_addresses(text, found):
    assert is_address(text)
    assert address(text) == found
    assert address(str(found)) == found


@pytest.mark.parametrize(
    "text",
    ["hf://points", "hf://", "hf://lab/", "hf://lab/points@", "hf://lab/a/../b", "hf://lab/a//b", "hf://l b/a",
     "hf://lab/a--b", "hf://-lab/a", "hf://lab/points?x"],
)  # fmt: skip
def test_what_is_no_address_is_refused(text):
    with pytest.raises(SpecError, match="no address on the hub; write hf://owner/name"):
        vf.load(text)


def test_other_kinds_of_repositories_are_refused():
    with pytest.raises(SpecError, match="is a data set; a run lies in a model repository"):
        vf.load("hf://datasets/lab/points")
    assert not is_address("runs/planar")
    assert not is_address(Path("hf.co/lab/points"))


def test_a_run_in_the_cache_is_the_run(finished, offline):
    home = lay(offline, finished)
    before = content(offline)
    run, here = vf.load("hf://lab/points"), vf.load(finished)
    x = here.sample(20)
    assert torch.equal(run.sample(20), x)
    assert torch.equal(run.log_prob(x), here.log_prob(x))
    assert torch.equal(run.embed(x), here.embed(x))
    assert run.origin == f"hf://lab/points@{COMMIT}"
    assert run.folder == home / "snapshots" / COMMIT
    assert here.origin is None
    assert content(offline) == before


def test_revisions_and_folders_in_the_cache(finished, offline):
    home = lay(offline, finished, below="runs/[a]")
    (home / "refs" / "v1").write_text(COMMIT)
    for text in ("hf://lab/points/runs/[a]@v1", f"hf://lab/points/runs/[a]@{COMMIT}"):
        run = vf.load(text)
        assert run.folder == home / "snapshots" / COMMIT / "runs" / "[a]"
        assert run.origin == f"hf://lab/points/runs/[a]@{COMMIT}"


def test_an_evaluation_is_given_back_and_not_kept(finished, offline, tmp_path):
    lay(offline, finished)
    before = content(offline)
    run = vf.load("hf://lab/points")
    assert run.scores(run.sample(3), anomaly=True, training_rows=20).training_rows == 20
    found = run.evaluate(limit=50)
    assert found.estimates["nll"].value == vf.load(finished).evaluate(limit=50).estimates["nll"].value
    with pytest.raises(RunError, match=r"not written to; take a copy first, run\.copy\('runs/mine'\)"):
        run.report()
    assert content(offline) == before

    copied = run.copy(tmp_path / "mine")
    assert copied.origin is None
    assert not any(path.is_symlink() for path in copied.folder.rglob("*"))
    assert f"A copy of `hf://lab/points@{COMMIT}`." in (copied.folder / CARD).read_text()
    copied.evaluate(limit=7)
    assert "| 7 |" in (copied.folder / CARD).read_text()
    assert content(offline) == before
    with pytest.raises(RunError, match="already holds a run"):
        run.copy(tmp_path / "mine")

    (copied.folder / CARD).write_text((copied.folder / CARD).read_text() + "My words.\n")
    third = copied.copy(tmp_path / "third")
    assert (third.folder / CARD).read_text().endswith("My words.\n")
    assert third.dataset is copied.dataset


def test_reports_and_comparisons_of_a_copy_do_without_single_examples(finished, offline, tmp_path, monkeypatch):
    lay(offline, finished)
    copied = vf.load("hf://lab/points").copy(tmp_path / "mine")
    drawn = []
    gallery = "varflow.figures.gallery_data.gallery"
    monkeypatch.setattr(gallery, lambda *given, **options: drawn.append(options["evaluation"]))
    assert "Estimates on the test split" in copied.report().read_text()
    assert drawn == [None]
    from varflow.runs.comparison import compare

    with pytest.raises(RunError, match="single examples do not travel with a run from the hub"):
        compare([copied.folder, finished])
    with pytest.raises(SpecError, match=r"evaluate it first: varflow evaluate hf://lab/points --out FOLDER"):
        compare(["hf://lab/points", finished])


def test_the_variables_of_the_hubs_client_hold_and_torch_waits(finished, tmp_path):
    lay(tmp_path / "home" / "hub", finished)
    script = (
        "import sys; from varflow.runs.hub import located\n"
        "print(located('hf://lab/points')); assert 'torch' not in sys.modules\n"
        "located('hf://lab/others')"
    )
    kept = {k: v for k, v in os.environ.items() if k != "HF_HUB_CACHE"}
    env = {**kept, "HF_HOME": str(tmp_path / "home"), "HF_HUB_OFFLINE": "1"}
    done = subprocess.run([sys.executable, "-c", script], env=env, capture_output=True, text=True, check=False)
    assert f"snapshots/{COMMIT}" in done.stdout
    assert "hf://lab/others is not in the hub's cache" in done.stderr
    assert "HF_HUB_OFFLINE is set; unset it to reach the hub" in done.stderr


def test_what_is_missing_in_the_cache_is_said(finished, offline):
    lay(offline, finished, "lab/other", names=["run.json"])
    with pytest.raises(RunError, match=r"in the hub's cache without a varflow run \(no spec\.json\)"):
        vf.load("hf://lab/other")
    with pytest.raises(RunError, match=r"hf://lab/none is not in the hub's cache .*HF_HUB_OFFLINE is set"):
        vf.load("hf://lab/none")
    lay(offline, finished)
    with pytest.raises(RunError, match=r"hf://lab/points@v9 is not in the hub's cache"):
        vf.load("hf://lab/points@v9")


def test_a_push_and_what_comes_back(own, hub, cache):
    before, x = content(own), torch.randn(5, 2)
    run = vf.load(own)
    pushed = run.push("lab/points")
    assert content(own) == before
    files = hub.files("lab/points")
    told = ["spec.json", "model.safetensors", "preprocessing.json", "data.json", "run.json", "metrics.jsonl"]
    assert set(files) == {".gitattributes", *told, "evaluation/test.json", "README.md"}
    for name in ("model.safetensors", "metrics.jsonl", "preprocessing.json", "run.json"):
        assert files[name] == (own / name).read_bytes()
    assert hub.messages == ["varflow run run"]
    assert not hub.repositories["lab/points"]["private"]

    # Nothing says where the data lie on this machine; everything else of these files stays.
    assert not [name for name, blob in files.items() if str(own.parent).encode() in blob]
    for name, gone in (("data.json", {"source"}), ("spec.json", set())):
        there, here = json.loads(files[name]), json.loads((own / name).read_text())
        assert set(here) - set(there) == gone
    assert json.loads(files["spec.json"])["data"]["data"] == "mine.csv"

    again = vf.load("hf://lab/points")
    assert again.origin == pushed
    assert torch.equal(again.log_prob(x), run.log_prob(x))
    assert Path(again.folder).is_relative_to(cache)


def test_the_card_of_a_pushed_run_opens_it_from_there(own, hub):
    vf.load(own).push("lab/points/runs/a", revision="dev")
    card = hub.files("lab/points", "dev")["runs/a/README.md"].decode()
    (lines,) = [part.partition("\n```")[0] for part in card.split("```python\n")[1:]]
    assert 'vf.load("hf://lab/points/runs/a@dev")' in lines
    made = {}
    exec(lines, made)
    assert made["run"].origin.startswith("hf://lab/points/runs/a@")
    assert "training_scores.json" not in card
    assert "training_scores.json" in (own / CARD).read_text()
    sizes = {row.split("|")[1].strip(" `"): row.split("|")[2] for row in card.splitlines() if row.startswith("| `")}
    for name in ("spec.json", "data.json", "model.safetensors", "evaluation/test.json"):
        size = len(hub.files("lab/points", "dev")[f"runs/a/{name}"])
        assert int(sizes[name].replace(",", "")) == size


def test_figures_and_training_rows_go_along_only_when_asked_for(finished, hub):
    run = vf.load(finished)
    run.push("lab/points", private=True, message="first", figures=True, training_rows=True)
    files = hub.files("lab/points")
    assert {"figures/points.png", *TRAINING_ROWS} <= set(files)
    assert hub.repositories["lab/points"]["private"]
    run = vf.load("hf://lab/points")
    assert run.scores(run.sample(3), anomaly=True).rank.shape == (3,)

    # A later push takes back what an earlier one has left, and touches nothing else.
    hub.put("lab/points", {**files, "LICENSE": b"mine", "notes.json": b"{}", "sub/spec.json": b"{}"})
    vf.load(finished).push("lab/points")
    left = set(hub.files("lab/points"))
    assert not left & {"figures/points.png", *TRAINING_ROWS}
    assert {"LICENSE", "notes.json", "sub/spec.json"} <= left


def test_nothing_but_the_files_of_a_run_is_fetched(finished, hub, cache):
    vf.load(finished).push("lab/points")
    strange = (
        "evil.py", "pytorch_model.bin", "state.pt", "other.json", "other.safetensors", "prior/codes.safetensors",
        "evaluation/test.npz", "snapshots/step-00000000.safetensors",
    )  # fmt: skip
    hub.put("lab/points", {**hub.files("lab/points"), **dict.fromkeys(strange, b"x")})
    hub.asked.clear()
    run = vf.load("hf://lab/points")
    assert {str(path.relative_to(run.folder)) for path in run.folder.rglob("*") if path.is_file()} == {
        *("spec.json", "model.safetensors", "preprocessing.json", "data.json", "run.json", "metrics.jsonl"),
        "evaluation/test.json",
    }
    assert not [path for _, path in hub.asked if path.endswith(strange)]
    hub.asked.clear()
    vf.load("hf://lab/points")
    assert len(hub.asked) == 1


def test_all_files_are_of_one_commit(finished, hub):
    vf.load(finished).push("lab/points")
    first = hub.repositories["lab/points"]["branches"]["main"]
    hub.put("lab/points", {"spec.json": b"{}"})
    run = vf.load(f"hf://lab/points@{first}")
    assert run.folder.name == first


def test_what_the_hub_refuses_is_said_in_a_sentence(finished, hub):
    run = vf.load(finished)
    run.push("lab/points")
    hub.put("lab/empty", {"config.json": b"{}"})
    hub.put("lab/foreign", {"spec.json": b'{"kind": "openapi"}'})
    hub.gated.add("lab/gated")
    for text, message in (
        ("hf://lab/none", r"there is no model repository lab/none on the hub, or it is private .* `hf auth login`"),
        ("hf://lab/gated", r"lab/gated is gated; ask for access"),
        ("hf://lab/points@v9", r"lab/points has no revision 'v9'; give a branch, a tag or a commit"),
        ("hf://lab/empty", r"hf://lab/empty holds no varflow run \(no spec\.json in it\); .*name the folder"),
        ("hf://lab/points/a", r"hf://lab/points/a holds no varflow run \(no spec\.json in the folder 'a' of it\)"),
        ("hf://lab/foreign", r"holds no varflow run \(its spec\.json is of something else\)"),
    ):
        with pytest.raises(RunError, match=message):
            vf.load(text)
    hub.broken = True
    with pytest.raises(RunError, match=r"hf://lab/fresh is not in the hub's cache .*, and the hub cannot be reached"):
        vf.load("hf://lab/fresh")
    with pytest.raises(RunError, match=r"the hub answered for lab/points: .*500.*; try again later"):
        run.push("lab/points")


def test_without_a_network_the_cache_serves_and_a_push_is_refused(finished, hub, monkeypatch):
    run = vf.load(finished)
    pushed = run.push("lab/points")
    vf.load("hf://lab/points")
    hub.close()
    assert vf.load("hf://lab/points").origin == pushed
    with pytest.raises(RunError, match=r"hf://lab/fresh is not in .*, and the hub cannot be reached"):
        vf.load("hf://lab/fresh")
    with pytest.raises(RunError, match=r"hf://lab/points: the hub cannot be reached"):
        run.push("lab/points")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(RunError, match="HF_HUB_OFFLINE is set; unset it to reach the hub"):
        run.push("lab/points")


def test_a_readme_that_the_hub_does_not_take_is_named(finished, hub, tmp_path):
    folder = shutil.copytree(finished, tmp_path / "run")
    (folder / CARD).write_text("no front matter")
    with pytest.raises(RunError, match=r"does not take README\.md \(.*no front matter\); mend its front matter"):
        vf.load(folder).push("lab/points")
    (folder / CARD).write_text("---\nlicense: mit\n---\nMy own.\n")
    vf.load(folder).push("lab/points")
    assert hub.files("lab/points")["README.md"] == (folder / CARD).read_bytes()


def test_the_weights_of_both_stages_travel(hub, tmp_path):
    x = torch.randint(0, 256, (40, 8, 8), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    run = vf.fit(
        "vq-pixelcnn", vf.data.from_tensor(x, protocol="symmetric"), steps=1, prior_steps=1, codes=4, code_features=4,
        blocks=1, prior_channels=4, prior_length=1, prior_kernel=3, prior_embedding=2, prior_hidden=4, classes=0,
        out=tmp_path / "run", **SMALL,
    )  # fmt: skip
    run.push("lab/codes")
    files = hub.files("lab/codes")
    assert {"prior/model.safetensors", "prior/metrics.jsonl"} <= set(files)
    assert "prior/codes.safetensors" not in files
    again = vf.load("hf://lab/codes")
    assert torch.equal(again.sample(3), run.sample(3))
    assert len(again.code_prior_metrics) == len(run.code_prior_metrics)
    hub.put("lab/codes", {name: blob for name, blob in files.items() if name != "prior/model.safetensors"})
    with pytest.raises(RunError, match=r"hf://lab/codes lacks prior/model\.safetensors"):
        vf.load("hf://lab/codes")


def test_what_cannot_be_pushed_or_copied_is_refused(finished, tmp_path, monkeypatch):
    run = vf.fit("density", torch.randn(40, 2), steps=1, **SMALL)
    with pytest.raises(RunError, match=r"push: this run is in memory; fit with out=\.\.\."):
        run.push("lab/points")
    with pytest.raises(RunError, match="copy: this run is in memory"):
        run.copy(tmp_path / "copy")
    kept = vf.load(finished)
    with pytest.raises(SpecError, match="repository: 'points' is no address on the hub"):
        kept.push("points")
    with pytest.raises(SpecError, match="revision: was 'b', and the address says @a"):
        kept.push("lab/points@a", revision="b")
    with pytest.raises(RunError, match="no state is kept that a fit goes on from"):
        vf.resume("hf://lab/points")
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    for use in (lambda: kept.push("lab/points"), lambda: vf.load("hf://lab/points")):
        with pytest.raises(RunError, match=r"needs huggingface_hub; install it with: pip install 'varflow\[hub\]'"):
            use()


def test_the_command_line_reads_runs_on_the_hub(finished, offline, tmp_path, capsys, monkeypatch):
    lay(offline, finished)
    # Figures take their time, and are drawn in another test.
    monkeypatch.setattr(vf.Run, "report", lambda run: run.folder / "report.html")
    before = content(offline)
    (tmp_path / "new.csv").write_text("1.0,2.0\n0.5,1.5\n")
    where = "hf://lab/points"
    code, _, err = call(capsys, "score", where, tmp_path / "new.csv", "--out", tmp_path / "s.csv", "--quiet")
    assert (code, err) == (0, "")
    here = vf.load(finished).log_prob(torch.tensor([[1.0, 2.0], [0.5, 1.5]]))
    lines = (tmp_path / "s.csv").read_text().splitlines()[1:]
    assert [float(line.split(",")[1]) for line in lines] == pytest.approx(here.tolist(), rel=1e-5)

    assert call(capsys, "sample", where, "--count", "3", "--out", tmp_path / "z.csv", "--quiet")[0] == 0
    for verb in ("sample", "reconstruct", "interpolate", "evaluate", "report", "anneal", "gaps", "curve"):
        code, out, err = call(capsys, verb, where, *(["0", "1"] if verb == "interpolate" else []))
        assert (code, out) == (2, "")
        assert err.startswith("varflow: out: missing; hf://lab/points lies in the hub's cache, which is not written")
        assert err.count("\n") == 1
    code, out, err = call(capsys, "evaluate", where, "--limit", "9", "--out", tmp_path / "mine", "--quiet")
    assert (code, out, err) == (0, "", "")
    assert "| 9 |" in (tmp_path / "mine" / CARD).read_text()
    code, out, _ = call(capsys, "show", where)
    assert code == 0
    assert out.startswith(f"{where}: recipe density")
    code, _, err = call(capsys, "fit", "--resume", where)
    assert code == 2
    assert "no state is kept" in err
    assert content(offline) == before


def test_the_command_line_pushes(finished, hub, capsys):
    words = ("--message", "from the shell", "--private", "--quiet")
    assert call(capsys, "push", finished, "lab/points", *words) == (0, "", "")
    assert hub.messages == ["from the shell"]
    assert hub.repositories["lab/points"]["private"]
    code, out, _ = call(capsys, "push", finished, "lab/points", "--training-rows")
    assert out == f"hf://lab/points@{hub.repositories['lab/points']['branches']['main']}\n"
    assert set(TRAINING_ROWS) <= set(hub.files("lab/points"))
    code, _, err = call(capsys, "push", finished)
    assert code == 2
    assert "repository: missing; give where it goes on the hub, e.g. varflow push runs/planar owner/name" in err
    code, _, err = call(capsys, "push", finished.parent, "lab/points")
    assert "holds no run (no spec.json)" in err
