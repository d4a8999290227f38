"""Where images come from: a name on the Hugging Face hub, Parquet files, or folders of images; opened, not decoded.

Everything goes through ``datasets.load_dataset``, whose own cache keeps the files as Arrow tables on disk. Images leave
here as the bytes of their files. Each mistake that a person can make here is one line that says the way out.
"""

import dataclasses
import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from lightning_utilities.core.imports import lazy_import
from numpy.typing import NDArray

from lanes.words import near

if TYPE_CHECKING:
    import datasets
else:  # the bundled photographs do without it, and importing it takes most of a second, in every process
    datasets = lazy_import("datasets")

LABEL_COLUMNS = (
    "label",
    "labels",
    "fine_label",
    "class",
    "target",
)  # looked for in this order if there is no ClassLabel
VAL_SPLITS = ("validation", "valid", "val", "dev", "test")  # the first that there is, is what training is measured on
_HUB_NAME = re.compile(r"[\w.-]+(/[\w.-]+)?")
_DATA_FILES = (".parquet", ".arrow", ".csv", ".json", ".jsonl", ".zip", ".tar", ".gz", ".tgz")


def local_path(source: str) -> Path | None:
    """The existing file or folder that a source means; None for a name on the hub.

    Raises:
        FileNotFoundError: it looks like a path, and there is nothing. It is never looked for on the hub.
        ValueError: it is neither.
    """
    path = Path(source).expanduser()
    if path.exists():
        return path.resolve()
    if source.startswith(("/", ".", "~")) or source.endswith(_DATA_FILES) or source.count("/") > 1:
        raise FileNotFoundError(f"there is no file or folder {source!r} (looked in {Path.cwd()})")
    if not _HUB_NAME.fullmatch(source):
        raise ValueError(f"source {source!r} is neither an existing path nor a name on the hub (NAME or OWNER/NAME)")
    return None


@dataclass(frozen=True)
class Piece:
    """Rows ``start`` to ``stop`` of a split of the source."""

    split: str
    start: int
    stop: int


@dataclass(frozen=True)
class Split:
    """Undecoded images of one split, or of parts of splits, with their classes.

    Attributes:
        name: as it was asked for, e.g. "train[:90%]".
        source: where it comes from.
        pieces: of which splits it consists, in order.
        table: one row per image; its only column holds the image as {"bytes", "path"}.
        rows: int64 ``[N]``, which rows of the table are used.
        labels: int64 ``[N]``; -1 where there is none.
        fingerprint: changes when the files, the split or the rows do.
    """

    name: str
    source: str
    pieces: tuple[Piece, ...]
    table: Any
    rows: NDArray[np.int64]
    labels: NDArray[np.int64]
    fingerprint: str

    def __len__(self) -> int:
        return len(self.rows)

    def read(self, indices: Sequence[int] | NDArray[np.int64]) -> list[dict[str, Any]]:
        """The undecoded images: ``{"bytes": ... or None, "path": ... or None}`` each."""
        batch = self.table[self.rows[indices].tolist()]
        return list(next(iter(batch.values())))

    def shares(self, other: "Split") -> bool:
        """Whether an image is in both."""
        ours, theirs = self._places(), other._places()
        return any(len(np.intersect1d(rows, theirs[name])) for name, rows in ours.items() if name in theirs)

    def _places(self) -> dict[str, NDArray[np.int64]]:
        """Which rows of which split of the source are used."""
        places: dict[str, NDArray[np.int64]] = {}
        before = 0
        for piece in self.pieces:
            size = piece.stop - piece.start
            mine = self.rows[(self.rows >= before) & (self.rows < before + size)] - before + piece.start
            places[piece.split] = np.concatenate([places.get(piece.split, mine[:0]), mine])
            before += size
        return places

    def where(self, index: int, path: str | None) -> str:
        """Words for the place of an image: row, split, file."""
        row = int(self.rows[index])
        for piece in self.pieces:
            if row < piece.stop - piece.start:
                place = f"row {piece.start + row} of split {piece.split!r} of {self.source}"
                return f"{path} ({place})" if path else place
            row -= piece.stop - piece.start
        raise AssertionError("rows lie within the pieces")


