"""The named data sets: find their files, check them, split them. No torch here.

Splits, in the order of the files: MNIST and Fashion-MNIST 50,000/10,000/10,000 (the last sixth of
train validates); CIFAR-10 45,000/5,000/10,000 and SVHN 65,932/7,325/26,032 (the last tenth of
train); digits 1,297/250/250, whose classes are balanced to within 4 of 25 in the file's order.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from varflow.core.errors import DataError
from varflow.data import SOURCES, readers, sources
from varflow.data.readers import Bytes, Labels
from varflow.data.sources import Checks

#: Column heads of a table that are labels, not features.
LABEL_HEADS = frozenset({"label", "labels", "class", "target", "y"})


@dataclass
class Arrays:
    """What a reader hands over: splits of stored values, their labels, and plain facts."""

    name: str
    values: dict[str, Any]
    labels: dict[str, Labels] = field(default_factory=dict)
    levels: int | None = 256
    facts: dict[str, Any] = field(default_factory=dict)
    #: The density that the values were drawn from, where it is known (:class:`varflow.data.synthetic.Truth`).
    truth: Any = None
    #: The file of each example, where they are files of their own.
    files: tuple[str, ...] = ()
    #: The kinds of a table's columns, where the values are its stored values (:class:`varflow.data.kinds.Found`).
    found: Any = None
    #: Part → columns that are conditioned on (:class:`varflow.data.raw.Raw`).
    context: Mapping[str, Any] = field(default_factory=dict)


def _find(folder: Path, *names: str) -> Path | None:
    """The first of ``names`` in ``folder``, as named, compressed or uncompressed."""
    for name in names:
        plain = name.removesuffix(".gz")
        for path in (folder / f"{plain}.gz", folder / plain):
            if path.exists():
                return path
    return None


def _find_all(folder: Path, names: list[str]) -> list[Path] | None:
    """All of ``names`` in ``folder``, or None."""
    paths = [path for name in names if (path := _find(folder, name)) is not None]
    return paths if len(paths) == len(names) else None


def _folders(name: str, root: Path) -> list[Path]:
    return [folder for part in sources.FOLDERS[name] if (folder := root / part).is_dir()]


def _splits(
    name: str,
    train: tuple[Bytes, Labels],
    test: tuple[Bytes, Labels],
    held_out: int,
    source: Path,
    checks: Checks,
    levels: int = 256,
) -> Arrays:
    """The last ``held_out`` rows of train become validation."""
    cut = len(train[0]) - held_out
    pieces = {
        "train": (train[0][:cut], train[1][:cut]),
        "validation": (train[0][cut:], train[1][cut:]),
        "test": test,
    }
    for split, (images, _) in pieces.items():
        if not len(images):
            raise DataError(
                f"data '{name}': split {split} of {source} is empty; use the full files"
            )
    return Arrays(
        name,
        {split: images for split, (images, _) in pieces.items()},
        {split: labels for split, (_, labels) in pieces.items()},
        levels,
        {
            "source": str(source),
            "checksums": checks.found,
            "split": f"validation: the last {held_out} of train, in the order of the files",
        },
    )


def digits(root: Path, checks: Checks) -> Arrays:
    path = readers.digits_path()
    raw = readers.content(path)
    checks(path, raw, sources.DIGITS_MD5)
    images, labels = readers.digits(raw, path)
    train, test = (images[:-250], labels[:-250]), (images[-250:], labels[-250:])
    return _splits("digits", train, test, 250, path, checks, levels=17)


def _idx_pair(folder: Path, part: str, name: str, checks: Checks) -> tuple[Bytes, Labels] | None:
    """Pictures and labels of ``part`` (train or t10k), None where a file is missing."""
    found: list[Bytes] = []
    sums = {file.name: file.md5 for file in sources.DOWNLOADS[name].files}
    for kind, dims in (("images", 3), ("labels", 1)):
        official = f"{part}-{kind}-idx{dims}-ubyte.gz"
        path = _find(folder, official, official.replace("-idx", ".idx"))
        if path is None:
            return None
        raw = readers.content(path)
        # The structure first: it names what is wrong where a checksum can only say that it is.
        array = readers.idx(raw, path, dims)
        checks(path, raw, sums[official])
        found.append(array)
    images, labels = found[0][:, None], found[1].astype(np.int64)
    readers.paired(images, labels, folder)
    return images, labels


def _mnist(name: str) -> Callable[[Path, Checks], Arrays]:
    def read(root: Path, checks: Checks) -> Arrays:
        for folder in _folders(name, root):
            train = _idx_pair(folder, "train", name, checks)
            test = _idx_pair(folder, "t10k", name, checks)
            if train is not None and test is not None:
                return _splits(name, train, test, len(train[0]) // 6, folder, checks)
        raise sources.missing(name, root, [f.name for f in sources.DOWNLOADS[name].files])

    return read


#: Rows of the published static binarization, which are enforced.
STATIC_SIZES = {"train": 50_000, "validation": 10_000, "test": 10_000}


def static_mnist(root: Path, checks: Checks) -> Arrays:
    """Larochelle's binarized MNIST, which has no labels and an order of its own."""
    parts = {"train": "train", "validation": "valid", "test": "test"}
    names = {split: f"binarized_mnist_{part}.amat" for split, part in parts.items()}
    for folder in _folders("binarized-mnist", root):
        paths = _find_all(folder, list(names.values()))
        if paths is None:
            continue
        values = {}
        for split, path in zip(names, paths, strict=True):
            raw = readers.content(path)
            values[split] = readers.amat(raw, path)
            checks(path, raw, None)
            if checks.verify and len(values[split]) != STATIC_SIZES[split]:
                raise DataError(
                    f"{path}: {len(values[split])} pictures, should be {STATIC_SIZES[split]}; "
                    "the file is truncated or not the published one (verify=False accepts it)"
                )
        facts = {
            "source": str(folder),
            "checksums": checks.found,
            "split": "as published by Larochelle",
        }
        return Arrays("mnist", values, {}, 2, facts)
    raise sources.missing("binarized-mnist", root, list(names.values()))


