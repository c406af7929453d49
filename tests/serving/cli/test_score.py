import fcntl
import json
import os
from pathlib import Path

import pyarrow as pa
import pytest
from click.testing import CliRunner, Result

from serving.cli.score import score
from serving.engine import Engine
from serving.errors import UsageRefused
from tests.serving.batch.jobs import ROWS, StopAt, names, read, run
from tests.serving.conftest import SEALED

pytestmark = pytest.mark.usefixtures("small_parts")


def vae_score(*arguments: object) -> Result:
    return CliRunner().invoke(score, [*map(str, arguments), "--model", str(SEALED)])


def test_a_finished_job_is_not_done_again(batch_data: Path, tmp_path: Path) -> None:
    first = vae_score(batch_data / "x.parquet", tmp_path / "out")
    again = vae_score(batch_data / "x.parquet", tmp_path / "out", "--workers", 1, "--batch-size", 9)
    assert (first.exit_code, again.exit_code) == (0, 0)
    said = [json.loads(result.stdout.splitlines()[-1]) for result in (first, again)]
    assert said[0] == said[1]
    assert list(said[0]) == ["out", "rows", "rows_per_s", "bad", "version", "digest"]
    assert again.stderr == f"{tmp_path / 'out'} is finished already: nothing to do\n"


def test_a_filter_that_lets_no_row_through_is_told(batch_data: Path, tmp_path: Path) -> None:
    output = tmp_path / "out"
    result = vae_score(batch_data / "x.parquet", output, "--id", "id", "--where", "id < 0")
    assert result.exit_code == 0
    assert json.loads(result.stdout)["rows"] == 0
    assert result.stderr == f"--where 'id < 0' matches no row: {output} has none\n"


def test_another_job_is_refused_until_it_may_overwrite(batch_data: Path, tmp_path: Path) -> None:
    output = tmp_path / "out"
    vae_score(batch_data / "x.parquet", output)
    before = {name: (output / name).read_bytes() for name in names(output)}
    refused = vae_score(batch_data / "x.parquet", output, "--seed", 1)
    assert isinstance(refused.exception, UsageRefused)
    assert str(refused.exception) == (
        f"{output} is the output of another job, which differs in seed: "
        "name another folder, or replace it by --overwrite"
    )
    assert {name: (output / name).read_bytes() for name in names(output)} == before
    assert vae_score(batch_data / "x.parquet", output, "--seed", 1, "--overwrite").exit_code == 0
    assert set(read(output).column("seed").to_pylist()) == {1}
    assert os.listdir(tmp_path) == ["out"]


def test_a_job_that_fails_to_overwrite_leaves_the_old_output(
    engine: Engine, whole: pa.Table, batch_data: Path, tmp_path: Path
) -> None:
    output = tmp_path / "out"
    run(engine, batch_data / "x.parquet", output)
    stop = StopAt(1000, KeyboardInterrupt())
    with pytest.raises(KeyboardInterrupt):
        run(engine, batch_data / "x.parquet", output, seed=8, overwrite=True, advance=stop)
    assert read(output).equals(whole)
    done: list[int] = []
    run(engine, batch_data / "x.parquet", output, seed=8, overwrite=True, advance=done.append)
    assert sum(done) == ROWS - 800  # it went on
    assert set(read(output).column("seed").to_pylist()) == {8}


def test_an_input_that_changed_is_another_job(
    engine: Engine, batch_data: Path, tmp_path: Path
) -> None:
    source = tmp_path / "x.parquet"
    source.write_bytes((batch_data / "x.parquet").read_bytes())
    run(engine, source, tmp_path / "out")
    os.utime(source, ns=(0, 0))
    with pytest.raises(UsageRefused, match="another job, which differs in files:"):
        run(engine, source, tmp_path / "out")


def test_a_folder_of_other_files_is_never_taken(batch_data: Path, tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("mine")
    for more in ([], ["--overwrite"]):
        result = vae_score(batch_data / "x.parquet", tmp_path, *more)
        assert isinstance(result.exception, UsageRefused)
        assert f"{tmp_path} holds 'mine.txt', but no _job.json" in str(result.exception)
    assert names(tmp_path) == ["mine.txt"]


def test_a_folder_that_another_process_writes_to_is_refused(
    batch_data: Path, tmp_path: Path
) -> None:
    handle = os.open(tmp_path, os.O_RDONLY)
    fcntl.flock(handle, fcntl.LOCK_EX)
    try:
        result = vae_score(batch_data / "x.parquet", tmp_path)
    finally:
        os.close(handle)
    assert str(result.exception) == f"another process is writing to {tmp_path}"
    assert vae_score(batch_data / "x.parquet", tmp_path).exit_code == 0


@pytest.mark.parametrize("place", ["/dev/null/out", "file"], ids=["no place", "a file"])
def test_an_output_that_cannot_be_is_refused(batch_data: Path, tmp_path: Path, place: str) -> None:
    (tmp_path / "file").write_text("")
    result = vae_score(batch_data / "x.parquet", tmp_path / place)
    assert isinstance(result.exception, UsageRefused)
    assert str(tmp_path / place) in str(result.exception)
