"""Pictures are read as a viewer shows them, or refused by name."""

import numpy as np
import pytest
import torch
from PIL import Image

import varflow as vf
from varflow.core.errors import DataError

RNG = np.random.default_rng(0)
GREY = RNG.integers(0, 256, (6, 9), dtype=np.uint8)
RGB = RNG.integers(0, 256, (6, 9, 3), dtype=np.uint8)


def read(folder, make):
    """What a folder of four equal pictures holds, ``[C, H, W]``."""
    for number in range(4):
        make(folder / f"{number}.png")
    held = vf.data.load(folder)
    return held.raw("train")[0].numpy(), held


@pytest.mark.parametrize(
    ("tag", "turned"),
    [
        (1, lambda x: x),
        (2, lambda x: x[:, ::-1]),
        (3, lambda x: x[::-1, ::-1]),
        (4, lambda x: x[::-1]),
        (5, lambda x: x.swapaxes(0, 1)),
        (6, lambda x: x.swapaxes(0, 1)[:, ::-1]),
        (7, lambda x: x.swapaxes(0, 1)[::-1, ::-1]),
        (8, lambda x: x.swapaxes(0, 1)[::-1]),
    ],
)
def test_the_tag_that_says_how_to_turn_is_followed(tmp_path, tag, turned):
    """EXIF 2.32, tag 0x0112: row 0 and column 0 of the stored picture are these sides of the shown one."""

    def make(path):
        picture = Image.fromarray(RGB)
        tags = picture.getexif()
        tags[0x0112] = tag
        picture.save(path, exif=tags)

    found, _ = read(tmp_path, make)
    np.testing.assert_array_equal(found, turned(RGB).transpose(2, 0, 1))


def test_what_is_transparent_lies_over_white(tmp_path):
    alpha = np.full((6, 9), 255, np.uint8)
    alpha[0], alpha[1] = 0, 128
    found, data = read(tmp_path, lambda path: Image.fromarray(np.dstack([RGB, alpha])).save(path))
    np.testing.assert_array_equal(found[:, 0], 255)
    np.testing.assert_array_equal(found[:, 2:], RGB.transpose(2, 0, 1)[:, 2:])
    half = (RGB[1].astype(float) * 128 + 255 * 127) / 255
    assert np.abs(found[:, 1].T - half).max() <= 1
    assert data.describe()["transparent_files_on_white"] == 4


def test_an_opaque_alpha_changes_nothing(tmp_path):
    picture = Image.merge("LA", [Image.fromarray(GREY), Image.new("L", (9, 6), 255)])
    found, data = read(tmp_path, picture.save)
    np.testing.assert_array_equal(found[0], GREY)
    assert "transparent_files_on_white" not in data.describe()


def test_palettes_and_bits_are_their_colours(tmp_path):
    palette = Image.fromarray(RGB).quantize(16)
    (tmp_path / "p").mkdir()
    found, _ = read(tmp_path / "p", palette.save)
    np.testing.assert_array_equal(found, np.asarray(palette.convert("RGB")).transpose(2, 0, 1))
    (tmp_path / "b").mkdir()
    found, _ = read(tmp_path / "b", Image.fromarray(GREY > 128).save)
    np.testing.assert_array_equal(found[0], np.where(GREY > 128, 255, 0))


def test_a_palette_with_a_transparent_colour_lies_over_white(tmp_path):
    palette = Image.new("P", (9, 6), 0)
    palette.putpalette([10, 20, 30] + [0] * 765)
    found, _ = read(tmp_path, lambda path: palette.save(path, transparency=0))
    assert (found == 255).all()


def test_deep_pictures_and_animations_are_refused_by_name(tmp_path):
    deep = tmp_path / "deep"
    deep.mkdir()
    Image.fromarray(GREY.astype(np.uint16) * 256).save(deep / "grey16.png")
    with pytest.raises(DataError, match=r"grey16\.png: has more than 8 bits a channel"):
        vf.data.load(deep)
    moving = tmp_path / "moving"
    moving.mkdir()
    frames = [Image.fromarray(RGB), Image.fromarray(255 - RGB)]
    frames[0].save(moving / "two.gif", save_all=True, append_images=frames[1:])
    with pytest.raises(DataError, match=r"two\.gif: holds 2 pictures"):
        vf.data.load(moving)
    pages = tmp_path / "pages"
    pages.mkdir()
    frames[0].save(pages / "scan.tif", save_all=True, append_images=frames[1:])
    with pytest.raises(DataError, match=r"scan\.tif: holds 2 pictures"):
        vf.data.load(pages)


def test_sixteen_bits_of_colour_are_not_halved_in_silence(tmp_path):
    """A PNG of 16 bits a colour channel, which Pillow cannot write: header, one chunk of rows, end."""
    import struct
    import zlib

    def chunk(kind, body):
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    rows = b"".join(b"\0" + (row.astype(">u2") * 256).tobytes() for row in RGB)
    head = struct.pack(">IIBBBBB", 9, 6, 16, 2, 0, 0, 0)
    blob = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    (tmp_path / "rgb16.png").write_bytes(blob)
    with pytest.raises(DataError, match=r"rgb16\.png: has more than 8 bits a channel"):
        vf.data.load(tmp_path)


def test_folders_are_classes_and_what_is_no_picture_is_counted(tmp_path):
    for name in ("cat", "dog"):
        (tmp_path / name).mkdir()
        for number in range(5):
            Image.fromarray(GREY + number).save(tmp_path / name / f"{number}.png")
    (tmp_path / "notes.txt").write_text("no picture")
    (tmp_path / ".hidden.png").write_bytes(b"")
    data = vf.data.load(tmp_path)
    assert data.classes == ("cat", "dog")
    assert data.describe()["skipped_files"] == 1
    for split, size in data.sizes.items():
        files = data.origins(split, torch.arange(size))
        assert [data.classes[label] for label in data.labels(split)] == [file.split("/")[0] for file in files]
    (tmp_path / "cat" / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    with pytest.raises(DataError, match=r"broken\.png: damaged picture"):
        vf.data.load(tmp_path)
