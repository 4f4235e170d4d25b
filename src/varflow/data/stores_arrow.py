from __future__ import annotations

from pathlib import Path
from typing import Any


def group_store(path: Path, told: bool) -> Any:
    return None
