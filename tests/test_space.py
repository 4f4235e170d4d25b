"""The space of a sweep: what is drawn for a trial, and what is refused."""

from __future__ import annotations

import pytest

from varflow.core.errors import SpecError
from varflow.settings import recipes
from varflow.settings import space as spaces
from varflow.settings.space import Choices, Range

BASE = recipes.find("digits").spec


def first(name, axis):
    return spaces.values(axis)[0] if isinstance(axis, Choices) or axis.whole else axis.low


def last(name, axis):
    return spaces.values(axis)[-1] if isinstance(axis, Choices) or axis.whole else axis.high


SPACE = {
    "lr": {"low": 1e-4, "high": 1e-2, "log": True},
    "length": {"low": 2, "high": 8},
    "patience": ["None", "5 epochs"],
    "flow": ["none", "planar", "iaf"],
}


def test_a_space_reads_choices_and_ranges_as_its_settings_take_them(tmp_path):
    path = tmp_path / "space.toml"
    path.write_text(
        'flow = ["none", "planar", "iaf"]\nlength = {low = 2, high = 8}\nlr = {low = 1e-4, high = 1e-2, log = true}\n'
        'patience = ["None", "5 epochs"]\nbeta = {low = 1, high = 2, step = 0.5}\n'
    )
    found = spaces.read(path, BASE)
    assert found.axes == {
        "flow": Choices(("none", "planar", "iaf")),
        "length": Range(2, 8, whole=True),
        "lr": Range(1e-4, 1e-2, whole=False, log=True),
        "patience": Choices((None, "5 epochs")),
        "beta": Range(1, 2, whole=False, step=0.5),
    }
    assert spaces.read(found.plain(), BASE).axes == found.axes
    assert spaces.values(found.axes["beta"]) == [1.0, 1.5, 2.0]
    assert spaces.values(Range(2, 9, whole=True, step=3)) == [2, 5, 8]


def test_choices_come_first_and_a_setting_varies_where_its_part_is_chosen():
    space = spaces.read(SPACE, BASE)
    spec, drawn = space.spec(BASE, first)
    assert drawn == {"flow": "none", "lr": 1e-4, "patience": None}
    assert next(iter(drawn)) == "flow"
    assert spec == BASE.replace(lr=1e-4, patience=None)
    spec, drawn = space.spec(BASE, last)
    assert drawn == {"flow": "iaf", "lr": 1e-2, "length": 8, "patience": "5 epochs"}
    assert spec == BASE.replace(flow="iaf", lr=1e-2, length=8, patience="5 epochs")


def test_a_number_that_brings_settings_with_it_is_drawn_before_them():
    space = spaces.read({"step_bound": [0.1, 0.2], "leapfrog": [0, 2]}, BASE)
    assert space.spec(BASE, first)[1] == {"leapfrog": 0}
    assert space.spec(BASE, last)[1] == {"leapfrog": 2, "step_bound": 0.2}


def test_a_grid_has_every_combination_once_and_no_setting_without_its_part():
    space = spaces.read({"flow": ["none", "planar"], "length": {"low": 1, "high": 3}, "latent": [1, 2]}, BASE)
    grid = list(space.grid(BASE))
    assert len(grid) == 2 + 2 * 3
    assert len({tuple(sorted(settings.items())) for settings in grid}) == 8
    assert all(("length" in settings) == (settings["flow"] == "planar") for settings in grid)
    with pytest.raises(SpecError, match="lr: a grid needs choices, and a range of real numbers has none"):
        list(spaces.read({"lr": {"low": 0.1, "high": 0.2}}, BASE).grid(BASE))


@pytest.mark.parametrize(
    ("space", "sentence"),
    [
        ({}, "it is empty; name a setting"),
        ({"flwo": ["iaf"]}, "flwo: unknown setting; did you mean 'flow'?"),
        ({"flow": ["plannar"]}, "flow: unknown value 'plannar'; did you mean 'planar'?"),
        ({"flow": []}, "flow: no choices"),
        ({"flow": ["iaf", "iaf"]}, "flow: a choice is given twice"),
        ({"flow": {"low": 1, "high": 2}}, "flow: is no number; give choices"),
        ({"flow": ["none"], "length": [3]}, "length: is a setting of flow="),
        ({"lr": 3}, "lr: was 3; give choices [a, b, …] or a range {low = …, high = …}"),
        ({"lr": [-1.0]}, "lr: was -1.0; use a number above 0"),
        ({"lr": {"low": 0.1}}, "lr: a range without high"),
        ({"lr": {"low": 0.1, "high": 0.1}}, "lr: the range goes from 0.1 to 0.1; low has to be below high"),
        ({"lr": {"low": "a", "high": 0.1}}, "lr: low was 'a'; use a number"),
        ({"lr": {"low": 0.1, "high": 1, "lgo": True}}, "lr: unknown key 'lgo' of a range"),
        ({"lr": {"low": 0.1, "high": 1, "log": 3}}, "lr: log was 3; use true or false"),
        ({"weight_decay": {"low": 0, "high": 1, "log": True}}, "a range in the logarithm starts above 0"),
        ({"lr": {"low": 0.1, "high": 1, "log": True, "step": 0.1}}, "lr: log is given beside step"),
        ({"latent": {"low": 0, "high": 4}}, "latent: was 0; use 1 or more"),
        ({"latent": {"low": 1.5, "high": 4}}, "latent: takes whole numbers"),
        ({"latent": {"low": 1, "high": 4, "step": 0}}, "latent: step was 0; use a number above 0"),
        ({"latent": [[1]]}, "latent: holds [1]; give single values"),
        ({"protocol": ["dynamic", "static"]}, "protocol: changes the examples that are scored"),
        ({"target": ["none", "u1"]}, "target: changes the examples that are scored"),
        ({"objective": ["elbo", "iwae"]}, "objective: changes which bound is scored"),
    ],
)
def test_mistakes_are_one_sentence(space, sentence):
    with pytest.raises(SpecError) as caught:
        spaces.read(space, BASE)
    assert str(caught.value).startswith("space: ")
    assert sentence in str(caught.value)


def test_samples_of_a_bound_that_grows_with_them_are_refused():
    with pytest.raises(SpecError, match="samples: changes which bound is scored"):
        spaces.read({"samples": [1, 5]}, BASE.replace(objective="iwae"))
    assert spaces.read({"samples": [1, 5]}, BASE).axes == {"samples": Choices((1, 5))}
