"""How far something is: on a terminal, in a notebook, in a file, and not at all."""

import io
import os
import re
import subprocess
import sys
import types

import pytest

from varflow.core import live
from varflow.core.live import Live, clock, colours, in_notebook
from varflow.training import Progress

pty = pytest.importorskip("pty", reason="this system has no pseudo-terminals")

COLOUR = re.compile(r"\x1b\[[0-9;]*m")
WISHES = ("NO_COLOR", "FORCE_COLOR", "CLICOLOR_FORCE", "CLICOLOR", "TERM", "COLUMNS", "TTY_COMPATIBLE")

RECORD = {
    "elbo": -102.3, "log_likelihood": -80.1, "kl": 22.3, "preprocessing_ladj": 0.0, "ladj": 1.2,
    "steps_per_second": 321.0,
}  # fmt: skip

#: A fit of 500 steps as a program sees it.
FIT = f"""
from varflow.training.progress import Progress
with Progress(500) as progress:
    progress.say("a note that stays")
    for step in range(0, 501, 50):
        progress.train({RECORD!r} | {{"step": step}})
        progress.validation({{"elbo": -103.25}})
"""


@pytest.fixture(autouse=True)
def _no_wishes(monkeypatch):
    for name in WISHES:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("TERM", "xterm-256color")


def on_terminal(program: str, width: int = 80, **wishes: str) -> str:
    """What a program writes to a terminal of 24 lines."""
    import fcntl
    import struct
    import termios

    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24, width, 0, 0))
    with subprocess.Popen(
        [sys.executable, "-c", program], stdin=theirs, stdout=theirs, stderr=theirs, env=os.environ | wishes
    ) as process:
        os.close(theirs)
        parts = []
        # The end of a terminal that nobody writes to any more is an error on Linux, an empty read elsewhere.
        try:
            while part := os.read(ours, 65536):
                parts.append(part)
        except OSError:
            pass
        os.close(ours)
    assert process.returncode == 0
    return b"".join(parts).decode()


def test_a_terminal_has_one_line_that_is_replaced():
    said = on_terminal(FIT)
    assert COLOUR.search(said)
    last = COLOUR.sub("", said.rstrip("\r\n").split("\x1b[2K")[-1])
    assert last.startswith("step 500/500 ━━━━━━━━━━ 0:00  321 steps/s  ELBO -102.30")
    assert len(last.replace("\x1b[?25h", "").rstrip()) <= 80
    # What is written over never ends in a new line: the note and the last picture stay, and nothing else.
    assert [line for line in said.split("\r\n") if "note" in line]
    assert said.count("\n") == 2 + ("starting" in said.split("note")[0])
    assert said.rstrip().endswith("\x1b[?25h")


@pytest.mark.parametrize(
    ("wishes", "coloured", "moves"),
    [
        ({"NO_COLOR": "1"}, False, True),
        ({"NO_COLOR": "1", "FORCE_COLOR": "1"}, False, True),
        ({"CLICOLOR": "0"}, False, True),
        ({"FORCE_COLOR": "0"}, False, True),
        ({"TERM": "dumb"}, False, False),
    ],
)
def test_a_terminal_without_colours(wishes, coloured, moves):
    said = on_terminal(FIT, **wishes)
    assert bool(COLOUR.search(said)) == coloured
    assert ("\x1b[2K" in said) == moves
    assert "a note that stays" in said


@pytest.mark.parametrize(
    ("wishes", "coloured"),
    [
        ({}, False),
        ({"FORCE_COLOR": "1"}, True),
        ({"CLICOLOR_FORCE": "1"}, True),
        ({"FORCE_COLOR": "1", "NO_COLOR": "1"}, False),
        ({"FORCE_COLOR": "", "NO_COLOR": ""}, False),
    ],
)
def test_files_have_colours_only_where_they_are_forced(monkeypatch, wishes, coloured):
    for name, value in wishes.items():
        monkeypatch.setenv(name, value)
    assert colours(io.StringIO()) == coloured


def test_a_log_has_a_line_every_ten_seconds_and_after_a_minute_one_a_minute(monkeypatch):
    now = 0.0
    monkeypatch.setattr(live.time, "monotonic", lambda: now)
    log = io.StringIO()
    with Progress(5000, log) as progress:
        progress.validation({"elbo": -103.25})
        for step in range(0, 5000, 5):
            now = step / 10
            progress.train({**RECORD, "step": step, "steps_per_second": 10.0})
    lines = log.getvalue().splitlines()
    steps = [int(re.match(r"step (\d+)/5000  ", line)[1]) for line in lines]
    assert steps == [100, 200, 300, 400, 500, 1100, 1700, 2300, 2900, 3500, 4100, 4700]
    words = "ELBO -102.30  log p(x|z) -80.10  KL 22.30  ladj 1.20  validation ELBO -103.25"
    assert lines[0] == f"step 100/5000  8:10 left  10 steps/s  {words}"
    assert "\x1b" not in log.getvalue()


@pytest.mark.parametrize("wish", ["FORCE_COLOR", "CLICOLOR_FORCE"])
def test_a_file_has_neither_colours_nor_moves_of_the_cursor_even_where_they_are_forced(monkeypatch, wish):
    monkeypatch.setenv(wish, "1")
    log = io.StringIO()
    with Live(log, every=0) as shown:
        shown.show(1, 2, unit="points")
    assert log.getvalue().startswith("1/2 points")
    assert "\x1b" not in log.getvalue()


