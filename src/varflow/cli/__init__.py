"""The command line: a file a verb, each thin, found in one table.

Help needs no torch: a verb imports what it works with when it is called.
"""

from __future__ import annotations

import atexit
import gc
import signal
import sys
import threading
from collections.abc import Sequence
from importlib import import_module
from typing import Any

from varflow.cli import output
from varflow.cli.common import beside
from varflow.core.errors import SpecError, VarflowError, suggestion

#: The verbs in the order of ``varflow --help``. Each is a module here; its first line says what it does.
VERBS = (
    "recipes", "fit", "sweep", "evaluate", "anneal", "gaps", "curve", "compare", "score", "embed", "nearest",
    "impute", "sample", "reconstruct", "interpolate", "export", "report", "show", "explore", "push", "models",
    "data", "demo", "completion",
)  # fmt: skip

#: Those that keep what they have finished, block by block, and read it when they are called again.
_GOES_ON = ("evaluate", "anneal", "gaps", "curve")

_EXAMPLES = (
    "",
    "examples:",
    "  varflow fit dense --flow planar --amortized --out runs/planar",
    "  varflow fit --resume runs/planar",
    "  varflow evaluate runs/planar",
    "  varflow compare runs/planar runs/none",
)


def main(argv: Sequence[str] | None = None) -> None:
    """Entry point; exits with 2 and one sentence for anything a user can mend, with 130 after Ctrl-C, with 141 where
    the reader of its output has gone.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    # What torch holds goes with the process; to look through it for cycles first takes a third of a second.
    atexit.register(gc.freeze)
    try:
        with output.guarded():
            code = _dispatch(arguments)
    except VarflowError as error:
        if not error.silent and (error.exchanged or not beside()):
            output.complain(str(error))
        if isinstance(error, output.OutputError):
            output.abandon(sys.stdout)
        code = 2
    except KeyboardInterrupt:
        _deaf()
        goes_on = arguments[:1] and arguments[0] in _GOES_ON
        output.complain("interrupted" + ("; the same command goes on where it stopped" if goes_on else ""))
        code = 130
    except BrokenPipeError:
        # The reader has gone, as after `| head`.
        output.abandon(sys.stdout, sys.stderr)
        code = 141
    sys.exit(code)


def _deaf() -> None:
    """Hear no second Ctrl-C while the process ends."""
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGINT, signal.SIG_IGN)


def _dispatch(arguments: list[str]) -> int:
    if not arguments or arguments[0] in ("-h", "--help", "help"):
        print(_help(), end="")
        return 0 if arguments else 2
    command, rest = arguments[0], arguments[1:]
    if beside() and (command != "fit" or "-h" in rest or "--help" in rest):
        # Under torchrun the first process alone does what is no training.
        return 0
    if command == "--version":
        from varflow import __version__

        print(__version__)
        return 0
    if command == "__complete":
        from varflow.cli.completion import answer

        return answer(rest)
    if command not in VERBS:
        raise SpecError(f"command: unknown '{command}'; {suggestion(command, VERBS)}")
    with output.documented("--json" in rest and not {"-h", "--help"} & set(rest)):
        code: int = _verb(command).main(rest)
    return code


def _verb(name: str) -> Any:
    return import_module(f"varflow.cli.{name}")


def _help() -> str:
    lines = [
        "varflow: deep latent-variable models and variational inference with normalizing flows",
        "",
        "usage: varflow COMMAND [options]        (varflow COMMAND --help for the options)",
        "",
    ]
    for name in VERBS:
        summary = (_verb(name).__doc__ or "").partition("\n")[0].rstrip(".")
        lines.append(f"  {name:<13} {summary}")
    return "\n".join([*lines, *_EXAMPLES]) + "\n"
