"""Files that appear whole or not at all, and those of a run that every room above reads."""

from __future__ import annotations

import hashlib
import json
import os
import sys
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import IO, Any

from varflow.core.errors import RunError

#: The files of a run that others can use: name, or pattern of names → what is in it. Without the state of the
#: optimizer, pictures and pages, which are for the one who fits; and without anything of a single example.
ARTEFACT = {
    "spec.json": "the parts and their settings",
    "model.safetensors": "the weights",
    "preprocessing.json": "what stands between the stored values and the model, as learned in training",
    "data.json": "which data: name, shape, splits, checksums",
    "run.json": "recipe, parts given in Python, how the fit ended",
    "metrics.jsonl": "the records of the fit",
    "prior/model.safetensors": "the weights of the code prior",
    "prior/metrics.jsonl": "the records of its fit",
    "evaluation/*.json": "estimates with their errors",
}
#: What a run keeps of single training rows.
TRAINING_ROWS = {
    "training_scores.json": "log p of training rows, which new rows are ranked among",
    "embeddings.safetensors": "latents of training rows, which neighbours are looked for among",
}


def present(folder: Path, names: Iterable[str]) -> list[str]:
    """Which files of these names or patterns a folder holds, as ``a/b`` below it."""
    found = [path for name in names for path in sorted(folder.glob(name)) if path.is_file()]
    return [path.relative_to(folder).as_posix() for path in found]


def cache_folder() -> Path:
    """Where varflow keeps what can be made or fetched again: VARFLOW_CACHE, else the system's folder for caches."""
    import platformdirs

    given = os.environ.get("VARFLOW_CACHE")
    return Path(given).expanduser() if given else Path(platformdirs.user_cache_dir("varflow", appauthor=False))


def write_atomically(path: Path, write: Callable[[IO[bytes]], object]) -> None:
    """Let ``write`` fill a temporary file beside ``path``, then put it in place in one step.

    Raises:
        RunError: the disk is full, a size limit was hit, or the folder cannot be written. The file that
            was there before is untouched.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        with open(temporary, "wb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except (OSError, RuntimeError) as error:
        # torch's zip writer reports a failed write as RuntimeError.
        raise RunError(
            f"{path}: could not be written ({error}); what was there before is kept. "
            "Free space, lift the limit, or choose another folder"
        ) from error
    finally:
        temporary.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """``text`` as UTF-8, whole or not at all."""
    write_atomically(path, lambda file: file.write(text.encode()))


def write_json(path: Path, value: Any) -> None:
    """``value`` as indented JSON, whole or not at all."""
    write_text(path, json.dumps(value, indent=2) + "\n")


def read_json(path: Path) -> Any:
    """The value in a JSON file.

    Raises:
        RunError: the file is missing or no JSON.
    """
    try:
        return json.loads(path.read_text())
    except FileNotFoundError:
        raise RunError(f"{path}: missing; is {path.parent} a run folder?") from None
    except (OSError, ValueError) as error:
        raise RunError(
            f"{path}: cannot be read as JSON ({error}); restore it or fit again"
        ) from error


def make_folder(path: Path) -> None:
    """Create a folder and its parents.

    Raises:
        RunError: it cannot be created or written to.
    """
    try:
        path.mkdir(parents=True, exist_ok=True)
        probe = path / f".{os.getpid()}.probe"
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise RunError(
            f"{path}: cannot be written ({error}); choose another folder with --out"
        ) from error


def read_metrics(folder: Path) -> list[dict[str, Any]]:
    """The records of a run; a last line cut off by a crash is left out."""
    path = folder / "metrics.jsonl"
    records: list[dict[str, Any]] = []
    for line in path.read_bytes().splitlines() if path.exists() else []:
        try:
            record = json.loads(line)
        except ValueError:
            break
        if not isinstance(record, dict):
            break
        records.append(record)
    return records


class Lock:
    """A file that one process holds. The system lets it go when that process ends, however it ends."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file

    @staticmethod
    def take(path: Path, wait: bool = True) -> Lock | None:
        """Hold ``path``; None where another process does and this one is not to wait for it.

        Raises:
            RunError: the file cannot be written.
        """
        try:
            file = open(path, "ab")  # noqa: SIM115
        except OSError as error:
            raise RunError(f"{path}: cannot be written ({error}); choose another folder with --out") from error
        try:
            _hold(file, wait)
        except OSError:
            file.close()
            return None
        return Lock(file)

    def release(self) -> None:
        """Let it go."""
        self._file.close()

    def __enter__(self) -> Lock:
        return self

    def __exit__(self, *error: object) -> None:
        self.release()


def _hold(file: IO[bytes], wait: bool) -> None:
    if sys.platform == "win32":
        import msvcrt

        while True:
            try:
                file.seek(0)
                msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)
                return
            except OSError:
                if not wait:
                    raise
                time.sleep(0.05)
    else:
        import fcntl

        fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))


def weights_digest(folder: Path) -> str | None:
    """SHA-256 of the weights a run holds, whatever the step written beside them; None where it holds none."""
    try:
        with open(folder / "model.safetensors", "rb") as file:
            # A safetensors file begins with the length of its header; the tensors follow that header.
            file.seek(int.from_bytes(file.read(8), "little"), os.SEEK_CUR)
            return hashlib.file_digest(file, "sha256").hexdigest()
    except (OSError, OverflowError, ValueError):
        return None
