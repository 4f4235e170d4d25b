"""Rows read as they are needed: the same batches as in memory, to the bit; refusals that name the row."""

from __future__ import annotations

import os
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import varflow.data
from varflow.core import random
from varflow.core.errors import DataError, SpecError
from varflow.data import streaming
from varflow.data.dataset import SPLITS, Dataset
from varflow.data.streamed import Streamed


def rows(count: int = 1200, columns: int = 5, seed: int = 0) -> Any:
    return np.random.default_rng(seed).standard_normal((count, columns)).astype(np.float32)


def npy(folder: Path) -> Path:
    x = rows()
    # A rounded column, and one with heavy tails.
    x[:, 1] = x[:, 1].round(1)
    x[:, 2] = np.random.default_rng(1).standard_t(1.5, len(x))
    np.save(folder / "x.npy", x)
    return folder / "x.npy"


def npy_pictures(folder: Path) -> Path:
    x = np.random.default_rng(0).integers(0, 256, (300, 6, 6, 3), dtype=np.uint8)
    np.save(folder / "x.npy", x)
    return folder / "x.npy"


def parquet(folder: Path) -> Path:
    pa, pq = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    x = rows().astype(np.float64)
    table = {f"c{j}": x[:, j] for j in range(5)} | {"label": np.arange(len(x)) % 3}
    pq.write_table(pa.table(table), folder / "x.parquet", row_group_size=100)
    return folder / "x.parquet"


def feather(folder: Path) -> Path:
    pa, feather = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.feather")
    x = rows()
    feather.write_feather(pa.table({f"c{j}": x[:, j] for j in range(5)}), folder / "x.feather", chunksize=170)
    return folder / "x.feather"


def folder_of_pictures(folder: Path) -> Path:
    image = pytest.importorskip("PIL.Image")
    draw = np.random.default_rng(0)
    for name in ("cats", "dogs"):
        (folder / "pictures" / name).mkdir(parents=True)
        for number in range(40):
            picture = image.fromarray(draw.integers(0, 256, (6, 8, 3), dtype=np.uint8))
            picture.save(folder / "pictures" / name / f"{number:03d}.png")
    return folder / "pictures"


MAKERS = {
    "npy, table": (npy, "table"), "npy, pictures": (npy_pictures, "dynamic"), "parquet": (parquet, "standardize"),
    "feather": (feather, "standardize"), "pictures": (folder_of_pictures, "logit"),
}  # fmt: skip


def both(make: Callable[[Path], Path], protocol: str, folder: Path, **more: Any) -> tuple[Streamed, Dataset]:
    path = make(folder)
    streamed = varflow.data.load(path, protocol, stream="always", **more)
    held = varflow.data.load(path, protocol, stream="never", permutation="computed", **more)
    assert isinstance(streamed, Streamed)
    assert not streamed.resident
    assert held.resident
    return streamed, held


