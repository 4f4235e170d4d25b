"""A process in place of one that died: it goes on with the run that it finds, and with no other."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist

import varflow as vf
from varflow.core import ranks
from varflow.core.errors import RankError, RunError
from varflow.core.files import read_json, read_metrics
from varflow.runs import restarts
from varflow.runs.folder import METRICS, RUN, SPEC, WEIGHTS, read_state
from varflow.training.loop import Loop

SETTINGS = {
    "latent": 3, "hidden": 16, "layers": 1, "flow": "planar", "length": 2, "amortized": True, "threads": 1,
    "quiet": True, "batch": 64, "steps": 40, "validate_every": "10 steps",
}  # fmt: skip
CODES = {
    "codes": 6, "code_features": 4, "blocks": 1, "batch": 16, "steps": 4, "prior_channels": 4, "prior_length": 1,
    "prior_kernel": 3, "prior_hidden": 4, "prior_batch": 16, "prior_steps": 4, "protocol": "symmetric", "threads": 1,
    "quiet": True,
}  # fmt: skip
TIMES = ("seconds", "steps_per_second")


class Killed(BaseException):
    """What ends a process is not caught by anything."""


def fit(folder: Path, **settings: Any) -> vf.Run:
    return vf.fit("digits", out=folder, **{**SETTINGS, **settings})


def records(folder: Path) -> list[dict[str, Any]]:
    return [{k: v for k, v in record.items() if k not in TIMES} for record in read_metrics(folder)]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run that nothing disturbs."""
    folder = tmp_path_factory.mktemp("whole") / "run"
    fit(folder)
    return folder


@pytest.fixture
def launched(monkeypatch: pytest.MonkeyPatch) -> None:
    """This process belongs to a launch."""
    monkeypatch.setattr(ranks, "launch", lambda: "first")


def another_process(monkeypatch: pytest.MonkeyPatch, launch: str = "first") -> None:
    monkeypatch.setattr(restarts, "_own", set())
    monkeypatch.setattr(ranks, "launch", lambda: launch)


def killed_at(monkeypatch: pytest.MonkeyPatch, step: int, folder: Path, **settings: Any) -> None:
    """A fit that a kill ends before it has taken so many steps; its state was saved at the last boundary."""
    update = Loop.update

    def until(loop: Loop) -> torch.Tensor:
        if loop.step == step:
            raise Killed
        return update(loop)

    with monkeypatch.context() as patched:
        patched.setattr(Loop, "update", until)
        with pytest.raises(Killed):
            fit(folder, save_every=1e-9, **settings)


def no_update(monkeypatch: pytest.MonkeyPatch) -> None:
    def update(loop: Loop) -> None:
        raise AssertionError(f"an update at step {loop.step}")

    monkeypatch.setattr(Loop, "update", update)


@pytest.mark.parametrize("overwrite", [False, True])
def test_the_process_in_its_place_goes_on_to_the_same_bits(
    whole: Path, tmp_path: Path, launched: None, monkeypatch: pytest.MonkeyPatch, overwrite: bool
) -> None:
    folder = tmp_path / "run"
    killed_at(monkeypatch, 25, folder, overwrite=overwrite)
    assert read_json(folder / RUN)["launch"] == "first"
    assert read_state(folder)["step"] == 20
    another_process(monkeypatch)
    first = []
    update = Loop.update
    monkeypatch.setattr(Loop, "update", lambda loop: (first.append(loop.step), update(loop))[1])
    run = fit(folder, save_every=1e-9, overwrite=overwrite)
    assert first[0] == 20
    assert run.outcome["finished"]
    assert (folder / WEIGHTS).read_bytes() == (whole / WEIGHTS).read_bytes()
    assert records(folder) == records(whole)


@pytest.mark.parametrize(
    ("launch", "settings"), [("second", {}), (None, {}), ("first", {"seed": 1}), ("first", {"steps": 41})]
)
def test_no_other_run_is_taken_up(
    tmp_path: Path, launched: None, monkeypatch: pytest.MonkeyPatch, launch: Any, settings: Any
) -> None:
    folder = tmp_path / "run"
    killed_at(monkeypatch, 5, folder)
    another_process(monkeypatch, launch)
    with pytest.raises(RunError, match="already holds a run; go on with --resume"):
        fit(folder, save_every=1e-9, **settings)


