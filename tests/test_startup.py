"""From Enter to the result: what a short fit imports, draws and scores, and what is done when it is asked for."""

import json
import subprocess
import sys

import pytest
import torch

import varflow as vf
from varflow import native
from varflow.core.errors import SpecError
from varflow.runs import scores, training_rows
from varflow.runs.training_rows import complete
from varflow.training import optimizers

SMALL = {"latent": 2, "hidden": 8, "layers": 1, "steps": 3, "quiet": True}
WORDS = ["--steps", "3", "--threads", "1", "--quiet", "--out"]


@pytest.mark.parametrize(
    "recipe",
    ["digits", pytest.param("energy", marks=pytest.mark.slow), pytest.param("density", marks=pytest.mark.slow)],
)
def test_a_fit_imports_neither_the_compiler_nor_what_draws(recipe, tmp_path):
    """Each costs more than a second: torch's compiler, and matplotlib where no report is asked for."""
    script = (
        "import sys\nfrom varflow.cli import main\n"
        "try:\n    main(sys.argv[1:])\nexcept SystemExit as end:\n    assert end.code == 0\n"
        "print([name for name in ('torch._dynamo', 'matplotlib', 'scipy', 'pandas') if name in sys.modules])\n"
    )
    words = ["fit", recipe, "--no-report", *WORDS, str(tmp_path / "run")]
    done = subprocess.run([sys.executable, "-c", script, *words], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize("kind", [optimizers.SGD, optimizers.AdamW, optimizers.Adamax, optimizers.RMSprop])
def test_optimizers_are_those_of_torch_to_the_bit(kind):
    ours, theirs = (torch.nn.Linear(3, 2) for _ in range(2))
    theirs.load_state_dict(ours.state_dict())
    made = kind(ours.parameters(), lr=0.1), getattr(torch.optim, kind.__name__)(theirs.parameters(), lr=0.1)
    called = []
    made[0].register_step_pre_hook(lambda *_: called.append("before"))
    made[0].register_step_post_hook(lambda *_: called.append("after"))
    for step in range(3):
        for layer, optimizer in zip((ours, theirs), made, strict=True):
            optimizer.zero_grad()
            layer(torch.ones(4, 3)).square().sum().backward()
            optimizer.step()
        if step == 1:
            for optimizer in made:
                optimizer.load_state_dict(optimizer.state_dict())
    assert torch.equal(ours.weight, theirs.weight)
    assert called == ["before", "after"] * 3
    assert not any(p.grad_fn for p in ours.parameters())


def test_hooks_of_the_fused_adam_run_once_a_step():
    layer, called = torch.nn.Linear(3, 2), []
    optimizer = optimizers.FusedAdam(layer.parameters(), fused=True)
    optimizer.register_step_pre_hook(lambda *_: called.append("before"))
    optimizer.register_step_post_hook(lambda *_: called.append("after"))
    for _ in range(2):
        layer(torch.ones(4, 3)).sum().backward()
        optimizer.step()
    assert called == ["before", "after"] * 2


def test_the_mark_for_the_compiler_is_torchs():
    def marked():
        return True

    torch.compiler.assume_constant_result(marked)
    assert vars(marked) == vars(native._in_use_for_compiler)


def listed(folder) -> list[str]:
    return [entry["file"] for entry in json.loads((folder / "figures" / "index.json").read_text())]


@pytest.mark.slow
def test_a_report_of_few_figures_and_one_of_all(tmp_path):
    run = vf.fit("digits", **SMALL, out=tmp_path / "run")
    page = run.report("few").read_text()
    assert listed(run.folder) == ["samples.png", "reconstructions.png", "curves.png"]
    assert page.count('<figure class="picture">') == 3
    run.report()
    every = listed(run.folder)
    assert {"samples.png", "latents.png", "hmc.png"} <= set(every)
    # Drawn of other weights, had the run gone on meanwhile.
    run.report("few")
    assert sorted(p.name for p in (run.folder / "figures").glob("*.png")) == sorted(listed(run.folder))
    with pytest.raises(SpecError, match=r"figures: .*'most'.*all, few"):
        run.report("most")


def test_few_figures_of_a_target_leave_the_film_for_later(tmp_path):
    run = vf.fit("energy", target="u1", length=2, samples=16, steps=420, quiet=True, out=tmp_path / "run")
    run.report("few")
    assert listed(run.folder) == ["densities.png", "bound.png"]


def test_a_short_fit_scores_few_training_rows_and_an_evaluation_the_rest(tmp_path, monkeypatch):
    monkeypatch.setattr("varflow.runs.training_rows._SHARE", 0.0)
    monkeypatch.setattr("varflow.runs.scores._SECONDS", 1000.0)
    monkeypatch.setattr("varflow.runs.latent_space._SECONDS", 1000.0)
    run = vf.fit("digits", **SMALL, out=tmp_path / "run", train_limit=600)
    kept = tmp_path / "run" / "training_scores.json"
    few = json.loads(kept.read_text())
    assert few["brief"]
    assert len(few["log_prob"]) == 4
    run.evaluate(samples=2, limit=5)
    all_of_them = json.loads(kept.read_text())
    assert len(all_of_them["log_prob"]) == 600
    assert "brief" not in all_of_them
    assert all_of_them["log_prob"][:4] == few["log_prob"]
    with pytest.raises(SpecError, match="there are 600 rows to look among"):
        vf.load(tmp_path / "run").nearest(torch.zeros(1, 1, 8, 8, dtype=torch.uint8), k=601)
    neighbours = vf.load(tmp_path / "run").nearest(torch.zeros(1, 1, 8, 8, dtype=torch.uint8), k=600)
    assert len(neighbours.rows[0]) == 600
    called = []
    monkeypatch.setattr(training_rows, "write_training_scores", lambda *_: called.append(1))
    complete(run, tmp_path / "run")
    assert not called
    assert not scores.few_are_scored(tmp_path / "run")
