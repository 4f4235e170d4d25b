"""Settings of the data."""

from __future__ import annotations

from typing import Annotated

from varflow.core.settings import AtLeast, OneOf, Settings, settings
from varflow.data import PROTOCOLS


@settings
class DataSettings(Settings):
    """What is modelled."""

    data: Annotated[
        str,
        "A named data set (`varflow data` lists them), or a path to your own .npy, .npz, table or folder of "
        "pictures.",
    ] = "mnist"
    protocol: Annotated[
        str,
        "How stored values become model inputs: dynamic, static, threshold, logit, uniform, symmetric, levels, grey, "
        "none, standardize, table, columns, or auto.",
        OneOf(PROTOCOLS),
    ] = "auto"
    data_dir: Annotated[
        str | None,
        "Folder of the named data sets; without it VARFLOW_DATA, then the cache (~/.cache/varflow on Linux).",
    ] = None
    flip: Annotated[
        bool | None, "Horizontal flips in training; without it the data set's own default."
    ] = None
    levels: Annotated[
        int | None,
        "Your own data: how many values a dimension takes; without it 256 for bytes, real numbers otherwise.",
    ] = None
    resize: Annotated[
        int | None,
        "A folder of pictures: the side of the square that each is brought to.",
        AtLeast(1),
    ] = None
    verify: Annotated[bool, "Compare the checksums of a named data set with the official ones."] = True
    train_limit: Annotated[
        int | None, "The first examples of the training split alone.", AtLeast(1)
    ] = None
    validation_limit: Annotated[
        int | None, "The first examples of the validation split alone.", AtLeast(1)
    ] = None
    decimal: Annotated[
        str,
        "Tables: what stands before decimals, a point or a comma; auto: what the file says.",
        OneOf(("auto", ".", ",")),
    ] = "auto"
    column: Annotated[
        tuple[str, ...],
        "Tables under likelihood=columns: the kind of a column, name:kind, where it is not to be found: real, "
        "positive, count, ordinal (size:ordinal=small|large), category, binary, date, or drop. Once for each column.",
    ] = ()
    condition: Annotated[
        tuple[str, ...],
        "What the model is conditioned on, p(x|c): columns of the table, or label. dose,sex, or once for each.",
    ] = ()
    condition_gaps: Annotated[
        str,
        "What a row without its condition stands for: flag, a value of its own; sum, all values of the one category "
        "that has gaps, each by its share: p(x) = Σ π_k p(x|k), at K times the work.",
        OneOf(("flag", "sum")),
    ] = "flag"
    stream: Annotated[
        str,
        "Whether own data are read as they are needed: always, never, or auto: where they are stored in more than "
        "512 MiB.",
        OneOf(("auto", "always", "never")),
    ] = "auto"
    permutation: Annotated[
        str,
        "Order of own rows: drawn and stored, computed from a seed at each place, or auto: computed where rows are "
        "streamed. Streamed and in memory, computed orders give the same batches.",
        OneOf(("auto", "stored", "computed")),
    ] = "auto"
    workers: Annotated[
        int | None,
        "Streamed data: processes that read and decode beside the one that computes; without it 2 for pictures and "
        "data sets of Python, none for files of numbers.",
        AtLeast(0),
    ] = None
    data_seed: Annotated[
        int, "Seed of the simulated data: gaussian-1, gaussian-2, three-clusters.", AtLeast(0)
    ] = 0
