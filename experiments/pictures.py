"""Pictures of the rows of experiments: each function gives one that draws a row's folder of runs into a file."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

Draw = Callable[[Path, Path], None]

#: Test pictures in a scatter of latents, and pictures on a sheet of samples.
POINTS, SHEET = 2000, 49
DPI = 80


def _panel(axes: Any, title: str, label: str) -> None:
    axes.set_title(title, fontsize=9)
    if label:
        axes.set_ylabel(label, fontsize=9)


def _grid(flows: Sequence[str], with_z0: bool) -> list[tuple[str, list[str | None]]]:
    """Rows of panels: what they show, and the fit of each panel."""
    rows: list[tuple[str, list[str | None]]] = [
        ("static", ["none", *(f"{flow}-static" for flow in flows)]),
        ("dynamic", [None, *(f"{flow}-dynamic" for flow in flows)]),
    ]
    if with_z0:
        rows.append(("static, prior at z₀", [None, *(f"{flow}-z0" for flow in flows)]))
    return rows


def dense_samples(flows: Sequence[str], with_z0: bool) -> Draw:
    """Sheets of samples: a column a flow, rows static, dynamic, and the scripts' own loss."""

    def sheet(run: Any, axes: Any) -> None:
        from varflow.core import random
        from varflow.figures import pictures

        with random.stream(0, 0):
            pictures.image_grid(run.model.sample(SHEET, mean=True).numpy(), axes)

    return _panels(flows, with_z0, sheet)


def dense_latents(flows: Sequence[str], with_z0: bool) -> Draw:
    """One draw of z_K for each of 2,000 test pictures, coloured by class, with the circles of N(0, I)."""

    def scatter(run: Any, axes: Any) -> None:
        _latents(run, axes)

    return _panels(flows, with_z0, scatter)


def _latents(run: Any, axes: Any) -> None:
    import torch

    from varflow.core import random
    from varflow.figures import base

    labels = run.dataset.labels("test")[:POINTS].numpy()
    with random.stream(0, 0), torch.no_grad():
        z = run.model.encode(run.dataset.batch("test", torch.arange(POINTS)).x).z[0].numpy()
    colours = base.categories(10)
    axes.scatter(z[:, 0], z[:, 1], s=1.5, c=[colours[int(label)] for label in labels], linewidths=0)
    turn = torch.linspace(0, 2 * torch.pi, 100)
    for radius in (1, 2):
        axes.plot(radius * turn.cos(), radius * turn.sin(), color=base.INK, linewidth=0.7)
    axes.set_aspect("equal", adjustable="datalim")
    axes.tick_params(labelsize=7)


def _panels(flows: Sequence[str], with_z0: bool, draw: Callable[[Any, Any], None]) -> Draw:
    def picture(home: Path, out: Path) -> None:
        import varflow as vf
        from varflow import figures

        rows = _grid(flows, with_z0)
        with figures.style():
            drawn, axes = figures.canvas(len(rows), len(flows) + 1, 11.0, 2.3 * len(rows))
            for (label, names), line in zip(rows, axes, strict=True):
                for name, panel in zip(names, line, strict=True):
                    if name is None:
                        panel.set_axis_off()
                        continue
                    draw(vf.load(home / name), panel)
                    first = name == next(filter(None, names))
                    _panel(panel, name.partition("-")[0], label if first else "")
            figures.save(drawn, out, dpi=DPI)

    return picture


def samples_and_reconstructions(names: Sequence[str]) -> Draw:
    """Samples above; test pictures, each with its reconstruction, below."""

    def picture(home: Path, out: Path) -> None:
        import torch

        import varflow as vf
        from varflow import figures
        from varflow.core import random
        from varflow.figures import pictures

        with figures.style():
            drawn, axes = figures.canvas(2, len(names), 3.6 * len(names), 6.6)
            for column, name in enumerate(names):
                run = vf.load(home / name)
                dataset = run.dataset
                with random.stream(0, 0), torch.no_grad():
                    x = dataset.batch("test", torch.arange(16)).x
                    made, samples = run.model.reconstruct(x), run.model.sample(SHEET, mean=True)
                shown = [dataset.pictures(each).clamp(0, 1).numpy() for each in (samples, x, made)]
                pictures.image_grid(shown[0], axes[0, column])
                pictures.reconstructions(shown[1], shown[2], axes[1, column], columns=4)
                axes[0, column].set_title(f"{name}: samples", fontsize=9)
            figures.save(drawn, out, dpi=DPI)

    return picture


def two_latents(names: Sequence[str]) -> Draw:
    """Latents of test pictures above, samples below."""

    def picture(home: Path, out: Path) -> None:
        import varflow as vf
        from varflow import figures
        from varflow.core import random
        from varflow.figures import pictures

        with figures.style():
            drawn, axes = figures.canvas(2, len(names), 3.6 * len(names), 7.0)
            for column, name in enumerate(names):
                run = vf.load(home / name)
                _latents(run, axes[0, column])
                axes[0, column].set_title(f"{name}: z of 2,000 test pictures", fontsize=9)
                with random.stream(0, 0):
                    pictures.image_grid(run.model.sample(SHEET, mean=True).numpy(), axes[1, column])
                axes[1, column].set_title("samples", fontsize=9)
            figures.save(drawn, out, dpi=DPI)

    return picture


