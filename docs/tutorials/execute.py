"""Execute the tutorials beside this file and store their outputs; `make notebooks` calls it.

    python docs/tutorials/execute.py                 all of them
    python docs/tutorials/execute.py first_vae       some of them
    python docs/tutorials/execute.py --check         execute, store nothing: exit 1 on an error or a warning

Each runs in an empty folder of its own, on one thread, so that the same versions give the same outputs. What would
differ from one execution to the next (times, versions, the machine) is not stored.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
from pathlib import Path

import nbformat
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError
from traitlets.config import Config

FOLDER = Path(__file__).resolve().parent
#: Bytes of a stored notebook, and seconds of one cell, at most.
SIZE, SECONDS = 400_000, 600


def names() -> list[str]:
    """The tutorials that there are."""
    return sorted(path.stem for path in FOLDER.glob("*.ipynb"))


def executed(notebook: nbformat.NotebookNode) -> nbformat.NotebookNode:
    """The notebook with the outputs of a fresh execution; raises CellExecutionError where a cell fails."""
    with tempfile.TemporaryDirectory() as room, tempfile.TemporaryDirectory() as sockets:
        # Not through the network where there are sockets in the file system.
        through = {"transport": "ipc", "ip": str(Path(sockets, "kernel"))} if os.name == "posix" else {}
        client = NotebookClient(
            notebook,
            config=Config(KernelManager=through),
            kernel_name="python3",
            timeout=SECONDS,
            startup_timeout=SECONDS,
            resources={"metadata": {"path": room}},
            record_timing=False,
            store_widget_state=False,
        )
        return client.execute()


def plain(notebook: nbformat.NotebookNode) -> nbformat.NotebookNode:
    """Without what differs between machines and executions."""
    notebook.metadata = nbformat.from_dict(
        {
            "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
            "language_info": {"name": "python", "pygments_lexer": "ipython3"},
        }
    )
    for cell in notebook.cells:
        cell.metadata.pop("execution", None)
        for output in cell.get("outputs", ()):
            output.get("metadata", {}).pop("isolated", None)
    return notebook


def complaints(notebook: nbformat.NotebookNode) -> list[str]:
    """What its outputs say on stderr: warnings, mostly."""
    return [
        f"cell {number}: {''.join(output.text).strip()}"
        for number, cell in enumerate(notebook.cells)
        for output in cell.get("outputs", ())
        if output.output_type == "stream" and output.name == "stderr"
    ]


def run(path: Path, check: bool) -> list[str]:
    """Execute one and store it; returns what is wrong."""
    before = path.read_text()
    notebook = nbformat.reads(before, as_version=4)
    nbformat.validate(notebook)
    began, of_others = time.monotonic(), _cpu_of_children()
    try:
        found = plain(executed(notebook))
    except CellExecutionError as error:
        return [str(error)]
    wrong = complaints(found)
    after = nbformat.writes(found) + "\n"
    if len(after.encode()) > SIZE:
        wrong.append(f"{len(after.encode()):,} bytes with its outputs; {SIZE:,} are allowed")
    took = f"{time.monotonic() - began:.0f} s, {_cpu_of_children() - of_others:.0f} s of CPU"
    print(f"{path.stem}: {took}, {len(after.encode()) / 1000:.0f} kB", flush=True)
    if not check and not wrong and after != before:
        path.write_text(after)
    return wrong


def _cpu_of_children() -> float:
    """Seconds of kernels that have ended."""
    spent = os.times()
    return spent.children_user + spent.children_system


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("names", nargs="*", help="tutorials by their names; all without any")
    parser.add_argument("--check", action="store_true", help="store nothing")
    options = parser.parse_args()
    # The kernel inherits them.
    os.environ |= {"OMP_NUM_THREADS": "1", "PYTHONHASHSEED": "0", "NO_COLOR": "1"}
    failed = False
    for name in options.names or names():
        path = FOLDER / f"{Path(name).stem}.ipynb"
        if not path.exists():
            print(f"{name}: no such tutorial; there are {', '.join(names())}", file=sys.stderr)
            return 2
        for wrong in run(path, options.check):
            failed = True
            print(f"{path.stem}: {wrong}", file=sys.stderr)
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
