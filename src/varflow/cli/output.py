"""Where a verb's words and numbers go: words to the reader, or all of them aside and one JSON document on stdout."""

from __future__ import annotations

import datetime
import json
import math
import os
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO

from varflow.core.errors import VarflowError


@dataclass(frozen=True, kw_only=True)
class OutputOptions:
    """Options of every verb that says something."""

    quiet: bool = False
    """Print nothing but errors, and with --json the document."""
    json: bool = False
    """Print one JSON document on standard output, and everything else on standard error."""

    @property
    def say(self) -> Callable[[object], None]:
        """Prints a line, unless nothing is to be printed."""
        return printer(self.quiet)

    def answer(self, document: Callable[[], Mapping[str, Any]]) -> None:
        """Print what ``document`` gives, where that is asked for."""
        if self.json:
            write_document(document())


def printer(quiet: bool) -> Callable[[object], None]:
    """``print``, or what prints nothing."""
    return (lambda line: None) if quiet else print


class OutputError(VarflowError, OSError):
    """Standard output that cannot be written."""


#: Standard output, while :func:`documented` has put standard error in its place.
_apart: TextIO | None = None


@contextmanager
def documented(wanted: bool) -> Iterator[None]:
    """Standard output for a document alone: whatever prints meanwhile prints on standard error."""
    global _apart
    if not wanted:
        yield
        return
    _apart = sys.stdout
    try:
        with redirect_stdout(sys.stderr):
            yield
    finally:
        _apart = None


def write_document(value: Mapping[str, Any]) -> None:
    """``value`` as one line of strict JSON, so that documents one after another are JSON lines."""
    print(json.dumps(plain(value), allow_nan=False), file=_apart or sys.stdout)


def plain(value: Any) -> Any:
    """What JSON can hold, numbers in full precision.

    A number that is not finite becomes its name ("nan", "inf", "-inf"), as in the files of a run; what is not known
    or not there is null. Dates are 2024-03-01, tensors and arrays nested lists.
    """
    if value is None or isinstance(value, bool | int | str):
        return value
    if isinstance(value, float):
        return float(value) if math.isfinite(value) else str(float(value))
    if isinstance(value, Mapping):
        return {str(name): plain(held) for name, held in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [plain(held) for held in value]
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, datetime.date):
        return value.isoformat()
    if hasattr(value, "to_dict"):
        return plain(value.to_dict())
    if getattr(getattr(value, "dtype", None), "kind", "") == "M":
        import numpy as np

        masked = np.ma.getmaskarray(value) if isinstance(value, np.ma.MaskedArray) else np.zeros(value.shape, bool)
        text = np.ma.MaskedArray(np.datetime_as_string(np.ma.getdata(value)).astype(object), masked)
        return plain(text.tolist())
    if hasattr(value, "tolist"):
        return plain(value.tolist())
    raise TypeError(f"{type(value).__name__} is no value of JSON")


def records(columns: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Columns of equal length as a list of rows."""
    cells = [plain(column if hasattr(column, "tolist") else list(column)) for column in columns.values()]
    return [dict(zip(columns, row, strict=True)) for row in zip(*cells, strict=True)]


# -- standard output that ends ---------------------------------------------------------------------------


class _Guarded:
    """A stream whose errors say that they are its own. All else is that of the stream itself."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        with _told():
            return self._stream.write(text)

    def flush(self) -> None:
        with _told():
            self._stream.flush()


@contextmanager
def _told() -> Iterator[None]:
    try:
        yield
    except BrokenPipeError:
        raise
    except OSError as error:
        raise OutputError(
            f"standard output: could not be written ({error.strerror}); free space, or choose another place"
        ) from error


@contextmanager
def guarded() -> Iterator[None]:
    """Standard output whose failures are one sentence, and which is written out at the end.

    Raises:
        OutputError: it cannot be written.
        BrokenPipeError: nobody reads it any more.
    """
    for stream in (sys.stdout, sys.stderr):
        encoding = getattr(stream, "encoding", None) or "utf-8"
        if hasattr(stream, "reconfigure") and not encoding.lower().startswith("utf"):
            # A terminal or a file that lacks a letter has another in its place.
            stream.reconfigure(errors="replace")
    if sys.stdout is None:
        yield
        return
    own: Any = _Guarded(sys.stdout)
    with redirect_stdout(own):
        try:
            yield
        except SystemExit:
            # The end of --help.
            own.flush()
            raise
        own.flush()


def abandon(*streams: TextIO | None) -> None:
    """Let what Python would write at its exit go nowhere, in silence."""
    for stream in streams:
        try:
            if stream is not None:
                os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
        except (OSError, ValueError):
            # It was no file, or has none any more.
            continue


def complain(sentence: str) -> None:
    """A sentence on standard error, as far as there is one."""
    if sys.stderr is None:
        return
    try:
        print(f"varflow: {sentence}", file=sys.stderr, flush=True)
    except (OSError, ValueError):
        abandon(sys.stderr)
