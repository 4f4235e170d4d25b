"""Parts own their settings: what is read without torch, names, choices, and what is refused."""

from __future__ import annotations

import contextlib
import itertools
import json
import subprocess
import sys

import pytest
import torch

import varflow as vf
from varflow.core.errors import RunError, SpecError
from varflow.core.lazy import resolve
from varflow.core.settings import described, read
from varflow.runs import assemble
from varflow.settings.roles import ROLES, every_name, parts_with
from varflow.settings.spec import RunSpec

#: The settings class of every part of every role, as it is read from the source alone.
READING = """
import json, sys
from varflow.core.settings import described
from varflow.settings.roles import ROLES
found = {}
for role in ROLES.values():
    for choice in role.names() or [""]:
        kind = role.kind(choice)
        if kind is not None:
            fields = {n: [str(s.kind), s.help, repr(s.limits), repr(s.default)] for n, s in described(kind).items()}
            found[f"{kind.__module__}:{kind.__name__}"] = fields
if IMPORT:
    assert "torch" in sys.modules
else:
    assert "torch" not in sys.modules and "numpy" not in sys.modules
print(json.dumps(found))
"""


def classes() -> list[str]:
    kinds = [role.kind(choice) for role in ROLES.values() for choice in role.names() or [""]]
    return sorted({f"{kind.__module__}:{kind.__name__}" for kind in kinds if kind is not None})


def test_what_is_read_without_torch_is_what_the_modules_say():
    """The same fields, types, words, limits and defaults, whether a part's file is read or imported."""
    modules = sorted({name.partition(":")[0] for name in classes()})
    both = []
    for first in ("", "".join(f"import {module}\n" for module in modules)):
        script = f"IMPORT = {bool(first)}\n{first}{READING}"
        done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        both.append(json.loads(done.stdout))
    assert both[0] == both[1]
    assert sorted(both[0]) == classes()


@pytest.mark.parametrize("name", classes())
def test_the_class_that_was_read_is_the_class_of_the_module(name):
    before = read(name)
    assert before is resolve(name)
    assert all(setting.help.endswith((".", "…")) for setting in described(before).values())


def spec_with(**choices: object) -> RunSpec | None:
    """A spec in which these stand together; None where they cannot."""
    for more in ({}, {"leapfrog": 2}, {"posterior": "quantizer", "prior": "pixelcnn"}):
        try:
            return RunSpec().replace(**{**more, **choices})
        except SpecError:
            continue
    return None


CHOICES = [{role.name: choice} for role in ROLES.values() for choice in role.names()]
CHOICES += [{"leapfrog": 2}, {"top_latent": 2}]


def test_every_choice_can_be_made_and_every_setting_given():
    specs = [spec_with(**choice) for choice in CHOICES]
    assert all(specs)
    assert {name for spec in specs for part in spec.parts.values() for name in part.values()} == set(every_name())


def test_names_are_unique_among_what_can_be_chosen_together():
    """Two parts with a setting of one name are never there at once."""
    for name in every_name():
        owners = [(role, choice) for role, choice in parts_with(name) if choice or not role.table]
        for (one, first), (other, second) in itertools.combinations(owners, 2):
            if one is other:
                continue
            pair = {role.name: choice for role, choice in ((one, first), (other, second)) if role.table}
            spec = spec_with(**pair)
            assert spec is None or not (spec.has(one.name) and spec.has(other.name)), (name, pair)


@pytest.mark.parametrize("choice", CHOICES, ids=str)
def test_a_spec_is_what_its_changes_and_its_file_say(choice):
    spec = spec_with(**choice)
    assert RunSpec().replace(**spec.changes(RunSpec())) == spec
    with contextlib.suppress(SpecError):
        spec.validate()
        assert RunSpec.from_dict(json.loads(json.dumps(spec.to_dict()))) == spec


def test_another_part_takes_over_what_it_shares():
    spec = RunSpec().replace(prior="maf", prior_length=3, prior_hidden=16)
    assert spec.replace(prior="iaf").prior.values() == {**spec.prior.values(), "prior": "iaf"}
    kept = spec.replace(prior="planar").prior.values()
    own = {"prior_base": "normal", "prior_context": False, "prior_defensive": 0.0}
    assert kept == {"prior": "planar", "prior_length": 3, **own}
    assert spec.replace(prior="mixture").prior.values() == {"prior": "mixture", "components": 100}
    assert spec.replace(flow="iaf").get("prior_length") == 3
    moved = RunSpec().replace(leapfrog=3, initial_step=0.1)
    assert moved.replace(leapfrog=0) == RunSpec()
    assert moved.replace(leapfrog=0, flow="maf").get("initial_step") is None
    # What the other part would refuse stays behind.
    doubly = RunSpec().replace(objective="iwae", gradient="dreg")
    assert doubly.replace(objective="elbo").get("gradient") == "total"