def planes(names: Sequence[str]) -> Draw:
    """Test points, samples, and samples without the decoder's noise."""

    def picture(home: Path, out: Path) -> None:
        import varflow as vf
        from varflow import figures

        with figures.style():
            drawn, axes = figures.canvas(len(names), 3, 9.6, 3.1 * len(names))
            for line, name in zip(axes, names, strict=True):
                run = vf.load(home / name)
                rows = run.dataset.raw("test")[:1000]
                shown = {
                    f"{name}: test points": rows,
                    "samples": run.sample(len(rows)),
                    "samples without noise": run.sample(len(rows), mean=True),
                }
                figures.plane({title: points.numpy() for title, points in shown.items()}, line)
            figures.save(drawn, out, dpi=DPI)

    return picture


def energies(targets: Sequence[str], lengths: Sequence[int]) -> Draw:
    """The target and the median seed of each K, one colour scale, KL(q‖p) in the panels."""

    def picture(home: Path, out: Path) -> None:
        import varflow as vf
        from varflow import figures
        from varflow.evaluation import Evaluation
        from varflow.figures.targets import density_grid, density_on_grid

        known = [getattr(vf.targets, name.upper())().double() for name in targets]
        densities: list[list[Any]] = []
        notes: list[list[str | None]] = []
        for name, target in zip(targets, known, strict=True):
            line = [density_on_grid(lambda z, t=target: t.log_prob(z) - t.log_normalizer, target.window, 140)]
            told: list[str | None] = [None]
            for length in lengths:
                folder = home / f"{name}-{length}"
                each = Evaluation.load(folder, "target").per_example["kl_q_p"]
                median = sorted((float(value), fit) for fit, value in enumerate(each))[len(each) // 2]
                q = vf.load(folder).members()[median[1]].double().infer()
                line.append(density_on_grid(lambda z, q=q: q.log_prob(z).detach(), target.window, 140))
                told.append(f"{median[0]:.4f}")
            densities.append(line)
            notes.append(told)
        with figures.style():
            drawn, axes = figures.canvas(len(targets), 1 + len(lengths), 8.4, 6.4)
            names = ["target", *(f"K = {length}" for length in lengths)]
            windows = [target.window for target in known]
            density_grid(densities, axes, windows, names, [name.upper() for name in targets], notes)
            figures.save(drawn, out, dpi=DPI)

    return picture


def gaussian(cases: Sequence[str], dimensions: Sequence[int]) -> Draw:
    """Error of σ, and log p(D) below its maximum, by dimension."""

    def picture(home: Path, out: Path) -> None:
        from varflow import figures
        from varflow.figures import base

        with figures.style():
            drawn, axes = figures.canvas(1, 2, 11.0, 4.4)
            floor: dict[int, float] = {}
            for case, colour in zip(cases, base.categories(len(cases)), strict=True):
                found = {
                    d: json.loads(path.read_text())["fits"]
                    for d in dimensions
                    if (path := home / f"{case}-{d}" / "results.json").exists()
                }
                for panel, key in zip(axes[0], ("scale_error", "short"), strict=True):
                    means = [sum(row[key] for row in rows) / len(rows) for rows in found.values()]
                    panel.plot(list(found), means, marker="o", color=colour, label=case)
                floor |= {d: sum(r["scale_floor"] for r in rows) / len(rows) for d, rows in found.items()}
            axes[0, 0].plot(list(floor), list(floor.values()), ":", color=base.INK)
            axes[0, 0].set(ylabel="‖σ̂ − σ‖²")
            if floor:
                d = max(floor)
                axes[0, 0].annotate("maximum likelihood", (d, floor[d]), (0, 6), textcoords="offset points",
                                    ha="right", fontsize=8)  # fmt: skip
            axes[0, 1].set(ylabel="log p(D) below its maximum (nats)")
            for panel in axes[0]:
                panel.set(xlabel="d", xscale="log", yscale="log")
                panel.set_xticks(dimensions, [str(d) for d in dimensions])
                panel.minorticks_off()
            axes[0, 1].legend(fontsize=8)
            figures.save(drawn, out, dpi=DPI)

    return picture


def curves(published: Sequence[tuple[str, float, float]], names: Sequence[str]) -> Draw:
    """−log p(x) of test pictures against epochs, on a logarithmic axis, with the published points."""

    def picture(home: Path, out: Path) -> None:
        from varflow import figures
        from varflow.figures import base

        with figures.style():
            drawn, axes = figures.canvas(1, 1, 6.6, 4.6)
            panel = axes[0, 0]
            colours = base.categories(max(len(names), len(published)))
            for name, colour in zip(names, colours, strict=False):
                path = home / name / "curve.json"
                points = json.loads(path.read_text()) if path.exists() else []
                if points:
                    panel.errorbar(
                        [p["epoch"] for p in points], [p["nll"] for p in points], [p["error"] for p in points],
                        marker="o", color=colour, label=name, capsize=2,
                    )  # fmt: skip
            for (label, epochs, nll), colour in zip(published, colours, strict=False):
                panel.plot([epochs], [nll], "*", markersize=12, color=colour, label=label)
            panel.set(xlabel="epochs", ylabel="−log p(x), test (nats)", xscale="log")
            panel.legend(fontsize=8)
            figures.save(drawn, out, dpi=DPI)

    return picture
