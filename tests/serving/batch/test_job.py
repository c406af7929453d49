import json
import os
import resource
import threading
from collections.abc import Callable, Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image
from pyarrow import csv, dataset, parquet

from serving.batch import job
from serving.batch.job import Limit, parse_limit
from serving.engine import Engine
from serving.errors import DataRefused, UsageRefused, VaeError
from tests.serving.batch.jobs import ROWS, Array, StopAt, damage, names, read, replace, run

pytestmark = pytest.mark.usefixtures("small_parts")


def test_the_output_is_the_engines_scores_row_for_row(
    whole: pa.Table, engine: Engine, x: Array
) -> None:
    assert whole.column("id").to_pylist() == list(range(ROWS))
    for name, value in engine.score(x, 4, 7).items():
        assert whole.column(name).to_numpy().tobytes() == value.tobytes()
    assert set(whole.column("digest").to_pylist()) == {engine.bundle.manifest.digest}


@pytest.mark.parametrize(
    ("location", "workers", "batch_rows"),
    [
        ("x.parquet", 2, 1),
        ("x.parquet", 1, 7),
        ("x.parquet", 1, 4096),
        ("many", 2, 4096),
        ("many", 1, 7),
    ],
)
def test_the_output_does_not_depend_on_batches_workers_or_files(
    engine: Engine,
    whole: pa.Table,
    batch_data: Path,
    tmp_path: Path,
    location: str,
    workers: int,
    batch_rows: int,
) -> None:
    run(engine, batch_data / location, tmp_path / "out", workers=workers, batch_rows=batch_rows)
    assert read(tmp_path / "out").equals(whole)


def test_a_folder_of_pictures_gets_the_same_scores(
    engine: Engine, whole: pa.Table, x: Array, tmp_path: Path
) -> None:
    (tmp_path / "in").mkdir()
    for index, row in enumerate(x[:20]):
        Image.fromarray(row).save(tmp_path / "in" / f"{index:02d}.png")
    run(engine, tmp_path / "in", tmp_path / "out", ids=())
    found = read(tmp_path / "out")
    assert found.column("file").to_pylist() == [f"{index:02d}.png" for index in range(20)]
    assert found.column("elbo").equals(whole.column("elbo").slice(0, 20))


def test_a_csv_gets_the_same_scores(
    engine: Engine, whole: pa.Table, x: Array, tmp_path: Path
) -> None:
    pixels = {f"p{index}": x[:20].reshape(20, -1)[:, index] for index in range(30)}
    ids = [f"{index:03d}" for index in range(20)]
    csv.write_csv(pa.table({"id": ids, **pixels}), tmp_path / "x.csv")
    run(engine, tmp_path / "x.csv", tmp_path / "out")
    found = read(tmp_path / "out")
    assert found.column("id").to_pylist() == [f"{index:03d}" for index in range(20)]
    assert found.column("elbo").equals(whole.column("elbo").slice(0, 20))


def test_a_folder_of_parts_says_what_it_is(
    engine: Engine, batch_data: Path, tmp_path: Path
) -> None:
    summary = run(engine, batch_data / "x.parquet", tmp_path / "out")
    parts = [f"part-0000{index}.parquet" for index in range(7)]
    assert names(tmp_path / "out") == ["_SUCCESS", "_job.json", "_summary.json", *parts]
    assert (summary.rows, summary.bad, summary.parts) == (ROWS, 0, 7)
    said = json.loads((tmp_path / "out" / "_summary.json").read_text())
    assert (said["rows"], said["bad"], said["seed"]) == (ROWS, 0, 7)
    assert said["digest"] == engine.bundle.manifest.digest
    job = json.loads((tmp_path / "out" / "_job.json").read_text())
    assert job["files"][0]["bytes"] == (batch_data / "x.parquet").stat().st_size
    assert (job["operation"], job["x"], job["ids"]) == ("score", ["x"], ["id"])


def test_a_filter_leaves_parts_of_any_size(
    engine: Engine, whole: pa.Table, batch_data: Path, tmp_path: Path
) -> None:
    run(engine, batch_data / "x.parquet", tmp_path / "out", where="id >= 1100 and id < 1103")
    assert len(list((tmp_path / "out").glob("part-*"))) == 7
    assert read(tmp_path / "out").equals(whole.slice(1100, 3))


