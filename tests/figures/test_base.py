"""Nothing global is touched, and files appear whole."""

from __future__ import annotations

import inspect
import subprocess
import sys

import matplotlib
import numpy as np
import pytest
import torch
from matplotlib.colors import to_rgb

from varflow import figures
from varflow.core.errors import RunError, ShapeError
from varflow.figures.base import as_numpy, categories


def test_style_is_undone_after_the_block() -> None:
    before = dict(matplotlib.rcParams)
    with figures.style():
        assert dict(matplotlib.rcParams) != before
    assert dict(matplotlib.rcParams) == before


def test_the_room_opens_without_matplotlib_and_draws_without_pyplot() -> None:
    script = (
        "import sys, varflow.figures as f\n"
        "assert 'matplotlib' not in sys.modules and 'torch' not in sys.modules\n"
        "figure, axes = f.canvas()\n"
        "f.image_grid([[[[0.5]]]], axes[0, 0])\n"
        "assert 'matplotlib.pyplot' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", script], check=True)


def test_every_exported_name_is_a_function_also_at_the_second_look() -> None:
    for name in 2 * dir(figures):
        assert inspect.isfunction(getattr(figures, name)), name


def test_save_writes_a_png_and_leaves_nothing_beside_it(tmp_path) -> None:
    figure, _ = figures.canvas()
    path = figures.save(figure, tmp_path / "deep" / "a.png")
    assert path.read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"
    assert [p.name for p in path.parent.iterdir()] == ["a.png"]


def test_save_keeps_the_old_file_when_drawing_fails(tmp_path, monkeypatch) -> None:
    figure, _ = figures.canvas()
    path = figures.save(figure, tmp_path / "a.png")
    old = path.read_bytes()

    def fail(file, **options):
        file.write(b"half a")
        raise OSError("disk full")

    monkeypatch.setattr(figure, "savefig", fail)
    with pytest.raises(RunError, match="disk full"):
        figures.save(figure, path)
    assert path.read_bytes() == old
    assert [p.name for p in tmp_path.iterdir()] == ["a.png"]


@pytest.mark.parametrize("count", [1, 8, 10, 40])
def test_categories_are_distinct(count: int) -> None:
    assert len({to_rgb(c) for c in categories(count)}) == count


def test_as_numpy_takes_tensors_with_gradients_and_names_a_wrong_shape() -> None:
    tensor = torch.ones(2, 3, dtype=torch.float32, requires_grad=True)
    assert as_numpy("z", tensor, 2, None).dtype == np.float64
    with pytest.raises(ShapeError, match=r"z: shape \(2, 3\); expected \[2, any, 1\]"):
        as_numpy("z", tensor, 2, None, 1)
