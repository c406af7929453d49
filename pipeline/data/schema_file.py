"""Write the columns of a table as TOML that a person can edit, and read it back.

In: the columns that were found. Out: a file with a table for each column: its kind, its words if it
has some, and why it is left out. A column that the file does not name is found as without it.
Raises `UsageRefused`, with the file, the key and what is allowed.
"""

import json
import re
import tomllib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from pipeline.data.column_kinds import KINDS
from pipeline.data.schema_search import ColumnSettings, FoundColumn
from serving.cell_values import number_text
from serving.errors import UsageRefused
from serving.files import reading

_KEYS = ("kind", "words", "reason")
_BARE = re.compile(r"[A-Za-z0-9_-]+")
"""Names that TOML takes as keys without quotes."""
_HEAD = """\
# What the columns of {source} are. Change it, and pass it on by --schema.
# kind: {kinds}
# words: the values of a binary or a category; all others count as other
"""


def write_schema(source: object, columns: Iterable[FoundColumn]) -> str:
    """Return the TOML of a table's columns."""
    tables = "\n".join(map(_write_column, columns))
    return f"{_HEAD.format(source=json.dumps(str(source)), kinds=', '.join(KINDS))}\n{tables}"


def _write_column(found: FoundColumn) -> str:
    lines = [f"[columns.{_key(found.name)}]", f"kind = {quote(found.kind)}"]
    if found.kind == "ignored":
        lines.append(f"reason = {quote(found.reason)}")
    if found.kind in ("binary", "category"):
        words = "".join(f"\n  {quote(word)}," for word in found.columns[0].words)
        lines.append(f"words = [{words}\n]")
    return "\n".join(lines) + "\n"


def _key(name: str) -> str:
    return name if _BARE.fullmatch(name) else quote(name)


def quote(text: str) -> str:
    """Return a basic string of TOML: that of JSON, with the control character that it lacks."""
    return json.dumps(text, ensure_ascii=False).replace("\x7f", "\\u007f")


def read_schema(path: Path, names: Iterable[str]) -> dict[str, ColumnSettings]:
    """Read what a file says of columns, which must be among `names`, those of the table.

    Raises:
        UsageRefused: it is no TOML, or has a key or a value that is not allowed.
    """
    with reading(path):
        raw = path.read_bytes()
    try:
        content = tomllib.loads(raw.decode())
    except (UnicodeDecodeError, tomllib.TOMLDecodeError) as err:
        raise UsageRefused(f"cannot read {path} as TOML: {err}") from err
    if others := sorted(content.keys() - {"columns"}):
        raise UsageRefused(f"{path}: no such key {others[0]!r}; allowed is columns")
    columns = content.get("columns", {})
    if not isinstance(columns, Mapping):
        raise UsageRefused(f"{path}: columns must be a table for each column, got {columns!r}")
    there = list(names)
    for name in columns:
        if name not in there:
            listed = ", ".join(there[:8]) + (", …" if len(there) > 8 else "")
            raise UsageRefused(f"{path}: the table has no column {name!r}; it has {listed}")
    return {name: _read_column(path, name, column) for name, column in columns.items()}


def _read_column(path: Path, name: str, column: Any) -> ColumnSettings:
    where = f"{path}: columns.{_key(name)}"
    if not isinstance(column, Mapping):
        raise UsageRefused(f"{where} must be a table with a kind, got {column!r}")
    if others := sorted(column.keys() - {*_KEYS}):
        raise UsageRefused(f"{where}: no such key {others[0]!r}; allowed are {', '.join(_KEYS)}")
    kind, words, reason = column.get("kind"), column.get("words", []), column.get("reason", "")
    if kind not in KINDS:
        raise UsageRefused(f"{where}.kind must be one of {', '.join(KINDS)}, got {kind!r}")
    if not isinstance(words, list) or not all(isinstance(w, str | int | float) for w in words):
        raise UsageRefused(f"{where}.words must be a list of strings or numbers, got {words!r}")
    words = [word if isinstance(word, str) else number_text(word) for word in words]
    if words and kind not in ("binary", "category"):
        raise UsageRefused(f"{where}.words are those of a binary or a category, not of {kind!r}")
    if "" in words or len({*words}) < len(words):
        raise UsageRefused(f"{where}.words must differ, and none may be empty, got {words!r}")
    if words and kind == "binary" and len(words) != 2:
        raise UsageRefused(f"{where}.words of a binary are two, got {len(words)}")
    if not isinstance(reason, str):
        raise UsageRefused(f"{where}.reason must be a string, got {reason!r}")
    return ColumnSettings(kind=kind, words=tuple(words), reason=reason)
