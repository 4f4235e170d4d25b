"""Readers of the official file formats, bytes in, numpy arrays out. No torch here.

Pictures come as uint8 [N, C, H, W], labels as int64 [N]. Whatever is wrong with a file is a
:class:`DataError` that names it.
"""

from __future__ import annotations

import gzip
import io
import math
import tarfile
import zlib
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from varflow.core.errors import DataError

Bytes = NDArray[np.uint8]
Labels = NDArray[np.int64]

_IDX_BYTES = 0x08
_CIFAR_RECORD = 1 + 3 * 32 * 32


def need(extra: str, package: str, purpose: str) -> DataError:
    """The error for a missing optional ``package``."""
    return DataError(f"{purpose} needs {package}; install it with: pip install 'varflow[{extra}]'")


def content(path: Path) -> bytes:
    """The bytes of ``path``, uncompressed if they are gzip, whatever the name says."""
    if path.is_dir():
        raise DataError(f"{path}: is a folder, should be a file")
    try:
        raw = path.read_bytes()
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror or error})") from error
    if raw[:2] != b"\x1f\x8b":
        return raw
    try:
        return gzip.decompress(raw)
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"{path}: damaged gzip file ({error}); fetch it again") from error


def idx(raw: bytes, path: Path, dims: int) -> Bytes:
    """An IDX file of bytes with ``dims`` dimensions (LeCun's format: magic, sizes, data)."""
    header = 4 + 4 * dims
    magic = int.from_bytes(raw[:4], "big")
    expected = _IDX_BYTES << 8 | dims
    if len(raw) < 4 or magic != expected:
        raise DataError(
            f"{path}: magic number {magic}, should be {expected} (IDX, bytes, {dims} dimensions); "
            "is this another file under its name?"
        )
    sizes = [int.from_bytes(raw[i : i + 4], "big") for i in range(4, header, 4)]
    if len(raw) != header + math.prod(sizes):
        raise DataError(
            f"{path}: {len(raw)} bytes, should be {header + math.prod(sizes)} for shape {sizes}; "
            "the file is truncated or damaged, fetch it again"
        )
    return np.frombuffer(raw, np.uint8, offset=header).reshape(sizes)


def paired(images: Bytes, labels: Labels, where: Path) -> None:
    """Check that every picture has a label."""
    if len(images) != len(labels):
        raise DataError(
            f"{where}: {len(images)} pictures but {len(labels)} labels; "
            "the files belong to different data sets or versions"
        )


def cifar(raw: bytes, path: Path | str) -> tuple[Bytes, Labels]:
    """Records of one label byte and 3 × 32 × 32 bytes, planes first."""
    if not raw or len(raw) % _CIFAR_RECORD:
        raise DataError(
            f"{path}: {len(raw)} bytes, should be a positive multiple of {_CIFAR_RECORD} "
            "(a label and 3×32×32 bytes a picture); the file is truncated or not the binary version"
        )
    records = np.frombuffer(raw, np.uint8).reshape(-1, _CIFAR_RECORD)
    labels = records[:, 0].astype(np.int64)
    if labels.max() > 9:
        row = int(np.argmax(labels > 9))
        raise DataError(
            f"{path}: label {labels[row]} in record {row}, should be 0 … 9; "
            "the file is damaged or not CIFAR-10"
        )
    return records[:, 1:].reshape(-1, 3, 32, 32), labels


def tar_members(path: Path) -> dict[str, bytes]:
    """The ``.bin`` members of an archive by file name; nothing is unpacked to disk."""
    # All of it is uncompressed first: tarfile stops before the checksum at the end of the gzip.
    raw = content(path)
    try:
        with tarfile.open(fileobj=io.BytesIO(raw)) as archive:
            return {
                Path(member.name).name: stream.read()
                for member in archive
                if member.isfile()
                and member.name.endswith(".bin")
                and (stream := archive.extractfile(member)) is not None
            }
    except (OSError, tarfile.TarError) as error:
        raise DataError(f"{path}: damaged archive ({error}); fetch it again") from error


def svhn(raw: bytes, path: Path) -> tuple[Bytes, Labels]:
    """A .mat file with X [32, 32, 3, N] and y [N, 1], where 10 stands for the digit zero."""
    try:
        from scipy.io import loadmat
    except ImportError as error:
        raise need("svhn", "scipy", "reading .mat files") from error
    try:
        mat: dict[str, Any] = loadmat(io.BytesIO(raw))
    except Exception as error:  # scipy raises whatever the damaged bytes lead it to
        raise DataError(f"{path}: not a readable .mat file ({error}); fetch it again") from error
    for key in ("X", "y"):
        if key not in mat:
            raise DataError(
                f"{path}: no variable '{key}'; should hold X [32, 32, 3, N] and y [N, 1]"
            )
    images, y = mat["X"], mat["y"]
    if y.dtype.kind not in "iuf" or not np.isin(y, np.arange(11)).all():
        raise DataError(f"{path}: y should hold labels 1 … 10, the digit zero as 10")
    labels = y.reshape(-1).astype(np.int64) % 10
    if images.ndim != 4 or images.shape[:3] != (32, 32, 3) or images.dtype != np.uint8:
        raise DataError(
            f"{path}: X is {images.dtype} {list(images.shape)}, should be uint8 [32, 32, 3, N]"
        )
    images = np.ascontiguousarray(images.transpose(3, 2, 0, 1))
    paired(images, labels, path)
    return images, labels


def amat(raw: bytes, path: Path) -> Bytes:
    """Larochelle's text: a line of 784 zeros and ones a picture, as [N, 1, 28, 28]."""
    text = np.frombuffer(raw, np.uint8)
    digits = text[text > ord(" ")]
    if not len(digits) or len(digits) % 784 or not np.isin(digits, (ord("0"), ord("1"))).all():
        raise DataError(
            f"{path}: should hold lines of 784 characters 0 or 1, found {len(digits)} characters; "
            "the file is truncated, damaged or not binarized MNIST"
        )
    return (digits - ord("0")).reshape(-1, 1, 28, 28)


def digits_path() -> Path:
    """The file of digits that comes with the package."""
    return Path(__file__).parent / "files" / "digits.csv.gz"


def digits(raw: bytes, path: Path) -> tuple[Bytes, Labels]:
    """Rows of 64 levels 0 … 16 and a label."""
    try:
        table = np.loadtxt(io.BytesIO(raw), delimiter=",", dtype=np.int64, ndmin=2)
    except ValueError as error:
        raise DataError(f"{path}: not a table of integers ({error})") from error
    if table.shape[1:] != (65,) or table.min() < 0 or table[:, :64].max() > 16:
        raise DataError(f"{path}: shape {list(table.shape)}, should be [N, 65] of levels 0 … 16")
    return table[:, :64].astype(np.uint8).reshape(-1, 1, 8, 8), table[:, 64]
