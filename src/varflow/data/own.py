"""The user's own files: .npy, .npz, tables, folders of pictures. No torch here.

Each reader gives :class:`Arrays` whose ``values`` hold either the splits of the file or one entry
"all", still to be split.
"""

from __future__ import annotations

import io
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from varflow import data
from varflow.core.errors import DataError, SpecError, unknown
from varflow.data import reading
from varflow.data.kinds import numbers_alone
from varflow.data.named import Arrays
from varflow.data.readers import content, need

PICTURES = frozenset(
    {".png", ".jpg", ".jpeg", ".bmp", ".gif", ".tif", ".tiff", ".webp", ".ppm", ".pgm"}
)

#: Keys of an .npz → what they hold. Labels of a split are y_train or labels_train and so on.
_VALUES = {
    "all": ("x", "X", "data", "images"),
    "train": ("train", "x_train", "X_train"),
    "validation": ("validation", "valid", "val", "x_validation", "x_val", "X_val"),
    "test": ("test", "x_test", "X_test"),
}
_LABELS = {
    "all": ("labels", "y", "Y"),
    "train": ("labels_train", "y_train", "Y_train"),
    "validation": ("labels_validation", "labels_val", "y_validation", "y_val", "Y_val"),
    "test": ("labels_test", "y_test", "Y_test"),
}


def own_arrays(path: Path, resize: int | tuple[int, int] | None, decimal: str = "auto") -> Arrays:
    """What a file or a folder of one's own holds, by its suffix.

    Raises:
        DataError: nothing is there, or a suffix that nothing reads.
        SpecError: a resize of something else than pictures, or a name that is no data set.
    """
    if path.is_dir() or (is_picture(path) and path.exists()):
        size = (resize, resize) if isinstance(resize, int) else resize
        return pictures(path, size)
    if resize is not None:
        raise SpecError(f"resize: only for a folder of pictures, and {path} is none")
    if not path.exists():
        if not path.suffix and len(path.parts) == 1:
            raise unknown("data", str(path), data.SOURCES)
        raise DataError(
            f"data: no file or folder {path}; name one, or one of {', '.join(data.SOURCES)}"
        )
    kind, arrays, tables = path.suffix.lower(), (".npy", ".npz"), (*reading.TEXTS, *reading.ARROWS)
    if kind in arrays:
        return numpy_file(path)
    if reading.is_table(path):
        return table(path, decimal)
    raise DataError(
        f"{path}: suffix '{kind}' is none of {', '.join((*arrays, *tables))}; save it as one of them, or name a "
        "folder of pictures"
    )


def numpy_file(path: Path) -> Arrays:
    """One array in an .npy; in an .npz ``x`` with optional ``labels``, or ``train`` and ``test``
    (and ``validation``), each with its labels.
    """
    try:
        # A pickled array could run code when it is loaded.
        loaded = np.load(io.BytesIO(content(path)), allow_pickle=False)
        if isinstance(loaded, np.ndarray):
            return Arrays(path.name, {"all": loaded})
        held: Mapping[str, NDArray[Any]] = {key: loaded[key] for key in loaded.files}
    except DataError:
        raise
    except Exception as error:  # numpy raises what damaged bytes lead it to
        # numpy goes on with advice to load pickled data all the same.
        what = str(error).split(". ")[0]
        raise DataError(
            f"{path}: cannot be read as a numpy file ({what}); save plain numbers, not objects"
        ) from error
    values, labels = (
        {part: held[key] for part, keys in table.items() for key in keys if key in held}
        for table in (_VALUES, _LABELS)
    )
    if "all" not in values and "train" not in values:
        raise DataError(
            f"{path}: holds {', '.join(sorted(held)) or 'nothing'}; should hold 'x' "
            "(and 'labels'), or 'train' and 'test' (and 'validation')"
        )
    return Arrays(path.name, values, {part: labels[part] for part in values if part in labels})


def table(path: Path, decimal: str = "auto") -> Arrays:
    """A table of numbers, of any file that :func:`varflow.data.reading.read_table` reads.

    A column headed label, labels, class, target or y gives the labels if its values are whole.
    """
    values, labels, names = numbers_alone(reading.read_table(path, decimal))
    facts = {"columns": list(names)} if names else {}
    return Arrays(path.name, {"all": values}, {} if labels is None else {"all": labels}, facts=facts)


def is_picture(path: Path) -> bool:
    """Whether a file is a picture by its suffix."""
    return path.suffix.lower() in PICTURES


