"""Colours that can be read on the paper of a page, light or dark."""

from __future__ import annotations

from collections.abc import Sequence

from varflow.figures.base import categories

#: The papers of a page, as in style.css.
LIGHT, DARK = "#ffffff", "#17181b"
#: Contrast of a mark with its paper (WCAG 2.2, 1.4.11).
LEAST = 3.0


def of_classes(count: int) -> list[tuple[str, str]]:
    """For each of ``count`` classes its colour on light and on dark paper: that of the figures, as far as it can be
    seen.
    """
    from matplotlib.colors import to_hex

    return [(readable(to_hex(c), LIGHT), readable(to_hex(c), DARK)) for c in categories(count)]


def readable(colour: str, paper: str, least: float = LEAST) -> str:
    """A colour, moved towards black or white until it stands out from the paper."""
    inwards = (0, 0, 0) if luminance(parts(paper)) > 0.4 else (255, 255, 255)
    own = parts(colour)
    for share in range(0, 101, 2):
        mixed = [round(a + (b - a) * share / 100) for a, b in zip(own, inwards, strict=True)]
        if contrast(mixed, parts(paper)) >= least:
            break
    return "#" + "".join(f"{part:02x}" for part in mixed)


def contrast(a: Sequence[int], b: Sequence[int]) -> float:
    """(L₁ + 0.05)/(L₂ + 0.05) of the lighter and the darker one, from 1 to 21."""
    dark, light = sorted((luminance(a), luminance(b)))
    return (light + 0.05) / (dark + 0.05)


def luminance(parts: Sequence[int]) -> float:
    """Relative luminance of red, green, blue in 0 … 255, as WCAG 2.2 defines it."""
    linear = [p / 255 / 12.92 if p / 255 <= 0.04045 else ((p / 255 + 0.055) / 1.055) ** 2.4 for p in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def parts(colour: str) -> list[int]:
    """Red, green and blue of ``#rrggbb`` in 0 … 255."""
    return [int(colour[k : k + 2], 16) for k in (1, 3, 5)]
