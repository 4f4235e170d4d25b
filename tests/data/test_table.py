"""Rounded columns and heavy tails: what is done to them, its log-determinant, and its inverse."""

from __future__ import annotations

import math

import pytest
import torch

import varflow as vf
import varflow.data as vd
from varflow.core.errors import DataError
from varflow.data.protocols import Standardize, restored
from varflow.data.table import Table, step_of


def named(number: int) -> str:
    return f"column {number} (counted from 0)"


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def student(rows: int, nu: float, seed: int = 0) -> torch.Tensor:
    """A Student-t is a normal over the root of a χ²/ν; with whole 2ν the χ² is a sum of squares."""
    g = seeded(seed)
    normal = torch.randn(rows, dtype=torch.float64, generator=g)
    torch.manual_seed(seed)
    chi = torch.distributions.Chi2(torch.tensor(nu, dtype=torch.float64)).sample((rows,))
    return normal / (chi / nu).sqrt()


@pytest.fixture(scope="module")
def mixed() -> torch.Tensor:
    """Real, whole numbers, tenths, heavy tails."""
    g = seeded()
    rows = 2000
    real = 1000 + 50 * torch.randn(rows, dtype=torch.float64, generator=g)
    whole = torch.randint(0, 3, (rows,), generator=g).double()
    tenths = torch.randint(20, 60, (rows,), generator=g).double() / 10
    return torch.stack([real, whole, tenths, 7 + 0.01 * student(rows, 1.5)], 1)


def test_each_column_is_treated_as_it_needs(mixed: torch.Tensor) -> None:
    kept = Table.fit(mixed)
    assert isinstance(kept, Table)
    found = kept.treatment()
    assert found["rounded_columns"] == pytest.approx({named(1): 1.0, named(2): 0.1})
    assert list(found["heavy_tailed_columns"]) == [named(3)]
    assert 1 <= found["heavy_tailed_columns"][named(3)] <= 2
    heads = ["weight", "count", "dose", "return"]
    assert kept.treatment(heads)["rounded_columns"] == pytest.approx({"'count'": 1.0, "'dose'": 0.1})
    data = vd.from_tensor(mixed, continuous=True)
    assert data.protocol == "table"
    assert data.describe()["rounded_columns"] == pytest.approx({named(1): 1.0, named(2): 0.1})


def test_ladj_is_the_log_determinant(mixed: torch.Tensor) -> None:
    kept = Table.fit(mixed)
    far = kept.loc + kept.scale * torch.tensor([[0.0], [1e-12], [1e-7], [-3.0], [1e4], [-1e9]], dtype=torch.float64)
    for row in far:
        drawn = torch.full((1, 4), 0.5)
        _, ladj = kept.encode(row[None], drawn, torch.float64)
        if float(((row - kept.loc) / kept.scale).abs().max()) < 1e-6:
            # Autograd meets 0/0 of the square root there; the derivative is its limit.
            nu = kept.tail[3]
            exact = 0.5 * ((nu + 1) / nu).log() - kept.scale.log().sum()
        else:
            jacobian = torch.autograd.functional.jacobian(
                lambda v, drawn=drawn: kept.encode(v, drawn, torch.float64)[0], row[None]
            )
            exact = jacobian[0, :, 0, :].diagonal().log().sum()
        torch.testing.assert_close(ladj[0], exact, atol=1e-6, rtol=1e-9)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_inverse_gives_back_the_rows(mixed: torch.Tensor, dtype: torch.dtype) -> None:
    kept = Table.fit(mixed)
    u = torch.rand(mixed.shape, generator=seeded(1)).clamp(1e-3, 1 - 1e-3)
    x, _ = kept.encode(mixed, kept.draw(mixed, u), dtype)
    back = kept.invert(x).double()
    # Rounded columns come back on their grid.
    torch.testing.assert_close(back[:, 1:3], mixed[:, 1:3], atol=1e-5, rtol=0)
    tolerance = 1e-5 if dtype == torch.float32 else 1e-10
    torch.testing.assert_close(back[:, 0], mixed[:, 0], atol=0, rtol=tolerance)
    torch.testing.assert_close(back[:, 3], mixed[:, 3], atol=tolerance, rtol=tolerance)