def equal(a: Dataset, b: Dataset, split: str, index: torch.Tensor) -> None:
    found = []
    for data in (a, b):
        with random.stream(3, 4):
            found.append(data.batch(split, index))
    for one, other in zip(found[0][:2], found[1][:2], strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize("case", MAKERS)
def test_streamed_batches_are_those_in_memory_to_the_bit(case: str, tmp_path: Path) -> None:
    make, protocol = MAKERS[case]
    flip = protocol == "dynamic" or None
    streamed, held = both(make, protocol, tmp_path, flip=flip)
    assert streamed.sizes == held.sizes
    assert streamed.support == held.support
    assert streamed.event_shape == held.event_shape
    assert streamed.preprocessing.learned() == held.preprocessing.learned()
    draw = torch.Generator().manual_seed(0)
    for split in SPLITS:
        index = torch.randint(0, streamed.sizes[split], (40,), generator=draw)
        equal(streamed, held, split, index)
        assert streamed.origins(split, index) == held.origins(split, index)
        labels = [data.labels(split) for data in (streamed, held)]
        assert (labels[0] is None) == (labels[1] is None)
        if labels[0] is not None and labels[1] is not None:
            assert torch.equal(*labels)
    for epoch in (0, 1):
        orders = [data.computed_order(5, epoch) for data in (streamed, held)]
        assert np.array_equal(*(order(0, 30) for order in orders if order is not None))


def test_rows_and_labels_are_those_of_the_file(tmp_path: Path) -> None:
    streamed = varflow.data.load(parquet(tmp_path), "none", stream="always")
    x, labels = rows().astype(np.float64), streamed.labels("test")
    places = streamed.origins("test", torch.arange(60))
    assert np.array_equal(streamed.batch("test", torch.arange(60)).x, x[places].astype(np.float32))
    assert labels is not None
    assert labels[:60].tolist() == [place % 3 for place in places]
    assert streamed.columns == ("c0", "c1", "c2", "c3", "c4")


def test_arrays_tensors_and_data_sets_of_torch_are_streamed_alike(tmp_path: Path) -> None:
    class Items(torch.utils.data.Dataset[Any]):
        def __init__(self) -> None:
            self.targets = list(range(1200))

        def __len__(self) -> int:
            return 1200

        def __getitem__(self, place: int) -> Any:
            return torch.from_numpy(x[place]), place

    x = rows()
    np.save(tmp_path / "x.npy", np.concatenate([rows(7, 5, 9), x]))
    mapped = np.load(tmp_path / "x.npy", mmap_mode="r")[7:]
    given = [x, torch.from_numpy(x), mapped, Items(), torch.utils.data.TensorDataset(torch.from_numpy(x))]
    found = [varflow.data.from_tensor(one, protocol="standardize", stream="always") for one in given]
    assert all(isinstance(data, Streamed) for data in found)
    for data in found[1:]:
        equal(found[0], data, "train", torch.arange(50))
        equal(found[0], data, "validation", torch.arange(50))
    assert "checksums" in found[2].describe()
    labels = found[3].labels("train")
    assert labels is not None
    assert labels[:9].tolist() == found[3].origins("train", torch.arange(9))


def test_data_sets_of_hugging_face(tmp_path: Path) -> None:
    hub = pytest.importorskip("datasets")
    x = rows(300, 3)
    kinds = hub.Features({"x": hub.Sequence(hub.Value("float32")), "y": hub.ClassLabel(names=["a", "b"])})
    vectors = hub.Dataset.from_dict({"x": x.tolist(), "y": [i % 2 for i in range(300)]}, features=kinds)
    columns = hub.Dataset.from_dict({f"c{j}": x[:, j] for j in range(3)})
    for data in (vectors, columns):
        streamed = varflow.data.from_tensor(data, protocol="none", stream="always")
        held = varflow.data.from_tensor(data, protocol="none", stream="never", permutation="computed")
        equal(streamed, held, "train", torch.arange(40))
        assert np.array_equal(streamed.batch("test", torch.arange(9)).x, x[streamed.origins("test", torch.arange(9))])
    streamed = varflow.data.from_tensor(vectors, protocol="none", stream="always")
    assert streamed.classes == ("a", "b")
    labels = streamed.labels("test")
    assert labels is not None
    assert labels.tolist() == [i % 2 for i in streamed.origins("test", torch.arange(30))]
    text = hub.Dataset.from_dict({"c": ["a", "b", "c", "d"]})
    with pytest.raises(DataError, match=r"column 'c' holds string.*stream=never"):
        varflow.data.from_tensor(text, protocol="none", stream="always")


def test_what_is_large_is_streamed_unless_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = npy(tmp_path)
    assert not isinstance(varflow.data.load(path), Streamed)
    monkeypatch.setattr(streaming, "ABOVE", 1000)
    monkeypatch.setattr("varflow.data.streamable.ABOVE", 1000)
    found = varflow.data.load(path)
    assert isinstance(found, Streamed)
    assert "streamed: 1,200 rows of 5 float32, 23.4 KiB, read as they are needed" in found.notes()[0]
    assert not isinstance(varflow.data.load(path, stream="never"), Streamed)
    assert not isinstance(varflow.data.load(path, permutation="stored"), Streamed)
    assert isinstance(varflow.data.from_tensor(rows()), Streamed)


def test_a_sample_and_one_pass_learn_what_all_rows_say(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    x = rows(9000, 4)
    x[:, 1] = (3 * x[:, 1]).round(2)
    x[:, 2] = np.random.default_rng(1).standard_t(1.2, len(x))
    np.save(tmp_path / "x.npy", x)
    whole = varflow.data.load(tmp_path / "x.npy", "table", stream="always")
    monkeypatch.setattr(streaming, "SAMPLE", 4000)
    some = varflow.data.load(tmp_path / "x.npy", "table", stream="always")
    said = some.describe()["learned_from"]
    assert said.startswith("means and scales are of all 7,200 training rows, in one pass; grids and tails of 4,000")
    a, b = whole.preprocessing, some.preprocessing
    assert a.treatment()["rounded_columns"] == b.treatment()["rounded_columns"]
    assert list(a.treatment()["heavy_tailed_columns"]) == list(b.treatment()["heavy_tailed_columns"])
    for name in ("loc", "scale"):
        one, other = (torch.tensor(p.learned()[name], dtype=torch.float64) for p in (a, b))
        torch.testing.assert_close(one[[0, 1, 3]], other[[0, 1, 3]], rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(one[2], other[2], rtol=0.2, atol=0.2)
    monkeypatch.setattr(streaming, "ONE_PASS", 1000)
    said = varflow.data.load(tmp_path / "x.npy", "standardize", stream="always").describe()["learned_from"]
    assert said == "means, scales, grids and tails of 4,000 of 7,200 training rows, chosen by a seed"


def test_held_out_rows_that_are_looked_at_are_stated(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("varflow.data.streamed.HELD_OUT", 50)
    data = varflow.data.load(npy(tmp_path), "none", stream="always")
    assert data.describe()["looked_at"] == {"validation": 50, "test": 50}
    assert data.looked_at("train") == 960
    assert "look at 50 of 120 validation rows, 50 of 120 test rows" in data.notes()[1]
    assert data.first(validation=80).looked_at("validation") == 80
    assert data.first(train=100).sizes == {"train": 100, "validation": 120, "test": 120}
    with pytest.raises(SpecError, match=r"validation_limit: was 121; the validation split of .* has 120"):
        data.first(validation=121)


@pytest.mark.parametrize("value", [np.inf, np.nan])
def test_what_is_not_finite_is_found_on_the_way_with_its_row(
    value: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    x = rows()
    np.save(tmp_path / "good.npy", x)
    good = varflow.data.load(tmp_path / "good.npy", "none", stream="always")
    # A training row beyond the sample.
    monkeypatch.setattr(streaming, "SAMPLE", 100)
    index = torch.arange(500, 520)
    place = good.origins("train", index)[3]
    x[place, 2] = value
    np.save(tmp_path / "x.npy", x)
    data = varflow.data.load(tmp_path / "x.npy", "none", stream="always")
    data.batch("train", index[:3])
    with pytest.raises(DataError, match=rf"x: {value} in row {place} of x.npy, column 2 .*; remove or impute"):
        data.batch("train", index)
    with pytest.raises(DataError, match=rf"x: {value} in row {place} of x.npy"):
        varflow.data.load(tmp_path / "x.npy", "standardize", stream="always")


def test_another_level_than_the_sample_showed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(streaming, "SAMPLE", 100)
    x = np.random.default_rng(0).integers(0, 2, (1000, 4, 4), dtype=np.uint8)
    np.save(tmp_path / "x.npy", x)
    place = varflow.data.load(tmp_path / "x.npy", stream="always").origins("train", torch.tensor([700]))[0]
    x[place] = 9
    np.save(tmp_path / "x.npy", x)
    data = varflow.data.load(tmp_path / "x.npy", stream="always")
    assert data.levels == 2
    with pytest.raises(DataError, match=rf"x: 9 in row {place} of x.npy, .*should be below levels=2; say levels=256"):
        data.batch("train", torch.tensor([700]))


def test_a_file_that_changes_is_noticed(tmp_path: Path) -> None:
    path = npy(tmp_path)
    data = varflow.data.load(path, "none", stream="always")
    before = data.describe()["checksums"]
    data.batch("train", torch.arange(4))
    with open(path, "r+b") as file:
        file.seek(-8, os.SEEK_END)
        file.write(b"\0" * 8)
    os.utime(path, ns=(1, 1))
    with pytest.raises(DataError, match="has changed while it was read"):
        data.batch("train", torch.arange(4))
    assert varflow.data.load(path, "none", stream="always").describe()["checksums"] != before


def test_refusals(tmp_path: Path) -> None:
    path = npy(tmp_path)
    with pytest.raises(SpecError, match=r"stream: unknown.*always"):
        varflow.data.load(path, stream="sometimes")
    with pytest.raises(SpecError, match="permutation: was stored, and streamed rows have an order that is computed"):
        varflow.data.load(path, stream="always", permutation="stored")
    with pytest.raises(SpecError, match="workers: was -1; use 0 or more"):
        varflow.data.load(path, stream="always", workers=-1)
    with pytest.raises(SpecError, match=r"stream: was always, and 'digits' cannot be read as it is needed; .npy"):
        varflow.data.load("digits", stream="always")
    (tmp_path / "x.csv").write_text("a,b\n1,2\n3,4\n5,6\n")
    with pytest.raises(SpecError, match=r"stream: was always, and '.*x.csv' cannot be read as it is needed"):
        varflow.data.load(tmp_path / "x.csv", stream="always")
    with pytest.raises(SpecError, match=r"permutation: was computed, and .* under likelihood=columns"):
        varflow.data.load(path, "columns", permutation="computed")
    np.save(tmp_path / "few.npy", rows(2))
    with pytest.raises(DataError, match="2 rows to train/validate/test; give at least 3 rows"):
        varflow.data.load(tmp_path / "few.npy", "none", stream="always")
    np.save(tmp_path / "f.npy", np.asfortranarray(rows()))
    with pytest.raises(DataError, match=r"lies column by column .*numpy.ascontiguousarray"):
        varflow.data.load(tmp_path / "f.npy", "none", stream="always")
    np.save(tmp_path / "flat.npy", np.ones((100, 2), np.float32))
    with pytest.raises(DataError, match="constant"):
        varflow.data.load(tmp_path / "flat.npy", "standardize", stream="always")
    (tmp_path / "cut.npy").write_bytes(path.read_bytes()[:-100])
    with pytest.raises(DataError, match="the file is truncated"):
        varflow.data.load(tmp_path / "cut.npy", "none", stream="always")


def test_a_table_with_words_or_gaps_is_refused(tmp_path: Path) -> None:
    pa, pq = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    pq.write_table(pa.table({"a": [1.0, 2.0, 3.0], "city": ["x", "y", "z"]}), tmp_path / "x.parquet")
    with pytest.raises(DataError, match="column 'city' holds string, and a table that is streamed holds numbers"):
        varflow.data.load(tmp_path / "x.parquet", "none", stream="always")
    pq.write_table(pa.table({"a": [1.0, None, 3.0, 4.0], "b": [1.0, 2.0, 3.0, 4.0]}), tmp_path / "gap.parquet")

    def read_all() -> None:
        data = varflow.data.load(tmp_path / "gap.parquet", "none", stream="always")
        for split in SPLITS:
            data.raw(split)

    with pytest.raises(DataError, match=r"x: nan in row 1 of gap.parquet, 'a'; remove or impute such rows"):
        read_all()


def test_pictures_of_another_size_or_kind_are_refused(tmp_path: Path) -> None:
    image = pytest.importorskip("PIL.Image")
    folder = folder_of_pictures(tmp_path)
    data = varflow.data.load(folder, stream="always")
    assert (data.picture, data.event_shape, data.classes) == (True, (3, 6, 8), ("cats", "dogs"))
    first = str(data.origins("train", torch.tensor([5]))[0])
    assert first.endswith(".png")
    image.new("RGB", (4, 4)).save(folder / first)
    with pytest.raises(DataError, match=rf"{first}: is 4×4, the pictures before it are 6×8; .*--resize 32"):
        data.batch("train", torch.tensor([5]))
    (folder / first).write_bytes(b"no picture")
    with pytest.raises(DataError, match="damaged picture"):
        data.batch("train", torch.tensor([5]))
    image.new("RGB", (4, 4)).save(folder / first)
    with pytest.raises(DataError, match="pictures of several sizes, such as"):
        varflow.data.load(folder, stream="always")
    assert varflow.data.load(folder, stream="always", resize=5).event_shape == (3, 5, 5)


@pytest.mark.parametrize("case", ["npy, table", "parquet"])
def test_a_store_goes_to_another_process(case: str, tmp_path: Path) -> None:
    data = varflow.data.load(MAKERS[case][0](tmp_path), "none", stream="always")
    assert isinstance(data, Streamed)
    data.batch("train", torch.arange(3))
    sent = pickle.loads(pickle.dumps(data.rows))
    assert torch.equal(sent.of("train", np.arange(20)), data.rows.of("train", np.arange(20)))


def test_workers_give_the_batches_in_order_and_errors_as_they_are(tmp_path: Path) -> None:
    path = npy(tmp_path)
    plain = varflow.data.load(path, "none", stream="always")
    ahead = varflow.data.load(path, "none", stream="always", workers=2)
    order = plain.computed_order(0, 0)
    assert order is not None
    chosen = [torch.from_numpy(order(at, at + 16)) for at in range(0, 160, 16)]
    ahead.read_ahead(lambda step: chosen[step], range(2, 10))
    # What is not the next is read when it is asked for, and what is next afterwards.
    for step in (0, 2, 3, 1, 4, 5, 6, 3, 7, 8, 9, 9):
        assert torch.equal(ahead.batch("train", chosen[step]).x, plain.batch("train", chosen[step]).x)
    os.utime(path, ns=(1, 1))
    ahead.read_ahead(lambda step: chosen[step], range(0, 2))
    with pytest.raises(DataError, match="has changed while it was read"):
        ahead.batch("train", chosen[0])
