"""The named data sets, from small files in the official formats."""

from __future__ import annotations

import contextlib
import gzip
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from random import Random

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import varflow.data as vd
from varflow.core.errors import DataError, SpecError, VarflowError
from varflow.data import named, sources, synthetic

Write = Callable[..., dict[str, np.ndarray]]
WriteCifar = Callable[..., dict[str, tuple[np.ndarray, np.ndarray]]]


def test_names_need_no_torch() -> None:
    code = (
        "import sys, varflow.data as d; list(d.PROTOCOLS); list(d.DOWNLOADS); d.overview(); "
        "assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True, env={**os.environ})
    assert set(vd.SOURCES) == {*named.READERS, *synthetic.MAKERS} == set(sources.AUTO)


def test_overview_says_what_is_here(tmp_path: Path, mnist: Write, cifar: WriteCifar) -> None:
    lines = dict(zip(vd.SOURCES, vd.overview(tmp_path).splitlines()[2::2], strict=True))
    assert lines["mnist"].strip() == "not here; varflow data download mnist"
    assert "digits.csv.gz" in lines["digits"]
    assert lines["cifar10-subset"].strip() == "not here"
    mnist("MNIST/raw")
    cifar({"test_batch.bin": 1})
    lines = dict(zip(vd.SOURCES, vd.overview(tmp_path).splitlines()[2::2], strict=True))
    assert lines["mnist"].strip() == f"here: {tmp_path / 'MNIST' / 'raw'}"
    assert "cifar-10-binary.tar.gz" in lines["cifar10"]
    assert lines["cifar10-subset"].strip() == "not here"


def test_digits_is_stated() -> None:
    data = vd.load("digits")
    assert data.sizes == {"train": 1297, "validation": 250, "test": 250}
    assert (data.event_shape, data.protocol, data.support) == ((1, 8, 8), "dynamic", "binary")
    facts = data.describe()
    assert facts["source_levels"] == 17
    assert facts["checksums"]["digits.csv.gz"]["verified"]
    assert int(data.raw("train").max()) == 16
    for split, n in data.sizes.items():
        counts = data.labels(split).bincount(minlength=10)
        assert bool(((counts - n / 10).abs() <= 4).all()), "the order of the file is class-balanced"


def test_digits_are_those_of_scikit_learn_and_need_no_package() -> None:
    datasets = pytest.importorskip("sklearn.datasets")
    found = vd.load("digits")
    values = torch.cat([found.raw(split) for split in found.sizes])
    theirs = datasets.load_digits()
    assert torch.equal(values[:, 0].double(), torch.from_numpy(theirs.images))
    labels = torch.cat([found.labels(split) for split in found.sizes])
    assert torch.equal(labels, torch.from_numpy(theirs.target))


@pytest.mark.parametrize(
    ("name", "folder", "options"),
    [
        ("mnist", "mnist", {}),
        ("mnist", "MNIST/raw", {"compress": False}),
        ("mnist", ".", {"compress": False, "dot": True}),
        ("fashion-mnist", "FashionMNIST/raw", {}),
    ],
)
def test_mnist_layouts(
    tmp_path: Path, mnist: Write, name: str, folder: str, options: dict[str, bool]
) -> None:
    arrays = mnist(folder, **options)
    data = vd.load(name, data_dir=tmp_path, verify=False)
    assert data.sizes == {"train": 50, "validation": 10, "test": 10}
    assert data.event_shape == (1, 28, 28)
    images = torch.from_numpy(arrays["train-images-idx3-ubyte"])[:, None]
    assert torch.equal(data.raw("train"), images[:50])
    assert torch.equal(data.raw("validation"), images[50:])
    assert torch.equal(data.raw("test")[:, 0], torch.from_numpy(arrays["t10k-images-idx3-ubyte"]))
    labels = torch.from_numpy(arrays["train-labels-idx1-ubyte"]).long()
    assert torch.equal(torch.cat([data.labels("train"), data.labels("validation")]), labels)
    assert not any(check["verified"] for check in data.describe()["checksums"].values())


def test_environment_names_the_folder(
    tmp_path: Path, mnist: Write, monkeypatch: pytest.MonkeyPatch
) -> None:
    mnist()
    monkeypatch.setenv("VARFLOW_DATA", str(tmp_path))
    assert vd.load("mnist", verify=False).name == "mnist"
    monkeypatch.delenv("VARFLOW_DATA")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    with pytest.raises(
        DataError, match=r"\.cache/varflow.*no such folder.*varflow data download mnist"
    ):
        vd.load("mnist")


def test_wrong_checksum_is_refused(tmp_path: Path, mnist: Write) -> None:
    mnist()
    with pytest.raises(
        DataError, match=r"train-images.*MD5 sum is \w{32}, should be 6bbc9ace.*verify=False"
    ):
        vd.load("mnist", data_dir=tmp_path)


def test_recompressed_files_pass(
    tmp_path: Path, mnist: Write, monkeypatch: pytest.MonkeyPatch
) -> None:
    mnist(compress=False)
    files = sources.DOWNLOADS["mnist"].files
    right = tuple(
        file._replace(
            md5=sources.md5((tmp_path / "mnist" / file.name.removesuffix(".gz")).read_bytes())
        )
        for file in files
    )
    monkeypatch.setitem(
        sources.DOWNLOADS, "mnist", sources.DOWNLOADS["mnist"]._replace(files=right)
    )
    for level in (None, 1, 9):
        for file in files:
            path = tmp_path / "mnist" / file.name.removesuffix(".gz")
            if level is not None:
                (tmp_path / "mnist" / file.name).write_bytes(
                    gzip.compress(path.read_bytes(), level)
                )
        facts = vd.load("mnist", data_dir=tmp_path).describe()
        assert all(check["verified"] for check in facts["checksums"].values())


def _truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-7])


