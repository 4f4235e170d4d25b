"""The user's own files."""

from __future__ import annotations

import struct
from pathlib import Path

import numpy as np
import pytest
import torch

import varflow.data as vd
from varflow.core.errors import DataError, ShapeError, SpecError


@pytest.mark.parametrize(
    "shape", [(30, 6, 5), (30, 6, 5, 1), (30, 1, 6, 5), (30, 6, 5, 3), (30, 3, 6, 5)]
)
def test_picture_layouts(tmp_path: Path, rng: np.random.Generator, shape: tuple[int, ...]) -> None:
    x = rng.integers(0, 256, shape, dtype=np.uint8)
    np.save(tmp_path / "x.npy", x)
    data = vd.load(tmp_path / "x.npy")
    channels = 3 if 3 in shape[1:] else 1
    assert data.event_shape == (channels, 6, 5)
    assert data.protocol == ("logit" if channels == 3 else "dynamic")
    assert data.describe()["source"] == str((tmp_path / "x.npy").resolve())
    assert len(data.describe()["checksums"]["x.npy"]["md5"]) == 32
    first = x.transpose(0, 3, 1, 2) if shape[-1] in (1, 3) else x.reshape(30, channels, 6, 5)
    seen = torch.cat([data.raw(split) for split in data.sizes]).numpy()
    assert {row.tobytes() for row in seen} == {np.ascontiguousarray(row).tobytes() for row in first}


@pytest.mark.parametrize("dtype", ["f4", ">f8", "f2", "i8", ">i2", "u2", "u4"])
def test_numbers_of_every_kind(tmp_path: Path, rng: np.random.Generator, dtype: str) -> None:
    x = (rng.standard_normal((40, 3)) * 100 + 500).astype(dtype)
    np.save(tmp_path / "x.npy", x)
    data = vd.load(tmp_path / "x.npy")
    assert (data.support, data.protocol) == ("real", "none")
    seen = np.concatenate([data.raw(split).numpy() for split in data.sizes])
    np.testing.assert_array_equal(np.sort(seen[:, 0]), np.sort(x[:, 0].astype(seen.dtype)))


def test_npz_with_splits(tmp_path: Path, rng: np.random.Generator) -> None:
    x, y = rng.standard_normal((50, 2)), np.arange(50)
    np.savez(tmp_path / "a.npz", x=x, labels=y)
    data = vd.load(tmp_path / "a.npz")
    assert data.sizes == {"train": 40, "validation": 5, "test": 5}
    assert torch.equal(data.raw("test"), torch.from_numpy(x)[data.labels("test")])
    np.savez(tmp_path / "b.npz", x_train=x, y_train=y, x_test=x[:7], y_test=y[:7])
    data = vd.load(tmp_path / "b.npz")
    assert data.sizes == {"train": 45, "validation": 5, "test": 7}
    assert torch.equal(data.labels("test"), torch.arange(7))
    np.savez_compressed(tmp_path / "c.npz", train=x, validation=x[:9], test=x[:8])
    assert vd.load(tmp_path / "c.npz").sizes == {"train": 50, "validation": 9, "test": 8}
    np.savez(tmp_path / "d.npz", pixels=x)
    with pytest.raises(DataError, match="holds pixels; should hold 'x'"):
        vd.load(tmp_path / "d.npz")
    np.savez(tmp_path / "e.npz", x=x, labels=np.array(["cat"] * 50))
    with pytest.raises(DataError, match="labels: dtype <U3"):
        vd.load(tmp_path / "e.npz")
    np.savez(tmp_path / "f.npz", x=x, labels=y[:9])
    with pytest.raises(ShapeError, match=r"integers \[50\]"):
        vd.load(tmp_path / "f.npz")


