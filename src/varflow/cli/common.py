"""What the verbs share: the options of a run, the run itself, files of examples."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, ClassVar, Literal

from varflow.cli.output import OutputOptions, records
from varflow.cli.output import printer as printer
from varflow.core.errors import SpecError
from varflow.core.files import read_json


@dataclass(frozen=True, kw_only=True)
class RunOptions(OutputOptions):
    """Options of every verb that reads a run."""

    words: ClassVar[tuple[str, ...]] = ("run",)

    run: str
    """Folder of the run, or hf://owner/name on the hub."""
    device: str = "cpu"
    """cpu, cuda, cuda:0, ..."""
    threads: int | None = None
    """CPU threads; without it torch's choice."""
    data_dir: str | None = None
    """Folder of the named data sets, where it moved since the fit."""

    def open(self) -> Any:
        """The run, its model on the device that is asked for."""
        from varflow.runs.loading import load
        from varflow.training.engine import Engine
        from varflow.training.settings import TrainingSettings

        if self.quiet:
            # Before the hub's client is imported; it draws bars by itself.
            os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
        engine = Engine.start(TrainingSettings(device=self.device, threads=self.threads))
        run = load(self.run, device=engine.device)
        if self.data_dir is not None:
            run.spec = run.spec.replace(data_dir=self.data_dir)
        return run

    def target(self, out: str | None, name: str) -> Path:
        """The file that is asked for, or RUN/figures/NAME.

        Raises:
            SpecError: none is asked for, and the run lies on the hub.
        """
        from varflow.runs.hub import is_address

        if out is not None:
            return Path(out)
        if is_address(self.run):
            raise SpecError(
                f"out: missing; {self.run} lies in the hub's cache, which is not written to; give --out FILE"
            )
        return Path(self.run) / "figures" / name

    def progress(self, unit: str = "points") -> Any:
        """How far what takes long is, on standard error, unless nothing is to be printed."""
        from varflow.evaluation import Progress

        return Progress(unit, self.quiet)


@dataclass(frozen=True, kw_only=True)
class KeptOptions(RunOptions):
    """Options of every verb whose results are kept in the run."""

    out: str | None = None
    """Folder for a copy of the run, in which the results are kept; without it they are kept in RUN. A run from the
    hub needs one."""

    def open(self) -> Any:
        """The run, or the copy of it."""
        return self.in_copy(self.opened())

    def opened(self) -> Any:
        """The run itself."""
        from varflow.runs.hub import is_address

        if self.out is None and is_address(self.run):
            raise SpecError(
                f"out: missing; {self.run} lies in the hub's cache, which is not written to; give --out FOLDER for a "
                "copy that keeps the results"
            )
        return super().open()

    def in_copy(self, run: Any) -> Any:
        """The run in the folder that is to keep the results."""
        return run if self.out is None else run.copy(self.out)


@dataclass(frozen=True, kw_only=True)
class GivenOptions(RunOptions):
    """Options of every verb that takes rows or pictures of the user's."""

    words: ClassVar[tuple[str, ...]] = ("run", "data")

    data: str | None = None
    """A .csv, .tsv, .txt, .parquet, .feather, .arrow or .npy file, a picture, a folder of pictures, a named data
    set; else the run's own."""
    split: Literal["test", "validation", "train"] = "test"
    """The split, of a named data set or of the run's own data."""
    resize: int | None = None
    """Height and width for pictures of several sizes."""
    given: str | None = None
    """What all rows are conditioned on: dose=3,sex=f. Without it columns of the file, or its labels. marginal: the
    sum over the values of a condition that is a category (score)."""

    def conditions(self, rows: Any) -> Any:
        """What the rows are conditioned on."""
        return rows.context if self.given is None else conditions_of(self.given)

    def read(self, run: Any) -> Any:
        """What was given, as :class:`varflow.data.new_rows.NamedRows`."""
        return rows_for(run, self.data, self.split, self.data_dir, self.resize)

    def table_path(self, out: str | None) -> Path | None:
        """Where a table goes, once its suffix is known to be one that can be written."""
        if out is None:
            return None
        from varflow.data.writing import check_suffix

        check_suffix(Path(out))
        return Path(out)

    def write(self, out: Path | None, columns: dict[str, Any], values: Any = None) -> None:
        """A table into its file, or onto standard output unless that is for a document."""
        import sys

        from varflow.data.writing import print_table, write_table

        if out is not None:
            write_table(out, columns, values)
        elif not self.json:
            print_table(sys.stdout, columns)

    def summarize(self, out: str | Path | None, summary: str) -> None:
        """A line on a table: after the name of its file, or on standard error beside the table itself."""
        import sys

        if not self.quiet:
            print(f"{out}: {summary}" if out else summary, file=sys.stdout if out else sys.stderr)

    def answer_rows(self, out: Path | None, columns: dict[str, Any], **facts: Any) -> None:
        """The document of a table: ``facts``, and its rows unless they are in a file."""
        self.answer(
            lambda: {"run": self.run, **facts, **({"rows": records(columns)} if out is None else {"file": out})}
        )