def pictures(folder: Path, resize: tuple[int, int] | None) -> Arrays:
    """All pictures under ``folder``, in the order of their paths; of a file that one picture.

    If every picture lies in a subfolder, the subfolders (by name) are the labels. Pictures are as a
    viewer shows them (:func:`as_shown`), grey if all are, else RGB. Files that are no pictures by
    their suffix are skipped, and counted in ``describe()`` as those with transparency are.
    """
    try:
        from PIL import Image
    except ImportError as error:
        raise need("pictures", "Pillow", "reading a folder of pictures") from error
    if folder.is_file():
        folder, paths, skipped = folder.parent, [folder], 0
    else:
        paths, skipped = picture_paths(folder)
    images, transparent = [], 0
    for path in paths:
        try:
            with Image.open(path) as picture:
                shown = as_shown(picture, str(path))
        except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
            raise DataError(f"{path}: damaged picture ({error}); repair or remove it") from error
        transparent += bool(shown.info.get("was_transparent"))
        images.append(shown)
    mode = "L" if all(image.mode == "L" for image in images) else "RGB"
    images = [in_size(image.convert(mode), resize) for image in images]
    sizes = Counter(image.size for image in images)
    if len(sizes) > 1:
        other = next(i for i, image in enumerate(images) if image.size != images[0].size)
        raise DataError(
            f"{folder}: pictures of {len(sizes)} sizes, such as {paths[0].name} "
            f"{size_of(images[0].size)} and {paths[other].name} {size_of(images[other].size)}; "
            "bring them to one size, or pass resize=32 (--resize 32), in Python also resize=(height, width)"
        )
    values = np.stack([np.asarray(image) for image in images])
    facts: dict[str, Any] = {"skipped_files": skipped, "resize": list(resize) if resize else None}
    if transparent:
        facts["transparent_files_on_white"] = transparent
    parts = [path.relative_to(folder).parts for path in paths]
    names = tuple("/".join(part) for part in parts)
    if any(len(part) == 1 for part in parts):
        return Arrays(folder.name, {"all": values}, facts=facts, files=names)
    classes = sorted({part[0] for part in parts})
    labels = np.array([classes.index(part[0]) for part in parts], np.int64)
    facts["classes"] = classes
    return Arrays(folder.name, {"all": values}, {"all": labels}, facts=facts, files=names)


def picture_paths(folder: Path) -> tuple[list[Path], int]:
    """The pictures under a folder in the order of their paths, and how many other files there are.

    Raises:
        DataError: there are no pictures.
    """
    files = [p for p in sorted(folder.rglob("*")) if p.is_file() and not p.name.startswith(".")]
    paths = [path for path in files if path.suffix.lower() in PICTURES]
    if not paths:
        raise DataError(
            f"{folder}: no pictures among {len(files)} files; should hold some of "
            f"{', '.join(sorted(PICTURES))}"
        )
    return paths, len(files) - len(paths)


def in_size(picture: Any, resize: tuple[int, int] | None) -> Any:
    """A picture brought to (height, width); without them as it is."""
    if resize is None:
        return picture
    from PIL import Image

    return picture.resize((resize[1], resize[0]), Image.Resampling.LANCZOS)


def as_shown(picture: Any, name: str) -> Any:
    """An opened picture as a viewer shows it, in mode L or RGB: turned as its EXIF tag says, what is transparent over
    white.

    Raises:
        DataError: more than 8 bits a channel, or several pictures in one file; with ``name``.
    """
    from PIL import Image, ImageOps

    frames = getattr(picture, "n_frames", 1)
    if frames > 1:
        raise DataError(f"{name}: holds {frames} pictures (an animation, or pages); save each as a file of its own")
    # Pillow reads 16 bits of a colour channel as 8 without a word; how they lie in the file tells.
    deep = any(";16" in str(part) for tile in getattr(picture, "tile", ()) for part in tile)
    if deep or picture.mode.startswith(("I", "F")):
        raise DataError(f"{name}: has more than 8 bits a channel ({picture.mode}); convert it to 8 bits")
    picture.load()
    shown = ImageOps.exif_transpose(picture)
    grey = shown.mode in ("1", "L", "LA", "La")
    if "A" in shown.getbands() or "a" in shown.getbands() or "transparency" in shown.info:
        whole = shown.convert("RGBA")
        seen = Image.alpha_composite(Image.new("RGBA", whole.size, "white"), whole)
        clear = min(whole.getchannel("A").tobytes()) < 255
        shown = seen.convert("L" if grey else "RGB")
        shown.info["was_transparent"] = clear
        return shown
    return shown.convert("L" if grey else "RGB")


def size_of(size: tuple[int, int]) -> str:
    return f"{size[1]}×{size[0]}"
