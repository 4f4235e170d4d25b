"""What users hold in Python: each kind holds the same numbers, and answers come back in it."""

from decimal import Decimal

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader, Dataset, IterableDataset, Subset, TensorDataset

import varflow as vf
from varflow.core.errors import DataError, ShapeError
from varflow.data.given import Given, given, in_order, like

X = np.random.default_rng(0).normal(size=(30, 3))
NAMES = ("weight", "charge", "width")


class Items(Dataset):
    """A map-style data set of whatever items."""

    def __init__(self, items):
        self.items = items

    def __len__(self):
        return len(self.items)

    def __getitem__(self, index):
        return self.items[index]


def _detached(values):
    return values.detach() if isinstance(values, torch.Tensor) else values


def kinds():
    pandas, polars, pyarrow = (pytest.importorskip(name) for name in ("pandas", "polars", "pyarrow"))
    columns = dict(zip(NAMES, X.T, strict=True))
    return {
        "pandas": pandas.DataFrame(columns),
        "polars": polars.DataFrame(columns),
        "arrow": pyarrow.table(columns),
        "batch": pyarrow.RecordBatch.from_pydict(columns),
    }


def test_frames_hold_their_columns_by_name():
    for name, frame in kinds().items():
        held = given(frame)
        np.testing.assert_array_equal(np.asarray(held.values), X, err_msg=name)
        assert held.columns == NAMES
        assert held.labels is None


@pytest.mark.parametrize(
    "make",
    [
        lambda: X.tolist(),
        lambda: list(X),
        lambda: [torch.tensor(row) for row in X],
        lambda: TensorDataset(torch.tensor(X)),
        lambda: DataLoader(TensorDataset(torch.tensor(X)), batch_size=7, shuffle=True),
        lambda: Subset(TensorDataset(torch.tensor(X)), range(30)),
        lambda: Items(list(X)),
        lambda: Items([{"x": row, "note": "a"} for row in X]),
        lambda: np.asfortranarray(X),
        lambda: X.astype(">f8"),
        lambda: torch.tensor(X, requires_grad=True),
        lambda: np.ma.masked_array(X, mask=False),
    ],
)
def test_other_kinds_hold_the_same_numbers(make):
    held = given(make())
    assert torch.equal(torch.as_tensor(np.ascontiguousarray(_detached(held.values), np.float64)), torch.tensor(X))
    assert held.labels is None
    data = vf.data.from_tensor(make())
    assert sum(data.sizes.values()) == 30
    assert data.event_shape == (3,)


def test_labels_come_from_items_frames_and_tensors():
    y = np.arange(30) % 4
    pandas = pytest.importorskip("pandas")
    frame = pandas.DataFrame(X, columns=list(NAMES)).assign(Target=y)
    for x in (
        TensorDataset(torch.tensor(X), torch.tensor(y)),
        Items(list(zip(X, y, strict=True))),
        Items([{"image": row, "label": int(label)} for row, label in zip(X, y, strict=True)]),
        frame,
    ):
        held = given(x)
        np.testing.assert_array_equal(np.asarray(held.labels), y)
        np.testing.assert_array_equal(np.asarray(held.values), X)
    # What is not whole is a column like any other.
    assert given(frame.assign(Target=y + 0.5)).labels is None


def test_a_hugging_face_data_set_is_a_table_or_pictures():
    datasets = pytest.importorskip("datasets")
    table = datasets.Dataset.from_dict(dict(zip(NAMES, X.T.tolist(), strict=True)))
    held = given(table)
    np.testing.assert_array_equal(held.values, X)
    assert held.columns == NAMES
    from PIL import Image

    pictures = np.random.default_rng(1).integers(0, 256, (6, 5, 4), dtype=np.uint8)
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=["cat", "dog"])})
    rows = {"image": [Image.fromarray(p) for p in pictures], "label": [0, 1, 0, 1, 0, 1]}
    held = given(datasets.Dataset.from_dict(rows, features=features))
    np.testing.assert_array_equal(held.values, pictures)
    assert list(held.labels) == rows["label"]
    assert held.classes == ("cat", "dog")
    split = datasets.DatasetDict({"train": table, "test": table.select(range(10))})
    assert vf.data.from_tensor(split).sizes == {"train": 27, "validation": 3, "test": 10}
    vectors = datasets.Dataset.from_dict({"vector": X.tolist()})
    np.testing.assert_array_equal(given(vectors).values, X)


def test_kinds_of_numbers_are_numbers():
    pandas = pytest.importorskip("pandas")
    frame = pandas.DataFrame(
        {
            "flag": pandas.array([True, False, True], dtype="boolean"),
            "count": pandas.array([1, 2, 3], dtype="Int64"),
            "half": np.array([1, 2, 3], np.float16),
            "money": [Decimal("1.25"), Decimal("2.5"), Decimal("3.75")],
            7: [1.0, 2.0, 3.0],
        }
    )
    held = given(frame)
    np.testing.assert_array_equal(held.values, [[1, 1, 1, 1.25, 1], [0, 2, 2, 2.5, 2], [1, 3, 3, 3.75, 3]])
    assert held.columns == ("flag", "count", "half", "money", "7")
    assert given(pandas.DataFrame({"a": np.zeros(3, np.float32)})).values.dtype == np.float32


