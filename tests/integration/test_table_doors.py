"""The same tables at every door: each reads the same rows, or refuses them by name.

The doors are training, `vae evaluate`, `vae score` and `vae reconstruct`, and for the values of a
frame MLflow's pyfunc.
"""

import gzip
import io
from collections.abc import Callable
from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from click.testing import CliRunner, Result
from numpy.typing import NDArray
from pyarrow import dataset, parquet

from pipeline.cli.data_loading import rows_to_evaluate
from pipeline.cli.main import cli
from pipeline.data.dataset import load_dataset
from pipeline.data.readers import read_source
from pipeline.data.selection import Selection
from serving.bundle import Bundle
from serving.engine import Engine
from serving.errors import DataRefused, UsageRefused, VaeError
from tests.integration.test_pyfunc import load_model
from tests.trained_models import Trained, make_bundle, tiny_config, train_checkpoint

Array = NDArray[Any]

NAMES = ("a", "b", "c")
X = np.random.default_rng(1).normal(size=(40, 3)).round(2)
FRAME = pd.DataFrame(X, columns=list(NAMES))


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Trained:
    path = tmp_path_factory.mktemp("numbers") / "x.csv"
    values = np.random.default_rng(0).normal(size=(90, 3))
    pd.DataFrame(values, columns=list(NAMES)).to_csv(path, index=False)
    found = load_dataset(str(path), valid_fraction=0.1, test_fraction=0.25)
    return train_checkpoint(found, tiny_config(found)), found


