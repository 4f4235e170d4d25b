"""What a page reads of a run's folder, checked: a folder may come from anywhere."""

from __future__ import annotations

import base64
import binascii
import json
import struct
from pathlib import Path
from typing import Any

from markupsafe import Markup

from varflow.core.errors import DataError, RunError
from varflow.core.files import read_json


def read_kind(path: Path, kind: type, missing: Any = None) -> Any:
    """A JSON file of one kind; ``missing`` where it is not there, if that is given."""
    if missing is not None and not path.exists():
        return missing
    value = read_json(path)
    if not isinstance(value, kind):
        raise RunError(f"{path}: holds a {type(value).__name__}; restore the file or fit again")
    return value


def size_of(image: bytes, name: str) -> tuple[str, int, int]:
    """Kind, width and height of the bytes of a picture.

    Raises:
        DataError: neither a PNG nor a GIF nor a JPEG.
    """
    if image[:8] == b"\x89PNG\r\n\x1a\n" and len(image) >= 24:
        width, height = struct.unpack(">II", image[16:24])
        return "png", width, height
    if image[:6] in (b"GIF87a", b"GIF89a") and len(image) >= 10:
        width, height = struct.unpack("<HH", image[6:10])
        return "gif", width, height
    if image[:3] == b"\xff\xd8\xff":
        # The size stands further in, and nobody asks for it.
        return "jpeg", 0, 0
    raise DataError(f"{name}: not a PNG, JPEG or GIF; draw the figures again")


def source_of(image: bytes, name: str) -> str:
    """A picture as what a page holds in place of an address. Raises DataError as :func:`size_of`."""
    kind = size_of(image, name)[0]
    return f"data:image/{kind};base64,{base64.b64encode(image).decode()}"


def checked_source(source: Any, name: str) -> str:
    """A source that stands in a file, if it is a picture and nothing else.

    Raises:
        DataError: it is none.
    """
    try:
        return source_of(base64.b64decode(str(source).partition(";base64,")[2], validate=True), name)
    except (binascii.Error, ValueError) as error:
        raise DataError(f"{name}: not a PNG, JPEG or GIF; draw the figures again") from error


def in_script(value: Any) -> Markup:
    """Plain values as JSON that can stand inside a script element whatever they hold."""
    text = json.dumps(value, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    for letter in "<>&\u2028\u2029":
        text = text.replace(letter, f"\\u{ord(letter):04x}")
    return Markup(text)
