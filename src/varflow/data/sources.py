"""Where the named data sets come from: files, addresses, checksums, splits. No torch here.

MD5 sums are of the uncompressed content where a file may be compressed again without harm, and
guard against damage and mix-ups, not against malice.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from varflow.core.errors import DataError
from varflow.core.files import cache_folder


class File(NamedTuple):
    """One official file. ``md5`` is None where no official sum is known."""

    name: str
    md5: str | None
    #: Whether ``md5`` is of the content inside the .gz.
    inside: bool = False


class Source(NamedTuple):
    """Files of a data set and the addresses (mirrors, in order) they are fetched from."""

    folder: str
    mirrors: tuple[str, ...]
    files: tuple[File, ...]


def _idx(*sums: str) -> tuple[File, ...]:
    names = ("train-images-idx3", "train-labels-idx1", "t10k-images-idx3", "t10k-labels-idx1")
    return tuple(
        File(f"{n}-ubyte.gz", md5, inside=True) for n, md5 in zip(names, sums, strict=True)
    )


#: What ``download`` can fetch.
DOWNLOADS = {
    "mnist": Source(
        "mnist",
        (
            "https://ossci-datasets.s3.amazonaws.com/mnist/",
            "https://storage.googleapis.com/cvdf-datasets/mnist/",
        ),
        _idx(
            "6bbc9ace898e44ae57da46a324031adb",
            "a25bea736e30d166cdddb491f175f624",
            "2646ac647ad5339dbf082846283269ea",
            "27ae3e4e09519cfbb04c329615203637",
        ),
    ),
    "fashion-mnist": Source(
        "fashion-mnist",
        ("http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/",),
        _idx(
            "f4a8712d7a061bf5bd6d2ca38dc4d50a",
            "9018921c3c673c538a1fc5bad174d6f9",
            "8181f5470baa50b63fa0f6fddb340f0a",
            "15d484375f8d13e6eb1aabb0c3f46965",
        ),
    ),
    "binarized-mnist": Source(
        "binarized-mnist",
        ("http://www.cs.toronto.edu/~larocheh/public/datasets/binarized_mnist/",),
        tuple(File(f"binarized_mnist_{part}.amat", None) for part in ("train", "valid", "test")),
    ),
    "cifar10": Source(
        "cifar10",
        ("https://www.cs.toronto.edu/~kriz/",),
        (File("cifar-10-binary.tar.gz", "c32a1d4ab5d03f1284b67883e8d87530"),),
    ),
    "svhn": Source(
        "svhn",
        ("http://ufldl.stanford.edu/housenumbers/",),
        (
            File("train_32x32.mat", "e26dedcc434d2e4c54c9b2d4a06d8373"),
            File("test_32x32.mat", "eb5a983be6a315427106f1b164d9cef3"),
        ),
    ),
}

#: Of the digits that come with the package, uncompressed.
DIGITS_MD5 = "a0339c30a8a5312a1b6f9e5c719dcce5"

#: Of the batches of the CIFAR-10 subset.
SUBSET_MD5 = {
    "data_batch_1.bin": "0e0b475e126dc5a68afa24823a87f7d2",
    "data_batch_2.bin": "053a4c8503c25316463462ab75b726c6",
    "test_batch.bin": "92604a44abfe7e46b601d41b06dfb0aa",
}

#: Folders a data set may lie in, under the data folder, as varflow and others lay them out.
FOLDERS = {
    "mnist": ("mnist", "MNIST/raw", "MNIST", "mnist/raw", "."),
    "fashion-mnist": ("fashion-mnist", "FashionMNIST/raw", "FashionMNIST", "fashion_mnist", "."),
    "binarized-mnist": ("binarized-mnist", "binarized_mnist", "mnist", "BinarizedMNIST", "."),
    "cifar10": ("cifar10", "cifar-10", "CIFAR10", "."),
    "svhn": ("svhn", "SVHN", "."),
}

#: The protocol that "auto" stands for.
AUTO = {
    "digits": "dynamic",
    "mnist": "dynamic",
    "fashion-mnist": "dynamic",
    "cifar10": "logit",
    "cifar10-subset": "logit",
    "svhn": "logit",
    "gaussian-1": "none",
    "gaussian-2": "none",
    "three-clusters": "none",
}

#: Where mirrored pictures are as natural as the originals.
FLIPS = frozenset({"cifar10", "cifar10-subset"})


def data_folder(data_dir: str | os.PathLike[str] | None) -> Path:
    """``data_dir``, else the environment's VARFLOW_DATA, else the cache (~/.cache/varflow on Linux)."""
    given = data_dir or os.environ.get("VARFLOW_DATA")
    return Path(given).expanduser() if given else cache_folder()


def missing(name: str, root: Path, expected: list[str]) -> DataError:
    """The error for a data set that is not under ``root``."""
    seen = "" if root.is_dir() else " (there is no such folder)"
    return DataError(
        f"data '{name}': not found under {root}{seen}; expected {', '.join(expected)} in one of "
        f"{', '.join(str(Path(root, f)) for f in FOLDERS[name])}. "
        f"Fetch it with 'varflow data download {name}', or name its folder with data_dir or the "
        "environment variable VARFLOW_DATA"
    )


def verification(checksums: Mapping[str, Mapping[str, Any]]) -> str:
    """One sentence on what :class:`Checks` found."""
    # Of an archive that was packed again the files inside count, which then are listed too.
    inside = {k: v for k, v in checksums.items() if not k.endswith(".tar.gz")}
    unknown = [name for name, check in (inside or checksums).items() if not check["verified"]]
    if not checksums:
        return "no files, so no checksums"
    if not unknown:
        return "verified: every file has its official MD5 sum"
    return (
        f"not verified: {', '.join(unknown)}: no official MD5 sum is known, or it is another one (packed again, "
        "say); only the structure and the numbers of rows were checked"
    )


def md5(content: bytes) -> str:
    return hashlib.md5(content, usedforsecurity=False).hexdigest()


class Checks:
    """Compares checksums and keeps what it found, for the run folder."""

    def __init__(self, verify: bool) -> None:
        self.verify = verify
        self.found: dict[str, dict[str, str | bool]] = {}

    def __call__(self, path: Path | str, content: bytes, expected: str | None) -> None:
        """Raise :class:`DataError` if ``content`` is not the official one."""
        found = md5(content)
        if self.verify and expected is not None and found != expected:
            raise DataError(
                f"{path}: its MD5 sum is {found}, should be {expected}; the file is damaged or "
                "another one. Fetch it again, or pass verify=False (--no-verify) to use it as it is"
            )
        self.note(Path(path).name, found, found == expected)

    def note(self, name: str, found: str, verified: bool) -> None:
        self.found[name] = {"md5": found, "verified": verified}
