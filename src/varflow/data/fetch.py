"""Fetch the official files. What is in place is whole and verified, or not there at all."""

from __future__ import annotations

import gzip
import hashlib
import http.client
import os
import tempfile
import time
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import IO
from urllib.request import urlopen

from varflow.core import errors
from varflow.core.errors import DataError, SpecError
from varflow.data.sources import DOWNLOADS, File, data_folder

_TIMEOUT = 60
_CHUNK = 1 << 20
#: Seconds between two lines on how far a file is.
_EVERY = 5.0

Say = Callable[[str], object]


def download(
    name: str,
    data_dir: str | os.PathLike[str] | None = None,
    *,
    verify: bool = True,
    say: Say = lambda line: None,
) -> Path:
    """Fetch data set ``name`` into ``data_dir`` (else VARFLOW_DATA, else the cache).

    Each file goes to a temporary file, is verified, and is moved into place in one step; files
    that are there and right are kept. A failed download leaves nothing behind.

    Args:
        say: called with a line on each file: its address, how far it is, where it went, whether it was verified.

    Returns:
        The folder of the files.

    Raises:
        DataError: no mirror gave the right content; the message lists what each one did.
        SpecError: an unknown name.
    """
    if name == "digits":
        raise SpecError(
            "data 'digits' comes with varflow; there is nothing to download"
        )
    if name not in DOWNLOADS:
        raise errors.unknown("data", name, DOWNLOADS)
    source = DOWNLOADS[name]
    folder = data_folder(data_dir) / source.folder
    created = not folder.exists()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for file in source.files:
            path = folder / file.name
            if _is_right(path, file, verify):
                say(f"{path}: here already ({_verified(file, verify)})")
            else:
                _fetch(source.mirrors, file, folder, verify, say)
    except OSError as error:
        raise DataError(
            f"{folder}: cannot be written ({error}); free space or choose another data_dir"
        ) from error
    finally:
        if created and folder.is_dir() and not any(folder.iterdir()):
            folder.rmdir()
    return folder


def _is_right(path: Path, file: File, verify: bool) -> bool:
    return path.is_file() and (not verify or file.md5 is None or _md5(path, file) == file.md5)


def _verified(file: File, verify: bool) -> str:
    if file.md5 is None:
        return "not verified: no official checksum is known"
    return "MD5 verified" if verify else "not verified"


def _fetch(mirrors: tuple[str, ...], file: File, folder: Path, verify: bool, say: Say) -> None:
    failures = []
    for mirror in mirrors:
        url = mirror + file.name
        descriptor, temporary = tempfile.mkstemp(".part", f".{file.name}.", folder)
        try:
            with os.fdopen(descriptor, "wb") as target:
                problem = _receive(url, target, say)
            if problem is None and verify and file.md5 is not None:
                found = _md5(Path(temporary), file)
                if found != file.md5:
                    problem = f"MD5 sum {found}, should be {file.md5}"
            if problem is None:
                # mkstemp makes files private; data are for whoever may read the folder.
                os.chmod(temporary, 0o644)
                os.replace(temporary, folder / file.name)
                say(f"{url} → {folder / file.name} ({_verified(file, verify)})")
                return
            failures.append(f"{url}: {problem}")
            say(failures[-1])
        finally:
            Path(temporary).unlink(missing_ok=True)
    raise DataError(
        f"{file.name}: could not be fetched; {'; '.join(failures)}. "
        f"Try again later, or put the file into {folder} yourself"
    )


def _receive(url: str, target: IO[bytes], say: Say) -> str | None:
    """Copy ``url`` into ``target``; what went wrong, or None."""
    try:
        response = urlopen(url, timeout=_TIMEOUT)
    except (OSError, http.client.HTTPException) as error:
        return str(error)
    with response:
        expected = response.headers.get("Content-Length")
        whole = f" of {int(expected) / 1e6:,.1f}" if expected is not None else ""
        told = time.monotonic()
        while True:
            try:
                chunk = response.read(_CHUNK)
            except (OSError, http.client.HTTPException) as error:
                return f"broke off ({error!r})"
            if not chunk:
                break
            target.write(chunk)
            if time.monotonic() - told >= _EVERY:
                told = time.monotonic()
                say(f"{url}: {target.tell() / 1e6:,.1f}{whole} MB")
    size = target.tell()
    if expected is not None and size != int(expected):
        return f"broke off after {size} of {expected} bytes"
    return None


def _md5(path: Path, file: File) -> str:
    """Of the content inside the .gz where that is what ``file.md5`` is of."""
    digest = hashlib.md5(usedforsecurity=False)
    try:
        with gzip.open(path) if file.inside else open(path, "rb") as content:
            while chunk := content.read(_CHUNK):
                digest.update(chunk)
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        return f"of a damaged gzip file ({error})"
    return digest.hexdigest()
