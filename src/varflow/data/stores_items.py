from __future__ import annotations

from pathlib import Path
from typing import Any


def picture_store(path: Path, resize: Any, told: bool) -> Any:
    return None
def item_store(x: Any, labels: Any, name: str) -> Any:
    return None