@pytest.fixture(scope="module")
def bundle(trained: Trained, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return make_bundle(tmp_path_factory.mktemp("bundle") / "bundle", trained)


def invoke(*arguments: object) -> Result:
    return CliRunner().invoke(cli, [*map(str, arguments)])


def score(path: Path, bundle: Bundle, *options: object) -> tuple[Result, Path]:
    out = path.parent / f"scores of {path.name}"
    return invoke("score", path, out, "--model", bundle.path, *options), out


def reconstruct(path: Path, bundle: Bundle) -> tuple[Result, Path]:
    out = path.parent / f"{path.name}.npy"
    return invoke("reconstruct", path, "--model", bundle.path, "--out", out), out


def text(frame: pd.DataFrame, **settings: Any) -> bytes:
    return str(frame.to_csv(**{"index": False, **settings})).encode()


LINES = text(FRAME).decode().splitlines()


def lines(*above: str, header: str = LINES[0], row: str = "{}") -> Callable[[Path], object]:
    """Write a CSV file line by line, with other lines above its rows."""
    body = [row.format(line) for line in LINES[1:]]
    return lambda path: path.write_text("\n".join([*above, header, *body]) + "\n")


def save_gzipped(path: Path, x: Array) -> None:
    stream = io.BytesIO()
    np.save(stream, x)
    path.write_bytes(gzip.compress(stream.getvalue()))


def write_folders(path: Path) -> None:
    for split, rows in (("a", FRAME[:20]), ("b", FRAME[20:])):
        (path / f"split={split}").mkdir(parents=True)
        rows.to_parquet(path / f"split={split}" / "part-0.parquet", index=False)


ASIDE = ("--on-error", "quarantine", "--max-bad", "100%")
SHUFFLED = FRAME.set_index(np.random.default_rng(2).permutation(len(X)))
DECIMALS = pa.table(
    {n: pa.array([Decimal(f"{v:.2f}") for v in FRAME[n]], pa.decimal128(9, 2)) for n in NAMES}
)
READ: dict[str, tuple[str, Callable[[Path], object]]] = {
    "Parquet": ("x.parquet", FRAME.to_parquet),
    "an index": ("x.parquet", SHUFFLED.to_parquet),
    "decimals": ("x.parquet", lambda path: parquet.write_table(DECIMALS, path)),
    "CSV": ("x.csv", lambda path: path.write_bytes(text(FRAME))),
    "an index in CSV": ("x.csv", lambda path: path.write_bytes(text(SHUFFLED, index=True))),
    "decimal commas": ("x.csv", lambda path: path.write_bytes(text(FRAME, sep=";", decimal=","))),
    "tabs": ("X.TSV", lambda path: path.write_bytes(text(FRAME, sep="\t"))),
    "gzip": ("x.csv.gz", lambda path: path.write_bytes(gzip.compress(text(FRAME)))),
    "UTF-16": ("x.csv", lambda path: path.write_bytes(text(FRAME).decode().encode("utf-16"))),
    "keys of folders": ("folders", write_folders),
    "empty lines above": ("x.csv", lines("", "")),
    "a comment above": ("x.csv", lines("# made by us, twice", "")),
    "names in a comment": ("x.csv", lines(header="# a,b,c")),
    "the delimiter above": (
        "x.csv",
        lambda path: path.write_bytes(b"sep=;\n" + text(FRAME, sep=";")),
    ),
    "names of rows": ("x.csv", lines(row="r,{}")),
    "delimiters at the ends": ("x.csv", lines(row="{},")),
    "spaces before quoted names": ("x.csv", lines(header='"a", "b", "c"')),
    "columns first": ("x.npy", lambda path: np.save(path, np.asfortranarray(X))),
    "columns first, gzipped": ("x.npy.gz", lambda path: save_gzipped(path, np.asfortranarray(X))),
    "columns first in npz": ("x.npz", lambda path: np.savez(path, x=np.asfortranarray(X))),
    "long doubles": ("x.npy", lambda path: np.save(path, X.astype(np.longdouble))),
}


@pytest.mark.parametrize(("name", "write"), READ.values(), ids=READ.keys())
def test_every_door_reads_the_same_rows(
    trained: Trained,
    bundle: Bundle,
    tmp_path: Path,
    name: str,
    write: Callable[[Path], object],
) -> None:
    path, x = tmp_path / name, X.astype(np.float32)
    write(path)
    splits = read_source(str(path))
    np.testing.assert_array_equal(splits.train.x.astype(np.float32), x, strict=True)
    assert splits.train.columns == (() if "np" in path.name else NAMES)
    np.testing.assert_array_equal(rows_to_evaluate(trained[0], str(path)).x, x, strict=True)
    engine = Engine(bundle)
    result, out = score(path, bundle)
    assert result.exit_code == 0, result.output
    found = dataset.dataset(out).to_table().column("elbo").to_numpy()
    assert found.tobytes() == engine.score(x, 1, 0)["elbo"].tobytes()
    result, file = reconstruct(path, bundle)
    assert result.exit_code == 0, result.output
    assert np.load(file).tobytes() == engine.reconstruct(x).tobytes()


TEXT = "\n".join(LINES) + "\n"


def cells(value: str) -> Callable[[Path], object]:
    """Write a CSV file whose first column holds `value` in each row."""
    return words(text(FRAME.assign(a=value)))


def words(content: str | bytes) -> Callable[[Path], object]:
    raw = content if isinstance(content, bytes) else content.encode()
    return lambda path: path.write_bytes(raw)


REFUSED: dict[str, tuple[str, Callable[[Path], object], str]] = {
    "thousands": ("x.csv", cells("1,234.50"), "a (string, such as '1,234.50')"),
    "percent": ("x.csv", cells("12%"), "a (string, such as '12%')"),
    "currency": ("x.csv", cells("$3.50"), "a (string, such as '$3.50')"),
    "words": ("x.csv", cells("yes"), "a (string, such as 'yes')"),
    "a space delimite": ("x.csv", words(TEXT.replace(",", " ")), "a b c (string, such as '"),
    "a short line": ("x.csv", words(f"{TEXT}1,2\n"), "a line has 2 fields, and there are 3 names"),
    "a comment between": ("x.csv", words(f"{TEXT}# end\n"), "there are 3 names: '# end'"),
    "a hexadecimal numbe": ("x.csv", words("a,b\n0x1f,1\n0x20,2\n"), "column 'a': invalid value"),
    "UTF-16 without a mark": ("x.csv", words(TEXT.encode("utf-16-le")), "it holds bytes of zero"),
    "nothing": ("x.csv", words(""), "x.csv is empty"),
    "Parquet named CSV": (
        "x.csv",
        words(bytes(FRAME.to_parquet())),
        "a Parquet or Arrow file; unpack it if",
    ),
    "Parquet, gzipped": (
        "x.gz",
        words(gzip.compress(bytes(FRAME.to_parquet()))),
        "a Parquet or Arrow file",
    ),
    "CSV named Parquet": ("x.parquet", words(TEXT), "the name of a CSV file must end in .csv"),
    "a web page": ("x.csv", words("<!DOCTYPE html>\n<p>404"), "it is a web page; download the"),
    "JSON named CSV": ("x.csv", words('[{"a":1}]'), "it is JSON; convert it by"),
    "JSON lines": ("x.jsonl", words('{"a":1}\n'), "pandas.read_json(…, lines=True)"),
    "a pointe": ("x.npy", words("version https://git-lfs.github.com/spec/v1\n"), "git lfs pull"),
    "a spreadsheet named CSV": ("x.csv", words(b"PK\3\4" + bytes(99)), "it is an archive"),
}


@pytest.mark.parametrize(("name", "write", "cause"), REFUSED.values(), ids=REFUSED.keys())
def test_every_door_refuses_what_is_no_table_of_numbers(
    bundle: Bundle, tmp_path: Path, name: str, write: Callable[[Path], object], cause: str
) -> None:
    path = tmp_path / name
    write(path)
    with pytest.raises(DataRefused) as caught:
        read_source(str(path))
    for error in (caught.value, score(path, bundle)[0].exception):
        assert isinstance(error, VaeError)
        assert cause in str(error)
        assert len(str(error)) < 300 + len(str(path))


FAR = FRAME.assign(b=np.where(np.arange(len(X)) == 7, 1e20, FRAME["b"]))
CELLS: dict[str, Callable[[Path, pd.DataFrame], object]] = {
    "x.csv": lambda path, frame: frame.to_csv(path, index=False),
    "x.parquet": lambda path, frame: frame.to_parquet(path),
    "x.npy": lambda path, frame: np.save(path, frame.to_numpy()),
}


@pytest.mark.parametrize("name", CELLS)
def test_a_far_cell_is_named_before_training_and_at_scoring(
    bundle: Bundle, tmp_path: Path, name: str
) -> None:
    path = tmp_path / name
    CELLS[name](path, FAR)
    result = invoke("train", "--data", path, "--epochs", 1, "--threads", 1)
    assert result.exit_code == 1  # click's runner; the command line makes it 3
    assert isinstance(result.exception, DataRefused)
    feature = "feature 1" if name == "x.npy" else "column 'b'"
    assert f"{feature} holds 1e+20 in row 7" in str(result.exception)
    result, _ = score(path, bundle)
    assert isinstance(result.exception, DataRefused)
    assert "row 7: the result is not finite" in str(result.exception)
    result, out = score(path, bundle, *ASIDE)
    assert result.exit_code == 0, result.output
    found = dataset.dataset(out).to_table()
    assert found.column("row").to_pylist() == [row for row in range(len(X)) if row != 7]
    assert np.isfinite(found.column("elbo").to_numpy()).all()


@pytest.mark.parametrize("split", ["train", "test"])
def test_a_far_cell_of_any_set_is_named(tmp_path: Path, split: str) -> None:
    sets = {f"x_{name}": FAR if name == split else FRAME for name in ("train", "test")}
    arrays = {name: frame.to_numpy() for name, frame in sets.items()}
    np.savez(tmp_path / "x.npz", allow_pickle=False, **arrays)
    with pytest.raises(DataRefused, match=r"feature 1 holds 1e\+20 in row 7"):
        load_dataset(str(tmp_path / "x.npz"), valid_fraction=0.1, test_fraction=0.2)


LARGE = FRAME.assign(b=2**40 + np.arange(len(X)))


@pytest.mark.parametrize("name", ["x.parquet", "x.csv"])
def test_whole_numbers_beyond_float32_are_refused_by_name(
    trained: Trained, bundle: Bundle, tmp_path: Path, name: str
) -> None:
    path = tmp_path / name
    LARGE.to_csv(path, index=False) if name == "x.csv" else LARGE.to_parquet(path)
    for door in (read_source, lambda source: rows_to_evaluate(trained[0], source)):
        with pytest.raises(DataRefused, match="column 'b' must be whole numbers") as caught:
            door(str(path))
        assert len(str(caught.value)) < 300 + len(str(path))
    for result, _ in (score(path, bundle), reconstruct(path, bundle)):
        assert isinstance(result.exception, DataRefused)
        assert "x is a whole number that float32 would round" in str(result.exception)


def test_rows_that_float32_would_round_are_set_aside(bundle: Bundle, tmp_path: Path) -> None:
    """Every fourth of these numbers is one that float32 holds."""
    table = FRAME.assign(a=2**26 + 2 * np.arange(len(X)), b=1, c=1)
    table.to_parquet(tmp_path / "x.parquet")
    reason = "x is a whole number that float32 would round in row 1"
    for result, _ in (
        score(tmp_path / "x.parquet", bundle),
        reconstruct(tmp_path / "x.parquet", bundle),
    ):
        assert isinstance(result.exception, DataRefused)
        assert reason.split(" in ")[0] in str(result.exception)
    result, out = score(tmp_path / "x.parquet", bundle, *ASIDE)
    assert result.exit_code == 0, result.output
    assert dataset.dataset(out).to_table().column("row").to_pylist() == [*range(0, len(X), 4)]
    for frame in (table, LARGE):
        with pytest.raises(ValueError, match="whole numbers that float32 holds exactly"):
            load_model(bundle).predict(None, frame)


GAPS = FRAME.assign(b=np.where(np.arange(len(X)) % 8 == 3, np.nan, FRAME["b"]))


@pytest.mark.parametrize("name", ["x.parquet", "x.csv", "x.npy"])
def test_rows_with_gaps_are_refused_or_left_out(bundle: Bundle, tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    if name == "x.npy":
        np.save(path, np.ascontiguousarray(GAPS.to_numpy(np.float64)))
    else:
        GAPS.to_csv(path, index=False) if name == "x.csv" else GAPS.to_parquet(path)
    with pytest.raises(DataRefused, match="--drop-missing"):
        load_dataset(str(path), valid_fraction=0, test_fraction=0.2)
    kept = np.arange(len(X)) % 8 != 3
    found = load_dataset(str(path), valid_fraction=0, test_fraction=0.2, drop_missing=True)
    x = np.concatenate([found.train.x, found.test.x])
    assert sorted(map(tuple, x.tolist())) == sorted(map(tuple, X[kept].astype(np.float32).tolist()))
    result, out = score(path, bundle, *ASIDE)
    assert result.exit_code == 0, result.output
    rows = dataset.dataset(out).to_table().column("row").to_pylist()
    assert rows == np.flatnonzero(kept).tolist()
    result, _ = reconstruct(path, bundle)
    assert isinstance(result.exception, DataRefused)


def test_labels_stay_beside_their_rows_when_some_are_left_out(tmp_path: Path) -> None:
    GAPS.assign(kind=np.arange(len(X))).to_parquet(tmp_path / "x.parquet")
    part = read_source(
        str(tmp_path / "x.parquet"), Selection(label="kind", drop_missing=True)
    ).train
    np.testing.assert_array_equal(part.x, X[part.labels].astype(np.float32))


def test_a_key_of_folders_serves_as_label_feature_id_and_filter(
    bundle: Bundle, tmp_path: Path
) -> None:
    write_folders(tmp_path / "x")
    labels = read_source(str(tmp_path / "x"), Selection(label="split")).train.labels
    assert labels is not None
    assert labels.tolist() == ["a"] * 20 + ["b"] * 20
    result, out = score(tmp_path / "x", bundle, "--id", "split", "--where", "split == 'b'")
    assert result.exit_code == 0, result.output
    assert dataset.dataset(out).to_table().column("split").to_pylist() == ["b"] * 20


def test_dates_and_words_are_refused_by_name(tmp_path: Path) -> None:
    when = pd.date_range("2026-01-01", periods=len(X), freq="h")
    FRAME.assign(when=when, word="x").to_parquet(tmp_path / "x.parquet")
    with pytest.raises(DataRefused, match=r"when \(timestamp\[.*\]\), word \((large_)?string\)"):
        read_source(str(tmp_path / "x.parquet"))
    with pytest.raises(UsageRefused, match="no column 'd'; it has a"):
        read_source(str(tmp_path / "x.parquet"), Selection(columns=("d",)))
