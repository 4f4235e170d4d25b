"""What a run writes about itself: estimates, removed cells, and the report with its figures."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from varflow.core.errors import RunError, SpecError, unknown
from varflow.data.dataset import Dataset
from varflow.model import Model
from varflow.runs.folder import snapshots

if TYPE_CHECKING:
    from varflow.evaluation import Evaluation
    from varflow.runs.run import Run


def evaluate(run: Run, split: str | None, samples: int | None, **options: Any) -> Evaluation:
    """See :meth:`varflow.Run.evaluate`."""
    from varflow import evaluation
    from varflow.evaluation.chunks import Chunks
    from varflow.evaluation.marginal_likelihood import IMPORTANCE

    if run.infers_target:
        for name, value in (("split", split), ("limit", options.pop("limit", None))):
            if value not in (None, "target"):
                raise SpecError(f"{name}: was {value}; a target has no data, leave {name} out")
        options.pop("memory", None)
        result = evaluation.evaluate_target(
            run.model,
            100_000 if samples is None else samples,
            data=run.dataset.describe(),
            **options,
        )
    elif isinstance(run.model, Model) and run.model.posterior.discrete:
        assert isinstance(run.dataset, Dataset)
        options.pop("memory", None)
        if samples not in (None, 1):
            raise SpecError(
                f"samples: was {samples}; q of a quantizer is one code for sure, leave samples out"
            )
        result = evaluation.evaluate_codes(
            run.model, run.dataset, split="test" if split is None else split, **options
        )
    else:
        assert isinstance(run.model, Model)
        assert isinstance(run.dataset, Dataset)
        if run.folder is not None and run.keeps:
            options.setdefault("folder", run.folder / "evaluation")
        result = evaluation.evaluate(
            run.model,
            run.dataset,
            split="test" if split is None else split,
            # Where the latents are the data all samples are the same; two, so that every sum has its variance.
            samples=(2 if run.model.posterior.observed else 1000)
            if samples is None
            else samples,
            **options,
        )
    if run.folder is not None and run.keeps:
        from varflow.report.card import write_card
        from varflow.runs import training_rows

        result.save(run.folder)
        Chunks(options.get("folder"), IMPORTANCE).clear()
        if not run.infers_target:
            training_rows.complete(run, run.folder)
        write_card(run.folder)
    return result


def removed_cells(
    run: Run, share: float, split: str, samples: int, baselines: Sequence[str] | None, **options: Any
) -> Evaluation:
    """See :meth:`varflow.Run.removed_cells`."""
    from varflow import evaluation
    from varflow.evaluation.table_baselines import available
    from varflow.runs.impute import model_of_table

    model, _ = model_of_table(run)
    assert isinstance(run.dataset, Dataset)
    beside = available() if baselines is None else baselines
    found = evaluation.removed_cells(model, run.dataset, share, split, samples, baselines=beside, **options)
    if run.folder is not None and run.keeps:
        from varflow.report.card import write_card

        found.save(run.folder)
        write_card(run.folder)
    return found


def of_latents(run: Run, verb: str, split: str, **options: Any) -> Evaluation:
    """See :meth:`varflow.Run.curve`, :meth:`varflow.Run.gaps` and :meth:`varflow.Run.anneal`."""
    from varflow import evaluation
    from varflow.evaluation.chunks import Chunks
    from varflow.evaluation.curve import CURVE
    from varflow.runs.rows import one_model

    model = one_model(run, verb, "use run.evaluate()")
    if model.posterior.observed or model.posterior.discrete:
        held = "x itself" if model.posterior.observed else "codes, one for each x for sure"
        raise SpecError(f"{verb}: the latents here are {held}, with nothing to average over; use run.evaluate()")
    assert isinstance(run.dataset, Dataset)
    estimate: Any = {
        "curve": evaluation.bound_curve,
        "gaps": evaluation.inference_gaps,
        "anneal": evaluation.annealed_likelihood,
    }[verb]
    kept = run.folder is not None and run.keeps
    if run.folder is not None and kept:
        options.setdefault("folder", run.folder / "evaluation")
    found: Evaluation = estimate(model, run.dataset, split, **options)
    if run.folder is not None and kept:
        from varflow.report.card import write_card

        found.save(run.folder)
        if verb == "curve":
            Chunks(options["folder"], CURVE).clear()
        write_card(run.folder)
    return found


def report(run: Run, figures: Literal["all", "few"] = "all") -> Path:
    """See :meth:`varflow.Run.report`."""
    if figures not in ("all", "few"):
        raise unknown("figures", str(figures), ("all", "few"))
    if run.folder is None:
        raise RunError("folder: this run is in memory; fit with out=... to have files")
    from varflow.evaluation import Evaluation
    from varflow.figures import gallery_data, gallery_target
    from varflow.report.card import write_card
    from varflow.report.page import write_report
    from varflow.runs.hub import check_writable

    check_writable(run)
    write_card(run.folder)
    split = "target" if run.infers_target else "test"
    # A run from the hub comes without the results of single examples.
    evaluated = (run.folder / "evaluation" / f"{split}.npz").exists()
    evaluation = Evaluation.load(run.folder, split) if evaluated else None
    folder, few = run.folder / "figures", figures == "few"
    if run.infers_target:
        gallery_target.target_gallery(
            run.model,
            run.metrics,
            folder,
            snapshots(run.folder),
            evaluation=evaluation,
            names=gallery_target.FEW if few else None,
        )
    else:
        assert isinstance(run.model, Model)
        assert isinstance(run.dataset, Dataset)
        drawn = (run.folder / "evaluation" / "test-curve.npz").exists()
        curve = Evaluation.load(run.folder, "test-curve") if drawn else None
        predicted = (run.folder / "evaluation" / "test-removed.npz").exists()
        gallery_data.gallery(
            run.model,
            run.dataset,
            run.metrics,
            folder,
            evaluation=evaluation,
            curve=curve,
            code_prior_metrics=run.code_prior_metrics,
            names=gallery_data.FEW if few else None,
            removed=Evaluation.load(run.folder, "test-removed") if predicted else None,
        )
    return write_report(run.folder)