def test_what_cannot_be_read_is_refused_by_name():
    pandas, polars = pytest.importorskip("pandas"), pytest.importorskip("polars")

    class Stream(IterableDataset):
        def __iter__(self):
            return iter(())

    good = pandas.DataFrame({"a": [1.0, 2.0]})
    for x, sentence in [
        (object(), "x: was object; give a tensor or an array"),
        (Stream(), "x: was Stream, which can only be gone through in order"),
        (DataLoader(Stream()), "x: was Stream, which can only be gone through in order"),
        (polars.LazyFrame({"a": [1.0]}), "x: was a LazyFrame"),
        ([], "x: is an empty list"),
        (["a", "b"], "x: was a list of str"),
        (good.assign(b=["u", "v"]), "x: column 'b' holds str, should be numbers"),
        (good.assign(b=pandas.Categorical(["u", "v"])), "x: column 'b' holds category, should be numbers"),
        (good.assign(b=pandas.to_datetime(["2020-01-01", "2020-01-02"])), "x: column 'b' holds datetime64"),
        (good.assign(b=[1.0, None]), "x: column 'b' has missing cells"),
        (polars.DataFrame({"a": [1, None]}), "x: column 'a' has missing cells"),
        (polars.DataFrame({"a": ["u"]}), "x: column 'a' holds String, should be numbers"),
        (good.assign(b=[2**60, 1]), "x: column 'b' holds whole numbers above 2⁵³"),
        (pandas.DataFrame([[1.0, 2.0]], columns=["a", "a"]), "x: has 2 columns 'a'"),
        (pandas.DataFrame({"a": []}), "x: has no rows"),
        (pandas.DataFrame(index=range(3)), "x: has no columns"),
        (Items([{"note": 1}]), "x: item 0 holds note; one of x, image"),
        (np.ma.masked_array(X, mask=X > 1), "x: is a masked array with masked cells"),
    ]:
        with pytest.raises(DataError) as caught:
            given(x)
        assert str(caught.value).startswith(sentence), str(caught.value)
        assert "\n" not in str(caught.value)
    with pytest.raises(ShapeError, match=r"x: example 1 has shape \[2\], example 0 has \[3\]"):
        given([np.zeros(3), np.zeros(2)])


def test_columns_go_into_the_order_of_training():
    held = Given(X, columns=NAMES)
    np.testing.assert_array_equal(in_order(held, ("width", "weight", "charge")), X[:, [2, 0, 1]])
    np.testing.assert_array_equal(in_order(Given(X), NAMES), X)
    with pytest.raises(DataError, match="x: column 'age' is missing"):
        in_order(held, ("age", "weight"))
    with pytest.raises(DataError, match="x: column 'width' was not there in training"):
        in_order(held, ("weight", "charge"))


def test_answers_come_back_in_the_kind_of_the_question():
    run = vf.fit("density", kinds()["pandas"], steps=3, quiet=True)
    expected = run.log_prob(torch.tensor(X))
    assert run.columns == NAMES
    pandas, polars, pyarrow = (pytest.importorskip(name) for name in ("pandas", "polars", "pyarrow"))
    frame = kinds()["pandas"][["width", "weight", "charge"]].set_axis(range(100, 130))
    found = run.log_prob(frame)
    assert isinstance(found, pandas.Series)
    assert list(found.index) == list(range(100, 130))
    np.testing.assert_array_equal(found.to_numpy(), expected.numpy())
    z = run.embed(frame)
    assert list(z.columns) == ["z0", "z1", "z2"]
    again = run.reconstruct(frame)
    assert list(again.columns) == list(NAMES)
    np.testing.assert_allclose(again.to_numpy(), X, rtol=1e-3, atol=1e-3)
    assert isinstance(run.log_prob(kinds()["polars"]), polars.Series)
    assert isinstance(run.embed(kinds()["arrow"]), pyarrow.Table)
    assert run.log_prob(X.tolist()) == expected.tolist()
    assert torch.equal(run.log_prob(TensorDataset(torch.tensor(X))), expected)
    with pytest.raises(DataError, match="x: column 'charge' is missing"):
        run.log_prob(frame.drop(columns="charge"))


def test_one_and_three_dimensions_come_back_as_they_are():
    x = list(torch.zeros(2, 3))
    assert isinstance(like(x, torch.zeros(2)), list)
    assert like(np.zeros(2), torch.zeros(2, 3, 3)).shape == (2, 3, 3)


def test_parquet_and_feather_are_read(tmp_path):
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import feather, parquet

    table = kinds()["arrow"].append_column("label", pyarrow.array(np.arange(30) % 2))
    parquet.write_table(table, tmp_path / "t.parquet")
    feather.write_feather(table, tmp_path / "t.feather")
    for name in ("t.parquet", "t.feather"):
        data = vf.data.load(tmp_path / name, protocol="none")
        assert data.columns == NAMES
        held = torch.cat([data.raw(split) for split in data.sizes])
        torch.testing.assert_close(held.sort(0).values, torch.tensor(X).sort(0).values)
        assert sorted(torch.cat([data.labels(split) for split in data.sizes]).tolist()) == [0] * 15 + [1] * 15
    (tmp_path / "bad.parquet").write_text("no")
    with pytest.raises(DataError, match=r"bad\.parquet: cannot be read as \.parquet"):
        vf.data.load(tmp_path / "bad.parquet")
    parquet.write_table(pyarrow.table({"name": ["u", "v"]}), tmp_path / "words.parquet")
    with pytest.raises(DataError, match=r"words\.parquet: column 'name' holds text \('u' in row 1; .*be numbers"):
        vf.data.load(tmp_path / "words.parquet")


def test_every_place_of_a_row_is_told(tmp_path):
    np.savetxt(tmp_path / "t.csv", np.arange(40.0)[:, None] + 0.5)
    data = vf.data.load(tmp_path / "t.csv", protocol="none")
    for split, size in data.sizes.items():
        rows = data.origins(split, torch.arange(size))
        assert rows == [int(value) for value in data.raw(split)[:, 0]]
