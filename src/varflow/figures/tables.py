"""Data without pictures: rows of numbers beside rows that the model makes up."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Float

from varflow.core.errors import ShapeError
from varflow.figures.base import AFTER, BEFORE, INK, Array, as_numpy

if TYPE_CHECKING:
    import numpy.typing as npt


def pairs(
    data: Float[Array, "N D"], samples: Float[Array, "M D"], axes: npt.NDArray[Any]
) -> npt.NDArray[Any]:
    """Every pair of the first columns: data in grey, samples of the model in blue.

    The diagonal has the columns' histograms as densities. Each frame is the central 99.8 % of the
    data widened by a tenth to each side, so that a stray sample cannot shrink everything else.

    Args:
        data: ``[N, D]``.
        samples: ``[M, D]``.
        axes: ``[P, P]`` axes with P ≤ D, as :func:`canvas` gives them; the upper triangle
            is left empty.

    Raises:
        ShapeError: data and samples differ in their columns, or there are fewer columns than axes.
    """
    real, made = as_numpy("data", data, None, None), as_numpy("samples", samples, None, None)
    count = axes.shape[0]
    if real.shape[1] != made.shape[1]:
        raise ShapeError(
            f"samples: {made.shape[1]} columns, the data have {real.shape[1]}; give the same"
        )
    if axes.shape != (count, count) or count > real.shape[1]:
        raise ShapeError(
            f"axes: shape {axes.shape} for {real.shape[1]} columns; give [P, P] with P ≤ columns"
        )
    low, high = np.quantile(real, [0.001, 0.999], axis=0)
    margin = 0.1 * (high - low) + 1e-9 * np.maximum(np.abs(low), 1)
    low, high = low - margin, high + margin
    for i in range(count):
        for j in range(count):
            panel = axes[i, j]
            if j > i:
                panel.set_visible(False)
                continue
            panel.set_xlim(low[j], high[j])
            if i == j:
                bins = np.linspace(low[i], high[i], 41)
                for values, name, look in (
                    (real[:, i], "data", {"color": BEFORE}),
                    (made[:, i], "samples of the model", {"color": AFTER, "histtype": "step"}),
                ):
                    # Densities of all values, also of those outside of the frame.
                    share = np.full(len(values), 1 / (len(values) * (bins[1] - bins[0])))
                    panel.hist(values, bins=bins.tolist(), weights=share, label=name, **look)
                panel.set_yticks([])
            else:
                panel.scatter(real[:, j], real[:, i], s=5, color="#8A8A8A", alpha=0.5, linewidths=0)
                panel.scatter(made[:, j], made[:, i], s=5, color=AFTER, alpha=0.5, linewidths=0)
                panel.set_ylim(low[i], high[i])
            panel.tick_params(labelsize=8, labelbottom=i == count - 1, labelleft=j == 0 and i > 0)
            if i == count - 1:
                panel.set_xlabel(f"column {j + 1}", color=INK)
            if j == 0 and i > 0:
                panel.set_ylabel(f"column {i + 1}", color=INK)
    axes[0, 0].legend(loc="lower left", bbox_to_anchor=(0, 1.0), fontsize=8, borderaxespad=0.2)
    return axes
