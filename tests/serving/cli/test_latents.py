"""`vae decode`, `interpolate` and `traverse` beside the engine's own rows."""

import re
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from click.testing import CliRunner, Result
from PIL import Image
from pyarrow import csv, parquet

from serving.bundle import Bundle
from serving.cli.latents import decode, interpolate, traverse
from serving.engine import Engine
from serving.errors import DataRefused, UsageRefused
from serving.io.images import tile
from tests.serving.batch.jobs import Array
from tests.serving.conftest import SEALED

COMMANDS = {"decode": decode, "interpolate": interpolate, "traverse": traverse}


def vae(command: str, *arguments: object, model: Path = SEALED) -> Result:
    return CliRunner().invoke(COMMANDS[command], [*map(str, arguments), "--model", str(model)])


@pytest.fixture
def rows(x: Array, tmp_path: Path) -> Path:
    np.save(tmp_path / "x.npy", x[:9])
    return tmp_path / "x.npy"


@pytest.mark.parametrize("column", ["z", "z_loc", "an array"])
def test_codes_are_decoded_as_the_engine_does(
    engine: Engine, x: Array, tmp_path: Path, column: str
) -> None:
    z = engine.encode(x[:5])["z_loc"]
    if column == "an array":
        np.save(tmp_path / "z.npy", z)
    else:
        table = pa.table({"id": range(5), column: list(z), "z_scale": list(z)})
        parquet.write_table(table, tmp_path / "z.parquet")
    (file,) = tmp_path.glob("z.*")
    result = vae("decode", file, "--out", tmp_path / "out.npy")
    assert result.exit_code == 0, result.exception
    assert np.load(tmp_path / "out.npy").tobytes() == engine.decode(z).tobytes()


def test_latents_of_another_size_are_refused(tmp_path: Path) -> None:
    np.save(tmp_path / "z.npy", np.zeros((2, 99), np.float32))
    result = vae("decode", tmp_path / "z.npy", "--out", tmp_path / "out.npy")
    assert isinstance(result.exception, DataRefused)
    assert not (tmp_path / "out.npy").exists()


@pytest.mark.parametrize(
    ("z", "message"),
    [
        (np.zeros((2, 99), np.float32), r"but z takes rows of \(3,\)"),
        (np.array([[0, 1, 2], [0, np.nan, 0]], np.float32), "z is NaN, or holds a NaN in row 1"),
    ],
    ids=["size", "value"],
)
def test_a_message_on_latents_speaks_of_z(tmp_path: Path, z: Array, message: str) -> None:
    np.save(tmp_path / "z.npy", z)
    result = vae("decode", tmp_path / "z.npy", "--out", tmp_path / "out.npy")
    assert isinstance(result.exception, DataRefused)
    assert re.search(message, str(result.exception)), result.exception
    (tmp_path / "z.csv").write_text("a,b\n1,2\n")
    result = vae("decode", tmp_path / "z.csv", "--out", tmp_path / "out.npy")
    assert "cannot tell which columns hold z: 2 are numbers" in str(result.exception)
    assert "put them into a column z" in str(result.exception)


def test_an_interpolation_begins_and_ends_with_its_rows(
    engine: Engine, x: Array, rows: Path, tmp_path: Path
) -> None:
    asked = ("--row", 5, "--row", 2, "--row", 5, "--steps", 3)
    result = vae("interpolate", rows, *asked, "--out", tmp_path / "out.parquet")
    assert result.exit_code == 0, result.exception
    table = parquet.read_table(tmp_path / "out.parquet")
    place = [table[name].to_pylist() for name in ("start", "stop", "step")]
    assert place == [[5] * 3 + [2] * 3, [2] * 3 + [5] * 3, [0, 1, 2] * 2]
    found = np.array(table["x_loc"].to_pylist(), np.float32).reshape(-1, 6, 5)
    a, b = engine.encode(x[[5, 2]])["z_loc"]
    np.testing.assert_array_equal(found, engine.decode(np.stack([a, (a + b) / 2, b] * 2)[ORDER]))