def test_the_rate_is_that_of_the_count_that_is_running(monkeypatch):
    now = 0.0
    monkeypatch.setattr(live.time, "monotonic", lambda: now)
    log = io.StringIO()
    shown = Live(log, every=0)
    shown.show(0, 100, unit="points")
    now = 4.0
    shown.show(8, 100, unit="points")
    shown.show(0, 50, unit="points")
    now = 5.0
    shown.show(40, 50, unit="points")
    lines = log.getvalue().splitlines()
    assert lines[1] == "8/100 points  0:46 left  2 points/s"
    assert lines[2] == "0/50 points  0:04"
    assert lines[3] == "40/50 points  0:00 left  40 points/s"


def test_what_was_done_before_is_not_in_the_rate(monkeypatch):
    now = 0.0
    monkeypatch.setattr(live.time, "monotonic", lambda: now)
    log = io.StringIO()
    shown = Live(log, every=0)
    shown.already(50)
    shown.show(50, 100, unit="trials")
    now = 10.0
    shown.show(55, 100, unit="trials")
    # Read from a file at once, and then slowly: what counts is the last minute.
    for second in range(20, 200, 2):
        now = float(second)
        shown.show(90 + second // 20, 100, unit="trials")
    lines = log.getvalue().splitlines()
    assert lines[1] == "55/100 trials  1:30 left  0.5 trials/s"
    assert lines[-1] == "99/100 trials  0:20 left  0.05 trials/s"


@pytest.mark.parametrize("kind", ["terminal", "log"])
def test_quiet_says_nothing(monkeypatch, capsys, kind):
    monkeypatch.setattr(live, "is_terminal", lambda stream: kind == "terminal")
    with Live(quiet=True, every=0) as shown:
        shown.say("a note")
        shown.show(1, 2)
    assert capsys.readouterr() == ("", "")


def test_without_standard_error_nothing_is_said(monkeypatch):
    monkeypatch.setattr(sys, "stderr", None)
    with Live(every=0) as shown:
        shown.say("a note")
        shown.show(1, 2)
    assert shown.kind == "quiet"


@pytest.fixture
def cell(monkeypatch):
    """The output of a cell: its pictures, in the order in which they came."""
    pictures: list[tuple[str, dict[str, str]]] = []

    class Handle:
        def update(self, bundle, raw):
            pictures.append(("update", bundle))

    def display(bundle, raw, display_id):
        assert raw
        assert display_id
        pictures.append(("display", bundle))
        return Handle()

    kernel = types.SimpleNamespace(kernel=object())
    for name, module in {
        "IPython": types.SimpleNamespace(get_ipython=lambda: kernel),
        "IPython.display": types.SimpleNamespace(display=display),
    }.items():
        monkeypatch.setitem(sys.modules, name, module)
    return pictures


def test_a_notebook_has_one_output_that_is_replaced(monkeypatch, cell, capsys):
    now = 0.0
    monkeypatch.setattr(live.time, "monotonic", lambda: now)
    assert in_notebook()
    with Progress(500) as progress:
        progress.say("columns < rows")
        for step in range(0, 501, 5):
            now = step / 100
            progress.train({**RECORD, "step": step})
    assert [how for how, _ in cell] == ["display", *["update"] * (len(cell) - 1)]
    assert 5 < len(cell) < 25
    _, last = cell[-1]
    assert last["text/plain"].startswith("step 500/500  in 0:05  321 steps/s")
    assert '<progress value="500" max="500"' in last["text/html"]
    assert capsys.readouterr() == ("columns < rows\n", "")


def test_what_a_notebook_shows_is_text_not_html(cell):
    with Live() as shown:
        shown.show(1, 2, words="<b>")
    assert "&lt;b&gt;" in cell[0][1]["text/html"]
    assert "<b>" in cell[0][1]["text/plain"]


def test_a_stream_that_is_given_is_written_to_in_a_notebook_too(cell):
    log = io.StringIO()
    with Live(log, every=0) as shown:
        shown.show(1, 2)
    assert log.getvalue()
    assert not cell


def test_ipython_on_a_terminal_is_no_notebook(monkeypatch):
    monkeypatch.setitem(sys.modules, "IPython", types.SimpleNamespace(get_ipython=lambda: None))
    assert not in_notebook()


@pytest.mark.slow
def test_a_fit_in_a_kernel_leaves_one_output(tmp_path):
    nbclient, nbformat = pytest.importorskip("nbclient"), pytest.importorskip("nbformat")
    pytest.importorskip("ipykernel")
    program = (
        "import torch, varflow as vf\n"
        "run = vf.fit('digits', (torch.rand(200, 6) < 0.5).float(), latent=2, hidden=8, steps=300)\n"
        "with vf.evaluation.Progress() as progress:\n"
        "    run.evaluate(samples=5, progress=progress);"
    )
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(program)])
    nbclient.NotebookClient(notebook, timeout=120, kernel_name="python3").execute(cwd=str(tmp_path))
    shown = [output["data"]["text/plain"] for output in notebook.cells[0].outputs if "data" in output]
    assert [text.split()[0:2] for text in shown] == [["step", "300/300"], ["20/20", "points"]]
    assert all("in 0:" in text for text in shown)


@pytest.mark.parametrize(("seconds", "words"), [(0, "0:00"), (61.9, "1:01"), (3600, "1:00:00")])
def test_the_clock(seconds, words):
    assert clock(seconds) == words