def test_one_budget_replaces_the_other():
    spec = RunSpec().replace(steps=5)
    assert (spec.training.steps, spec.training.epochs) == (5, None)
    assert spec.replace(epochs=2).training.steps is None
    with pytest.raises(SpecError, match="epochs: set together with steps"):
        spec.replace(steps=2, epochs=3).validate()
    with pytest.raises(SpecError, match="epochs: no budget"):
        spec.replace(steps=None, epochs=None).validate()


def test_presets_wait_for_their_parts():
    spec = RunSpec().preset(length=16, hidden=8, prior_length=2)
    assert spec.get("length") is None
    assert spec.get("hidden") == 8
    assert spec.replace(flow="iaf").get("length") == 16
    assert spec.replace(flow="iaf", length=4).get("length") == 4
    with pytest.raises(SpecError, match="lenght: unknown setting; did you mean 'length'"):
        RunSpec().preset(lenght=3)
    assert vf.recipes.find("dense").spec.replace(flow="planar").get("length") == 16


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"length": 4}, "length: is a setting of flow=planar, .* and flow=none has none; choose one of them"),
        ({"flow": "plannar"}, "flow: unknown value 'plannar'; did you mean 'planar'"),
        ({"flow": ["planar"]}, "flow: unknown value"),
        ({"flow": None}, "flow: unknown value 'None'"),
        ({"flwo": "planar"}, "flwo: unknown setting; did you mean 'flow'"),
        ({"components": 3}, "components: is a setting of prior=mixture, vamp, and prior=normal has none"),
        ({"tempering": "free"}, "tempering: belongs to the Hamiltonian posterior, and without leapfrog steps"),
        ({"extended_flow": "iaf"}, "extended_flow: belongs to the Hamiltonian posterior, and without leapfrog"),
        ({"top_hidden": 3}, "top_hidden: belongs to a second stochastic layer, and .* set top_latent"),
        ({"target": "u1", "latent": 3}, "latent: belongs to .* a target has its own latents"),
        ({"target": "u1", "batches": "full"}, "batches: is a setting of target=gaussian-model, and target=u1"),
        ({"target": "u1", "data": "mnist"}, "data: belongs to data, and a target is a density of its own"),
        ({"likelihood": "identity", "hidden": 3}, "hidden: belongs to the networks, and with likelihood=identity"),
        ({"prior_lr": 0.1}, "prior_lr: belongs to the code prior, and only a prior over codes"),
    ],
    ids=str,
)
def test_a_setting_of_no_chosen_part_is_refused(settings, sentence):
    with pytest.raises(SpecError, match=sentence):
        RunSpec().replace(**settings)


@pytest.mark.parametrize("settings", [{"leapfrog": 0}, {"flow": "none"}, {"amortized": False}, {"top_latent": 0}])
def test_without_it_is_taken_where_there_is_no_such_part(settings):
    assert RunSpec().replace(likelihood="identity", **settings) == RunSpec().replace(likelihood="identity")


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"latent": 0}, "latent: was 0; use 1 or more"),
        ({"latent": True}, r"latent: was True \(bool\); expected int"),
        ({"latent": 2.5}, r"latent: was 2.5 \(float\); expected int"),
        ({"lr": float("inf")}, "lr: was inf; use a finite number"),
        ({"lr": 0}, "lr: was 0; use a number above 0"),
        ({"beta1": 1.0}, r"beta1: was 1.0; use a number in \[0, 1\)"),
        ({"scale": "learnt"}, "scale: unknown value 'learnt'; did you mean 'learned'.*a number"),
        ({"scale": -1.0}, "scale: was -1.0; use a number above 0"),
        ({"scale": None}, "scale: was None .*; expected 'learned' or 'per-dimension' or 'decoder' or float"),
        ({"network": "strided", "channels": "4-x"}, "channels: was '4-x'; use positive numbers with dashes"),
        ({"network": "strided", "kernel": 4}, "kernel: was 4; use an odd number"),
        ({"protocol": "dynamik"}, "protocol: unknown value 'dynamik'; did you mean 'dynamic'"),
        ({"leapfrog": 1, "initial_step": 0.6}, "initial_step: was 0.6; use less than step_bound=0.5"),
        ({"fits": 2}, "fits: was 2; only fits to a target are stacked"),
        ({"train_limit": 0}, "train_limit: was 0; use 1 or more"),
    ],
    ids=str,
)
def test_values_are_checked_against_type_and_limits(settings, sentence):
    with pytest.raises(SpecError, match=sentence):
        RunSpec().replace(**settings).validate()


