"""Points that can be asked about, and draws that move: what the gallery writes is what the model made of the rows."""

from __future__ import annotations

import base64
import io
import json

import numpy as np
import pytest
import torch
from PIL import Image

import varflow as vf
from varflow.data import from_tensor
from varflow.figures import gallery_film, gallery_points
from varflow.figures.gallery_scene import Scene
from varflow.report.points import scatter


def pictures(colours: int = 1, side: int = 6, count: int = 60):
    source = torch.Generator().manual_seed(0)
    x = torch.randint(0, 256, (count, colours, side, side), generator=source, dtype=torch.uint8)
    return from_tensor(x, labels=torch.arange(count) % 3)


def scene_of(dataset, **settings) -> Scene:
    spec = vf.RunSpec().preset(hidden=8, layers=1, length=1).replace(**settings)
    model = vf.build(spec, dataset).eval()
    return Scene(model, dataset, [], 0, None, "train")


def held_of(scene: Scene, most: int = 500):
    with torch.no_grad():
        return gallery_points.points(scene, most)


def cell(sheet: dict, k: int) -> np.ndarray:
    image = np.asarray(Image.open(io.BytesIO(base64.b64decode(sheet["source"].partition(",")[2]))))
    row, column = divmod(k, sheet["across"])
    high, wide = sheet["height"], sheet["width"]
    return image[row * high : (row + 1) * high, column * wide : (column + 1) * wide]


@pytest.mark.parametrize("colours", [1, 3])
def test_each_point_has_its_own_picture_class_and_row(colours) -> None:
    scene = scene_of(pictures(colours), latent=2, flow="planar")
    held = held_of(scene, 23)
    raw, labels = scene.dataset.raw("train"), scene.dataset.labels("train")
    with torch.no_grad():
        z0, z = scene.encode(23)
    for panel, points in zip(held["panels"], (z0, z), strict=True):
        np.testing.assert_allclose(panel["points"], points, atol=1e-4)
    for k in range(23):
        shown = cell(held["sheet"], k)
        stored = raw[k].numpy()
        np.testing.assert_array_equal(shown, stored[0] if colours == 1 else stored.transpose(1, 2, 0))
    assert held["labels"] == labels[:23].tolist()
    assert held["classes"] == ["0", "1", "2"]
    origins = scene.dataset.origins("train", torch.arange(23))
    assert held["names"] == [f"train row {origin}" for origin in origins]
    assert [panel["title"] for panel in held["panels"]] == ["before the flow", "after the flow"]
    # One window for both, as wide as high.
    (window,) = {tuple(panel["window"]) for panel in held["panels"]}
    assert window[1] - window[0] == pytest.approx(window[3] - window[2])
    # The page takes it.
    assert scatter(held).size == 23


def test_large_pictures_are_made_small() -> None:
    held = held_of(scene_of(pictures(side=100, count=30), latent=2), 5)
    assert (held["sheet"]["width"], held["sheet"]["height"]) == (48, 48)
    assert len(held["sheet"]["source"]) < 20_000


def test_rows_of_a_table_have_their_words_and_columns_their_names(tmp_path) -> None:
    path = tmp_path / "trees.csv"
    lines = [f"{20 + k % 7}.5,{'oak' if k % 2 else 'elm'},{'' if k % 5 == 0 else k}" for k in range(60)]
    path.write_text("height,kind,age\n" + "\n".join(lines) + "\n")
    dataset = vf.data.load(path, protocol="columns")
    held = held_of(scene_of(dataset, latent=3, likelihood="columns", protocol="columns"), 10)
    assert held["columns"] == ["height", "kind", "age"]
    assert held["sheet"] is None
    numbers = dataset.origins("train", torch.arange(10))
    for number, row in zip(numbers, held["rows"], strict=True):
        height, kind, age = lines[int(number)].split(",")
        assert row == [f"{float(height):.6g}", kind, age or "missing"]
    assert "principal direction 1" in held["panels"][0]["axes"][0]


def test_data_that_are_their_own_latents_are_called_data() -> None:
    dataset = from_tensor(torch.randn(40, 2, generator=torch.Generator().manual_seed(0)))
    held = held_of(scene_of(dataset, likelihood="identity", prior="maf"))
    assert held["title"] == "Data"
    assert held["panels"][0]["axes"] == ["column 1", "column 2"]
    assert held["rows"][0] == [f"{value:.6g}" for value in dataset.raw("train")[0].double().tolist()]


def test_where_there_is_no_latent_space_what_was_before_goes(tmp_path) -> None:
    (tmp_path / "points.json").write_text("{}")
    scene = scene_of(pictures(side=8), posterior="quantizer", network="grid", prior="pixelcnn", codes=4)
    assert gallery_points.keep(scene, tmp_path) is None
    assert not list(tmp_path.iterdir())


def test_places_are_rounded_to_the_grid_and_left_out_outside() -> None:
    z = np.array([[-1, -2], [1, 2], [0, 0], [1.01, 0], [np.nan, 0]])
    found = gallery_film.on_grid(z, (-1.0, 1.0, -2.0, 2.0))
    assert found.tolist() == [[1, 255], [255, 1], [128, 128], [0, 0], [0, 0]]


def test_a_film_follows_the_snapshots_of_a_fit(tmp_path) -> None:
    run = vf.fit("energy", target="u1", steps=420, length=2, samples=16, threads=1, quiet=True, out=tmp_path / "run")
    from varflow.figures import gallery_target
    from varflow.runs.folder import snapshots

    kept = snapshots(run.folder)
    with torch.no_grad():
        gallery_target.target_gallery(run.model, run.metrics, tmp_path / "figures", kept, names=())
    held = json.loads((tmp_path / "figures" / "film.json").read_text())
    assert held["steps"] == [0, 200, 400, 420]
    places = np.frombuffer(base64.b64decode(held["places"]), np.uint8).reshape(4, held["draws"], 2)
    # The last frame is of the weights that the run has.
    model = run.members()[0].double()
    with torch.no_grad(), vf.core.random.stream(0, 0):
        z = model.infer().draw(held["draws"]).z
    np.testing.assert_array_equal(places[-1], gallery_film.on_grid(z.numpy(), tuple(held["window"])))
    # A fit without snapshots has no film, and leaves none of before.
    gallery_target.target_gallery(run.model, run.metrics, tmp_path / "figures", names=())
    assert not (tmp_path / "figures" / "film.json").exists()
