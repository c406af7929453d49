"""`vae sample` into a folder: the samples of the engine and the server, in parts that resume."""

import json
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner, Result
from pyarrow import csv, parquet

from serving.batch import job
from serving.batch.output import open_output
from serving.batch.sampler import RowNumbers, Sampler, describe_samples
from serving.batch.scorer import provenance_of
from serving.bundle import Bundle
from serving.cli.sample import sample
from serving.client import Client
from serving.engine import Engine
from serving.errors import UsageRefused
from serving.source import Source
from tests.serving.batch.jobs import StopAt, damage, names, read
from tests.serving.conftest import SEALED
from tests.serving.running import Running

pytestmark = pytest.mark.usefixtures("small_parts")

COUNT = 2100
SEED = 7


def vae_sample(*arguments: object) -> Result:
    return CliRunner().invoke(sample, [*map(str, arguments), "--model", str(SEALED)])


def fill(out: Path, *arguments: object) -> Result:
    return vae_sample("--out", out, "--count", COUNT, "--seed", SEED, *arguments)


def samples(folder: Path) -> np.ndarray:
    column = read(folder).column("x_loc").combine_chunks()
    values: np.ndarray = column.flatten().to_numpy().reshape(len(column), 6, 5)
    return values


def test_the_folder_holds_the_samples_of_the_engine_in_order(
    engine: Engine, tmp_path: Path
) -> None:
    result = fill(tmp_path / "out", "--format", "parquet", "--threads", 2)
    assert result.exit_code == 0, result.output
    said = json.loads(result.stdout.splitlines()[-1])
    assert (said["out"], said["rows"]) == (str(tmp_path / "out"), COUNT)
    table = read(tmp_path / "out")
    assert table.column("row").to_pylist() == list(range(COUNT))
    assert samples(tmp_path / "out").tobytes() == engine.sample(COUNT, SEED).tobytes()
    assert set(table.column("seed").to_pylist()) == {SEED}
    assert set(table.column("digest").to_pylist()) == {engine.bundle.manifest.digest}
    assert "_SUCCESS" in names(tmp_path / "out")


@pytest.mark.parametrize("out", ["rows.csv", "rows.CSV", "rows.parquet", "folder"])
def test_samples_of_a_table_have_its_columns(
    named: Bundle, engine: Engine, tmp_path: Path, out: str
) -> None:
    arguments = ["--out", tmp_path / out, "--count", 9, "--model", named.path]
    result = CliRunner().invoke(sample, [*map(str, arguments)])
    assert result.exit_code == 0, result.output
    table = (
        csv.read_csv(tmp_path / out)
        if out.lower().endswith(".csv")
        else parquet.read_table(tmp_path / out)
    )
    features = table.select(named.manifest.columns)
    values = np.stack([column.to_numpy() for column in features.columns], 1).astype(np.float32)
    assert values.tobytes() == engine.sample(9, 0).tobytes()
    others = [name for name in table.schema.names if name not in features.schema.names]
    made_by = ["row_", "model_", "version", "digest", "seed", "num_samples"]
    assert others == (made_by if out == "folder" else [])


def test_the_samples_are_those_of_the_server(server: Running, tmp_path: Path) -> None:
    fill(tmp_path / "out")
    with Client(server.rest) as client:
        online = client.sample(40, seed=SEED)
    assert samples(tmp_path / "out")[:40].tobytes() == online.tobytes()


def test_bytes_are_equal_for_any_batches_and_threads(tmp_path: Path, engine: Engine) -> None:
    sampler = Sampler(engine, provenance_of(Source(engine.bundle), SEED, 1))
    found = []
    for rows, workers in ((1, 1), (7, 2), (4096, 2)):
        out = tmp_path / f"{rows}"
        with open_output(str(out), describe_samples(sampler, 500), overwrite=False) as folder:
            job.run_job(sampler, RowNumbers(500), folder, workers=workers, batch_rows=rows)
        found.append(read(out))
    assert found[0].equals(found[1])
    assert found[0].equals(found[2])