def test_damaged_numpy_files(tmp_path: Path, rng: np.random.Generator) -> None:
    path = tmp_path / "x.npy"
    np.save(path, np.array([{"a": 1}, None], dtype=object), allow_pickle=True)
    with pytest.raises(DataError, match="not objects"):
        vd.load(path)
    np.savez(tmp_path / "x.npz", x=np.array([{"a": 1}], dtype=object))
    with pytest.raises(DataError, match="not objects"):
        vd.load(tmp_path / "x.npz")
    np.save(path, rng.standard_normal((20, 3)))
    whole = path.read_bytes()
    np.savez_compressed(tmp_path / "x.npz", x=rng.standard_normal((200, 3)))
    packed = bytearray((tmp_path / "x.npz").read_bytes())
    packed[len(packed) // 2] ^= 0xFF
    for name, raw in (
        ("x.npy", b""),
        ("x.npy", whole[:-9]),
        ("x.npz", whole[:20]),
        ("x.npz", bytes(packed)),
    ):
        (tmp_path / name).write_bytes(raw)
        with pytest.raises(DataError, match=rf"{name}: cannot be read as a numpy file"):
            vd.load(tmp_path / name)
    for x, match in ((np.zeros((0, 3)), "no data"), (np.array(["a", "b"]), "dtype <U1")):
        np.save(path, x)
        with pytest.raises(DataError, match=match):
            vd.load(path)
    np.save(path, np.zeros((9, 2), dtype=complex))
    with pytest.raises(DataError, match="complex128"):
        vd.load(path)


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("t.csv", "{}"),
        ("t.csv", "height,width\n{}"),
        ("t.csv", '\ufeff"height","width"\r\n{}\n\n'),
    ],
)
def test_tables(tmp_path: Path, rng: np.random.Generator, name: str, text: str) -> None:
    x = rng.standard_normal((30, 2))
    rows = "\n".join(",".join(map(repr, row)) for row in x.tolist())
    (tmp_path / name).write_text(text.format(rows), encoding="utf-8")
    data = vd.load(tmp_path / name)
    assert data.event_shape == (2,)
    seen = torch.cat([data.raw(split) for split in data.sizes]).numpy()
    np.testing.assert_array_equal(np.sort(seen, 0), np.sort(x, 0))


@pytest.mark.parametrize(("name", "delimiter"), [("t.tsv", "\t"), ("t.csv", ";"), ("t.csv", ",")])
def test_a_label_column_is_no_feature(tmp_path: Path, name: str, delimiter: str) -> None:
    rows = ["a,Class,b", *(f"{i}.5,{i},-{i}" for i in range(20))]
    (tmp_path / name).write_text("\n".join(rows).replace(",", delimiter))
    data = vd.load(tmp_path / name, "standardize")
    assert data.event_shape == (2,)
    assert torch.equal(data.raw("test")[:, 0], data.labels("test") + 0.5)
    (tmp_path / name).write_text(
        "\n".join(["a,class", *(f"{i},{i}.5" for i in range(20))]).replace(",", delimiter)
    )
    assert vd.load(tmp_path / name).event_shape == (2,)


