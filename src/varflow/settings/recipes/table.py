"""Tables as people have them: columns of several kinds, missing cells, and densities under a condition."""

from varflow.settings.recipes.recipe import Recipe
from varflow.settings.spec import RunSpec

_VAE = RunSpec().replace(
    data="table.csv", likelihood="columns", latent=8, hidden=128, layers=2, batch=128, lr=1e-3, steps=10_000,
    patience="auto",
)  # fmt: skip

TABLE = Recipe(
    "table",
    "VAE of a table, each column by its kind; cells may be missing (--data t.csv --column age:count)",
    _VAE,
    "Nazábal, Olmos, Ghahramani and Valera 2020 (HI-VAE), the likelihoods of section 3.2",
    "one Gaussian prior instead of a mixture; kinds of columns are found; the encoder sees which cells are there",
)

TABLE_MISSING = Recipe(
    "table-missing",
    "the same, trained by the importance-weighted bound of the cells that are there (MIWAE)",
    _VAE.replace(objective="iwae", samples=20),
    "Mattei and Frellsen 2019 (MIWAE), section 3",
    "any kinds of columns instead of real ones; the encoder sees which cells are there",
)

CONDITIONAL_DENSITY = Recipe(
    "conditional-density",
    "masked autoregressive flow p(x|c): density of some columns given others (--data t.csv --condition dose,sex)",
    RunSpec().replace(
        data="table.csv", likelihood="identity", prior="maf", prior_length=5, prior_base="gaussians",
        batch=128, lr=1e-3, steps=20_000, patience="auto",
    ),
    "Papamakarios, Pavlakou and Murray 2017, section 4.2",
    "as density; the networks of the flow read the conditions, the base does not, and so has no share of its own",
)  # fmt: skip
