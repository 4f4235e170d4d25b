"""Callbacks: what they are told, that they leave no trace in the bits of a run, and how they end it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import varflow as vf
from varflow.core.errors import RunError, SpecError
from varflow.runs.folder import METRICS, RUN, WEIGHTS, read_state
from varflow.training import Callback

SETTINGS = {
    "latent": 2, "hidden": 8, "layers": 1, "flow": "planar", "length": 2, "threads": 1, "quiet": True,
    "validate_every": "10 steps",
}  # fmt: skip
CODES = {
    "codes": 6, "code_features": 4, "blocks": 1, "batch": 16, "steps": 4, "prior_channels": 4, "prior_length": 1,
    "prior_kernel": 3, "prior_hidden": 4, "prior_batch": 16, "prior_steps": 4, "protocol": "symmetric", "threads": 1,
    "quiet": True,
}  # fmt: skip


def pictures() -> torch.Tensor:
    generator = torch.Generator().manual_seed(7)
    return torch.randint(0, 256, (96, 1, 8, 8), generator=generator, dtype=torch.uint8)


class Meddles(Callback):
    """Does to generators, modes and gradients whatever it can."""

    def started(self, fitting):
        torch.manual_seed(99)
        fitting.model.eval()

    def recorded(self, record, fitting):
        assert not any(module.training for module in fitting.model.modules())
        torch.randn(1000)
        vf.random.normal((10,), "mine")
        fitting.model.eval()

    def validated(self, record, fitting):
        torch.manual_seed(123)
        fitting.model.sample(3)
        sum(p.sum() for p in fitting.model.parameters()).backward()
        for module in fitting.model.modules():
            module.training = False


class Notes(Callback):
    """Writes down what it is told."""

    def __init__(self):
        self.told, self.drawn = [], []

    def started(self, fitting):
        self.told.append(("started", fitting.stage, fitting.begins, fitting.steps))

    def recorded(self, record, fitting):
        assert record["step"] == fitting.step
        self.told.append((record["split"], fitting.stage, record["step"]))

    def validated(self, record, fitting):
        self.told.append(("validated", fitting.stage, record["step"], fitting.bound, fitting.best_step))
        self.drawn.append((torch.rand(()).item(), vf.random.uniform((), "mine").item()))

    def finished(self, run):
        self.told.append(("finished", run.outcome["step"], run.outcome["finished"]))

    def failed(self, error):
        self.told.append(("failed", type(error).__name__))


class Stops(Callback):
    def __init__(self, step, stage="model"):
        self.step, self.stage = step, stage

    def validated(self, record, fitting):
        if record["step"] >= self.step and fitting.stage == self.stage:
            fitting.stop("it is enough")


def weights(run) -> bytes:
    return (run.folder / WEIGHTS).read_bytes()


def records(run) -> list[dict]:
    lines = [json.loads(line) for line in (run.folder / METRICS).read_text().splitlines()]
    return [{k: v for k, v in r.items() if "second" not in k} for r in lines]


def test_a_meddling_callback_leaves_the_same_bits(tmp_path):
    before = torch.get_rng_state()
    plain = vf.fit("digits", steps=25, out=tmp_path / "plain", **SETTINGS)
    assert torch.equal(torch.get_rng_state(), before)
    other = vf.fit("digits", steps=25, out=tmp_path / "other", callbacks=[Meddles()], **SETTINGS)
    assert torch.equal(torch.get_rng_state(), before)
    assert weights(plain) == weights(other)
    assert records(plain) == records(other)


def test_a_resumed_run_with_callbacks_has_the_same_bits(tmp_path):
    plain = vf.fit("digits", steps=30, out=tmp_path / "plain", **SETTINGS)
    vf.fit("digits", steps=15, out=tmp_path / "cut", callbacks=[Meddles(), Notes()], **SETTINGS)
    cut = vf.resume(tmp_path / "cut", steps=30, quiet=True, callbacks=[Meddles(), Notes()])
    # The validation at the end of 15 steps is one that the other run did not have, and chose no weights.
    assert [r for r in records(cut) if r["step"] > 20] == [r for r in records(plain) if r["step"] > 20]
    assert weights(cut) == weights(plain)


def test_a_callback_that_draws_codes_leaves_the_same_bits(tmp_path):
    plain = vf.fit("vq-pixelcnn", pictures(), out=tmp_path / "plain", **CODES)
    other = vf.fit("vq-pixelcnn", pictures(), out=tmp_path / "other", callbacks=[Meddles()], **CODES)
    assert weights(plain) == weights(other)
    ends = [(run.folder / "prior" / WEIGHTS).read_bytes() for run in (plain, other)]
    assert ends[0] == ends[1]


def test_what_is_told_and_when():
    notes = Notes()
    run = vf.fit("digits", steps=25, callbacks=[notes], **SETTINGS)
    bounds = {r["step"]: r["elbo"] for r in run.metrics if r["split"] == "validation"}
    words = [told[:3] for told in notes.told]
    expected = [("started", "model", 0), ("validation", "model", 0), ("validated", "model", 0)]
    for step in (10, 20, 25):
        expected += [("train", "model", step), ("validation", "model", step), ("validated", "model", step)]
    assert words == [*expected, ("finished", 25, True)]
    validated = [told for told in notes.told if told[0] == "validated"]
    assert {told[2]: told[3] for told in validated} == pytest.approx(bounds, rel=1e-12)
    assert validated[-1][4] == run.outcome["best_step"]


def test_random_numbers_of_a_callback_follow_seed_and_step(tmp_path):
    whole, first, second, other = Notes(), Notes(), Notes(), Notes()
    vf.fit("digits", steps=30, callbacks=[Meddles(), whole], **SETTINGS)
    vf.fit("digits", steps=20, out=tmp_path / "run", callbacks=[first], **SETTINGS)
    vf.resume(tmp_path / "run", steps=30, quiet=True, callbacks=[second])
    assert whole.drawn == [*first.drawn, *second.drawn]
    assert len(set(whole.drawn)) == len(whole.drawn)
    vf.fit("digits", steps=30, seed=1, callbacks=[other], **SETTINGS)
    assert not set(other.drawn) & set(whole.drawn)


def test_both_stages_are_told(tmp_path):
    notes = Notes()
    vf.fit("vq-pixelcnn", pictures(), callbacks=[notes], **CODES)
    began = [told for told in notes.told if told[0] == "started"]
    assert began == [("started", "model", 0, 4), ("started", "code prior", 0, 4)]
    assert ("validated", "code prior", 4) in [told[:3] for told in notes.told]
    assert notes.told[-1] == ("finished", 4, True)


def test_a_fit_that_is_stopped_ends_like_an_early_one_and_goes_on_to_the_bit(tmp_path):
    plain = vf.fit("digits", steps=40, out=tmp_path / "plain", **SETTINGS)
    notes = Notes()
    run = vf.fit("digits", steps=40, out=tmp_path / "run", callbacks=[Stops(20), notes], **SETTINGS)
    assert run.outcome["step"] == 20
    assert (run.outcome["finished"], run.outcome["reason"]) == (True, "it is enough")
    assert notes.told[-2:][0][0] == "validated"
    best = {r["step"]: r["elbo"] for r in run.metrics if r["split"] == "validation"}
    assert run.outcome["best_elbo"] == pytest.approx(best[run.outcome["best_step"]], rel=1e-12)
    again = vf.resume(run.folder, quiet=True)
    assert weights(again) == weights(plain)
    assert records(again) == records(plain)


def test_a_fit_that_is_stopped_before_its_first_step_took_none():
    class Refuses(Callback):
        def started(self, fitting):
            fitting.stop("no need")
            fitting.stop("a later word")

    run = vf.fit("digits", steps=20, callbacks=[Refuses()], **SETTINGS)
    assert (run.outcome["step"], run.outcome["reason"]) == (0, "no need")


def test_a_quantizer_that_is_stopped_has_no_code_prior_until_it_is_resumed(tmp_path):
    plain = vf.fit("vq-pixelcnn", pictures(), out=tmp_path / "plain", validate_every="2 steps", **CODES)
    run = vf.fit(
        "vq-pixelcnn", pictures(), out=tmp_path / "run", validate_every="2 steps", callbacks=[Stops(2)], **CODES
    )
    assert not run.outcome["finished"]
    assert run.outcome["reason"] == "it is enough; the code prior is not fitted"
    assert not (run.folder / "prior").exists()
    again = vf.resume(run.folder, pictures(), quiet=True)
    assert again.outcome["finished"]
    for name, tensor in plain.model.state_dict().items():
        assert torch.equal(again.model.state_dict()[name], tensor), name


@pytest.mark.parametrize("method", ["started", "recorded", "validated", "finished"])
def test_an_exception_names_the_callback_and_the_run_goes_on_to_the_bit(tmp_path, method):
    def fails(self, *values):
        if method != "validated" or values[0]["step"] == 10:
            raise KeyError("missing")

    broken = type("Broken", (Callback,), {method: fails})()
    notes = Notes()
    with pytest.raises(RunError, match=rf"callback Broken\.{method}: KeyError: 'missing'") as caught:
        vf.fit("digits", steps=20, out=tmp_path / "run", callbacks=[broken, notes], **SETTINGS)
    assert isinstance(caught.value.__cause__, KeyError)
    assert notes.told[-1] == ("failed", "RunError")
    at = {"started": 0, "recorded": 0, "validated": 10, "finished": 20}[method]
    assert read_state(tmp_path / "run")["step"] == at
    plain = vf.fit("digits", steps=20, out=tmp_path / "plain", **SETTINGS)
    if method == "finished":
        assert json.loads((tmp_path / "run" / RUN).read_text())["outcome"]["finished"]
        return
    again = vf.resume(tmp_path / "run", quiet=True)
    assert weights(again) == weights(plain)
    assert records(again) == records(plain)


def test_an_error_of_the_fit_is_told_and_a_second_one_is_a_note():
    class Worse(Notes):
        def failed(self, error):
            super().failed(error)
            raise ValueError("and more")

    notes = Worse()
    x = torch.full((100, 3), 1e30)
    with pytest.raises(vf.errors.NonFiniteError) as caught:
        vf.fit("digits", x, protocol="none", callbacks=[notes], steps=5, **SETTINGS)
    assert notes.told[-1] == ("failed", "NonFiniteError")
    assert caught.value.__notes__ == ["Worse.failed raised ValueError: and more"]


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        ([print], "callbacks: holds print; derive it from varflow.training.Callback"),
        ([Notes], r"callbacks: holds Notes \(a class: give an instance\)"),
        (Notes(), r"callbacks: was one callback; give a list"),
    ],
)
def test_what_is_no_callback_is_refused(given, sentence):
    with pytest.raises(SpecError, match=sentence):
        vf.fit("digits", steps=1, callbacks=given, **SETTINGS)


def test_a_signal_still_ends_a_fit_with_callbacks(tmp_path):
    class Signals(Notes):
        def validated(self, record, fitting):
            super().validated(record, fitting)
            if record["step"] == 10:
                os.kill(os.getpid(), signal.SIGTERM)

    notes = Signals()
    run = vf.fit("digits", steps=30, out=tmp_path / "run", callbacks=[notes], **SETTINGS)
    assert run.outcome["signal"] == signal.SIGTERM
    assert notes.told[-1] == ("finished", 10, False)


RANKS = """
import sys
import varflow as vf
from varflow.core import ranks
from varflow.core.errors import RunError