ORDER = [0, 1, 2, 2, 1, 0]


def test_a_traversal_changes_one_latent_at_a_time(
    engine: Engine, x: Array, rows: Path, tmp_path: Path
) -> None:
    asked = ("--row", 4, "--latent", 2, "--latent", 0, "--limit", 2, "--steps", 3)
    result = vae("traverse", rows, *asked, "--out", tmp_path / "out.parquet")
    assert result.exit_code == 0, result.exception
    table = parquet.read_table(tmp_path / "out.parquet")
    assert table["latent"].to_pylist() == [2, 2, 2, 0, 0, 0]
    assert table["z"].to_pylist() == [-2, 0, 2] * 2
    z = np.repeat(engine.encode(x[4:5])["z_loc"], 6, axis=0)
    z[:3, 2] = z[3:, 0] = [-2, 0, 2]
    expected = engine.decode(z).reshape(6, -1)
    np.testing.assert_array_equal(np.array(table["x_loc"].to_pylist(), np.float32), expected)


def test_without_input_a_traversal_starts_from_the_prior(engine: Engine, tmp_path: Path) -> None:
    result = vae("traverse", "--steps", 3, "--out", tmp_path / "out.png")
    assert result.exit_code == 0, result.exception
    size = engine.bundle.manifest.latent_dim
    z = np.zeros((size, 3, size), np.float32)
    for latent in range(size):
        z[latent, :, latent] = [-3, 0, 3]
    with Image.open(tmp_path / "out.png") as image:
        drawn = tile(engine.decode(z.reshape(-1, size)), 3)
        np.testing.assert_array_equal(np.asarray(image), drawn)
    assert "picture, from above: z[0] to z[2], each from -3 to 3\n" in result.stderr


def test_the_lines_of_a_picture_are_named(rows: Path, tmp_path: Path) -> None:
    out = ("--out", tmp_path / "out.png")
    result = vae("interpolate", rows, "--row", 5, "--row", 2, "--row", 7, *out)
    assert "picture, from above: row 5 to row 2, row 2 to row 7\n" in result.stderr
    result = vae("traverse", rows, "--latent", 2, "--latent", 0, "--limit", 1.5, *out)
    assert "picture, from above: z[2], z[0], each from -1.5 to 1.5\n" in result.stderr


@pytest.mark.parametrize("command", ["interpolate", "traverse"])
def test_places_stand_beside_the_features(
    named: Bundle, rows: Path, tmp_path: Path, command: str
) -> None:
    out = tmp_path / "out.CSV"
    result = vae(command, rows, "--steps", 2, "--out", out, model=named.path)
    assert result.exit_code == 0, result.exception
    names = csv.read_csv(out).schema.names
    assert names[-30:] == list(named.manifest.columns)
    first = {"interpolate": ["start", "stop", "step"], "traverse": ["latent", "z_"]}
    assert names[:-30] == first[command]  # a feature is named z


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("interpolate", "--row", 3), "--row must be given at least twice, got 3 alone"),
        (("interpolate", "--row", 3, "--row", 9), "--row must be below 9, the rows of"),
        (("traverse", "--row", 9), "--row must be below 9, the rows of"),
        (("traverse", "--latent", 99), "--latent must be from 0 to"),
        (("traverse", "--out", "x.txt"), "--out must end in .png, .npy, .parquet, .csv"),
        (("traverse", "--out", "x.csv"), "a .csv needs a model of named columns"),
    ],
    ids=["one row", "no such row", "no row to start from", "no such latent", "suffix", "no names"],
)
def test_what_cannot_be_done_is_refused(
    rows: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    arguments: tuple[object, ...],
    message: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    command, *options = arguments
    result = vae(str(command), rows, "--out", "out.npy", *options)
    assert isinstance(result.exception, UsageRefused)
    assert message in str(result.exception)
    assert [path.name for path in tmp_path.iterdir()] == ["x.npy"]