def _cifar_places(folder: Path, verify: bool) -> Iterator[Arrays]:
    """Every CIFAR-10, whole or part, in ``folder``; archives by the length of their names."""
    for path in sorted(folder.glob("cifar-10-binary*.tar.gz"), key=lambda path: len(path.name)):
        checks = Checks(verify)
        members = readers.tar_members(path)
        found = sources.md5(path.read_bytes())
        official = found == sources.DOWNLOADS["cifar10"].files[0].md5
        checks.note(path.name, found, official)
        yield _cifar_arrays(path, members, official, checks)
    for place in (folder / "cifar-10-batches-bin", folder):
        if batches := sorted(place.glob("*_batch*.bin")):
            files = {path.name: readers.content(path) for path in batches}
            yield _cifar_arrays(place, files, False, Checks(verify))


def _cifar(name: str) -> Callable[[Path, Checks], Arrays]:
    """The whole set, else for "cifar10" the subset, which then says so in its name."""

    def read(root: Path, checks: Checks) -> Arrays:
        part = None
        for folder in _folders("cifar10", root):
            for arrays in _cifar_places(folder, checks.verify):
                if arrays.name == name:
                    return arrays
                part = part or arrays
        if part is not None and name == "cifar10":
            return part
        if name != "cifar10":
            raise DataError(
                f"data '{name}': not found under {root}; expected "
                "cifar-10-binary-subset20k5k.tar.gz there or in cifar10/. "
                "It cannot be downloaded; 'cifar10' is the whole set"
            )
        raise sources.missing(name, root, ["cifar-10-binary.tar.gz (not the pickled version)"])

    return read