@dataclass(frozen=True, kw_only=True)
class EstimateOptions(KeptOptions):
    """Options of every verb that estimates something of a run's examples."""

    split: Literal["test", "validation"] = "test"
    """The split."""
    memory: float = 1.0
    """Bound on working memory, GiB."""
    seed: int = 0
    """Seed of all samples."""

    @property
    def common(self) -> dict[str, int]:
        """What every estimate is given."""
        return {"memory": int(self.memory * 2**30), "seed": self.seed}

    def opened(self) -> Any:
        """The run itself, once the bound on memory is known to make sense."""
        if not 0 < self.memory < 2**20:
            raise SpecError(f"memory: was {self.memory}; use gibibytes, above 0")
        return super().opened()

    def open_latents(self) -> Any:
        """A run whose latents are uncertain, so that there is something to anneal, refine or average over."""
        run = self.opened()
        if run.infers_target:
            raise SpecError("run: was fitted to a target, which has no data; use varflow evaluate")

        if run.model.posterior.observed:
            raise SpecError("run: its log p(x) is exact, without latents; use varflow evaluate")
        if run.model.posterior.discrete:
            raise SpecError(
                "run: its latents are codes, one for each x for sure, so there is nothing to anneal, refine or "
                "average over; use varflow evaluate"
            )
        return self.in_copy(run)

    def finish(self, run: Any, found: Any) -> None:
        """Keep an evaluation in the run, show it, and write the report again."""
        found.save(run.folder)
        self.say(found.table())
        page = run.report()
        self.say(f"report: {page}")
        self.answer(lambda: {**kept(run, found), "run": run.folder, "report": page})


@dataclass(frozen=True, kw_only=True)
class AnnealingOptions(EstimateOptions):
    """Options of the verbs that anneal log p(x)."""

    points: int = 200
    """The first examples of the split."""
    chains: int = 16
    """Chains for each example."""
    temperatures: int = 1000
    """Temperatures between the start and p(x, z)."""
    leapfrog: int = 5
    """Leapfrog steps between two temperatures."""
    start: Literal["posterior", "prior"] = "posterior"
    """Where chains start: a Gaussian with the moments of q(z|x), or p(z)."""

    def annealing(self, **more: Any) -> Any:
        """The settings of annealed importance sampling."""
        from varflow.evaluation import Annealing

        return Annealing(self.chains, self.temperatures, self.leapfrog, start=self.start, **more)


def kept(run: Any, found: Any) -> dict[str, Any]:
    """The file of an evaluation in the folder of its run."""
    held: dict[str, Any] = read_json(run.folder / "evaluation" / f"{found.data['split']}.json")
    return held


def conditions_of(text: str | None) -> dict[str, Any] | str | None:
    """name → value of ``dose=3,sex=f``; what holds a comma stands in quotes, ``sex="f, m"``. Raises SpecError for
    anything else.
    """
    if text is None:
        return None
    if text == "marginal":
        return text
    found: dict[str, Any] = {}
    for part in re.findall(r'(?:[^,"]|"[^"]*")+', text):
        name, equals, value = (word.strip() for word in part.partition("="))
        if len(value) > 1 and value[0] == value[-1] == '"':
            found[name] = value[1:-1]
            continue
        if name in found:
            raise SpecError(f"given: '{name}' is given twice; give it once")
        if not name or not equals or not value:
            raise SpecError(f"given: was '{text}'; use name=value, several with commas: dose=3,sex=f")
        try:
            found[name] = float(value)
        except ValueError:
            found[name] = value
    return found


def rows_for(run: Any, data: str | None, split: str, data_dir: str | None = None, resize: int | None = None) -> Any:
    """Rows for a run's model, their columns in the order of training: those of a file, a folder or a named data set;
    without one those of the run's own data.
    """
    import torch

    from varflow.data.columns import Columns
    from varflow.data.given import Given, in_order
    from varflow.data.new_rows import NamedRows, rows_of

    if data is None:
        dataset = run.dataset
        index = torch.arange(dataset.looked_at(split))
        names = dataset.origins(split, index)
        held = None if dataset.conditions is None else dataset.conditions.values[split]
        return NamedRows(dataset.stored(split, index), names, bool(names) and isinstance(names[0], str), context=held)
    kept = run.preprocessing
    decimal = run.spec.get("decimal", "auto")
    found = rows_of(data, split, data_dir, resize, kept, decimal, run.decimal, run.conditions)
    if isinstance(kept, Columns):
        return found
    return found._replace(values=in_order(Given(found.values, columns=found.columns), run.columns))


