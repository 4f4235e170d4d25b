"""CIFAR-10 and SVHN, from small files in the official formats."""

from __future__ import annotations

import gzip
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

import varflow.data as vd
from varflow.core.errors import DataError
from varflow.data import named, sources

WriteCifar = Callable[..., dict[str, tuple[np.ndarray, np.ndarray]]]
SUBSET = {"data_batch_1.bin": 20, "data_batch_2.bin": 20, "test_batch.bin": 6}


@pytest.mark.parametrize("archive", ["cifar-10-binary-small.tar.gz", None])
def test_cifar_subset(tmp_path: Path, cifar: WriteCifar, archive: str | None) -> None:
    batches = cifar(SUBSET, archive)
    with pytest.raises(DataError, match=r"five train batches.*verify=False"):
        vd.load("cifar10", data_dir=tmp_path)
    for name in ("cifar10", "cifar10-subset"):
        data = vd.load(name, data_dir=tmp_path, verify=False)
        assert (data.name, data.protocol, data.flip) == ("cifar10-subset", "logit", True)
        assert data.sizes == {"train": 36, "validation": 4, "test": 6}
    train = torch.from_numpy(np.concatenate([batches[f"data_batch_{i}.bin"][0] for i in (1, 2)]))
    assert torch.equal(data.raw("train"), train[:36])
    assert torch.equal(data.raw("validation"), train[36:])
    assert torch.equal(data.labels("test"), torch.from_numpy(batches["test_batch.bin"][1]))
    assert not vd.load("cifar10", data_dir=tmp_path, verify=False, flip=False).flip


def test_whole_cifar_is_known_by_its_sizes(monkeypatch: pytest.MonkeyPatch) -> None:
    # Five batches of 10,000 as zeros would be 184 MB of records; empty records of 1 byte will do.
    batch = (np.zeros((10_000, 3, 1, 1), np.uint8), np.zeros(10_000, np.int64))
    monkeypatch.setattr("varflow.data.readers.cifar", lambda raw, path: batch)
    files = {f"data_batch_{i}.bin": b"" for i in range(1, 6)} | {"test_batch.bin": b""}
    arrays = named._cifar_arrays(Path("x"), files, False, sources.Checks(True))
    assert arrays.name == "cifar10"
    # Sizes alone are no proof: what is known of the files is said.
    said = sources.verification(arrays.facts["checksums"])
    assert said.startswith("not verified: data_batch_1.bin, data_batch_2.bin")
    assert not any(check["verified"] for check in arrays.facts["checksums"].values())
    assert [len(arrays.values[s]) for s in ("train", "validation", "test")] == [
        45_000,
        5_000,
        10_000,
    ]
    assert not arrays.facts["checksums"]["test_batch.bin"]["verified"]


@pytest.mark.parametrize(
    ("batch", "match"),
    [
        (b"\0" * 3072, "multiple of 3073"),
        (b"", "multiple of 3073"),
        (b"\0" * 3073 + b"\x0b" + b"\0" * 3072, "label 11 in record 1"),
    ],
)
def test_damaged_cifar(tmp_path: Path, cifar: WriteCifar, batch: bytes, match: str) -> None:
    cifar(SUBSET, None)
    (tmp_path / "cifar10" / "cifar-10-batches-bin" / "data_batch_2.bin").write_bytes(batch)
    with pytest.raises(DataError, match=f"data_batch_2.*{match}"):
        vd.load("cifar10", data_dir=tmp_path, verify=False)


def test_damaged_cifar_archive(tmp_path: Path, cifar: WriteCifar) -> None:
    cifar(SUBSET)
    path = tmp_path / "cifar10" / "cifar-10-binary.tar.gz"
    path.write_bytes(path.read_bytes()[:-7])
    with pytest.raises(DataError, match="damaged gzip"):
        vd.load("cifar10", data_dir=tmp_path)
    path.write_bytes(gzip.compress(b"no archive" * 99))
    with pytest.raises(DataError, match="damaged archive"):
        vd.load("cifar10", data_dir=tmp_path)
    cifar({"data_batch_1.bin": 4})
    with pytest.raises(DataError, match="should hold data_batch_"):
        vd.load("cifar10", data_dir=tmp_path, verify=False)
    with pytest.raises(DataError, match="not the pickled version"):
        vd.load("cifar10", data_dir=tmp_path / "none")
    with pytest.raises(DataError, match="cannot be downloaded"):
        vd.load("cifar10-subset", data_dir=tmp_path / "none")


def _save_svhn(folder: Path, part: str, x: np.ndarray, y: np.ndarray) -> None:
    savemat = pytest.importorskip("scipy.io").savemat
    folder.mkdir(exist_ok=True)
    savemat(folder / f"{part}_32x32.mat", {"X": x, "y": y}, do_compression=True)


def test_svhn(tmp_path: Path, rng: np.random.Generator) -> None:
    folder = tmp_path / "svhn"
    x, y = rng.integers(0, 256, (32, 32, 3, 20), dtype=np.uint8), np.arange(1, 21)[:, None] % 10 + 1
    _save_svhn(folder, "train", x, y)
    with pytest.raises(DataError, match=r"test_32x32\.mat.*varflow data download svhn"):
        vd.load("svhn", data_dir=tmp_path)
    _save_svhn(folder, "test", x[..., :5], y[:5])
    with pytest.raises(DataError, match="MD5"):
        vd.load("svhn", data_dir=tmp_path)
    data = vd.load("svhn", data_dir=tmp_path, verify=False)
    assert (data.protocol, data.flip, data.event_shape) == ("logit", False, (3, 32, 32))
    assert data.sizes == {"train": 18, "validation": 2, "test": 5}
    assert torch.equal(data.raw("train")[4, 2], torch.from_numpy(x[:, :, 2, 4]))
    assert set(data.labels("train").tolist()) == set(range(10)), "label 10 is the digit zero"
    _save_svhn(folder, "train", x, y[:19])
    with pytest.raises(DataError, match="20 pictures but 19 labels"):
        vd.load("svhn", data_dir=tmp_path, verify=False)
    _save_svhn(folder, "train", x[..., 0], y[:19])
    with pytest.raises(DataError, match=r"uint8 \[32, 32, 3, N\]"):
        vd.load("svhn", data_dir=tmp_path, verify=False)
    _save_svhn(folder, "train", x, np.array(["one"] * 20, dtype=object))
    with pytest.raises(DataError, match=r"labels 1 … 10"):
        vd.load("svhn", data_dir=tmp_path, verify=False)
    for raw in (b"", b"not a mat file" * 100, (folder / "test_32x32.mat").read_bytes()[:300]):
        (folder / "train_32x32.mat").write_bytes(raw)
        with pytest.raises(DataError, match=r"train_32x32\.mat"):
            vd.load("svhn", data_dir=tmp_path, verify=False)


def test_an_archive_is_judged_by_what_is_inside() -> None:
    yes, no = {"md5": "0", "verified": True}, {"md5": "1", "verified": False}
    assert sources.verification({"a.tar.gz": yes}).startswith("verified: every file")
    assert sources.verification({"a.tar.gz": no, "x.bin": yes}).startswith("verified: every file")
    assert sources.verification({"a.tar.gz": no, "x.bin": no}).startswith("not verified: x.bin:")
    assert sources.verification({"x.amat": no}).startswith("not verified: x.amat:")
    assert sources.verification({}) == "no files, so no checksums"