def _cifar_arrays(place: Path, files: dict[str, bytes], official: bool, checks: Checks) -> Arrays:
    batches = {name: readers.cifar(raw, f"{place}/{name}") for name, raw in sorted(files.items())}
    trains = [batch for name, batch in batches.items() if name.startswith("data_batch_")]
    if "test_batch.bin" not in batches or not trains:
        raise DataError(
            f"{place}: holds {', '.join(batches) or 'no .bin files'}; should hold data_batch_*.bin "
            "and test_batch.bin, the binary version of CIFAR-10"
        )
    full = len(trains) == 5 and all(len(y) == 10_000 for _, y in batches.values())
    subset = {name: sources.md5(raw) for name, raw in files.items()}
    known = official or subset == sources.SUBSET_MD5
    if not official:
        for name, found in subset.items():
            checks.note(name, found, known)
    if checks.verify and not full and not known:
        rows = ", ".join(f"{name} {len(y)}" for name, (_, y) in batches.items())
        raise DataError(
            f"{place}: pictures in {rows}; should be five train batches and a test batch of 10,000 "
            "each. A file is missing or truncated; fetch it again, or pass verify=False (--no-verify) to use "
            "what is there as a subset"
        )
    train = (np.concatenate([x for x, _ in trains]), np.concatenate([y for _, y in trains]))
    name = "cifar10" if full else "cifar10-subset"
    return _splits(name, train, batches["test_batch.bin"], len(train[0]) // 10, place, checks)


def svhn(root: Path, checks: Checks) -> Arrays:
    files = sources.DOWNLOADS["svhn"].files
    for folder in _folders("svhn", root):
        paths = _find_all(folder, [file.name for file in files])
        if paths is None:
            continue
        pieces = []
        for path, file in zip(paths, files, strict=True):
            raw = readers.content(path)
            pieces.append(readers.svhn(raw, path))
            checks(path, raw, file.md5)
        train, test = pieces
        return _splits("svhn", train, test, len(train[0]) // 10, folder, checks)
    raise sources.missing("svhn", root, [file.name for file in files])


#: name → reader of the data under a data folder.
READERS: dict[str, Callable[[Path, Checks], Arrays]] = {
    "digits": digits,
    "mnist": _mnist("mnist"),
    "fashion-mnist": _mnist("fashion-mnist"),
    "cifar10": _cifar("cifar10"),
    "cifar10-subset": _cifar("cifar10-subset"),
    "svhn": svhn,
}


def overview(data_dir: str | os.PathLike[str] | None = None) -> str:
    """The named data sets, a line each: name, what it is, and where it lies or how to get it."""
    width = max(map(len, SOURCES))
    lines = [f"data folder: {sources.data_folder(data_dir)}"]
    for found in listed(data_dir):
        lines.append(f"{found['name']:{width}}  {found['what']}")
        lines.append(f"{'':{width}}  {found['where']}")
    return "\n".join(lines)


def listed(data_dir: str | os.PathLike[str] | None = None) -> list[dict[str, Any]]:
    """The named data sets: name, what each is, whether it is here, and where, or how to get it."""
    root = sources.data_folder(data_dir)
    places = {name: _whereabouts(name, root) for name in SOURCES}
    return [
        {"name": name, "what": text, "here": places[name].startswith("here"), "where": places[name]}
        for name, text in SOURCES.items()
    ]


def _whereabouts(name: str, root: Path) -> str:
    """Whether the files of ``name`` are there, by their names alone."""
    if name == "digits":
        return f"here: {readers.digits_path()}"
    if name not in READERS:
        return "here: made on the spot"
    if name.startswith("cifar10"):
        pattern = "cifar-10-binary*subset*" if name.endswith("subset") else "cifar-10-b*"
        found = [path for folder in _folders("cifar10", root) for path in folder.glob(pattern)]
        if found:
            return f"here: {found[0]}"
    else:
        files = [file.name for file in sources.DOWNLOADS[name].files]
        for folder in _folders(name, root):
            if _find_all(folder, files) is not None:
                return f"here: {folder}"
    return f"not here; varflow data download {name}" if name in sources.DOWNLOADS else "not here"