def test_wide_rows_are_read_in_small_batches(
    engine: Engine, batch_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(job, "BATCH_BYTES", 30 * 50)
    sizes: list[int] = []
    run(engine, batch_data / "x.parquet", tmp_path / "out", batch_rows=4096, advance=sizes.append)
    assert (max(sizes), sum(sizes)) == (50, ROWS)


def test_an_interrupted_job_ends_its_threads_at_once(
    engine: Engine, batch_data: Path, tmp_path: Path
) -> None:
    """Not when the memory of its frames, which the error holds, is collected."""
    stop = StopAt(1200, KeyboardInterrupt())
    with pytest.raises(KeyboardInterrupt) as caught:
        run(engine, batch_data / "x.parquet", tmp_path / "out", advance=stop)
    assert caught.tb
    assert not [each for each in threading.enumerate() if each.name.startswith("score")]


@pytest.mark.parametrize("row", [0, 390, 1200, ROWS - 1])
def test_an_interrupted_job_leaves_whole_parts_and_goes_on(
    engine: Engine, whole: pa.Table, batch_data: Path, tmp_path: Path, row: int
) -> None:
    output = tmp_path / "out"
    with pytest.raises(KeyboardInterrupt):
        run(engine, batch_data / "x.parquet", output, advance=StopAt(row, KeyboardInterrupt()))
    parts = sorted(output.glob("part-*"))
    assert names(output) == ["_job.json", *(path.name for path in parts)]
    assert len(parts) == row // 400
    assert sum(parquet.read_metadata(path).num_rows for path in parts) == 400 * len(parts)
    times = [path.stat().st_mtime_ns for path in parts]
    skipped: list[int] = []
    summary = run(engine, batch_data / "x.parquet", output, skip=skipped.append)
    assert sum(skipped) == 400 * len(parts)
    assert [path.stat().st_mtime_ns for path in parts] == times
    assert (summary.rows, summary.parts) == (ROWS, 7)
    assert read(output).equals(whole)


@pytest.mark.parametrize("change", [damage, replace, Path.unlink], ids=["cut", "other's", "gone"])
def test_a_part_that_is_not_this_jobs_is_made_again(
    engine: Engine,
    whole: pa.Table,
    batch_data: Path,
    tmp_path: Path,
    change: Callable[[Path], object],
) -> None:
    output = tmp_path / "out"
    run(engine, batch_data / "x.parquet", output)
    (output / "_SUCCESS").unlink()
    for index in (1, 2, 5):
        change(output / f"part-0000{index}.parquet")
    done: list[int] = []
    run(engine, batch_data / "x.parquet", output, advance=done.append)
    assert sum(done) == 3 * 400
    assert read(output).equals(whole)


def test_a_part_that_is_changed_meanwhile_is_found_before_the_end(
    engine: Engine, batch_data: Path, tmp_path: Path
) -> None:
    output = tmp_path / "out"
    left = [ROWS]

    def change_at_the_end(rows: int) -> None:
        left[0] -= rows
        if left[0] == 0:
            replace(output / "part-00002.parquet")

    with pytest.raises(VaeError, match=r"part-00002\.parquet was changed meanwhile"):
        run(engine, batch_data / "x.parquet", output, advance=change_at_the_end)
    assert not (output / "_SUCCESS").exists()


@pytest.fixture
def small_files() -> Iterator[None]:
    """No file may grow beyond 6 kB, as on a full disk."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (6_000, hard))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.usefixtures("small_files")
def test_a_full_disk_ends_the_job_without_a_half_part(
    engine: Engine, batch_data: Path, tmp_path: Path
) -> None:
    """The first part is smaller than the others: the filter leaves it few rows."""
    output = tmp_path / "out"
    with pytest.raises(VaeError) as caught:
        run(engine, batch_data / "x.parquet", output, where="id >= 390")
    assert str(caught.value).startswith(f"cannot write {output}/part-00001.parquet: ")
    assert "File too large" in str(caught.value)
    assert caught.value.exit_code == 1
    assert names(output) == ["_job.json", "part-00000.parquet"]
    assert read(output).num_rows == 10


@pytest.fixture
def spoilt(tmp_path: Path, x: Array) -> Path:
    """Rows 3, 1234 and 1235 are bad."""
    lists: list[Any] = x.reshape(ROWS, 30).astype(float).tolist()
    lists[3], lists[1234], lists[1235][7] = lists[3][:-1], None, float("nan")
    columns = pa.table({"x": pa.array(lists, pa.list_(pa.float32())), "id": np.arange(ROWS)})
    parquet.write_table(columns, tmp_path / "spoilt.parquet")
    return tmp_path / "spoilt.parquet"


def test_the_first_bad_row_ends_a_job(engine: Engine, spoilt: Path, tmp_path: Path) -> None:
    with pytest.raises(DataRefused) as caught:
        run(engine, spoilt, tmp_path / "out", ids=())
    assert str(caught.value) == (
        "bad row, file 'spoilt.parquet', row 3: x has the wrong size; "
        "set such rows aside by --on-error quarantine"
    )
    assert names(tmp_path / "out") == ["_job.json"]


def test_bad_rows_are_set_aside_with_their_reasons(
    engine: Engine, whole: pa.Table, spoilt: Path, tmp_path: Path
) -> None:
    """After the job failed on the first of them: `--on-error` may change between runs."""
    output = tmp_path / "out"
    with pytest.raises(DataRefused):
        run(engine, spoilt, output)
    summary = run(engine, spoilt, output, on_error="quarantine", limit=Limit(3))
    assert (summary.rows, summary.bad) == (ROWS - 3, 3)
    good = [row for row in range(ROWS) if row not in (3, 1234, 1235)]
    assert read(output).equals(whole.take(good))
    aside = output / "_quarantine"
    assert sorted(os.listdir(aside)) == ["part-00000.parquet", "part-00003.parquet"]
    assert dataset.dataset(aside / "part-00003.parquet").to_table().to_pylist() == [
        {"id": 1234, "reason": "x is null, or holds a null"},
        {"id": 1235, "reason": "x is not a whole number from 0 to 255"},
    ]


def test_bad_files_of_the_names_of_pictures_are_set_aside(
    engine: Engine, x: Array, tmp_path: Path
) -> None:
    (tmp_path / "in").mkdir()
    Image.fromarray(x[0]).save(tmp_path / "in" / "a.png")
    whole = (tmp_path / "in" / "a.png").read_bytes()
    for name, content in {"cut.png": whole[:40], "empty.PNG": b"", "text.jpeg": b"hi"}.items():
        (tmp_path / "in" / name).write_bytes(content)
    run(engine, tmp_path / "in", tmp_path / "out", ids=(), on_error="quarantine", limit=Limit(3))
    assert read(tmp_path / "out").column("file").to_pylist() == ["a.png"]
    assert dataset.dataset(tmp_path / "out" / "_quarantine").to_table().to_pylist() == [
        {
            "file": name,
            "row": 0,
            "reason": "x is not an opaque 8-bit image of the model's size and colours",
        }
        for name in ("cut.png", "empty.PNG", "text.jpeg")
    ]


@pytest.mark.parametrize("limit", ["2", "0.11%", "0"])
def test_too_many_bad_rows_fail_the_job_and_more_may_be_allowed_later(
    engine: Engine, spoilt: Path, tmp_path: Path, limit: str
) -> None:
    output = tmp_path / "out"
    with pytest.raises(DataRefused, match=r"rows are bad, more than --max-bad allows"):
        run(engine, spoilt, output, on_error="quarantine", limit=parse_limit(limit))
    assert not (output / "_SUCCESS").exists()
    assert run(engine, spoilt, output, on_error="quarantine", limit=parse_limit("0.12%")).bad == 3


def test_a_share_is_of_the_rows_that_the_filter_leaves(
    engine: Engine, spoilt: Path, tmp_path: Path
) -> None:
    settings: dict[str, Any] = {"where": "id < 10", "on_error": "quarantine"}
    with pytest.raises(DataRefused, match="1 of 10 rows are bad"):
        run(engine, spoilt, tmp_path / "out", **settings, limit=Limit(share=Fraction(9, 100)))
    run(engine, spoilt, tmp_path / "out", **settings, limit=Limit(share=Fraction(1, 10)))


@pytest.mark.parametrize("text", ["", "-1", "1.5", "101%", "5 %%", "x", "nan%"])
def test_a_limit_that_is_none_is_refused(text: str) -> None:
    with pytest.raises(UsageRefused, match="--max-bad must be a number of rows or a share"):
        parse_limit(text)


def test_a_limit_is_a_number_or_a_share() -> None:
    assert (parse_limit("7"), parse_limit("2.5%")) == (Limit(7), Limit(share=Fraction(1, 40)))
    assert Limit(2).allows(2, 2)
    assert not Limit(2).allows(3, 10**9)
    assert Limit(share=Fraction(1, 2)).allows(2, 4)
    assert not Limit(share=Fraction(1, 2)).allows(3, 4)
