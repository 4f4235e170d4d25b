"""Set examples beside their reconstructions."""

from __future__ import annotations

from dataclasses import dataclass

from varflow.cli.common import GivenOptions, at_least_one, write_examples
from varflow.core.errors import SpecError
from varflow.settings.flags import parse


@dataclass(frozen=True, kw_only=True)
class Reconstruct(GivenOptions):
    """Examples beside their reconstructions through one draw of q(z|x), in the units of the data."""

    count: int | None = None
    """How many, from the first on; without it 32, and all of a file of your own."""
    seed: int = 0
    """Seed of the draws."""
    out: str | None = None
    """File: .png, .npy, .csv, .tsv, .parquet; without a suffix all that apply. Without it RUN/figures/reconstruct."""


def main(arguments: list[str]) -> int:
    options = parse(Reconstruct, arguments)
    target = options.target(options.out, "reconstruct")
    run = options.open()
    if options.count is not None:
        at_least_one("count", options.count)
    if run.infers_target:
        raise SpecError(
            "run: was fitted to a target, which has no data; varflow sample draws from q(z)"
        )
    given = options.read(run)
    held = len(given.values)
    count = (min(32, held) if options.data is None else held) if options.count is None else options.count
    if count > held:
        what = f"the {options.split} split has" if options.data is None else f"{options.data} has"
        raise SpecError(f"count: was {count}, {what} {held}; use at most that")
    from varflow.data.new_rows import stored_rows

    x = stored_rows(given.values[:count], run.preprocessing, run.form.event_shape, run.picture)
    conditions = options.conditions(given)
    if given.context is conditions and conditions is not None:
        conditions = conditions[:count]
    again = run.reconstruct(x, seed=options.seed, given=conditions)
    files = write_examples(run, target, again, x)
    for path in files:
        options.say(path)
    options.answer(lambda: {"run": options.run, "count": count, "seed": options.seed, "files": files})
    return 0