def test_the_process_that_began_a_run_does_not_take_its_own_place(
    tmp_path: Path, launched: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "run"
    fit(folder, steps=1)
    with pytest.raises(RunError, match="already holds a run"):
        fit(folder, steps=1)
    fit(folder, steps=1, overwrite=True)
    seen = []
    update = Loop.update
    monkeypatch.setattr(Loop, "update", lambda loop: (seen.append(loop.step), update(loop))[1])
    fit(folder, steps=1, overwrite=True)
    assert seen == [0]


def test_a_clearing_that_was_cut_off_is_begun_again(
    tmp_path: Path, launched: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "run"
    fit(folder, steps=1)
    (folder / RUN).unlink()
    another_process(monkeypatch)
    assert fit(folder, steps=1, overwrite=True).outcome["step"] == 1


def test_a_finished_fit_is_not_trained_again(
    whole: Path, tmp_path: Path, launched: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As where a process dies while it draws the report."""
    folder = tmp_path / "run"
    before = fit(folder)
    another_process(monkeypatch)
    no_update(monkeypatch)
    for run in (fit(folder), fit(folder, overwrite=True), vf.resume(folder, quiet=True)):
        assert run.folder == folder
        assert run.outcome == before.outcome
        assert run.metrics == before.metrics
        for name, value in before.model.state_dict().items():
            assert torch.equal(run.model.state_dict()[name], value), name
    another_process(monkeypatch, "second")
    with pytest.raises(RunError, match="is finished"):
        vf.resume(folder, quiet=True)


@pytest.mark.parametrize("launch", ["first", None])
def test_a_kill_between_the_last_update_and_the_end_leaves_only_the_end_to_do(
    whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, launch: Any
) -> None:
    folder = tmp_path / "run"
    another_process(monkeypatch, launch)

    def cut(*arguments: Any) -> None:
        raise Killed

    with monkeypatch.context() as patched:
        patched.setattr(Loop, "_outcome", cut)
        with pytest.raises(Killed):
            fit(folder)
    assert read_state(folder)["step"] == 40
    another_process(monkeypatch, launch)
    no_update(monkeypatch)
    run = fit(folder) if launch else vf.resume(folder, quiet=True)
    assert run.outcome["finished"]
    assert read_json(folder / RUN)["outcome"]["finished"]
    assert (folder / WEIGHTS).read_bytes() == (whole / WEIGHTS).read_bytes()
    assert records(folder) == records(whole)


def test_both_stages_of_a_code_prior_go_on(
    tmp_path: Path, launched: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    x = torch.randint(0, 256, (96, 1, 8, 8), generator=torch.Generator().manual_seed(7), dtype=torch.uint8)
    whole = vf.fit("vq-pixelcnn", x, out=tmp_path / "whole", **CODES)
    outcome, calls = Loop._outcome, []

    def cut(loop: Loop, *arguments: Any) -> Any:
        calls.append(loop.step)
        # The end of the quantizer, then that of the prior.
        if len(calls) in (1, 3):
            raise Killed
        return outcome(loop, *arguments)

    monkeypatch.setattr(Loop, "_outcome", cut)
    folder = tmp_path / "run"
    for _ in range(2):
        with pytest.raises(Killed):
            vf.fit("vq-pixelcnn", x, out=folder, **CODES)
        another_process(monkeypatch)
    run = vf.fit("vq-pixelcnn", x, out=folder, **CODES)
    assert run.outcome["finished"]
    assert run.outcome["code_prior"]["step"] == 4
    for name in (WEIGHTS, f"prior/{WEIGHTS}"):
        assert (folder / name).read_bytes() == (whole.folder / name).read_bytes()
    another_process(monkeypatch)
    no_update(monkeypatch)
    again = vf.fit("vq-pixelcnn", x, out=folder, **CODES)
    for name, value in whole.model.state_dict().items():
        assert torch.equal(again.model.state_dict()[name], value), name


def test_where_another_process_ends_the_last_look_at_the_terms_is_saved(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, update = tmp_path / "run", Loop.update

    def until(loop: Loop) -> torch.Tensor:
        if loop.step == 27:
            raise RankError("another process of this run ended")
        return update(loop)

    with monkeypatch.context() as patched:
        patched.setattr(Loop, "update", until)
        with pytest.raises(RankError):
            fit(folder)
    assert read_state(folder)["step"] == 20
    vf.resume(folder, quiet=True)
    whole = fit(tmp_path / "whole")
    assert (folder / WEIGHTS).read_bytes() == (whole.folder / WEIGHTS).read_bytes()
    assert records(folder) == records(whole.folder)


def test_records_of_a_validation_that_was_cut_off_come_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder, validate = tmp_path / "run", Loop._validate

    def until(loop: Loop) -> None:
        if loop.step == 20:
            raise RankError("another process of this run ended")
        validate(loop)

    with monkeypatch.context() as patched:
        patched.setattr(Loop, "_validate", until)
        with pytest.raises(RankError):
            fit(folder)
    assert read_state(folder)["step"] == 10
    vf.resume(folder, quiet=True)
    whole = fit(tmp_path / "whole")
    assert records(folder) == records(whole.folder)


def test_a_launch_has_one_name_for_all_its_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    names = []
    for _ in range(2):
        store = dist.TCPStore("127.0.0.1", 0, is_master=True, timeout=timedelta(seconds=30))
        for name, value in {
            "TORCHELASTIC_USE_AGENT_STORE": "True", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(store.port)
        }.items():  # fmt: skip
            monkeypatch.setenv(name, value)
        names.append([ranks.launch() for _ in range(3)])
    assert [len(set(each)) for each in names] == [1, 1]
    assert None not in names[0]
    assert names[0][0] != names[1][0]
    monkeypatch.setenv("TORCHELASTIC_USE_AGENT_STORE", "False")
    assert ranks.launch() is None


def test_other_processes_read_a_copy_of_the_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "prior").mkdir()
    (tmp_path / SPEC).write_text("{}")
    (tmp_path / "prior" / METRICS).write_bytes(b"a line\n")
    names = [SPEC, f"prior/{METRICS}", WEIGHTS]
    with ranks.files_of_first(tmp_path, names) as here:
        assert here == tmp_path
    monkeypatch.setattr(ranks, "several", lambda: True)
    monkeypatch.setattr(ranks, "first", lambda make: make())
    monkeypatch.setattr(ranks, "rank", lambda: 1)
    with ranks.files_of_first(tmp_path, names) as here:
        assert here != tmp_path
        assert json.loads((here / SPEC).read_text()) == {}
        assert (here / "prior" / METRICS).read_bytes() == b"a line\n"
        assert not (here / WEIGHTS).exists()
    assert not here.exists()


def test_processes_meet_anew_in_a_store_that_has_seen_others(monkeypatch: pytest.MonkeyPatch) -> None:
    """Those who died left their calls behind; nobody takes them, or their answers, for those of the living."""
    server = dist.TCPStore("127.0.0.1", 0, is_master=True, timeout=timedelta(seconds=30))

    def client() -> dist.TCPStore:
        return dist.TCPStore("127.0.0.1", server.port, is_master=False, timeout=timedelta(seconds=30))

    names = set()
    for begins in ((0, 1, 2), (2, 1, 0), (1, 0, 2)):
        # Called out, and died.
        server.set("varflow/here/1", f"dead before {begins}")
        with ThreadPoolExecutor(3) as pool:
            found = [pool.submit(ranks._meeting, client(), number, 3) for number in begins]
            told = {each.result(20) for each in found}
        assert len(told) == 1
        names |= told
    assert len(names) == 3
    monkeypatch.setattr(ranks, "_MEETING", 0.1)
    with pytest.raises(RankError, match="did not come"):
        ranks._meeting(client(), 0, 2)