def at_least_one(name: str, value: int) -> None:
    """Raise :class:`SpecError` for a number that is not positive."""
    if value < 1:
        raise SpecError(f"{name}: was {value}; use 1 or more")


def beside() -> bool:
    """Whether torchrun started this process beside the one that speaks."""
    return "WORLD_SIZE" in os.environ and os.environ.get("RANK", "0") != "0"


def config_file(arguments: list[str]) -> str | None:
    """The file after --config; its settings are the defaults of the flags, so it is read before them."""
    for word, after in zip(arguments, [*arguments[1:], "--"], strict=False):
        flag, has_value, value = word.partition("=")
        if flag == "--config" and (has_value or not after.startswith("--")):
            return value if has_value else after
    return None


def write_examples(run: Any, target: Path, x: Any, originals: Any = None, columns: int | None = None) -> list[Path]:
    """Examples in the units of the data: pictures as a PNG sheet, rows as a table, and the numbers as .npy.

    Args:
        run: whose examples they are.
        target: a file, whose suffix says what is written; without a suffix everything that applies.
        x: ``[N, *event]``.
        originals: what to set beside them, of the same shape.
        columns: pictures in a row of the sheet.

    Raises:
        SpecError: a suffix that does not apply.
    """
    import torch

    from varflow.core.files import make_folder
    from varflow.data.writing import write_table

    x, picture = torch.as_tensor(x), run.picture
    kinds = [".png", ".npy"] if picture else [".csv", ".tsv", ".parquet", ".npy"]
    suffix = target.suffix.lower()
    if suffix and suffix not in kinds:
        raise SpecError(f"out: {target} has the suffix '{suffix}'; use one of {', '.join(kinds)}, or none")
    chosen = [suffix] if suffix else ([".npy", ".png"] if picture else [".npy", ".csv"])
    if not picture and x.ndim != 2:
        # The z of several fits are no table.
        chosen = [".npy"]
    make_folder(target.parent)
    written = []
    for kind in chosen:
        path = target if suffix else target.with_name(target.name + kind)
        if kind == ".png":
            _sheet(path, x, originals, columns, run.preprocessing.top)
        else:
            table = named_columns(run, x) if not picture and x.ndim == 2 else {}
            write_table(path, table, x.cpu().numpy())
        written.append(path)
    return written


def write_pictures(folder: Path, x: Any, top: int) -> list[Path]:
    """Each picture as a PNG file of its own, numbered from 0."""
    from varflow.core.files import make_folder, write_atomically
    from varflow.data.readers import need

    try:
        from PIL import Image
    except ImportError as error:
        raise need("pictures", "Pillow", "writing single pictures") from error
    make_folder(folder)
    written = []
    levels = (x.double() * (255 / top)).round().clamp(0, 255).byte().permute(0, 2, 3, 1).cpu().numpy()
    for number, picture in enumerate(levels):
        path = folder / f"{number:0{len(str(len(levels) - 1))}d}.png"
        image = Image.fromarray(picture[:, :, 0] if picture.shape[-1] == 1 else picture)
        write_atomically(path, partial(image.save, format="PNG"))
        written.append(path)
    return written


def named_columns(run: Any, x: Any) -> dict[str, Any]:
    """The columns of rows by their heads; whole numbers as such where the column holds whole numbers alone."""
    from varflow.data.columns import Columns

    if isinstance(run.preprocessing, Columns):
        return run.preprocessing.table(x)
    names = run.columns if len(run.columns) == x.shape[1] else [f"x{i}" for i in range(x.shape[1])]
    found = {}
    for name, column in zip(names, x.cpu().T, strict=True):
        whole = bool((column == column.round()).all()) and float(column.abs().max()) < 2**53
        found[name] = column.long().numpy() if whole else column.numpy()
    return found


def _sheet(path: Path, x: Any, originals: Any, columns: int | None, top: int) -> None:
    from varflow import figures

    # A sheet as high as its rows need: without a number of columns it is square; reconstructions are five pairs wide.
    wide = columns if originals is None else 5
    high, each = x.shape[-2] / x.shape[-1], 1 if originals is None else 2
    rows = None if wide is None else -(-len(x) // wide)
    with figures.style():
        height = 8.0 if rows is None or wide is None else max(8.0 * high * 1.15 * rows / (wide * each), 1.0)
        figure, axes = figures.canvas(width=8.0, height=height)
        if originals is None:
            figures.image_grid(x.float() / top, axes[0, 0], columns=columns)
        else:
            figures.reconstructions(originals.float() / top, x.float() / top, axes[0, 0])
        figures.save(figure, path)