def test_levels_of_a_table(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text(
        "\n".join(",".join(str((i + j) % 17) for j in range(4)) for i in range(40))
    )
    data = vd.load(tmp_path / "t.csv", "uniform", levels=17)
    assert (data.support, data.levels, data.event_shape) == ("unit", 17, (4,))


@pytest.mark.parametrize(
    ("raw", "match"),
    [
        (b"", "is empty"),
        (b"\n \n", "is empty"),
        (b"a,b\n", "no rows"),
        (b"1,2\n3,x\n", r"column 'x1' holds text \('2' in row 1"),
        (b"1,2\n3\n", r"row 2 has 1 cell, should have 2 \(rows are counted from 1, without the head\)"),
        (b"1,2\n3,\n", r"column 'x1' has missing cells \(row 2"),
        (b"a,b,c\n1,2\n", "3 heads over 2"),
        (b"1,2\n3,nan\n4,5\n6,7", r"column 'x1' has missing cells \(row 2; .*likelihood=columns"),
        (b"\xff\xfe\x80", "not a text file"),
    ],
)
def test_damaged_tables(tmp_path: Path, raw: bytes, match: str) -> None:
    (tmp_path / "t.csv").write_bytes(raw)
    with pytest.raises(DataError, match=match):
        vd.load(tmp_path / "t.csv")


def test_wrong_paths(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no file or folder"):
        vd.load(tmp_path / "x.npy")
    (tmp_path / "x.xlsx").write_bytes(b"x")
    with pytest.raises(DataError, match=r"suffix '.xlsx'"):
        vd.load(tmp_path / "x.xlsx")
    with pytest.raises(SpecError, match="resize"):
        vd.load(tmp_path / "x.xlsx", resize=8)
    (tmp_path / "folder.npy").mkdir()
    with pytest.raises(DataError, match="no pictures among 0 files"):
        vd.load(tmp_path / "folder.npy")


@pytest.fixture
def album(tmp_path: Path, rng: np.random.Generator) -> Path:
    """Six grey pictures in each of two subfolders, and a file that is none."""
    image = pytest.importorskip("PIL.Image")
    for kind in ("cat", "dog"):
        (tmp_path / "album" / kind).mkdir(parents=True)
        for i in range(6):
            pixels = rng.integers(0, 256, (7, 5), dtype=np.uint8)
            image.fromarray(pixels).save(tmp_path / "album" / kind / f"{i}.png")
    (tmp_path / "album" / "notes.txt").write_text("x")
    (tmp_path / "album" / ".hidden.png").write_text("x")
    return tmp_path / "album"


def test_folder_of_pictures(album: Path) -> None:
    from PIL import Image

    data = vd.load(album)
    assert (data.event_shape, data.protocol, data.name) == ((1, 7, 5), "dynamic", "album")
    assert data.sizes == {"train": 10, "validation": 1, "test": 1}
    facts = data.describe()
    assert (facts["classes"], facts["skipped_files"]) == (["cat", "dog"], 1)
    stored = {
        np.asarray(Image.open(path)).tobytes(): label
        for label, kind in enumerate(facts["classes"])
        for path in (album / kind).iterdir()
    }
    for split in data.sizes:
        for x, y in zip(data.raw(split), data.labels(split), strict=True):
            assert stored[x.numpy().tobytes()] == int(y)
    Image.new("RGBA", (5, 7)).save(album / "cat" / "colour.png")
    assert vd.load(album, "grey").event_shape == (3, 7, 5)
    Image.new("L", (5, 7)).save(album / "top.png")
    assert vd.load(album).labels("train") is None


def test_folder_of_pictures_of_two_sizes(album: Path) -> None:
    from PIL import Image

    Image.new("L", (9, 8)).save(album / "dog" / "large.png")
    with pytest.raises(DataError, match=r"0\.png 7×5 and large\.png 8×9.*resize"):
        vd.load(album)
    assert vd.load(album, resize=(6, 4)).event_shape == (1, 6, 4)
    assert vd.load(album, resize=8).event_shape == (1, 8, 8)


def test_damaged_pictures(album: Path) -> None:
    from PIL import Image

    deep = album / "cat" / "deep.png"
    Image.fromarray(np.zeros((7, 5), np.uint16)).save(deep)
    with pytest.raises(DataError, match="more than 8 bits"):
        vd.load(album)
    deep.unlink()
    path = album / "cat" / "3.png"
    whole = path.read_bytes()
    for raw in (
        b"",
        b"text",
        whole[: len(whole) // 2],
        whole[:8] + struct.pack(">I", 0) + whole[12:],
    ):
        path.write_bytes(raw)
        with pytest.raises(DataError, match=r"3\.png: damaged picture"):
            vd.load(album)


def test_missing_pillow(album: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "PIL", None)
    with pytest.raises(DataError, match=r"varflow\[pictures\]"):
        vd.load(album)