def test_a_mistake_in_a_setting_needs_no_torch():
    script = """
import sys
from varflow.core.errors import SpecError
from varflow.settings.spec import RunSpec
for wrong in ({"latent": 0}, {"flow": "x"}, {"length": 3}, {"leapfrog": 1, "initial_step": 2.0}, {"fits": 3},
              {"posterior": "quantizer"}, {"prior": "pixelcnn"}, {"network": "grid"}, {"objective": "x"},
              {"optimizer": "sgd", "nesterov": True}, {"prior": "vamp", "top_latent": 2}, {"lr": "x"},
              {"target": "u1", "prior": "vamp"}, {"base_moments": "fixed"}, {"likelihood": "x"}, {"warmup": "x"}):
    try:
        RunSpec().replace(**wrong).validate()
    except SpecError:
        continue
    raise AssertionError(wrong)
assert "torch" not in sys.modules
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_a_folder_of_the_first_version_is_refused_in_one_sentence():
    old = {"version": 1, "data": {"data": "mnist"}, "posterior": {"posterior": "gaussian", "flow": "none"}}
    with pytest.raises(RunError, match="spec: format version 1, this varflow reads version 2; open the run with"):
        RunSpec.from_dict(old)


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"flow": {"flow": "none", "length": 3}}, "unknown key 'flow.length'"),
        ({"flow": {"latent": 3}}, "unknown key 'flow.latent'"),
        ({"flow": 3}, "'flow' is not an object"),
        ({"code_prior": {"prior_epochs": 3.0}}, "unknown role 'code_prior'"),
        ({"posterior": {"posterior": "gaussian", "latent": "3"}}, "latent: was '3'"),
        ({"posterior": {"posterior": {}}}, "posterior: unknown value"),
    ],
)
def test_a_damaged_spec_is_refused(change, sentence):
    with pytest.raises((RunError, SpecError), match=sentence):
        RunSpec.from_dict({**RunSpec().to_dict(), **change})


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """A small run of each kind of model."""
    from varflow.data import from_tensor

    out = tmp_path_factory.mktemp("sizes")
    x = torch.randint(0, 256, (60, 1, 8, 8), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    data = from_tensor(x, protocol="symmetric")
    once = {"batch": 16, "steps": 1, "threads": 1, "quiet": True}
    small = {"hidden": 8, "latent": 2, "codes": 4, "code_features": 4, "blocks": 1, "prior_channels": 4,
             "prior_length": 1, "prior_hidden": 4, "prior_steps": 1, "length": 1, "components": 3}  # fmt: skip
    vf.fit("digits", out=out / "flow", **once, latent=2, hidden=8, flow="planar", length=1, top_latent=2)
    base = RunSpec().preset(**small)
    vf.fit(base, data, network="conv", base=4, scales=1, prior="vamp", out=out / "conv", **once)
    vf.fit(base, data, network="strided", channels="4-4", prior="maf", out=out / "strided", **once)
    vf.fit(vf.recipes.find("vq-pixelcnn").spec.preset(**small), data, out=out / "codes", **once)
    once["batch"] = 40
    vf.fit("gaussian-model", dimensions=2, observations=40, out=out / "target", **once)
    return out, data


@pytest.mark.parametrize(
    ("run", "name", "value"),
    [
        *[("flow", name, 10**9) for name in ("latent", "hidden", "layers", "length", "top_latent", "top_hidden")],
        *[("conv", name, 10**9) for name in ("base", "blocks", "scales", "components", "latent")],
        *[("strided", name, 10**9) for name in ("dense", "stem", "head", "prior_length", "prior_hidden")],
        ("strided", "channels", "4-1000000000"),
        *[("codes", name, 10**9) for name in ("codes", "code_features", "prior_channels", "prior_embedding")],
        *[("target", name, 10**9) for name in ("dimensions", "observations")],
        ("target", "fits", 10**9),
        # Not large enough to be seen at once.
        ("flow", "latent", 9_000),
        ("flow", "hidden", 9_999),
        ("codes", "code_features", 4_000),
    ],
)
def test_sizes_that_are_not_those_of_the_weights_take_no_memory(runs, run, name, value, monkeypatch):
    import varflow.runs.loading as module

    out, data = runs
    folder = out / run
    text = (folder / "spec.json").read_text()
    spec = json.loads(text)
    (role,) = (role for role, own in spec.items() if isinstance(own, dict) and name in own)
    spec[role][name] = value

    def build(*arguments, **more):
        assert torch.empty(()).device.type == "meta", "built for real"
        return assemble.build(*arguments, **more)

    monkeypatch.setattr(module, "build", build)
    monkeypatch.setattr(module, "build_ensemble", build)
    try:
        (folder / "spec.json").write_text(json.dumps(spec))
        with pytest.raises(RunError, match="were changed"):
            vf.load(folder, data=None if run == "target" else data)
    finally:
        (folder / "spec.json").write_text(text)


@pytest.mark.parametrize("run", ["flow", "conv", "strided", "codes", "target"])
def test_runs_load(runs, run):
    out, data = runs
    assert vf.load(out / run, data=None if run in ("flow", "target") else data).metrics


def test_a_model_that_does_not_fit_into_memory_is_one_sentence():
    with pytest.raises(SpecError, match="latent: was 1000000000000; a model of this size does not fit"):
        vf.build(RunSpec().replace(latent=10**12), vf.Form((6,), "binary"))
