"""The verbs that take rows or pictures, on the command line."""

import csv
import io

import numpy as np
import pytest
import torch
from PIL import Image

import varflow as vf
from varflow import cli


def call(capsys, *words):
    with pytest.raises(SystemExit) as ended:
        cli.main([*map(str, words)])
    said = capsys.readouterr()
    return ended.value.code, said.out, said.err


def rows_of(text):
    return list(csv.DictReader(io.StringIO(text)))


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A density of a table with heads, of which one holds whole numbers; and a VAE of a folder of pictures."""
    folder = tmp_path_factory.mktemp("verbs")
    rng = np.random.default_rng(0)
    rows = np.column_stack([rng.normal(1000, 50, 300), rng.normal(0, 1, 300), rng.integers(18, 70, 300)])
    head = {"delimiter": ",", "header": "weight,charge,age", "comments": ""}
    np.savetxt(folder / "t.csv", rows, **head)
    np.savetxt(folder / "new.csv", rows[:12], **head)
    for number in range(40):
        cat = folder / "pictures" / ("cat" if number % 2 else "dog")
        cat.mkdir(parents=True, exist_ok=True)
        picture = rng.integers(0, 256, (8, 8), dtype=np.uint8)
        Image.fromarray(picture).save(cat / f"{number:02d}.png")
    vf.fit("density", folder / "t.csv", out=folder / "table", steps=5, quiet=True)
    vf.fit("digits", folder / "pictures", out=folder / "vae", latent=2, hidden=8, steps=5, quiet=True)
    return folder


def test_scores_are_printed_or_written_and_say_of_what(capsys, place, tmp_path):
    code, out, err = call(capsys, "score", place / "table", place / "new.csv", "--anomaly")
    assert code == 0, err
    found = rows_of(out)
    run, values = vf.load(place / "table"), np.loadtxt(place / "new.csv", delimiter=",", skiprows=1)
    scores = run.scores(values, anomaly=True)
    assert [row["row"] for row in found] == [str(i) for i in range(12)]
    assert [float(row["log_prob"]) for row in found] == scores.log_prob.tolist()
    assert [float(row["rank"]) for row in found] == scores.rank.tolist()
    assert "nats (density of x in the units of the data" in err
    code, out, _ = call(capsys, "score", place / "table", place / "new.csv", "--out", tmp_path / "s.tsv")
    assert code == 0
    assert "12 rows" in out
    written = list(csv.DictReader((tmp_path / "s.tsv").read_text().splitlines(), delimiter="\t"))
    assert [float(row["log_prob"]) for row in written] == scores.log_prob.tolist()


def test_scores_of_a_vae_have_errors_and_the_names_of_files(capsys, place):
    code, out, err = call(capsys, "score", place / "vae", place / "pictures" / "cat", "--samples", "30")
    assert code == 0, err
    found = rows_of(out)
    assert found[0]["file"] == "01.png"
    assert all(float(row["error"]) > 0 for row in found)
    assert set(found[0]) == {"file", "log_prob", "error", "khat"}


def test_parquet_is_read_back_as_it_was(capsys, place, tmp_path):
    parquet = pytest.importorskip("pyarrow.parquet")
    assert call(capsys, "score", place / "table", place / "new.csv", "--out", tmp_path / "s.parquet")[0] == 0
    found = parquet.read_table(tmp_path / "s.parquet").to_pydict()
    assert found["row"] == list(range(12))
    assert len(found["log_prob"]) == 12


def test_latents_are_written_as_the_array_they_are(capsys, place, tmp_path):
    assert call(capsys, "embed", place / "vae", place / "pictures", "--out", tmp_path / "z.npy")[0] == 0
    assert np.load(tmp_path / "z.npy").shape == (40, 2)
    code, out, _ = call(capsys, "embed", place / "vae", place / "pictures" / "cat" / "01.png", "--what", "scale")
    assert code == 0
    assert set(rows_of(out)[0]) == {"file", "z0", "z1"}


def test_samples_of_a_table_have_its_heads_and_kinds(capsys, place, tmp_path):
    assert call(capsys, "sample", place / "table", "--count", "7", "--out", tmp_path / "s.csv")[0] == 0
    found = rows_of((tmp_path / "s.csv").read_text())
    assert list(found[0]) == ["weight", "charge", "age"]
    assert all(row["age"].lstrip("-").isdigit() for row in found)
    expected = vf.load(place / "table").sample(7).numpy()
    np.testing.assert_allclose([[float(cell) for cell in row.values()] for row in found], expected, rtol=1e-6)


def test_pictures_are_written_one_by_one_or_as_a_sheet(capsys, place, tmp_path):
    assert call(capsys, "sample", place / "vae", "--count", "11", "--pictures", tmp_path / "each")[0] == 0
    files = sorted((tmp_path / "each").iterdir())
    assert [file.name for file in files] == [f"{n:02d}.png" for n in range(11)]
    expected = vf.load(place / "vae").sample(11)
    for file, picture in zip(files, expected, strict=True):
        np.testing.assert_array_equal(np.asarray(Image.open(file)), picture[0].numpy())
    assert call(capsys, "sample", place / "vae", "--count", "4", "--out", tmp_path / "sheet.png")[0] == 0
    assert (tmp_path / "sheet.png").exists()
    assert not (tmp_path / "sheet.npy").exists()


def test_a_way_between_two_files_or_two_rows(capsys, place, tmp_path):
    first, second = place / "pictures" / "cat" / "01.png", place / "pictures" / "dog" / "00.png"
    words = ["--steps", "5", "--out", tmp_path / "way"]
    assert call(capsys, "interpolate", place / "vae", first, second, *words)[0] == 0
    assert np.load(tmp_path / "way.npy").shape == (5, 1, 8, 8)
    assert (tmp_path / "way.png").exists()
    words = ["--data", place / "new.csv", "--steps", "3", "--out", tmp_path / "way.csv"]
    assert call(capsys, "interpolate", place / "table", "0", "4", *words)[0] == 0
    found = rows_of((tmp_path / "way.csv").read_text())
    rows = np.loadtxt(place / "new.csv", delimiter=",", skiprows=1)
    assert float(found[0]["weight"]) == pytest.approx(rows[0, 0], rel=1e-5)
    assert float(found[-1]["weight"]) == pytest.approx(rows[4, 0], rel=1e-5)


def test_columns_in_another_order_are_the_same_rows(capsys, place, tmp_path):
    rows = np.loadtxt(place / "new.csv", delimiter=",", skiprows=1)
    turned = tmp_path / "turned.csv"
    np.savetxt(turned, rows[:, [2, 0, 1]], delimiter=",", header="age,weight,charge", comments="")
    for words in (["score"], ["embed"], ["nearest"], ["interpolate", "0", "3", "--data"]):
        verb, *rest = words
        found = []
        for number, data in enumerate((place / "new.csv", turned)):
            out = tmp_path / f"{verb}-{number}.csv"
            assert call(capsys, verb, place / "table", *rest, data, "--out", out)[0] == 0
            found.append(out.read_text())
        assert found[0] == found[1]


def test_neighbours_are_named_by_file_and_class(capsys, place):
    code, out, err = call(capsys, "nearest", place / "vae", place / "pictures", "--k", "2")
    assert code == 0, err
    found = rows_of(out)
    assert len(found) == 80
    # A picture of the training split is its own nearest one.
    own = [row for row in found if row["file"] == row["neighbour"]]
    assert len(own) == 32
    assert {row["label"] for row in found} == {"cat", "dog"}
    assert all(row["neighbour"].startswith(row["label"] + "/") for row in found)


def test_reconstructions_of_a_file_of_ones_own(capsys, place, tmp_path):
    assert call(capsys, "reconstruct", place / "table", place / "new.csv", "--out", tmp_path / "r.csv")[0] == 0
    found = rows_of((tmp_path / "r.csv").read_text())
    rows = np.loadtxt(place / "new.csv", delimiter=",", skiprows=1)
    np.testing.assert_allclose([float(row["weight"]) for row in found], rows[:, 0], rtol=1e-5)


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["score", "{table}", "{new}", "--out", "s.doc"], "out: s.doc has the suffix '.doc'; use one of .csv"),
        (["score"], "run: missing; give the folder of a run"),
        (["interpolate", "{table}", "0"], "b: missing; give the second of two pictures or rows"),
        (["score", "{table}", "/nowhere.csv"], "data: no file or folder /nowhere.csv"),
        (["score", "{vae}", "{new}"], "x: "),
        (["embed", "{table}", "{new}", "--what", "codes"], "what: unknown value 'codes'; choices: centre"),
        (["sample", "{table}", "--pictures", "p"], "pictures: this run was fitted to rows"),
        (["sample", "{vae}", "--out", "s.csv"], "out: s.csv has the suffix '.csv'; use one of .png, .npy, or none"),
        (["interpolate", "{table}", "0", "99", "--data", "{new}"], "b: was 99; there are 12 rows, use 0 to 11"),
        (["nearest", "{vae}", "{pictures}", "--k", "1000"], "k: was 1000; there are 32 rows to look among"),
    ],
)
def test_mistakes_are_one_sentence(capsys, place, words, sentence):
    names = {name: place / name for name in ("table", "vae", "pictures")} | {"new": place / "new.csv"}
    code, _, err = call(capsys, *(word.format(**names) for word in words))
    assert code == 2
    assert err.startswith(f"varflow: {sentence}"), err
    assert "Traceback" not in err


def test_every_verb_of_rows_refuses_a_target(capsys, tmp_path, place):
    vf.fit("energy", out=tmp_path / "energy", length=2, steps=2, quiet=True)
    for verb in ("score", "embed", "nearest"):
        code, _, err = call(capsys, verb, tmp_path / "energy", place / "new.csv")
        assert code == 2
        assert "this is a fit to a target, which has no x" in err
    assert call(capsys, "sample", tmp_path / "energy", "--count", "5", "--out", tmp_path / "z.csv")[0] == 0
    assert torch.tensor(np.loadtxt(tmp_path / "z.csv", delimiter=",", skiprows=1)).shape == (5, 2)
