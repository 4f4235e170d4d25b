"""A run: a fitted model with everything that belongs to it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeVar, overload

import torch
from numpy.typing import NDArray
from torch import Tensor

from varflow.core import random, ranks
from varflow.core.errors import RunError, ShapeError, SpecError, positive, unknown
from varflow.core.files import read_json
from varflow.core.form import Form
from varflow.data.dataset import Dataset
from varflow.data.protocols import Protocol
from varflow.data.target_batches import TargetBatches
from varflow.ensemble import Ensemble
from varflow.model import Model
from varflow.runs.assemble import spec_data
from varflow.runs.folder import DATA, check_data, read_about
from varflow.settings.spec import RunSpec

if TYPE_CHECKING:
    from varflow.data.conditions import Conditions
    from varflow.evaluation import Evaluation
    from varflow.figures.illustration import Illustration
    from varflow.runs.distribution import Density
    from varflow.runs.impute import Imputations
    from varflow.runs.latent_space import Neighbours, Way, What
    from varflow.runs.rows import Progress
    from varflow.runs.scores import Scores

#: Answers come in the kind that rows were given in.
Rows = TypeVar("Rows")


class Run:
    """A fitted model with what belongs to it.

    Attributes:
        folder: where it lives, or None for a fit that was not written.
        spec: its settings.
        model: in evaluation mode; an :class:`~varflow.Ensemble` where several fits were trained together.
        form: shape and support of the data.
        metrics: the records of the fit.
        outcome: how the fit ended, as plain values.
        code_prior_metrics: the records of the fit of a code prior; none where there is none.
        preprocessing: what stands between the stored values and the model, as it was learned in training; None for
            a fit to a target.
        picture: whether the data are pictures.
        conditions: the columns that the model is conditioned on, p(x|c); None where there are none.
        other_data: whether the run was loaded with other data than those it was fitted to. Their evaluation is given
            back and not kept in the folder.
        origin: the address of a run that was opened from the hub, with its commit; None for any other. Its folder is
            the hub's cache, which is not written to.
    """

    spec: RunSpec
    model: Model | Ensemble
    form: Form
    folder: Path | None
    metrics: list[dict[str, Any]]
    outcome: dict[str, Any]
    code_prior_metrics: list[dict[str, Any]]
    preprocessing: Protocol | None
    picture: bool
    conditions: Conditions | None
    other_data: bool
    origin: str | None

    def __init__(
        self,
        spec: RunSpec,
        model: Model | Ensemble,
        form: Form,
        folder: Path | None = None,
        metrics: list[dict[str, Any]] | None = None,
        outcome: dict[str, Any] | None = None,
        dataset: Dataset | TargetBatches | None = None,
        code_prior_metrics: list[dict[str, Any]] | None = None,
        preprocessing: Protocol | None = None,
        picture: bool = False,
    ) -> None:
        self.spec, self.model, self.form, self.folder = spec, model, form, folder
        self.metrics, self.outcome = metrics or [], outcome or {}
        self.code_prior_metrics = code_prior_metrics or []
        self._dataset = dataset
        if preprocessing is None and isinstance(dataset, Dataset):
            preprocessing, picture = dataset.preprocessing, dataset.picture
        self.preprocessing, self.picture = preprocessing, picture
        self.conditions = dataset.conditions if isinstance(dataset, Dataset) else None
        self.other_data = False
        self.origin = None

    def __repr__(self) -> str:
        return f"Run({self.folder or 'in memory'}, {self.outcome.get('step', 0)} steps)"

    def _repr_html_(self) -> str:
        from varflow.runs.showing import html

        return html(self)

    @property
    def dataset(self) -> Dataset | TargetBatches:
        """The data of the run, read again where it is not at hand, on the model's device."""
        if self._dataset is None:
            if self.folder is None:
                raise RunError(
                    "data: this run is in memory and does not keep the data it was fitted to; score rows with "
                    "log_prob, or fit with varflow.fit to have the data evaluated"
                )
            if self._given_data():
                raise RunError(
                    "data: this run was fitted to data given in Python, which the folder does not hold; "
                    "pass them again, e.g. load(folder, data=tensor)"
                )
            loaded = spec_data(None, self.spec, self.preprocessing, self.conditions)
            if self.folder is not None:
                check_data(loaded, self.folder)
            home = next(self.model.parameters())
            self._dataset = loaded.to(home.device, home.dtype)
        return self._dataset

    @property
    def columns(self) -> tuple[str, ...]:
        """The heads of the columns of a table that the run was fitted to; empty where they have none."""
        return self._told("columns")

    @property
    def classes(self) -> tuple[str, ...]:
        """The names of the classes, where the labels of the data have names."""
        return self._told("classes")

    @property
    def decimal(self) -> str:
        """What stood before the decimals of the table that the run was fitted to; "" where it was no file of text."""
        return "".join(self._told("decimal"))

    def _told(self, name: str) -> tuple[str, ...]:
        held: Any
        if isinstance(self._dataset, Dataset):
            held = getattr(self._dataset, name, None) or self._dataset.describe().get(name, ())
        else:
            held = () if self.folder is None else read_json(self.folder / DATA).get(name, ())
        return tuple(map(str, held)) if isinstance(held, list | tuple | str) else ()

    @property
    def infers_target(self) -> bool:
        """Whether nothing is observed: a fit to a target, whose q(z) is the result."""
        return self.form.support == "none"

    @overload
    def log_prob(
        self, x: Tensor, samples: int | None = ..., seed: int = ..., memory: int = ..., given: Any = ...
    ) -> Tensor: ...

    @overload
    def log_prob(
        self, x: NDArray[Any], samples: int | None = ..., seed: int = ..., memory: int = ..., given: Any = ...
    ) -> NDArray[Any]: ...

    @overload
    def log_prob(
        self, x: Any, samples: int | None = ..., seed: int = ..., memory: int = ..., given: Any = ...
    ) -> Any: ...

    def log_prob(
        self, x: Any, samples: int | None = None, seed: int = 0, memory: int = 2**30, given: Any = None
    ) -> Any:
        """log p(x) of rows or pictures in the units of the data, nats in float64: ``[N]``, in the kind that x is.

        Exact for a density. Otherwise the log of the mean of ``samples`` importance weights, which is log p(x) from
        below in expectation; for codes the bound through the one code of x. Where the preprocessing draws noise
        (binarization, dequantization) it is drawn once, by ``seed``. :meth:`scores` has the error of each value too.

        Args:
            x: ``[N, *event]`` as the training data were: a tensor or an array of raw rows, or of levels.
            samples: importance samples for each row, where the density is not exact; 100 unless given.
            seed: of the samples and of the noise.
            memory: bytes that decoding may take.
            given: what p(x|c) is conditioned on, where the run has conditions: name → a value for all rows or one for
                each, a frame, or stored values ``[N, columns]``. A frame x may have the columns itself.
                ``"marginal"``: log Σ_k π_k p(x|c = k) over the values of a condition that is a category, π their
                shares in training.

        Raises:
            SpecError: a fit to a target, which has no x (see :meth:`log_q`).
            DataError, ShapeError: a NaN, or x of another shape or other levels than the training data.
        """
        from varflow.data.given import like

        return like(x, self.scores(x, samples, seed, memory, given=given).log_prob, ["log_prob"])

    def scores(
        self,
        x: Any,
        samples: int | None = None,
        seed: int = 0,
        memory: int = 2**30,
        anomaly: bool = False,
        training_rows: int | None = None,
        progress: Progress | None = None,
        given: Any = None,
    ) -> Scores:
        """:meth:`log_prob` with the Monte-Carlo error and Pareto k̂ of each row.

        Args:
            x, samples, seed, memory, given: as there.
            anomaly: add the rank of each row among the training rows that the folder has the scores of. A fit scores
                as many as it can in a second, up to 2,000, with 100 samples where the density is not exact; one of a
                few seconds takes a tenth of its time, and :meth:`evaluate` goes on.
            training_rows: score so many training rows now and rank among them; the data must be at hand. A folder
                keeps their scores.
            progress: called with (rows done, rows).

        Raises:
            RunError: ``anomaly`` with another number of samples than the training rows were scored with.
        """
        from varflow.runs.scores import score

        return score(self, x, samples, seed, memory, anomaly, training_rows, progress, given)

    def log_q(self, z: Rows) -> Rows:
        """log q(z) of a fit to a target, nats: ``[N]``, or ``[fits, N]`` where several were trained together.

        Args:
            z: points ``[N, D]``.

        Raises:
            SpecError: a fit to data, whose q is q(z|x), or a posterior without a density of its own.
        """
        from varflow.data.given import like

        if not self.infers_target:
            raise SpecError("log_q: this run was fitted to data, and q(z|x) depends on x; use log_prob(x)")
        home = next(self.model.parameters())
        points = torch.as_tensor(z).to(home.device, home.dtype)
        if points.ndim != 2 or points.shape[-1] != self.form.event_shape[-1]:
            raise ShapeError(f"z: shape {list(points.shape)}, should be [N, {self.form.event_shape[-1]}]")
        with torch.no_grad():
            found = torch.stack([member.posterior().log_prob(points).double() for member in self.members()])
        answer: Rows = like(z, found if len(found) > 1 else found[0])
        return answer

    def sample(
        self, count: int, seed: int = 0, mean: bool = False, stored: bool = False, given: Any = None
    ) -> Any:
        """``count`` draws of p(x) in the units of the data: raw rows, or levels of pictures; ``[count, *event]``.

        Of a fit to a target: z ~ q(z) ``[count, D]``, or ``[fits, count, D]`` where several were trained together. Of
        a frame whose columns are each of a kind (likelihood=columns): a frame of the same library. Of such a table
        in a file: its stored values, which :meth:`frame` writes out.

        Args:
            count: how many.
            seed: of the draws.
            mean: the likelihood's mean of each z in place of a draw from it.
            stored: stored values of a table, whatever it came as.
            given: what the draws are conditioned on, ``{"dose": 3, "sex": "f"}``: a value for all, or one for each.

        Raises:
            SpecError: the mean of a fit to a target, which has no likelihood; or conditions that are missing.
        """
        positive(count=count)
        if not isinstance(self.model, Model) or self.preprocessing is None:
            if mean:
                raise SpecError("mean: a target has no likelihood to take the mean of; leave it out")
            with random.stream(seed):
                z = torch.stack([member.encode(None, count).z for member in self.members()])
            return z if len(z) > 1 else z[0]
        try:
            context = self._context(given, count)
            with random.stream(seed):
                x = self.model.sample(count, mean=mean, context=context)
        except (MemoryError, RuntimeError) as error:
            if not isinstance(error, MemoryError) and "alloc" not in str(error):
                raise
            raise SpecError(
                f"count: was {count}; so many draws do not fit into memory, draw fewer at a time with several seeds"
            ) from error
        found = self.preprocessing.stored_means(x) if mean else self.preprocessing.stored_values(x)
        library = "".join(self._told("frame"))
        return self.frame(found, library) if library and not stored else found

    def _context(self, given: Any, rows: int) -> Tensor | None:
        """c of what was given for the conditions."""
        from varflow.runs.rows import need

        if self.conditions is None:
            if given is not None:
                raise SpecError("given: this run is conditioned on nothing; leave it out")
            return None
        home = next(self.model.parameters())
        stored = self.conditions.of(need(self.conditions, given), rows)
        return self.conditions.encode(stored, home.dtype).to(home.device)

    def frame(self, values: Any, library: str = "pandas") -> Any:
        """Stored values of a table as a frame: its columns by name, words, dates and whole numbers as they came.

        Args:
            values: ``[N, D]``, numbers, codes of values and days since 1970-01-01; NaN where a cell is missing.
            library: pandas, polars or pyarrow.

        Raises:
            SpecError: a run whose data are no table of columns that are each of a kind.
            DataError: the library is not installed.
        """
        from varflow.data.columns import Columns
        from varflow.data.writing import frame_of

        if not isinstance(self.preprocessing, Columns):
            raise SpecError("frame: the data of this run are no table with likelihood=columns; x is numbers already")
        if library not in ("pandas", "polars", "pyarrow"):
            raise unknown("library", library, ("pandas", "polars", "pyarrow"))
        return frame_of(library, self.preprocessing.table(torch.as_tensor(values)))

    def distribution(self, validate_args: bool = True) -> Density:
        """p(x) of a density as a :class:`torch.distributions.Distribution` of x in the units of the data, nats.

        It draws no noise: ``log_prob`` takes x as it is. A rounded column is scored at the number itself, the middle
        of its step, and levels are scored as dequantized ones v + u, an integer v at v + 1/2. Draws are of this very
        density, with nothing rounded (:meth:`sample` rounds), and follow ``torch.manual_seed``.

        Raises:
            SpecError: a model with latents or of codes, whose p(x) is no density that can be evaluated; a fit to a
                target; several fits trained together.
        """
        from varflow.runs.distribution import density

        return density(self, validate_args)

    def embed(
        self,
        x: Rows,
        what: What | None = None,
        samples: int = 50,
        seed: int = 0,
        progress: Progress | None = None,
        given: Any = None,
    ) -> Rows:
        """Where rows lie in latent space: ``[N, D]``, in the kind that x is.

        Args:
            x: ``[N, *event]``, as for :meth:`log_prob`.
            what: ``"mean"`` or ``"scale"`` of q(z|x), exact for a Gaussian and of ``samples`` draws otherwise; one
                ``"sample"`` of it; its ``"centre"``, the image of the mean of the Gaussian under the flow, with
                nothing random in it. Of a quantizer ``"codes"`` (integers ``[N, *grid]``) or ``"centre"`` (the
                codewords). Of a density by a flow ``"centre"``, the point of the flow's base. The first that there is
                unless given.
            samples: draws behind a mean or a scale.
            seed: of the draws, and of the noise of the preprocessing.
            progress: called with (rows done, rows).
            given: as for :meth:`log_prob`.

        Raises:
            SpecError: a fit to a target, or a choice that the model does not have.
            DataError, ShapeError: as :meth:`log_prob`.
        """
        from varflow.runs.latent_space import embed

        found: Rows = embed(self, x, what, samples, seed, progress, given)
        return found

    def reconstruct(self, x: Rows, mean: bool = True, seed: int = 0, given: Any = None) -> Rows:
        """x through one z ~ q(z|x) and back, in the units of the data and the kind that x is: ``[N, *event]``.

        Args:
            x: ``[N, *event]``, as for :meth:`log_prob`.
            mean: the likelihood's mean for z; otherwise a draw from it.
            seed: of the draws.
            given: as for :meth:`log_prob`.

        Raises:
            SpecError, DataError, ShapeError: as :meth:`embed`.
        """
        from varflow.runs.latent_space import reconstruct

        found: Rows = reconstruct(self, x, mean, seed, given)
        return found

    def impute(
        self,
        x: Any,
        samples: int = 1000,
        draws: int = 0,
        given: Any = None,
        seed: int = 0,
        rounded: bool = True,
        progress: Progress | None = None,
    ) -> Any:
        """Rows with their missing cells filled in, in the kind that x is; what was there stays as it is.

        With self-normalized importance weights w of the observed cells, over samples z of q(z|x_observed), a missing
        cell gets Σ w E[cell|z]: the mean in the units of the table, of a positive column that of log-normals, of an
        ordinal, category or binary column the most probable value (Mattei and Frellsen 2019, "MIWAE", section 3.2).

        Args:
            x: rows as for :meth:`log_prob`, with missing cells as a frame has them, or NaN in an array.
            samples: of q(z|x_observed) for each row.
            draws: give a list of so many tables instead, drawn from p(x_missing|x_observed): multiple imputations.
            given: as for :meth:`log_prob`.
            seed: of the samples. A row has the same values alone and among others; equal rows have draws of their
                own.
            rounded: means of counts and of columns on a grid go to the nearest value that the column has; without it
                they are left as they are.
            progress: called with (rows done, rows).

        Raises:
            SpecError: a run without likelihood=columns. A density whose prior is a mixture of Gaussians is no such
                case: there p(x_missing|x_observed) has a closed form, and nothing is estimated.
            DataError, ShapeError: as :meth:`log_prob`.

        :meth:`imputations` has the spread of each cell too, and how far the weights of each row can be trusted.
        """
        from varflow.runs.impute import impute

        return impute(self, x, samples, draws, given, seed, rounded, progress)

    def imputations(
        self,
        x: Any,
        samples: int = 1000,
        draws: int = 0,
        given: Any = None,
        seed: int = 0,
        rounded: bool = True,
        memory: int = 2**30,
        progress: Progress | None = None,
    ) -> Imputations:
        """:meth:`impute` as stored values, with draws, the spread of each cell, effective sample sizes and Pareto k̂.

        Args:
            x, samples, draws, given, seed, rounded, progress: as there; ``draws`` come beside the single values.
            memory: bytes that decoding may take.

        Raises:
            SpecError, DataError, ShapeError: as there.
        """
        from varflow.runs.impute import imputations

        return imputations(self, x, samples, draws, given, seed, rounded, memory, progress)

    @overload
    def interpolate(
        self, a: str | Path, b: str | Path, steps: int = 10, way: Way | None = None, seed: int = 0, given: Any = None
    ) -> Tensor: ...

    @overload
    def interpolate(
        self, a: Rows, b: Rows, steps: int = 10, way: Way | None = None, seed: int = 0, given: Any = None
    ) -> Rows: ...

    def interpolate(
        self, a: Any, b: Any, steps: int = 10, way: Way | None = None, seed: int = 0, given: Any = None
    ) -> Any:
        """The decoded way from a to b through latent space, both ends included: ``[steps, *event]``.

        Args:
            a, b: one example each, in the units of the data, or the files that hold them.
            steps: how many points.
            way: ``"straight"``, along the ``"sphere"``, or straight along the sphere of the ``"base"`` of a flow
                prior (:mod:`varflow.priors.interpolation`). The base where there is one, else straight.
            seed: of the noise of the preprocessing.
            given: as for :meth:`log_prob`, one value each: all points on the way have it.

        Raises:
            SpecError: a fit to a target, or a way that the model does not have.
            ShapeError: more than one example.
        """
        from varflow.runs.latent_space import interpolate

        return interpolate(self, a, b, steps, way, seed, given)

    def nearest(self, x: Any, k: int = 5, among: Any = None, seed: int = 0, given: Any = None) -> Neighbours:
        """The training rows nearest to x in latent space, by the distance of the centres of q(z|x).

        Args:
            x: ``[N, *event]``, as for :meth:`log_prob`.
            k: how many for each row.
            among: rows to look among instead. A run folder keeps the latents of up to 10,000 training rows.
            seed: of the noise of the preprocessing.
            given: of x, as for :meth:`log_prob`.

        Raises:
            SpecError: a model without latents or the base of a flow, or fewer rows than k to look among.
            RunError: no latents of training rows are kept, and the data are not at hand.
        """
        from varflow.runs.latent_space import nearest

        return nearest(self, x, k, among, seed, given)

    def export(self, folder: Path | str, format: str = "onnx") -> dict[str, Any]:
        """Write the model as graphs that other programs run, and export.json, which says what goes in and out.

        With latents: ``encoder`` (x → mean and scale of q(z|x); under a flow those of its base, and ``posterior``: x
        and noise → z and log q) and ``decoder`` (z → mean of p(x|z)). A quantizer: x → codes, and codes → mean. A
        density: ``log_prob`` (x → nats) and, where the flow permits, ``sampler`` (noise → x). A fit to a target:
        ``sampler`` (noise → z and log q). x is as the data are stored, in their units: the preprocessing is inside.
        Any number of rows goes through a graph. Nothing in it is random: where training draws noise the encoder reads
        the expected x, and a density is that of :meth:`distribution`. Levels go in as uint8; a mean of them comes out
        as real numbers, unrounded. Rows that training standardized go in and come out in float64, rounded columns on
        their grid.

        Args:
            folder: where to write.
            format: ``"onnx"``, or ``"torch"`` for files of ``torch.export``.

        Returns:
            What export.json holds; under ``left_out`` a sentence for each graph that cannot be.

        Raises:
            SpecError: another format, several fits trained together, no graph at all, onnx is not installed, or a
                torch before 2.7.
            RunError: the folder cannot be written.
        """
        from varflow.runs.export import export

        return export(self, folder, format)

    def members(self) -> list[Model]:
        """The models, one for each fit that was trained here, in the order of their seeds."""
        return self.model.members()

    @ranks.by_first
    def evaluate(
        self, split: str | None = None, samples: int | None = None, **options: Any
    ) -> Evaluation:
        """Estimates with their errors, saved in the run folder; those of other data than the run's are not.

        Args:
            split: of the data set, "test" unless given; a target has none.
            samples: for each example, 1000 unless given (2 for density estimation, where nothing is random); for
                each fit to a target 100,000.
            **options: of :func:`varflow.evaluation.evaluate`, or of
                :func:`varflow.evaluation.evaluate_target` where this is a fit to a target, of
                :func:`varflow.evaluation.evaluate_codes` where latents are codes.

        Raises:
            SpecError: a split or a limit for a target.
        """
        from varflow.runs.estimates import evaluate

        return evaluate(self, split, samples, **options)

    @ranks.by_first
    def removed_cells(
        self,
        share: float = 0.3,
        split: str = "test",
        samples: int = 1000,
        baselines: Sequence[str] | None = None,
        **options: Any,
    ) -> Evaluation:
        """Remove a share of the cells of a split at random and predict them; kept in the run folder as the estimates
        of :meth:`evaluate` are. Of a run with likelihood=columns.

        Args:
            share: of the cells that are there.
            split: of the data set.
            samples: importance samples for each row.
            baselines: what is set beside the model on the same cells, of
                :data:`varflow.evaluation.table_baselines.BASELINES`; all that can be computed here unless given.
            **options: of :func:`varflow.evaluation.removed_cells`.

        Raises:
            SpecError: another run.
        """
        from varflow.runs.estimates import removed_cells

        return removed_cells(self, share, split, samples, baselines, **options)

    @ranks.by_first
    def curve(self, samples: int = 1000, split: str = "test", **options: Any) -> Evaluation:
        """The bound E log 1/k Σ w for k = 1, 10, 100, … samples, from the ELBO to log p(x); kept in the run folder.

        Args:
            samples: weights of each example, the largest k.
            split: of the data set.
            **options: of :func:`varflow.evaluation.bound_curve`.

        Raises:
            SpecError: a run without latents that are uncertain.
        """
        from varflow.runs.estimates import of_latents

        return of_latents(self, "curve", split, samples=samples, **options)

    @ranks.by_first
    def gaps(self, points: int = 200, split: str = "test", **options: Any) -> Evaluation:
        """log p(x) − ELBO of the first points taken apart: what the family of q costs, and what the encoder costs.

        It is kept in the run folder, where :func:`varflow.compare` finds it.

        Args:
            points: of the split.
            split: of the data set.
            **options: of :func:`varflow.evaluation.inference_gaps`.

        Raises:
            SpecError: a run without latents that are uncertain.
        """
        from varflow.runs.estimates import of_latents

        return of_latents(self, "gaps", split, points=points, **options)

    @ranks.by_first
    def anneal(self, points: int = 200, split: str = "test", **options: Any) -> Evaluation:
        """log p(x) of the first points by annealed importance sampling, which needs no good q.

        It is kept in the run folder, where :func:`varflow.compare` finds it.

        Args:
            points: of the split.
            split: of the data set.
            **options: of :func:`varflow.evaluation.annealed_likelihood`.

        Raises:
            SpecError: a run without latents that are uncertain.
        """
        from varflow.runs.estimates import of_latents

        return of_latents(self, "anneal", split, points=points, **options)

    @ranks.by_first
    def report(self, figures: Literal["all", "few"] = "all") -> Path:
        """Draw every figure that applies and write report.html; returns its path.

        Args:
            figures: ``"few"`` leaves out those that take long, and what was drawn of them before: a page in a second
                or two.

        Raises:
            RunError: the run has no folder.
            SpecError: another word for ``figures``.
        """
        from varflow.runs.estimates import report

        return report(self, figures)

    @property
    def figures(self) -> tuple[str, ...]:
        """The names of the figures that apply to the run, in the order to look at them; :meth:`figure` draws one."""
        from varflow.runs.drawing import names

        return names(self)

    def figure(self, name: str, split: str = "validation", seed: int = 0, dpi: float | None = None) -> Illustration:
        """One figure, which a notebook shows by itself with its caption; nothing is written.

        Args:
            name: one of :attr:`figures`.
            split: whose examples are shown. An empty one is replaced by the first that has examples.
            seed: of all draws.
            dpi: dots per inch of the picture; 100 unless given, of an animation 80.

        Raises:
            SpecError: an unknown name, or a figure that does not apply; the message says what is missing.
        """
        from varflow.runs.drawing import figure

        return figure(self, name, split, seed, dpi)

    def copy(self, folder: str | Path, dtype: Literal["float16", "bfloat16"] | None = None) -> Run:
        """A copy in a folder of its own, opened from there: what a run from the hub is evaluated and reported in.

        It has what :meth:`push` uploads and what is kept of training rows, and cannot be resumed.

        Args:
            folder: new, or one that holds no run.
            dtype: keep the weights in half the bytes, rounded to it. :func:`varflow.load` makes them what they were
                in training. Estimates and scores of training rows, which are of the weights before, stay behind;
                ``copy.evaluate()`` has those of the copy.

        Raises:
            RunError: this run is in memory, the folder holds a run or cannot be written, or a weight does not fit.
            SpecError: another dtype.
        """
        from varflow.runs.hub import copy

        return copy(self, folder, dtype)

    @ranks.by_first
    def push(
        self,
        repository: str,
        *,
        private: bool | None = None,
        revision: str | None = None,
        message: str | None = None,
        figures: bool = False,
        training_rows: bool = False,
    ) -> str:
        """Put the run on the Hugging Face hub; returns its address with the commit, ``hf://owner/name@commit``.

        Uploaded are the settings, weights and preprocessing, what is said about the data without where they lie on
        this machine, metrics, estimates, and the model card. Never the resumable state, never training data. What
        an earlier push of a run has left there goes.

        Args:
            repository: ``owner/name``, or ``owner/name/folder`` in it; made where there is none.
            private: of a new repository; without it what its owner's settings say, which is public unless changed.
            revision: a branch, made where there is none; the repository's own unless given.
            message: of the commit.
            figures: upload the figures too. They can show training examples.
            training_rows: upload the scores and latents of training rows too, which ranks of anomalies and neighbours
                are looked for among.

        Raises:
            RunError: a run in memory or without weights, huggingface_hub is missing, no access, or no network.
            SpecError: no address.
        """
        from varflow.runs.hub import folder_of, push

        return push(
            folder_of(self, "push"),
            repository,
            private=private,
            revision=revision,
            message=message,
            figures=figures,
            training_rows=training_rows,
        )

    def take_data(self, run: Run) -> None:
        """Use the data of another run of the same fit, where it has them at hand."""
        if self._dataset is None:
            self._dataset, self.other_data = run._dataset, run.other_data

    @property
    def keeps(self) -> bool:
        """Whether results are kept in the folder: those of the run's data, where the folder may be written to."""
        return not self.other_data and self.origin is None

    def _given_data(self) -> bool:
        return self.folder is not None and bool(read_about(self.folder).get("data_given"))