class Looks(vf.training.Callback):
    told = 0
    def recorded(self, record, fitting):
        assert ranks.rank() == 0
        Looks.told += 1
    def validated(self, record, fitting):
        if record["step"] == 20:
            fitting.stop("it is enough")

class Breaks(vf.training.Callback):
    def validated(self, record, fitting):
        raise ValueError("broken")

ranks.join()
small = dict(latent=2, hidden=8, layers=1, threads=1, quiet=True, validate_every="10 steps", steps=40)
# Whether there are callbacks is the first process's to say.
run = vf.fit("digits", callbacks=[Looks()] if ranks.rank() == 0 else [], **small)
assert (run.outcome["step"], run.outcome["reason"]) == (20, "it is enough"), run.outcome
assert Looks.told == (5 if ranks.rank() == 0 else 0), Looks.told
try:
    vf.fit("digits", callbacks=[Breaks()], **small)
except RunError as error:
    assert ranks.rank() == 0 and "callback Breaks.validated: ValueError: broken" in str(error), error
except vf.errors.RankError as error:
    assert ranks.rank() == 1, error
else:
    raise AssertionError("no error")
open(f"{sys.argv[1]}/well-{ranks.rank()}", "w").close()
"""


@pytest.mark.slow
def test_the_first_of_several_processes_calls_and_all_stop(tmp_path):
    script = tmp_path / "script.py"
    script.write_text(RANKS)
    environment = {k: v for k, v in os.environ.items() if k not in ("RANK", "WORLD_SIZE")}
    done = subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=2", str(script), str(tmp_path)],
        capture_output=True,
        text=True,
        timeout=120,
        env={**environment, "OMP_NUM_THREADS": "1"},
    )
    there = {path.name for path in Path(tmp_path).glob("well-*")}
    assert there == {"well-0", "well-1"}, (done.stdout + done.stderr)[-3000:]
