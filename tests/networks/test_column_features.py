"""Facts about what an encoder reads of a table: each kind's features, and cells that are missing."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from varflow.core.columns import Column
from varflow.core.errors import ShapeError, SpecError
from varflow.networks import MLP, ColumnFeatures, TableEncoder

double = torch.float64
COLUMNS = (
    Column("grade", "ordinal", ("low", "middle", "high"), missing=0.2),
    Column("age", "real", loc=40.0, scale=12.0),
    Column("visits", "count", loc=1.5, scale=0.5, missing=0.1),
    Column("town", "category", ("a", "b", "c", "d")),
    Column("smokes", "binary", ("no", "yes"), missing=0.5),
    Column("income", "positive", loc=9.0, scale=0.7),
    Column("born", "date", loc=2000.0, scale=900.0, missing=0.01),
)
X = torch.tensor([[2.0, -0.3, 7.0, 1.0, 1.0, 0.4, 1.2], [0.0, 0.8, 0.0, 3.0, 0.0, -1.0, 2.0]], dtype=double)


def test_each_kind_has_the_features_of_its_table():
    features = ColumnFeatures(COLUMNS).to(double)
    count = [(math.log1p(v) - 1.5) / 0.5 for v in (7.0, 0.0)]
    #  age, smokes, income, born, visits, town, grade, and what is there of grade, visits, smokes, born
    expected = [
        [-0.3, 1.0, 0.4, 1.2, count[0], 0, 1, 0, 0, 1, 1, 1, 1, 1, 1],
        [0.8, 0.0, -1.0, 2.0, count[1], 0, 0, 0, 1, 0, 0, 1, 1, 1, 1],
    ]
    assert features.features == 15
    torch.testing.assert_close(features(X), torch.tensor(expected, dtype=double), rtol=0, atol=1e-15)
    assert torch.equal(features(X, torch.ones(2, 7, dtype=torch.bool)), features(X))


@pytest.mark.parametrize("hidden", [math.nan, math.inf, -1e30, -1.0, 4.0])
def test_a_missing_cell_is_zero_whatever_stands_in_it(hidden):
    features = ColumnFeatures(COLUMNS).to(double)
    whole = features(X)
    for place, (column, of, flag) in enumerate(
        zip(
            COLUMNS,
            [[9, 10], [0], [4], [5, 6, 7, 8], [1], [2], [3]],
            [11, None, 12, None, 13, None, 14],
            strict=True,
        )
    ):
        x, mask = X.clone(), torch.ones(2, 7, dtype=torch.bool)
        x[0, place], mask[0, place] = hidden, False
        x.requires_grad_()
        found = features(x, mask)
        expected = whole.clone()
        expected[0, of] = 0
        if flag is not None:
            expected[0, flag] = 0
        assert torch.equal(found, expected), column.name
        (slope,) = torch.autograd.grad(found.sum(), x)
        assert slope.isfinite().all()
        assert slope[0, place] == 0


def test_real_columns_without_missing_cells_need_no_more_inputs():
    columns = [Column("a", "real"), Column("b", "positive"), Column("c", "binary", ("no", "yes"))]
    features = ColumnFeatures(columns)
    x = torch.randn(4, 3)
    assert features.features == 3
    assert features(x) is x
    assert not list(features.parameters())
    assert not features.state_dict()


def test_the_shapes_of_batches_and_masks_broadcast():
    features = ColumnFeatures(COLUMNS)
    x, mask = torch.zeros(3, 5, 7), torch.rand(5, 7) > 0.5
    assert features(x, mask).shape == (3, 5, 15)
    assert features(x[0, 0]).shape == (15,)
    assert features(x[:0], mask).shape == (0, 5, 15)
    assert torch.equal(features(x, mask)[2], features(x[2], mask))


def test_no_parameter_of_the_table_lies_in_the_state():
    """They follow from the columns, which the form of the data holds."""
    encoder = TableEncoder(ColumnFeatures(COLUMNS), MLP(15, hidden=(4,)))
    assert set(encoder.state_dict()) == {"network.layers.0.weight", "network.layers.0.bias"}


def test_an_encoder_of_a_table_is_its_features_and_a_network():
    features = ColumnFeatures(COLUMNS)
    encoder = TableEncoder(features, MLP(features.features, hidden=(8, 6)))
    x, mask = X.float(), torch.rand(2, 7) > 0.3
    assert encoder.features == 6
    assert encoder.reads_mask
    assert not encoder.couples_examples
    assert torch.equal(encoder(x, mask), encoder.network(features(x, mask)))
    assert torch.equal(encoder(x), encoder(x, torch.ones(2, 7, dtype=torch.bool)))
    assert TableEncoder(features, nn.Sequential(nn.Linear(15, 3), nn.ReLU())).features == 3


def test_many_encoders_in_one_program():
    several = [TableEncoder(ColumnFeatures(COLUMNS), MLP(15, hidden=(4,))).to(double) for _ in range(3)]
    parameters, buffers = torch.func.stack_module_state(several)
    mask = torch.rand(2, 7) > 0.3
    together = torch.func.vmap(
        lambda p, b: torch.func.functional_call(several[0], (p, b), (X, mask)),
    )(parameters, buffers)
    torch.testing.assert_close(together, torch.stack([one(X, mask) for one in several]), rtol=1e-12, atol=1e-12)


def test_what_is_no_table_is_refused():
    with pytest.raises(SpecError, match="columns: were none"):
        ColumnFeatures([])
    with pytest.raises(SpecError, match="scale of column 'n': was 0"):
        ColumnFeatures([Column("n", "count", scale=0.0)])
    other = Column("n", "real")
    object.__setattr__(other, "kind", "complex")
    with pytest.raises(SpecError, match="kind of column 'n': unknown value 'complex'"):
        ColumnFeatures([other])
    features = ColumnFeatures(COLUMNS)
    with pytest.raises(ShapeError, match=r"x: shape \(2, 6\); these ColumnFeatures need \[\.\.\., 7\]"):
        features(torch.zeros(2, 6))
    with pytest.raises(ShapeError, match=r"mask: shape \(2, 6\)"):
        features(torch.zeros(2, 7), torch.ones(2, 6, dtype=torch.bool))
    with pytest.raises(ShapeError, match=r"torch\.int64.*x\.float\(\)"):
        features(torch.zeros(2, 7, dtype=torch.long))