def test_what_was_cut_short_or_damaged_is_made_again_and_nothing_else(
    tmp_path: Path, engine: Engine
) -> None:
    fill(tmp_path / "whole")
    sampler = Sampler(engine, provenance_of(Source(engine.bundle), SEED, 1))
    out = tmp_path / "out"
    samples = describe_samples(sampler, COUNT)
    stop = StopAt(1000, KeyboardInterrupt())
    with (
        open_output(str(out), samples, overwrite=False) as folder,
        pytest.raises(KeyboardInterrupt),
    ):
        job.run_job(sampler, RowNumbers(COUNT), folder, workers=1, batch_rows=64, advance=stop)
    assert "_SUCCESS" not in names(out)
    kept = out / "part-00000.parquet"
    damage(out / "part-00001.parquet")
    before = kept.stat().st_mtime_ns
    assert fill(out).exit_code == 0
    assert kept.stat().st_mtime_ns == before
    assert read(out).equals(read(tmp_path / "whole"))
    assert fill(out).stderr == f"{out} is finished already: nothing to do\n"


@pytest.mark.parametrize("changed", [("--seed", 8), ("--count", COUNT + 1)], ids=["seed", "count"])
def test_other_samples_are_refused_in_the_same_folder(
    changed: tuple[object, ...], tmp_path: Path
) -> None:
    fill(tmp_path / "out")
    refused = fill(tmp_path / "out", *changed)
    assert isinstance(refused.exception, UsageRefused)
    assert f"differs in {str(changed[0])[2:]}" in str(refused.exception)
    assert fill(tmp_path / "out", *changed, "--overwrite").exit_code == 0


@pytest.mark.parametrize(
    ("out", "kind", "message"),
    [
        ("folder", "npy", "a folder takes --format parquet, got 'npy'"),
        ("folder.d/", "png", "a folder takes --format parquet, got 'png'"),
        ("rows.npy", "parquet", "is not a parquet file: end it in .parquet, or in / for a folder"),
        ("rows.txt", None, "--out must end in .png, .npy, .parquet, .csv"),
    ],
    ids=["folder as npy", "folder as png", "file of another kind", "unknown file"],
)
def test_a_target_that_does_not_fit_its_format_is_refused(
    out: str, kind: str | None, message: str
) -> None:
    format_ = [] if kind is None else ["--format", kind]
    result = vae_sample("--out", out, *format_)
    assert isinstance(result.exception, UsageRefused)
    assert message in str(result.exception)


def test_a_file_of_more_than_memory_is_refused_at_once(tmp_path: Path) -> None:
    result = vae_sample("--out", tmp_path / "rows.npy", "--count", 10**12)
    assert isinstance(result.exception, UsageRefused)
    assert str(result.exception).startswith(
        "1,000,000,000,000 samples in a file take 2.4e+05 GB of memory, but this machine has "
    )
    assert str(result.exception).endswith("name a folder by --out, which is filled part by part")


@pytest.mark.parametrize("name", ["rows.npy", "rows.parquet", "ROWS.NPY", "ROWS.Parquet"])
def test_a_file_holds_the_same_rows(name: str, tmp_path: Path, engine: Engine) -> None:
    result = vae_sample("--out", tmp_path / name, "--count", 9, "--seed", SEED)
    assert result.exit_code == 0, result.output
    path = tmp_path / name
    if path.suffix.lower() == ".npy":
        found = np.load(path)
    else:
        found = np.stack(parquet.read_table(path)["x_loc"].to_numpy(zero_copy_only=False))
    assert found.tobytes() == engine.sample(9, SEED).tobytes()


def test_help_says_how_a_folder_is_asked_for() -> None:
    words = CliRunner().invoke(sample, ["--help"]).output
    assert "a path or URI without a suffix, or ending in /, is a folder" in " ".join(words.split())
