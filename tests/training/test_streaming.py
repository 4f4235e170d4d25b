"""Fits to streamed data: equal to those in memory, resumed to the bit, by several processes as by one; small."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import varflow as vf
from varflow.core.errors import DataError, RunError
from varflow.core.files import read_json
from varflow.data.streamed import Streamed
from varflow.runs.folder import METRICS, WEIGHTS
from varflow.training.loop import Loop

sys.path.insert(0, str(Path(__file__).parent))
from streams import SETTINGS, fit


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("rows")
    np.save(folder / "x.npy", np.random.default_rng(0).standard_normal((700, 4)).astype(np.float32))
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError:
        return folder
    x = np.random.default_rng(1).standard_normal((700, 4))
    table = pyarrow.table({f"c{j}": x[:, j] for j in range(4)})
    pyarrow.parquet.write_table(table, folder / "x.parquet", row_group_size=100)
    return folder


def same(a: Any, b: Any) -> None:
    other = b.model.state_dict()
    for name, tensor in a.model.state_dict().items():
        assert torch.equal(tensor, other[name]), name


def told(run: Any) -> list[dict[str, Any]]:
    return [{k: v for k, v in record.items() if "second" not in k} for record in run.metrics]


def test_streamed_with_workers_and_in_memory_are_the_same_fit(data: Path) -> None:
    held = fit(data / "x.npy", stream="never", permutation="computed")
    for workers in (0, 1):
        streamed = fit(data / "x.npy", stream="always", workers=workers)
        assert isinstance(streamed.dataset, Streamed)
        same(streamed, held)
        assert told(streamed) == told(held)


def test_a_drawn_order_is_as_it_was(data: Path) -> None:
    run = fit(data / "x.npy", steps=2)
    assert run.dataset.resident
    assert run.dataset.computed_order(0, 0) is None
    assert run.dataset.describe()["split"] == "80/10/10 of a seeded permutation"


@pytest.mark.parametrize("workers", [0, pytest.param(1, marks=pytest.mark.slow)])
def test_ten_steps_are_five_and_five_more(workers: int, data: Path, tmp_path: Path) -> None:
    settings = {**SETTINGS, "stream": "always", "workers": workers}
    # Beyond an epoch of 17 steps, so that two orders are read.
    whole = fit(data / "x.npy", **{**settings, "steps": 24, "out": tmp_path / "whole"})
    fit(data / "x.npy", **{**settings, "steps": 13, "out": tmp_path / "part"})
    more = vf.resume(tmp_path / "part", steps=24, quiet=True)
    same(more, whole)
    assert (tmp_path / "part" / WEIGHTS).read_bytes() == (tmp_path / "whole" / WEIGHTS).read_bytes()
    assert (tmp_path / "part" / METRICS).exists()


def test_a_run_on_streamed_data_does_all_that_a_run_does(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("varflow.data.streamed.HELD_OUT", 20)
    fit(data / "x.npy", stream="always", out=tmp_path / "run", quiet=False)
    said = capsys.readouterr().err
    assert "data: x.npy is streamed: 700 rows of 4 float32" in said
    assert "look at 20 of 70 validation rows, 20 of 70 test rows" in said
    run = vf.load(tmp_path / "run")
    assert read_json(tmp_path / "run" / "data.json")["looked_at"] == {"validation": 20, "test": 20}
    found = run.evaluate()
    assert found.estimates["nll"].points == 20
    assert "These are 20 of 70 test rows, chosen by a seed" in found.table()
    assert run.evaluate(limit=70).estimates["nll"].points == 70
    x = np.load(data / "x.npy")
    assert run.log_prob(x[:9]).shape == (9,)
    assert run.scores(x[:9], anomaly=True).log_prob.shape == (9,)
    assert run.sample(5).shape == (5, 4)
    assert run.embed(x[:3]).shape == (3, 4)
    assert "read as they are needed" in read_json(tmp_path / "run" / "data.json")["streamed"]
    assert run.report().exists()


def test_a_file_that_changed_is_not_that_of_the_run(data: Path, tmp_path: Path) -> None:
    x = np.load(data / "x.npy")
    np.save(tmp_path / "x.npy", x)
    fit(tmp_path / "x.npy", stream="always", out=tmp_path / "run", steps=3)
    x[0, 0] += 1
    np.save(tmp_path / "x.npy", x)
    with pytest.raises(RunError, match="data: checksums is"):
        vf.resume(tmp_path / "run", steps=6, quiet=True)


def test_a_row_that_is_not_finite_ends_a_fit_with_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("varflow.data.streaming.SAMPLE", 20)
    x = np.random.default_rng(0).standard_normal((700, 4)).astype(np.float32)
    np.save(tmp_path / "x.npy", x)
    place = int(vf.data.load(tmp_path / "x.npy", "none", stream="always").places("train")[400])
    x[place, 1] = np.inf
    np.save(tmp_path / "x.npy", x)
    for workers in (0, 1):
        with pytest.raises(DataError, match=rf"x: inf in row {place} of x.npy, column 1"):
            fit(tmp_path / "x.npy", stream="always", protocol="none", workers=workers, steps=20)


def test_a_graph_and_blocks_are_not_taken_for_what_is_streamed(data: Path) -> None:
    seen: list[Loop] = []
    init = Loop.__init__

    def kept(loop: Loop, *arguments: Any, **more: Any) -> None:
        init(loop, *arguments, **more)
        seen.append(loop)

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(Loop, "__init__", kept)
        fit(data / "x.npy", stream="always", steps=2)
    assert seen[0]._blocks is None
    assert not seen[0].dataset.resident


def test_a_folder_of_pictures_with_workers(tmp_path: Path) -> None:
    image = pytest.importorskip("PIL.Image")
    draw = np.random.default_rng(0)
    (tmp_path / "pictures").mkdir()
    for number in range(60):
        picture = image.fromarray(draw.integers(0, 256, (8, 8), dtype=np.uint8))
        picture.save(tmp_path / "pictures" / f"{number}.jpg")
    small = {"latent": 2, "hidden": 8, "layers": 1, "batch": 16, "steps": 8, "threads": 1, "quiet": True}
    runs = [
        vf.fit("digits", tmp_path / "pictures", **small, **how)
        for how in ({"stream": "always", "workers": 2}, {"stream": "never", "permutation": "computed"})
    ]
    same(*runs)


@pytest.mark.slow
@pytest.mark.xdist_group("ranks")
def test_two_processes_read_what_one_reads(data: Path) -> None:
    environment = {k: v for k, v in os.environ.items() if k not in ("RANK", "WORLD_SIZE")}
    words = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=2"]
    done = subprocess.run(
        [*words, str(Path(__file__).with_name("streams.py")), str(data)],
        env={**environment, "OMP_NUM_THREADS": "1"}, capture_output=True, text=True, timeout=200,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    for name in ("x.npy", "x.parquet"):
        if (data / name).exists():
            one = fit(data / name, stream="always").model.state_dict()
            for rank in (0, 1):
                weights = torch.load(data / f"{name}-{rank}.pt", weights_only=True)
                for key, value in one.items():
                    torch.testing.assert_close(weights[key], value, rtol=1e-7, atol=1e-9)


MEASURED = """
import resource, sys, varflow as vf
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
small = {"protocol": "none", "steps": 20, "batch": 512, "prior_length": 1, "quiet": True}
run = vf.fit("density", sys.argv[1], out=sys.argv[2], **small)
vf.load(sys.argv[2]).evaluate(limit=500)
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 2**20)
"""


@pytest.mark.slow
def test_twenty_gigabytes_take_little_memory(tmp_path: Path) -> None:
    path = tmp_path / "x.npy"
    rows = 20 * 2**30 // 256
    # Nothing is written but the head: all rows are zeros that take no place on the disk.
    np.lib.format.open_memmap(path, mode="w+", dtype=np.float32, shape=(rows, 64))
    done = subprocess.run(
        [sys.executable, "-c", MEASURED, str(path), str(tmp_path / "run")],
        env={**os.environ, "OMP_NUM_THREADS": "1"}, capture_output=True, text=True, timeout=200,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    assert float(done.stdout.split()[-1]) < 1.5
