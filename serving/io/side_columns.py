"""Tell which columns of a table describe its rows and are none of its features.

They are the index that pandas writes, columns without a name, and the keys in the names of a
partitioned folder's folders. No such column is taken for a feature unless it is asked for by name.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from urllib.parse import unquote

import pyarrow as pa

from serving.io.csv_format import UNNAMED

FILE, ROW = "file", "row"
DEFAULT_IDS = (FILE, ROW)
"""Names of the default ids: the file's name relative to the input, the row's index in its file."""

_PARTITION = b"vae.partition"
_INDEX = re.compile(r"__index_level_\d+__")
_UNNAMED = re.compile(rf"{UNNAMED}\d+|")
_NULL = "__HIVE_DEFAULT_PARTITION__"
_SHOWN = 5


def find_side_columns(schema: pa.Schema) -> dict[str, str]:
    """Return the columns that are no features, each with what it is."""
    found = {}
    for name in (schema.pandas_metadata or {}).get("index_columns", ()):
        if isinstance(name, str) and schema.get_field_index(name) >= 0:
            found[name] = "the index of pandas"
    for item in schema:
        if _PARTITION in (item.metadata or {}):
            found[item.name] = "a key of folders"
        elif _INDEX.fullmatch(item.name):
            found[item.name] = "the index of pandas"
        elif _UNNAMED.fullmatch(item.name):
            found[item.name] = "a column without a name"
    return found


def describe_side_columns(found: Mapping[str, str]) -> str:
    """Say which columns are left out, in one line; empty if there are none."""
    listed = [f"{name!r}, {what}" for name, what in found.items()]
    more = f" and {len(listed) - _SHOWN} more" if len(listed) > _SHOWN else ""
    return f"not used as features: {'; '.join(listed[:_SHOWN])}{more}" if listed else ""


def partition_keys(name: str) -> dict[str, str | None]:
    """Return the keys and values in a path such as `year=2026/country=DE/part-0.parquet`."""
    parts = (part.split("=", 1) for part in name.split("/")[:-1] if "=" in part[1:])
    return {unquote(key): None if text == _NULL else unquote(text) for key, text in parts}


def partition_fields(files: Sequence[Mapping[str, str | None]]) -> list[pa.Field]:
    """Return a field for each key that all files have; a key of whole numbers is int64."""
    shared = [key for key in files[0] if all(key in file for file in files)]
    return [
        pa.field(key, _kind(file[key] for file in files), metadata={_PARTITION: b"1"})
        for key in shared
    ]


def _kind(texts: Iterable[str | None]) -> pa.DataType:
    known = [text for text in texts if text is not None]
    whole = bool(known) and all(re.fullmatch(r"-?\d{1,18}", text) for text in known)
    return pa.int64() if whole else pa.string()
