"""`vae reconstruct` on each kind of input, beside the engine's own rows."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from click.testing import CliRunner, Result
from PIL import Image
from pyarrow import csv, parquet

from serving.bundle import Bundle
from serving.cli.reconstruct import reconstruct
from serving.engine import Engine
from serving.errors import DataRefused, UsageRefused, VaeError
from serving.io.images import encode_png, tile
from tests.serving.batch.jobs import Array
from tests.serving.conftest import SEALED

NAMES = [f"p{index}" for index in range(30)]


def vae_reconstruct(*arguments: object) -> Result:
    return CliRunner().invoke(reconstruct, [*map(str, arguments), "--model", str(SEALED)])


def numbers(x: Array) -> pa.Table:
    return pa.table(dict(zip(NAMES, x.reshape(len(x), -1).T, strict=True)))


def save_pictures(folder: Path, x: Array) -> None:
    folder.mkdir()
    for index, image in enumerate(x):
        (folder / f"{index}.png").write_bytes(encode_png(image))


INPUTS: dict[str, Callable[[Path, Array], object]] = {
    "x.npy": np.save,
    "flat.npy": lambda path, x: np.save(path, x.reshape(len(x), -1)),
    "x.parquet": lambda path, x: parquet.write_table(numbers(x), path),
    "x.csv": lambda path, x: csv.write_csv(numbers(x), path),
    "pictures": save_pictures,
}


@pytest.mark.parametrize("name", INPUTS)
def test_every_kind_of_input_gives_the_engine_s_rows(
    engine: Engine, x: Array, tmp_path: Path, name: str
) -> None:
    rows = x[:7]
    INPUTS[name](tmp_path / name, rows)
    result = vae_reconstruct(tmp_path / name, "--out", tmp_path / "out.npy")
    assert result.exit_code == 0, result.exception
    assert np.load(tmp_path / "out.npy").tobytes() == engine.reconstruct(rows).tobytes()


@pytest.mark.parametrize("suffix", [".csv", ".parquet"])
def test_reconstructions_of_a_table_have_its_columns(
    named: Bundle, engine: Engine, x: Array, tmp_path: Path, suffix: str
) -> None:
    np.save(tmp_path / "x.npy", x[:7])
    out = tmp_path / f"out{suffix}"
    arguments = [str(tmp_path / "x.npy"), "--out", str(out), "--model", str(named.path)]
    result = CliRunner().invoke(reconstruct, arguments)
    assert result.exit_code == 0, result.exception
    table = csv.read_csv(out) if suffix == ".csv" else parquet.read_table(out)
    assert tuple(table.schema.names) == named.manifest.columns
    values = np.stack([column.to_numpy() for column in table.columns], 1).astype(np.float32)
    assert values.tobytes() == engine.reconstruct(x[:7]).tobytes()


def test_columns_are_taken_in_the_order_asked_for(engine: Engine, x: Array, tmp_path: Path) -> None:
    swapped = numbers(x[:5]).select(NAMES[::-1]).append_column("more", pa.array(range(5)))
    csv.write_csv(swapped, tmp_path / "x.csv")
    asked = [word for name in NAMES for word in ("--x", name)]
    result = vae_reconstruct(tmp_path / "x.csv", *asked, "--out", tmp_path / "out.npy")
    assert result.exit_code == 0, result.exception
    assert np.load(tmp_path / "out.npy").tobytes() == engine.reconstruct(x[:5]).tobytes()


@pytest.mark.parametrize(("rows", "columns"), [(1, 2), (2, 2), (3, 4), (7, 4), (20, 8)])
def test_a_picture_never_parts_a_row_from_its_reconstruction(
    engine: Engine, x: Array, tmp_path: Path, rows: int, columns: int
) -> None:
    np.save(tmp_path / "x.npy", x[:rows])
    vae_reconstruct(tmp_path / "x.npy", "--out", tmp_path / "out.png")
    turns = np.stack([x[:rows], engine.reconstruct(x[:rows])], axis=1).reshape(-1, 6, 5)
    with Image.open(tmp_path / "out.png") as image:
        np.testing.assert_array_equal(np.asarray(image), tile(turns, columns))


@pytest.mark.parametrize("value", [np.nan, -1.0, 0.5, 256.0])
def test_a_bad_row_is_named_and_nothing_is_written(x: Array, tmp_path: Path, value: float) -> None:
    rows = x[:9].astype(np.float32)
    rows[[4, 6], 0, 0] = value
    np.save(tmp_path / "x.npy", rows)
    result = vae_reconstruct(tmp_path / "x.npy", "--out", tmp_path / "out.npy")
    assert isinstance(result.exception, DataRefused)
    assert str(result.exception) == (
        f"{tmp_path / 'x.npy'}: x is not a whole number from 0 to 255 in row 4; 2 of 9 rows cannot "
        "be used; to set them aside: vae score --operation reconstruct --on-error quarantine"
    )
    assert [path.name for path in tmp_path.iterdir()] == ["x.npy"]


@pytest.mark.parametrize("name", ["x.npy", "pictures"])
def test_the_input_is_never_written_over(x: Array, tmp_path: Path, name: str) -> None:
    INPUTS[name](tmp_path / name, x[:3])
    out = tmp_path / name if name == "x.npy" else tmp_path / name / "out.png"
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    result = vae_reconstruct(tmp_path / name, "--out", out)
    assert isinstance(result.exception, UsageRefused)
    assert str(result.exception).startswith(f"--out must lie outside INPUT {tmp_path / name}, got ")
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before


@pytest.mark.parametrize(
    ("asked", "error", "message"),
    [
        (["--x", "none"], UsageRefused, "the input has no column 'none'; it has p0 "),
        (["--x", "p3"], DataRefused, "x takes 30 columns of numbers, got 1: p3"),
    ],
    ids=["no such column", "too few"],
)
def test_columns_that_hold_no_rows_are_refused(
    x: Array, tmp_path: Path, asked: list[str], error: type[VaeError], message: str
) -> None:
    parquet.write_table(numbers(x[:2]), tmp_path / "x.parquet")
    result = vae_reconstruct(tmp_path / "x.parquet", *asked, "--out", tmp_path / "out.npy")
    assert isinstance(result.exception, error)
    assert str(result.exception).startswith(message)
