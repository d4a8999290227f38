"""Small sets of real images: patches of the bundled photographs, as Parquet files and as folders of PNG files."""

from io import BytesIO
from pathlib import Path

import datasets
import numpy as np

from lanes.training.photographs import PHOTOGRAPHS

Size = int | tuple[int, int]  # side, or (width, height), in pixels


def patches(*, count: int, size: Size, classes: int, mode: str = "RGB", seed: int = 0) -> list[tuple[bytes, int]]:
    """``count`` PNG files and their labels, sorted by label; what is drawn depends on the arguments alone."""
    width, height = (size, size) if isinstance(size, int) else size
    rng, found = np.random.default_rng(seed), []
    for label in range(classes):
        picture = PHOTOGRAPHS[label].load().convert(mode)
        for _ in range(len(range(label, count, classes))):
            left, top = (int(rng.integers(0, side)) for side in (picture.width - width, picture.height - height))
            file = BytesIO()
            picture.crop((left, top, left + width, top + height)).save(file, "png")
            found.append((file.getvalue(), label))
    return found


def class_names(classes: int) -> list[str]:
    """Sorted, as the folders of an image folder are."""
    return [f"{label}-{PHOTOGRAPHS[label].name}" for label in range(classes)]


def write_parquet(
    folder: Path, *, count: int = 64, size: Size = 16, classes: int = 4, mode: str = "RGB", val_count: int = 16
) -> Path:
    """Write train-... and validation-00000-of-00001.parquet, columns "image" and "label", names in the metadata."""
    for split, number, seed in (("train", count, 0), ("validation", val_count, 1)):
        rows = patches(count=number, size=size, classes=classes, mode=mode, seed=seed)
        write_rows(folder / f"{split}-00000-of-00001.parquet", rows, class_names(classes))
    return folder


def write_rows(file: Path, rows: list[tuple[bytes, int]], names: list[str]) -> Path:
    """Write (bytes of an image file, label) pairs as one Parquet file with the features' metadata."""
    file.parent.mkdir(parents=True, exist_ok=True)
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=names)})
    columns = {
        "image": [{"bytes": data, "path": f"{row:05}.png"} for row, (data, _) in enumerate(rows)],
        "label": [label for _, label in rows],
    }
    datasets.Dataset.from_dict(columns, features=features).to_parquet(file)
    return file


def write_folder(
    folder: Path, *, count: int = 64, size: Size = 16, classes: int = 4, mode: str = "RGB", val_count: int = 16
) -> Path:
    """Write SPLIT/CLASS/NUMBER.png: the same files in the same order as ``write_parquet``."""
    for split, number, seed in (("train", count, 0), ("validation", val_count, 1)):
        rows = patches(count=number, size=size, classes=classes, mode=mode, seed=seed)
        for row, (data, label) in enumerate(rows):
            file = folder / split / class_names(classes)[label] / f"{row:05}.png"
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(data)
    return folder
