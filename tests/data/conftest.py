"""Small files in the official formats."""

from __future__ import annotations

import gzip
import io
import tarfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest


def idx_bytes(array: np.ndarray) -> bytes:
    sizes = b"".join(size.to_bytes(4, "big") for size in array.shape)
    return (0x0800 | array.ndim).to_bytes(4, "big") + sizes + array.astype(np.uint8).tobytes()


def cifar_bytes(images: np.ndarray, labels: np.ndarray) -> bytes:
    return np.concatenate(
        [labels[:, None].astype(np.uint8), images.reshape(len(images), -1)], 1
    ).tobytes()


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(0)


@pytest.fixture
def mnist(tmp_path: Path, rng: np.random.Generator) -> Callable[..., dict[str, np.ndarray]]:
    """Writes a small MNIST into a folder and returns its arrays."""

    def write(
        folder: str = "mnist",
        train: int = 60,
        test: int = 10,
        compress: bool = True,
        dot: bool = False,
    ) -> dict[str, np.ndarray]:
        (tmp_path / folder).mkdir(parents=True, exist_ok=True)
        arrays = {}
        for part, n in (("train", train), ("t10k", test)):
            arrays[f"{part}-images-idx3-ubyte"] = rng.integers(0, 256, (n, 28, 28), dtype=np.uint8)
            arrays[f"{part}-labels-idx1-ubyte"] = rng.integers(0, 10, n, dtype=np.uint8)
        for name, array in arrays.items():
            raw = idx_bytes(array)
            stem = name.replace("-idx", ".idx") if dot else name
            path = tmp_path / folder / (stem + (".gz" if compress else ""))
            path.write_bytes(gzip.compress(raw) if compress else raw)
        return arrays

    return write


@pytest.fixture
def cifar(
    tmp_path: Path, rng: np.random.Generator
) -> Callable[..., dict[str, tuple[np.ndarray, np.ndarray]]]:
    """Writes small CIFAR batches, as an archive or a folder, and returns their arrays."""

    def write(
        sizes: dict[str, int],
        archive: str | None = "cifar-10-binary.tar.gz",
        folder: str = "cifar10",
    ) -> dict[str, tuple[np.ndarray, np.ndarray]]:
        batches = {
            name: (rng.integers(0, 256, (n, 3, 32, 32), dtype=np.uint8), rng.integers(0, 10, n))
            for name, n in sizes.items()
        }
        place = tmp_path / folder / "cifar-10-batches-bin"
        (place if archive is None else place.parent).mkdir(parents=True, exist_ok=True)
        if archive is None:
            for name, (x, y) in batches.items():
                (place / name).write_bytes(cifar_bytes(x, y))
        else:
            with tarfile.open(place.parent / archive, "w:gz") as tar:
                for name, (x, y) in batches.items():
                    raw = cifar_bytes(x, y)
                    member = tarfile.TarInfo(f"cifar-10-batches-bin/{name}")
                    member.size = len(raw)
                    tar.addfile(member, io.BytesIO(raw))
        return batches

    return write
