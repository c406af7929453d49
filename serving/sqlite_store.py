"""The sqlite file of an MLflow store: where it is, whether it is made, whether it was moved.

MLflow writes absolute paths of artifacts into its database. If the folder of the store is moved or
copied, they still name the old folder: files are not found, and new ones would be written there.
`find_move` compares a path with what lies beside the database; `repair_paths` rewrites the paths.
"""

import contextlib
import os
import sqlite3
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote, unquote

from serving.errors import VaeError

_SCHEME = "sqlite:///"
_PATHS = (
    ("experiments", "artifact_location"),
    ("runs", "artifact_uri"),
    ("logged_models", "artifact_location"),
    ("model_versions", "storage_location"),
    ("model_versions", "source"),
)
"""The columns in which MLflow keeps paths of artifacts."""
_MIN_PARTS = 2
"""So much of a path's end must lie beside the database too: `mlartifacts/vae` or `mlruns/1`."""


@dataclass(frozen=True, slots=True)
class Move:
    """The folder that the paths in a store name, and the folder where the store is now."""

    old: Path
    new: Path

    def __str__(self) -> str:
        return f"the store was moved from {self.old} to {self.new}: run vae doctor --repair-store"


def database_path(uri: str) -> Path | None:
    """Return the file of a store, or None if `uri` does not name an sqlite file by its path."""
    if not uri.startswith(_SCHEME) or "?" in uri:
        return None
    return Path(os.path.abspath(uri.removeprefix(_SCHEME)))


def local_path(location: str) -> Path | None:
    """Return the path that an absolute location of MLflow names; None if it is elsewhere."""
    if location.startswith("file:/"):
        return Path(unquote(location.removeprefix("file:").removeprefix("//")))
    return Path(location) if location.startswith("/") else None


def is_begun(database: Path) -> bool:
    """Whether there is a database; MLflow begins with an empty file."""
    return database.exists() and database.stat().st_size > 0


def is_made(database: Path) -> bool:
    """Whether the database has all of its tables: its first experiment comes last."""
    with contextlib.suppress(sqlite3.Error), _reading(database) as connection:
        return connection.execute("SELECT 1 FROM experiments").fetchone() is not None
    return False


def find_move(location: str, uri: str) -> Move | None:
    """Return how the store at `uri` was moved, judged by the path of some of its artifacts.

    It was moved, or copied, if the end of that path exists beside the database, as another file.
    """
    recorded, database = local_path(location), database_path(uri)
    if recorded is None or database is None or not recorded.is_absolute():
        return None
    parts = recorded.parts
    for start in range(1, len(parts) - _MIN_PARTS + 1):
        present = database.parent.joinpath(*parts[start:])
        if present.exists():
            same = recorded.exists() and present.samefile(recorded)
            return None if same else Move(Path(*parts[:start]), database.parent)
    return None


def find_moves(uri: str) -> list[Move]:
    """Return how the store at `uri` was moved, judged by all of its experiments."""
    database = database_path(uri)
    if database is None or not is_made(database):
        return []
    with _reading(database) as connection:
        rows = connection.execute("SELECT artifact_location FROM experiments").fetchall()
    moves = (find_move(location, uri) for (location,) in rows if location)
    return list(dict.fromkeys(move for move in moves if move is not None))


def repair_paths(uri: str) -> int:
    """Rewrite the paths of a store that was moved, all or none; return their number.

    A path stays if its files are at the old place and not at the new one.

    Raises:
        VaeError: the database cannot be written.
    """
    import filelock

    database = database_path(uri)
    if database is None:
        return 0
    moves = find_moves(uri)
    try:
        with (
            filelock.FileLock(f"{database}.lock"),
            contextlib.closing(sqlite3.connect(database)) as connection,
            connection,
        ):
            return sum(_rewrite(connection, *column, moves) for column in _PATHS)
    except (sqlite3.Error, OSError) as err:
        raise VaeError(f"cannot write to {database}: {err}") from err


def _rewrite(connection: sqlite3.Connection, table: str, column: str, moves: list[Move]) -> int:
    rows = connection.execute(f"SELECT rowid, {column} FROM {table} WHERE {column} LIKE '%/%'")
    changes = [
        (changed, row) for row, location in rows if (changed := _moved(str(location), moves))
    ]
    connection.executemany(f"UPDATE {table} SET {column} = ? WHERE rowid = ?", changes)
    return len(changes)


def _moved(location: str, moves: list[Move]) -> str | None:
    recorded = local_path(location)
    for move in moves:
        if recorded is None or not recorded.is_relative_to(move.old):
            continue
        present = move.new / recorded.relative_to(move.old)
        if present.exists() or not recorded.exists():
            return present.as_uri() if location.startswith("file:") else str(present)
    return None


@contextlib.contextmanager
def _reading(database: Path) -> Iterator[sqlite3.Connection]:
    uri = f"file:{quote(str(database))}?mode=ro"
    with contextlib.closing(sqlite3.connect(uri, uri=True)) as connection:
        yield connection