def hold_out(split: Split, share: float) -> tuple[Split, Split]:
    """Divide a split in two: the most of every class, and a share of every class, at least one image if there are two.

    Which images are held out depends on the split alone, not on any seed of a training.
    """
    rng = np.random.default_rng(0)
    held = []
    for label in np.unique(split.labels):
        mine = np.flatnonzero(split.labels == label)
        count = min(len(mine) - 1, max(1, round(share * len(mine))))
        held.append(rng.permutation(mine)[:count])
    chosen = np.sort(np.concatenate(held))
    parts = {"without": np.setdiff1d(np.arange(len(split)), chosen), "held out": chosen}
    rest, out = (
        dataclasses.replace(
            split,
            name=f"{split.name}, {share:.0%} of each class {words}",
            rows=split.rows[part],
            labels=split.labels[part],
            fingerprint=f"{split.fingerprint}-{words}-{share!r}",
        )
        for words, part in parts.items()
    )
    return rest, out


class Source:
    """An opened source: its splits, and which columns hold image and class.

    Args:
        source: an existing path (a folder of Parquet files named train-*, test-* ..., one Parquet file, a folder of
            folders SPLIT/CLASS/IMAGE), or a name on the hub.
        image_column: None: the only one of type ``Image``.
        label_column: None: the only one of type ``ClassLabel``, else one of ``LABEL_COLUMNS``.
        config_name: which configuration of a hub data set, where it has several.

    Raises:
        FileNotFoundError, ValueError: it cannot be opened, or it is not clear which columns are meant.
    """

    def __init__(
        self,
        source: str,
        *,
        image_column: str | None = None,
        label_column: str | None = None,
        config_name: str | None = None,
    ) -> None:
        self.path = local_path(source)
        self.name = str(self.path or source)
        self._splits = self._load(config_name)
        features = next(iter(self._splits.values())).features
        self.image_column = self._image_column(features, image_column)
        self.label_column = self._label_column(features, label_column)
        self._label_feature = features[self.label_column]

    def _load(self, config_name: str | None) -> dict[str, Any]:
        try:
            if self.path is not None and self.path.is_file():
                if self.path.suffix != ".parquet":
                    raise ValueError("one file is read if it is a .parquet file; give a folder for anything else")
                return dict(datasets.load_dataset("parquet", data_files={"train": str(self.path)}))
            return dict(datasets.load_dataset(self.name, config_name))
        except Exception as error:  # of a dozen libraries; their one line is kept, their stack of causes is not
            raise ValueError(self._why_not(error)) from None

    def _why_not(self, error: Exception) -> str:
        reason = " ".join((str(error) or type(error).__name__).split())
        if empty := re.search('Instruction "(.+)" corresponds to no data', reason):
            return f"split {empty.group(1)!r} of {self.name} is empty: leave its files out"
        if self.path is not None:
            return f"the images in {self.name} cannot be opened: {reason}"
        local = "or set source to the path of a local copy (a folder of Parquet files or of images)"
        if isinstance(error, datasets.exceptions.DatasetNotFoundError):
            return f"{reason} (a path that does not exist is taken for a name on the hub; check it, {local})"
        if isinstance(error, ConnectionError | OSError):
            return f"the hub cannot be reached for {self.name!r}: {reason}; connect to the network, {local}"
        return f"{self.name!r} cannot be loaded from the hub: {reason}"

    @property
    def sizes(self) -> dict[str, int]:
        """Number of rows of every split."""
        return {name: len(split) for name, split in self._splits.items()}

    def _image_column(self, features: Any, wanted: str | None) -> str:
        if wanted is not None:
            return self._known(features, wanted, "image_column")
        found = [name for name, feature in features.items() if isinstance(feature, datasets.Image)]
        if len(found) != 1:
            what = f"several image columns ({', '.join(found)})" if found else "no column of type Image"
            raise ValueError(f"{self.name} has {what}; its columns are {', '.join(features)}: set image_column")
        return found[0]

    def _label_column(self, features: Any, wanted: str | None) -> str:
        if wanted is not None:
            return self._known(features, wanted, "label_column")
        found = [name for name, feature in features.items() if isinstance(feature, datasets.ClassLabel)]
        if not found:
            found = [name for name in LABEL_COLUMNS if name in features][:1]
        if len(found) != 1:
            what = f"several label columns ({', '.join(found)})" if found else "no column that looks like a label"
            raise ValueError(f"{self.name} has {what}; its columns are {', '.join(features)}: set label_column")
        return found[0]

    def _known(self, features: Any, name: str, key: str) -> str:
        if name not in features:
            hint = near(name, features)
            raise ValueError(f"{key}: {self.name} has no column {name!r}{hint} (it has {', '.join(features)})")
        return name

    @cached_property
    def class_names(self) -> tuple[str, ...]:
        """In the order of the labels. Without ``ClassLabel``: the sorted values of the first split."""
        if isinstance(self._label_feature, datasets.ClassLabel):
            return tuple(self._label_feature.names)
        return tuple(map(str, self._values))

    @cached_property
    def _values(self) -> list[Any]:
        """The label values that there are, of a column without names; -1 and None mean no label."""
        name = "train" if "train" in self._splits else next(iter(self._splits))
        column = self._column(self._splits[name])
        if wrong := {type(value).__name__ for value in column if not isinstance(value, int | str | None)}:
            raise ValueError(
                f"label_column: column {self.label_column!r} of {self.name} holds {min(wrong)} values, not "
                "classes (integers or words)"
            )
        return sorted({value for value in column if value is not None and value != -1})

    def _column(self, table: Any) -> list[Any]:
        return list(table.select_columns([self.label_column])[:][self.label_column])

    def labels(self, table: Any) -> NDArray[np.int64]:
        """The class of every row, int64 ``[N]``; -1 where there is none."""
        column = self._column(table)
        if isinstance(self._label_feature, datasets.ClassLabel):
            return np.array([-1 if value is None else value for value in column], dtype=np.int64)
        index = {value: i for i, value in enumerate(self._values)} | {None: -1, -1: -1}
        if unknown := {value for value in column if value not in index}:
            raise ValueError(
                f"column {self.label_column!r} of {self.name} has the value {min(unknown, key=str)!r} "
                "that no training image has"
            )
        return np.array([index[value] for value in column], dtype=np.int64)

    def split(self, name: str, *, key: str, limit: int | None = None) -> Split:
        """Open a split, e.g. "train" or "train[:90%]" or "train+validation".

        Args:
            name: in the words of ``datasets.ReadInstruction``.
            key: which setting asked for it, for the message.
            limit: take at most so many images, evenly spaced (files are often sorted by class).

        Raises:
            ValueError: there is no such split, or it is empty.
        """
        try:
            absolute = datasets.ReadInstruction.from_spec(name).to_absolute(self.sizes)
        except (ValueError, AssertionError):
            splits = ", ".join(f"{split} ({count})" for split, count in self.sizes.items())
            hint = near(name.split("[", maxsplit=1)[0], self.sizes)
            raise ValueError(f"{key}: {self.name} has no split {name!r}{hint} (it has {splits})") from None
        pieces = tuple(Piece(part.splitname, part.from_, part.to) for part in absolute)
        parts = [self._splits[piece.split].select(range(piece.start, piece.stop)) for piece in pieces]
        if not sum(map(len, parts)):
            raise ValueError(f"{key}: split {name!r} of {self.name} is empty")
        labels = np.concatenate([self.labels(part) for part in parts])
        table = datasets.concatenate_datasets([part.select_columns([self.image_column]) for part in parts])
        rows = np.arange(len(table), dtype=np.int64)
        if limit is not None and limit < len(rows):
            rows = np.arange(limit, dtype=np.int64) * len(table) // limit
        files = [self._splits[piece.split]._fingerprint for piece in pieces]
        told = repr((files, pieces, self.image_column, len(rows)))
        return Split(
            name=name,
            source=self.name,
            pieces=pieces,
            table=self._undecoded(table),
            rows=rows,
            labels=labels[rows],
            fingerprint=hashlib.sha256(told.encode()).hexdigest()[:16],
        )

    def _undecoded(self, table: Any) -> Any:
        try:
            return table.cast_column(self.image_column, datasets.Image(decode=False))
        except Exception as error:  # pyarrow's and datasets' own
            reason = " ".join(str(error).split())
            raise ValueError(f"column {self.image_column!r} of {self.name} holds no images: {reason}") from None