def test_it_is_restored_from_plain_numbers(mixed: torch.Tensor) -> None:
    kept = Table.fit(mixed)
    again = restored("table", None, kept.learned())
    drawn = torch.full(mixed.shape, 0.25)
    for one, other in zip(
        kept.encode(mixed, drawn, torch.float64), again.encode(mixed, drawn, torch.float64), strict=True
    ):
        assert torch.equal(one, other)


def test_heavy_tails_become_nearly_normal() -> None:
    raw = student(20_000, 1.5)[:, None]
    x, _ = Table.fit(raw).encode(raw, torch.full(raw.shape, 0.5), torch.float64)
    # The raw column reaches hundreds of its scales; 20,000 normal numbers stay within 6.
    assert float(raw.abs().max()) > 100
    assert float(x.abs().max()) < 6
    # The tails of N(0, 1), not its width: that is 1.46 for ν = 1.5.
    assert 0.9 < float(x.std()) < 1.7


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("rows", [40, 3000, 100_000])
def test_continuous_columns_are_only_standardized(rows: int, dtype: torch.dtype) -> None:
    columns = torch.stack([torch.randn(rows, generator=seeded(rows)), torch.rand(rows, generator=seeded(1))], 1)
    assert isinstance(Table.fit(columns.to(dtype)), Standardize)


def test_a_value_of_many_rows_on_no_grid_is_refused_by_name() -> None:
    column = torch.randn(500, dtype=torch.float64, generator=seeded()).exp()
    column[:200] = 0.0
    said = r"column 1 \(counted from 0\) has the value 0 in 4\d % .* protocol=standardize"
    with pytest.raises(DataError, match=said):
        Table.fit(torch.stack([torch.randn(500, generator=seeded(2)).double(), column], 1))


@pytest.mark.slow
def test_no_density_passes_what_a_distribution_over_whole_numbers_can_have() -> None:
    x = torch.randint(0, 3, (2000, 4), generator=seeded()).float()
    run = vf.fit("density", x, steps=400, batch=256, quiet=True)
    assert run.preprocessing.name == "table"
    fresh = torch.randint(0, 3, (500, 4), generator=seeded(9)).float()
    assert float(run.log_prob(fresh).mean()) <= -4 * math.log(3) + 0.05
    drawn = run.sample(200)
    assert torch.equal(drawn, drawn.round())
    assert -run.evaluate().estimates["nll"].value <= -4 * math.log(3) + 0.05


def test_wine_fits_by_default_with_its_whole_numbers_named() -> None:
    datasets = pytest.importorskip("sklearn.datasets")
    found = Table.fit(torch.tensor(datasets.load_wine().data))
    assert isinstance(found, Table)
    # Magnesium and proline: whole numbers.
    assert {named(4), named(12)} <= set(found.treatment()["rounded_columns"])


def test_a_vae_of_a_table_has_no_rounded_column_as_it_is() -> None:
    g = seeded(3)
    real = torch.randn(300, 2, generator=g)
    whole = torch.randint(0, 5, (300, 1), generator=g).float()
    assert vd.from_tensor(real).protocol == "none"
    data = vd.from_tensor(torch.cat([real, whole], 1))
    assert data.protocol == "table"
    assert data.describe()["rounded_columns"] == {named(2): 1.0}
    # Under a name nothing is done that was not asked for.
    assert vd.from_tensor(torch.cat([real, whole], 1), protocol="standardize").protocol == "standardize"


def test_a_column_of_a_file_is_called_by_its_head(tmp_path) -> None:
    g = seeded(5)
    rows = torch.stack([torch.randn(100, generator=g), torch.randint(0, 4, (100,), generator=g).float()], 1)
    lines = ["Weight,Count", *(f"{a:.6f},{b:.0f}" for a, b in rows.tolist())]
    (tmp_path / "t.csv").write_text("\n".join(lines))
    told = vd.load(tmp_path / "t.csv", continuous=True).describe()
    assert told["columns"] == ["Weight", "Count"]
    assert told["rounded_columns"] == {"'Count'": 1.0}
    (tmp_path / "u.csv").write_text("\n".join([lines[0], *(line.split(",")[0] + ",5" for line in lines[1:])]))
    with pytest.raises(DataError, match="'Count' of the training split is constant"):
        vd.load(tmp_path / "u.csv", continuous=True)


def test_a_value_that_is_there_once_is_no_tie() -> None:
    """Of four rows each value is a quarter."""
    values = torch.tensor([0.31, -1.605, 2.22, 0.71])
    assert step_of(values, "a") == 0
