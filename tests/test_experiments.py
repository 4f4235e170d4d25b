"""The rows of the experiments are runs that exist, resume, and are judged by numbers; the pages are made of these."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def experiments() -> Iterator[dict[str, ModuleType]]:
    """They are no part of the package: their folder stands beside it."""
    sys.path.insert(0, str(ROOT))
    try:
        from experiments import best_dense, campaign, prior_at_z0, published, systems

        yield {m.__name__.rpartition(".")[2]: m for m in (best_dense, campaign, prior_at_z0, published, systems)}
    finally:
        sys.path.remove(str(ROOT))


def rows(experiments: dict[str, ModuleType]) -> list:
    return [*experiments["systems"].ROWS, *experiments["published"].ROWS, *experiments["best_dense"].rows()]


def test_every_fit_is_one_that_can_be_made(experiments: dict[str, ModuleType]) -> None:
    names = [row.name for row in rows(experiments)]
    assert len(set(names)) == len(names)
    for row in rows(experiments):
        works = [work.name for work in row.fits]
        assert len(set(works)) == len(works)
        assert {name for pair in row.pairs for name in pair[:2]} <= set(works)
        for work in row.fits:
            if isinstance(work, experiments["campaign"].Fit):
                work.spec().validate()
                assert work.total() > 0
                assert work.command().startswith(f"varflow fit {work.recipe}")


def test_a_row_goes_on_and_tells_how_far_it_is(experiments: dict[str, ModuleType], tmp_path: Path) -> None:
    campaign = experiments["campaign"]
    works = [
        campaign.Fit(name, "digits", {"latent": 2, "hidden": 8, "steps": 20, "flow": flow}, samples=3, limit=20)
        for name, flow in (("plain", "none"), ("planar", "planar"))
    ]
    judged = []

    def judge(found: dict) -> object:
        judged.append(found)
        return campaign.Verdict("holds", f"{found['pairs'][campaign.pair('planar', 'plain', 'elbo')]['value']:.2f}")

    row = campaign.Row("tiny", "we", "digits", "–", "none", "–", works, [("planar", "plain", "elbo")], judge)
    runs, results, page = tmp_path / "runs", tmp_path / "results", tmp_path / "page.md"
    home = runs / "tiny" / "plain"
    assert campaign.state(works[0], home) == "not run"
    works[0].run(home)
    assert campaign.state(works[0], home) == "finished"
    before = (home / "evaluation" / "test.json").stat().st_mtime_ns
    works[0].run(home)
    assert (home / "evaluation" / "test.json").stat().st_mtime_ns == before

    found = campaign.collect(row, runs, results, tmp_path)
    assert campaign.verdict(row, found).word == "open"
    assert found["states"] == {"planar": "not run"}
    works[1].run(runs / "tiny" / "planar")
    found = campaign.collect(row, runs, results, tmp_path)
    campaign.write_page([row], {"tiny": found}, "tiny", page, tmp_path)
    assert "**holds**" in page.read_text()
    # Without the runs the same page comes of the numbers that were kept.
    text = page.read_text()
    again = campaign.collect(row, tmp_path / "elsewhere", results, tmp_path)
    assert again == json.loads((results / "tiny.json").read_text())
    campaign.write_page([row], {"tiny": again}, "tiny", page, tmp_path)
    assert page.read_text() == text


def test_a_cut_off_fit_is_taken_up(experiments: dict[str, ModuleType], tmp_path: Path) -> None:
    import varflow as vf

    class Cut(vf.training.Callback):
        def recorded(self, record: Any, fitting: Any) -> None:
            if fitting.step:
                raise KeyError("the machine went away")

    campaign = experiments["campaign"]
    settings = {"latent": 2, "hidden": 8, "steps": 600, "flow": "none"}
    work = campaign.Fit("cut", "digits", settings, samples=2, limit=10)
    with pytest.raises(vf.errors.RunError, match="Cut"):
        vf.fit("digits", out=tmp_path / "cut", quiet=True, callbacks=[Cut()], threads=1, **settings)
    assert campaign.state(work, tmp_path / "cut").startswith("at step 100 of 600")
    work.run(tmp_path / "cut")
    assert campaign.outcome(tmp_path / "cut")["step"] == 600
    assert campaign.state(work, tmp_path / "cut") == "finished"


def test_stages_are_evaluated_on_the_way(experiments: dict[str, ModuleType], tmp_path: Path) -> None:
    published = experiments["published"]
    settings = {"data": "digits", "protocol": "threshold", "hidden": 8, "latent": 2, "samples": 2, "batch": 100}
    work = published.Staged("k2", "iwae", settings, samples=3, limit=20, stages=(1, 2), on_the_way=2)
    work.run(tmp_path / "k2")
    found = work.measure(tmp_path / "k2")
    assert found is not None
    assert [point["epoch"] for point in found["curve"]] == [1, 2]
    assert found["curve"][1]["step"] == found["step"] == 2 * found["curve"][0]["step"]


def test_their_loss_charges_the_prior_at_z0(experiments: dict[str, ModuleType], tmp_path: Path) -> None:
    """Once it did not reach the loop any more, and both losses trained the same model."""
    systems = experiments["systems"]
    found = {}
    for kind in (systems.Fit, systems.AtZ0):
        settings = {"data": "digits", "latent": 2, "hidden": 8, "flow": "radial", "length": 4, "steps": 40}
        work = kind("radial", "dense-static", {**settings, "protocol": "threshold"}, samples=2, limit=20)
        work.run(tmp_path / kind.__name__)
        found[kind.__name__] = work.measure(tmp_path / kind.__name__)
    assert found["Fit"]["second_moment"] != found["AtZ0"]["second_moment"]


def test_the_pages_are_those_of_the_kept_numbers(experiments: dict[str, ModuleType], tmp_path: Path) -> None:
    campaign = experiments["campaign"]
    for name in ("systems", "published"):
        results = campaign.RESULTS / name
        found = {
            row.name: campaign.collect(row, tmp_path / "none", results, tmp_path) for row in experiments[name].ROWS
        }
        path = ROOT / "docs" / ("experiments.md" if name == "systems" else "published.md")
        text, pictures = path.read_text(), ROOT / "docs" / "experiments"
        assert campaign.page_text(experiments[name].ROWS, found, f"experiments.{name}", text, path, pictures) == text
