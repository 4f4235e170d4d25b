"""Two machines against one process: two launchers, each with a working folder of its own, that find each other by
torchrun's rendezvous, on loopback and in network namespaces of their own; and workers that are killed and replaced.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path

import pytest
import torch

from varflow.core.files import read_json, read_metrics
from varflow.runs.folder import METRICS, RUN, WEIGHTS

sys.path.insert(0, str(Path(__file__).parent))
from two_nodes import CASES, MORE, given

import varflow as vf

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("ranks")]

WORKER = Path(__file__).with_name("two_nodes.py")


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port: int = listener.getsockname()[1]
        return port


NETWORKS = [f"varflow-{os.getpid()}-{number}" for number in (0, 1)]


def separable() -> bool:
    """Whether this user may make networks."""
    if shutil.which("ip") is None or os.geteuid() != 0:
        return False
    done = subprocess.run(["ip", "netns", "add", NETWORKS[0]], capture_output=True, check=False)
    subprocess.run(["ip", "netns", "delete", NETWORKS[0]], capture_output=True, check=False)
    return done.returncode == 0


@contextmanager
def networks() -> Iterator[None]:
    """Two networks with a wire between them."""

    def ip(words: str) -> None:
        subprocess.run(["ip", *words.split()], check=True, capture_output=True)

    try:
        for network in NETWORKS:
            ip(f"netns add {network}")
        ip(f"link add wire0 netns {NETWORKS[0]} type veth peer name wire1 netns {NETWORKS[1]}")
        for number, network in enumerate(NETWORKS):
            ip(f"-n {network} address add 10.77.0.{number + 1}/24 dev wire{number}")
            ip(f"-n {network} link set wire{number} up")
            ip(f"-n {network} link set lo up")
        yield
    finally:
        for network in NETWORKS:
            subprocess.run(["ip", "netns", "delete", network], capture_output=True, check=False)


@contextmanager
def nodes(
    folder: Path, *arguments: object, restarts: int = 0, apart: bool = False
) -> Iterator[list[subprocess.Popen[str]]]:
    """torchrun on two machines, which share nothing but the address where they meet."""
    addresses = [f"10.77.0.{number}" if apart else f"127.0.0.{number}" for number in (1, 2)]
    endpoint = f"{addresses[0]}:{free_port()}"
    kept = {k: v for k, v in os.environ.items() if k not in ("RANK", "WORLD_SIZE")} | {"OMP_NUM_THREADS": "1"}
    found = []
    for number, address in enumerate(addresses):
        home = folder / f"node{number}"
        home.mkdir(parents=True)
        command = ["ip", "netns", "exec", NETWORKS[number]] if apart else []
        command += [sys.executable, "-m", "torch.distributed.run", "--nnodes=2", "--nproc-per-node=1"]
        command += ["--rdzv-backend=c10d", f"--rdzv-endpoint={endpoint}", "--rdzv-id=test"]
        # The order of their addresses says which has rank 0.
        command += [f"--local-addr={address}", f"--max-restarts={restarts}", *map(str, arguments)]
        if apart:
            # What torchrun finds out from the name of a machine, which these have not.
            command.insert(command.index("--nnodes=2"), f"--rdzv-conf=is_host={'false' if number else 'true'}")
        own = kept | ({"GLOO_SOCKET_IFNAME": f"wire{number}"} if apart else {})
        with open(home / "said.txt", "w") as said:
            found.append(subprocess.Popen(command, cwd=home, stdout=said, stderr=said, text=True, env=own))
    try:
        yield found
    finally:
        for process in found:
            # A launcher ends its workers.
            process.terminate()
            process.wait(60)


def said(folder: Path) -> str:
    return "\n".join((folder / f"node{number}" / "said.txt").read_text()[-3000:] for number in (0, 1))


def wait(processes: list[subprocess.Popen[str]], folder: Path, seconds: float = 150) -> None:
    end = time.monotonic() + seconds
    for process in processes:
        try:
            process.wait(max(end - time.monotonic(), 1))
        except subprocess.TimeoutExpired:
            raise AssertionError(said(folder)) from None
        assert process.returncode == 0, said(folder)


@pytest.fixture(scope="module", params=["loopback", "namespaces"])
def two(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What two machines left behind."""
    apart = request.param == "namespaces"
    if apart and not separable():
        pytest.skip("this user may make no network namespaces")
    folder = tmp_path_factory.mktemp("two")
    with networks() if apart else nullcontext(), nodes(folder, WORKER, apart=apart) as processes:
        wait(processes, folder)
    return folder


