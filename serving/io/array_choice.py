"""Choose the arrays of an `.npz` file by their usual names.

In: names. Out: the name of the rows of each split, and that of their labels. `x_train`, `X_train`,
`train_images`, `trainX` and `Training` are rows to train on; `x_val`, `valid` and `dev_data` rows
to validate on; `y_test` and `test_labels` labels. Raises `DataRefused` if it is not clear which are
meant, and `UsageRefused` if there is no array of the name that is asked for.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from serving.errors import DataRefused, UsageRefused

SplitName = Literal["train", "valid", "test"]

_SPLITS: Mapping[str, SplitName] = {
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("valid", "val", "validation", "dev"), "valid"),
    **dict.fromkeys(("test", "testing"), "test"),
}
_HELD_OUT: tuple[SplitName, ...] = ("valid", "test")
_ROWS = "x image images img imgs data input inputs feature features sample samples".split()
_LABELS = "y label labels target targets class classes".split()
_WORDS = re.compile(r"[A-Z]?[a-z]+|[A-Z]+(?![a-z])|[0-9]+")
_SPARSE = {"data", "indices", "indptr", "shape"}
_LISTED = 12


@dataclass(frozen=True, slots=True)
class ArrayNames:
    """The names of the arrays with the rows of each split, and of those with their labels."""

    rows: Mapping[SplitName, str]
    labels: Mapping[SplitName, str]

    def list_unused(self, names: Iterable[str]) -> list[str]:
        """Return the names that are neither."""
        used = {*self.rows.values(), *self.labels.values()}
        return [name for name in names if name not in used]


def find_split(name: str) -> tuple[SplitName | None, frozenset[str]]:
    """Return the split that a name tells, None if none or several, and the name's other words."""
    words = frozenset(word.lower() for word in _WORDS.findall(name))
    splits = {_SPLITS[word] for word in words if word in _SPLITS}
    return (splits.pop(), words - _SPLITS.keys()) if len(splits) == 1 else (None, words)


def choose_splits(source: object, names: Sequence[str], array: str = "") -> ArrayNames:
    """Choose the rows of each split; without splits, all rows are those of `train`.

    Args:
        source: the file, for messages.
        names: the names of its arrays.
        array: the array that holds all rows; empty for the usual names.
    """
    if array or len(names) == 1:
        return ArrayNames({"train": _require(source, names, array)}, {})
    rows = _find_rows(source, names)
    held_out = [split for split in _HELD_OUT if split in rows and len(rows) > 1]
    base: SplitName | None = "train" if held_out and "train" in rows else None
    if base not in rows:
        if len(rows) != 1:
            raise _unclear(source, names)
        base = next(iter(rows))
    told: dict[SplitName, SplitName | None] = {"train": base, **{name: name for name in held_out}}
    labels = _find(names, _LABELS)
    found = ArrayNames(
        {split: rows[name] for split, name in told.items()},
        {split: labels[name] for split, name in told.items() if labels.get(name)},
    )
    if base in _HELD_OUT and found.list_unused(names):
        raise _unclear(source, names)  # one of the others may be what to train on
    return found


def choose_array(source: object, names: Sequence[str], array: str = "") -> str:
    """Choose the one array of rows: `array`, else `x`, the only one, or the only usual name."""
    if array or len(names) == 1:
        return _require(source, names, array)
    rows = _find_rows(source, names)
    if None not in rows and len(rows) != 1:
        raise _unclear(source, names)
    return rows[None] if None in rows else next(iter(rows.values()))


def _require(source: object, names: Sequence[str], array: str) -> str:
    if array and array not in names:
        raise UsageRefused(f"{source} has no array {array!r}; it has {_list(names)}")
    return array or names[0]


def _find_rows(source: object, names: Sequence[str]) -> dict[SplitName | None, str]:
    if set(names) >= _SPARSE:
        raise DataRefused(
            f"{source} is a sparse matrix of scipy: save its rows by numpy.save(…, x.toarray())"
        )
    rows = _find(names, _ROWS)
    if "" in rows.values():
        raise _unclear(source, names)
    return rows


def _find(names: Sequence[str], words: Sequence[str]) -> dict[SplitName | None, str]:
    """Find the name of each split (None: of no split) that has one of `words`; '' for several.

    The first of the words goes before the others, and lower case before upper case. The split alone
    is a name of rows.
    """
    found: dict[SplitName | None, list[tuple[bool, bool, str]]] = {}
    for name in names:
        split, rest = find_split(name)
        if (len(rest) == 1 and rest <= set(words)) or (split and not rest and words is _ROWS):
            found.setdefault(split, []).append((rest != {words[0]}, not name.islower(), name))
    return {
        split: "" if len(named) > 1 and named[0][:2] == named[1][:2] else named[0][2]
        for split, named in ((split, sorted(named)) for split, named in found.items())
    }


def _unclear(source: object, names: Sequence[str]) -> DataRefused:
    return DataRefused(
        f"{source} must hold one array of rows, or x, or x_train and x_test; it has "
        f"{_list(names)}: name the one to read by --array"
    )


def _list(names: Sequence[str]) -> str:
    more = f" and {len(names) - _LISTED} more" if len(names) > _LISTED else ""
    return (", ".join(names[:_LISTED]) or "none") + more
