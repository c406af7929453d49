"""A store that was moved is noticed, and its paths are corrected; the tables here are MLflow's."""

import sqlite3
from contextlib import closing
from pathlib import Path

import pytest

from serving.errors import VaeError
from serving.sqlite_store import (
    Move,
    database_path,
    find_move,
    find_moves,
    is_begun,
    is_made,
    local_path,
    repair_paths,
)

pytestmark = pytest.mark.slow  # they open databases
correcting = pytest.mark.full_environment
"""Paths are corrected under a lock of filelock, which comes with mlflow."""

TABLES = """
CREATE TABLE experiments (artifact_location TEXT);
CREATE TABLE runs (artifact_uri TEXT);
CREATE TABLE logged_models (artifact_location TEXT);
CREATE TABLE model_versions (storage_location TEXT, source TEXT);
"""
ODD = "50% off #1 ü+a&b"


def make_store(folder: Path, *, files: bool = True) -> str:
    """Make a store with one experiment, run and version, as MLflow lays them out."""
    experiment = folder / "mlartifacts" / "vae"
    model = experiment / "models" / "m-1" / "artifacts"
    run = experiment / "1234" / "artifacts"
    folder.mkdir(exist_ok=True)
    if files:
        model.mkdir(parents=True)
        run.mkdir(parents=True)
    with closing(sqlite3.connect(folder / "mlflow.db")) as connection, connection:
        connection.executescript(TABLES)
        connection.execute("INSERT INTO experiments VALUES (?)", (f"{folder}/mlruns/0",))
        connection.execute("INSERT INTO experiments VALUES (?)", (experiment.as_uri(),))
        connection.execute("INSERT INTO runs VALUES (?)", (run.as_uri(),))
        connection.execute("INSERT INTO logged_models VALUES (?)", (model.as_uri(),))
        connection.execute("INSERT INTO model_versions VALUES (?, 'models:/m-1')", (str(model),))
    return uri_of(folder)


def uri_of(folder: Path) -> str:
    return f"sqlite:///{folder}/mlflow.db"


def paths(folder: Path) -> list[str]:
    tables = {
        "experiments": "artifact_location",
        "runs": "artifact_uri",
        "logged_models": "artifact_location",
        "model_versions": "storage_location",
    }
    with closing(sqlite3.connect(folder / "mlflow.db")) as connection:
        return [
            row[0]
            for table, column in tables.items()
            for row in connection.execute(f"SELECT {column} FROM {table}")
        ]


@pytest.mark.parametrize("name", ["new", ODD], ids=["plain", "odd"])
@correcting
def test_every_path_of_a_moved_store_is_corrected(tmp_path: Path, name: str) -> None:
    make_store(tmp_path / ODD)
    new = (tmp_path / ODD).rename(tmp_path / f"{name} 2")
    assert find_moves(uri_of(new)) == [Move(tmp_path / ODD, new)]
    assert repair_paths(uri_of(new)) == 5
    expected = [f"{new}/mlruns/0", (new / "mlartifacts/vae").as_uri()]
    assert paths(new)[:2] == expected
    for location in paths(new)[1:]:
        path = local_path(location)
        assert path is not None
        assert path.is_dir()
    assert find_moves(uri_of(new)) == []
    assert repair_paths(uri_of(new)) == 0


def test_a_store_where_it_was_made_was_not_moved(tmp_path: Path) -> None:
    uri = make_store(tmp_path / "here")
    assert find_moves(uri) == []
    (tmp_path / "link").symlink_to(tmp_path / "here")
    assert find_moves(uri_of(tmp_path / "link")) == []


def test_artifacts_that_were_always_elsewhere_are_no_move(tmp_path: Path) -> None:
    make_store(tmp_path / "old")
    (tmp_path / "new").mkdir()
    (tmp_path / "new" / "vae").mkdir()  # a folder of the same name is not enough
    (tmp_path / "old" / "mlflow.db").rename(tmp_path / "new" / "mlflow.db")
    assert find_moves(uri_of(tmp_path / "new")) == []


def test_a_copy_is_noticed_while_the_original_is_there(tmp_path: Path) -> None:
    make_store(tmp_path / "old")
    make_store(tmp_path / "new")
    (tmp_path / "new" / "mlflow.db").write_bytes((tmp_path / "old" / "mlflow.db").read_bytes())
    assert find_moves(uri_of(tmp_path / "new")) == [Move(tmp_path / "old", tmp_path / "new")]


@correcting
def test_files_that_lie_at_the_old_place_alone_keep_their_path(tmp_path: Path) -> None:
    make_store(tmp_path / "old")
    new = (tmp_path / "old").rename(tmp_path / "new")
    late = tmp_path / "old" / "mlartifacts" / "vae" / "5678" / "artifacts"
    late.mkdir(parents=True)  # an older version of the command wrote a run there
    with closing(sqlite3.connect(new / "mlflow.db")) as connection, connection:
        connection.execute("INSERT INTO runs VALUES (?)", (late.as_uri(),))
    assert repair_paths(uri_of(new)) == 5
    assert [path for path in paths(new) if "/old/" in path] == [late.as_uri()]


def test_a_path_is_judged_by_its_longest_end(tmp_path: Path) -> None:
    (tmp_path / "new" / "a" / "mlartifacts" / "vae").mkdir(parents=True)
    (tmp_path / "new" / "mlartifacts" / "vae").mkdir(parents=True)
    move = find_move("file:///old/a/mlartifacts/vae", uri_of(tmp_path / "new"))
    assert move == Move(Path("/old"), tmp_path / "new")


@correcting
def test_a_store_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    make_store(tmp_path / "old")
    new = (tmp_path / "old").rename(tmp_path / "new")
    before = paths(new)
    (new / "mlflow.db.lock").mkdir()
    with pytest.raises(VaeError, match=f"cannot write to {new}/mlflow.db: "):
        repair_paths(uri_of(new))
    assert paths(new) == before


@pytest.mark.parametrize(
    ("location", "expected"),
    [
        ("file:///a/50%25%20off", Path("/a/50% off")),
        ("file:/a/b", Path("/a/b")),
        ("/a/50%25 off", Path("/a/50%25 off")),
        ("mlflow-artifacts:/1/abc", None),
        ("s3://bucket/a", None),
        ("models:/m-1", None),
    ],
)
def test_the_path_of_a_location(location: str, expected: Path | None) -> None:
    assert local_path(location) == expected


@pytest.mark.parametrize(
    ("uri", "expected"),
    [
        ("sqlite:////a/b.db", Path("/a/b.db")),
        ("sqlite:////a/../c/b.db", Path("/c/b.db")),
        ("sqlite:////a/50%25.db", Path("/a/50%25.db")),
        ("sqlite:///file:/a/b.db?mode=ro&uri=true", None),
        ("http://127.0.0.1:5000", None),
        ("postgresql://host/mlflow", None),
    ],
)
def test_the_file_of_a_store(uri: str, expected: Path | None) -> None:
    assert database_path(uri) == expected


def test_a_database_is_made_once_it_has_an_experiment(tmp_path: Path) -> None:
    path = tmp_path / "mlflow.db"
    assert not is_begun(path)
    path.touch()
    assert not is_begun(path)
    with closing(sqlite3.connect(path)) as connection, connection:
        connection.executescript(TABLES)
        assert is_begun(path)
        assert not is_made(path)
        connection.execute("INSERT INTO experiments VALUES ('/a/mlruns/0')")
        connection.commit()
        assert is_made(path)