@pytest.mark.parametrize("case", CASES)
def test_two_machines_train_to_the_result_of_one_process(
    case: str, two: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    run = CASES[case](tmp_path / "run")
    for name in (case, f"{case}-resumed"):
        if name != case:
            run = vf.resume(tmp_path / "run", given(case), quiet=True, **MORE[case])
        expected, held = run.model.state_dict(), []
        for number in (0, 1):
            weights, records, step = torch.load(two / f"node{number}" / f"{name}.pt", weights_only=True)
            held.append(weights)
            assert step == run.outcome["step"]
            assert weights.keys() == expected.keys()
            for key, value in expected.items():
                torch.testing.assert_close(weights[key], value, rtol=1e-7, atol=1e-9)
                assert torch.equal(weights[key], held[0][key]), key
            assert [r["step"] for r in records] == [r["step"] for r in run.metrics]
            for got, one in zip(records, run.metrics, strict=True):
                assert got["elbo"] == pytest.approx(one["elbo"], rel=1e-7)


def test_the_second_machine_needs_and_writes_no_run(two: Path) -> None:
    kept = {path.name for path in (two / "node1").iterdir()} - {"rows.npy"}
    assert kept == {*(f"{c}{s}.pt" for c in CASES for s in ("", "-resumed")), "estimate.json", "said.txt"}
    first, second = (json.loads((two / f"node{number}" / "estimate.json").read_text()) for number in (0, 1))
    assert first == second
    assert read_json(two / "node0" / "runs" / "dense" / "environment.json")["processes"] == 2


FLAGS = [
    *("--latent", "3", "--hidden", "16", "--layers", "1", "--flow", "planar", "--length", "2", "--amortized"),
    *("--threads", "1", "--precision", "float64", "--steps", "600", "--validate-every", "20 steps"),
    *("--save-every", "0.001", "--no-report", "--out", "run"),
]  # fmt: skip


def worker_of(launcher: subprocess.Popen[str]) -> int | None:
    """The process that a launcher has started."""
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            words = stat.read_text().rpartition(")")[2].split()
            if int(words[1]) == launcher.pid and b"varflow" in stat.with_name("cmdline").read_bytes():
                return int(stat.parent.name)
        except (OSError, IndexError):
            continue
    return None


def records(folder: Path) -> list[dict[str, object]]:
    return [{k: v for k, v in r.items() if "second" not in k} for r in read_metrics(folder)]


@pytest.mark.timeout(600)
@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="looks for the workers in /proc")
def test_killed_workers_are_replaced_and_the_run_ends_with_the_bits_of_an_undisturbed_one(tmp_path: Path) -> None:
    whole, folder = tmp_path / "whole", tmp_path / "killed"
    command = ("-m", "varflow", "fit", "digits", *FLAGS)
    with nodes(whole, *command) as processes:
        wait(processes, whole)
    run = folder / "node0" / "run"
    with nodes(folder, *command, restarts=6) as processes:
        seen = 2
        # That of the second machine, then that of the first, which writes.
        for launcher in (processes[1], processes[0]):
            end = time.monotonic() + 90
            while not run.exists() or len(read_metrics(run)) <= seen:
                assert all(process.poll() is None for process in processes), said(folder)
                assert time.monotonic() < end, said(folder)
                time.sleep(0.01)
            worker = worker_of(launcher)
            assert worker is not None
            os.kill(worker, signal.SIGKILL)
            seen = len(read_metrics(run)) + 2
        wait(processes, folder)
    assert read_json(run / RUN)["outcome"]["finished"]
    assert (folder / "node0" / "said.txt").read_text().count("a process of this fit was replaced") >= 2
    assert (run / WEIGHTS).read_bytes() == (whole / "node0" / "run" / WEIGHTS).read_bytes()
    assert records(run) == records(whole / "node0" / "run")
    assert (run / METRICS).exists()
    assert not (folder / "node1" / "run").exists()