def _flip_middle(path: Path) -> None:
    raw = bytearray(path.read_bytes())
    raw[len(raw) // 2] ^= 0xFF
    path.write_bytes(bytes(raw))


def _magic(path: Path) -> None:
    path.write_bytes(b"\0\0\x08\x04" + path.read_bytes()[4:])


def _empty(path: Path) -> None:
    path.write_bytes(b"")


def _folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


@pytest.mark.parametrize(
    ("damage", "compress", "match"),
    [
        (_truncate, True, "damaged gzip"),
        (_flip_middle, True, "damaged gzip"),
        (_truncate, False, "truncated"),
        (_magic, False, "magic number 2052, should be 2051"),
        (_empty, False, "magic number"),
        (_folder, False, "is a folder"),
    ],
)
def test_damaged_idx(
    tmp_path: Path, mnist: Write, damage: Callable[[Path], None], compress: bool, match: str
) -> None:
    mnist(compress=compress)
    damage(tmp_path / "mnist" / f"train-images-idx3-ubyte{'.gz' * compress}")
    with pytest.raises(DataError, match=rf"train-images-idx3.*{match}"):
        vd.load("mnist", data_dir=tmp_path, verify=False)


def test_labels_must_match(tmp_path: Path, mnist: Write) -> None:
    mnist(train=60)
    keep = (tmp_path / "mnist" / "train-labels-idx1-ubyte.gz").read_bytes()
    mnist(train=66)
    (tmp_path / "mnist" / "train-labels-idx1-ubyte.gz").write_bytes(keep)
    with pytest.raises(DataError, match="66 pictures but 60 labels"):
        vd.load("mnist", data_dir=tmp_path, verify=False)


def test_empty_split_is_refused(tmp_path: Path, mnist: Write) -> None:
    mnist(train=5)
    with pytest.raises(DataError, match=r"split validation .* empty"):
        vd.load("mnist", data_dir=tmp_path, verify=False)


def test_unreadable_is_an_error_of_ours(
    tmp_path: Path, mnist: Write, monkeypatch: pytest.MonkeyPatch
) -> None:
    mnist()

    def refuse(*_: object) -> bool:
        raise PermissionError(13, "Permission denied")

    for method in ("read_bytes", "exists"):
        with monkeypatch.context() as patch:
            patch.setattr(Path, method, refuse)
            with pytest.raises(DataError, match=r"cannot be read .*Permission denied"):
                vd.load("mnist", data_dir=tmp_path)


def _amat(images: np.ndarray) -> str:
    return "".join(" ".join(map(str, row)) + " \n" for row in images)


def test_static_mnist(tmp_path: Path, rng: np.random.Generator) -> None:
    sizes = {"train": 5, "valid": 3, "test": 2}
    with pytest.raises(DataError, match="varflow data download binarized-mnist"):
        vd.load("mnist", "static", data_dir=tmp_path)
    folder = tmp_path / "binarized-mnist"
    folder.mkdir()
    images = {part: rng.integers(0, 2, (n, 784)) for part, n in sizes.items()}
    for part, x in images.items():
        (folder / f"binarized_mnist_{part}.amat").write_text(_amat(x))
    with pytest.raises(DataError, match="5 pictures, should be 50000"):
        vd.load("mnist", "static", data_dir=tmp_path)
    data = vd.load("mnist", "static", data_dir=tmp_path, verify=False)
    assert (data.name, data.protocol, data.support, data.levels) == ("mnist", "static", "binary", 2)
    assert data.sizes == {"train": 5, "validation": 3, "test": 2}
    assert data.labels("train") is None
    for split, part in (("train", "train"), ("validation", "valid"), ("test", "test")):
        x = data.batch(split, torch.arange(sizes[part])).x
        assert torch.equal(x.flatten(1), torch.from_numpy(images[part]).float())
    (folder / "binarized_mnist_test.amat").write_text(_amat(images["test"])[:-100])
    with pytest.raises(DataError, match="truncated"):
        vd.load("mnist", "static", data_dir=tmp_path, verify=False)
    with pytest.raises(SpecError, match="'mnist' alone"):
        vd.load("fashion-mnist", "static", data_dir=tmp_path)


@settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(st.randoms(use_true_random=False), st.integers(0, 3))
def test_random_damage_is_an_error_of_ours_or_none(
    tmp_path: Path, mnist: Write, cifar: WriteCifar, damage: Random, kind: int
) -> None:
    mnist(train=12, test=2, compress=kind == 0)
    cifar(
        {"data_batch_1.bin": 10, "test_batch.bin": 1},
        "cifar-10-binary.tar.gz" if kind == 2 else None,
    )
    name, pattern = [
        ("mnist", "mnist/*images*.gz"),
        ("mnist", "mnist/*ubyte"),
        ("cifar10", "cifar10/*.gz"),
        ("cifar10", "cifar10/*/*.bin"),
    ][kind]
    for path in tmp_path.glob(pattern):
        raw = bytearray(path.read_bytes())
        for _ in range(damage.randint(1, 3)):
            # Headers are short; half of the hits should be there.
            raw[damage.randrange(min(len(raw), damage.choice((20, 10**9))))] = damage.randrange(256)
        path.write_bytes(raw[: damage.choice((len(raw), damage.randrange(len(raw))))])
    with contextlib.suppress(VarflowError):
        assert vd.load(name, data_dir=tmp_path, verify=False).sizes["test"] > 0
    for path in tmp_path.rglob("*"):
        if path.is_file():
            path.unlink()


def test_unknown_names_get_a_suggestion() -> None:
    with pytest.raises(SpecError, match="did you mean 'fashion-mnist'"):
        vd.load("fashon-mnist")
    with pytest.raises(SpecError, match="your own data"):
        vd.load("digits", levels=17)


def test_real_mnist() -> None:
    if "VARFLOW_DATA" not in os.environ:
        pytest.skip("VARFLOW_DATA is not set: no folder of real data")
    data = vd.load("mnist")
    assert data.sizes == {"train": 50_000, "validation": 10_000, "test": 10_000}
    facts = data.describe()["checksums"]
    assert len(facts) == 4
    assert all(check["verified"] for check in facts.values())
    counts = torch.zeros(256, dtype=torch.float64)
    for split in ("train", "validation"):
        for part in data.raw(split).split(2000):
            counts += part.flatten().bincount(minlength=256)
    level = torch.arange(256).double() / 255
    mean = (counts * level).sum() / counts.sum()
    variance = (counts * (level - mean) ** 2).sum() / counts.sum()
    assert abs(float(mean) - 0.130660) < 1e-6
    assert abs(float(variance.sqrt()) - 0.308108) < 1e-6
    x = data.batch("test", torch.arange(10_000)).x
    grey = data.raw("test").double() / 255
    se = float((grey * (1 - grey)).sum().sqrt()) / grey.numel()
    assert abs(float(x.double().mean() - grey.mean())) < 4 * se
