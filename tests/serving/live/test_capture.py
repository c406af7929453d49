"""Captured rows: whole files, within bounds, that `vae score` reads back to the same bytes."""

import os
import resource
import shutil
import tracemalloc
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from pyarrow import parquet

from serving.batch.scorer import Scorer, provenance_of
from serving.bundle import Bundle, open_bundle
from serving.engine import Engine
from serving.errors import UsageRefused
from serving.io.filesystems import find_files
from serving.io.rows import Rows
from serving.live import capture as capture_module
from serving.live.capture import Capture
from serving.live.options import check_capture
from serving.live_rows import LiveRows
from serving.source import Source
from serving.table_cells import TableEncoder
from tests.mixed_rows import draw_table, with_oddities
from tests.serving.conftest import MIXED
from tests.serving.live.requests import answered, capture_options


def parts(folder: Path) -> list[Path]:
    return sorted(folder.glob("captured-*.parquet"))


def keep(folder: Path, bundle: Bundle, requests: list[LiveRows], **options: object) -> pa.Table:
    capture = Capture(capture_options(folder, **options))
    capture.begin(bundle)
    for each in requests:
        capture.add(each)
    capture.finish()
    assert capture.status().fault is None
    return parquet.read_table(folder)


def score_again(folder: Path, engine: Engine, seed: int, num_samples: int) -> pa.Table:
    """Score captured rows as `vae score --where` does."""
    where = f"vae_operation == 'score' and vae_seed == {seed} and vae_num_samples == {num_samples}"
    rows = Rows(str(folder), ("vae_request", "vae_row", "vae_answer_elbo"), where)
    source = provenance_of(Source(engine.bundle), seed, num_samples)
    scorer = Scorer(engine, source, "score", rows.schema, ids=rows.ids)
    tables = []
    for batch in rows.read(0, rows.total, scorer.x, 1000):
        results, bad = scorer(rows.keep(batch))
        assert not bad.num_rows
        tables.append(results)
    return pa.Table.from_batches(tables)


@pytest.fixture(scope="module")
def mixed() -> Engine:
    return Engine(open_bundle(MIXED))


def test_captured_and_scored_again_gives_the_same_bytes(
    tmp_path: Path, engine: Engine, x: np.ndarray
) -> None:
    requests = [
        answered(engine, "score", x[:40], seed=3),
        answered(engine, "score", x[40:50], seed=4, num_samples=2),
        answered(engine, "encode", x[50:60]),
        answered(engine, "reconstruct", x[60:70]),
        answered(engine, "score", x[70:75], seed=4, num_samples=2),
    ]
    table = keep(tmp_path / "captured", engine.bundle, requests)
    assert table.num_rows == 75
    for seed, draws, rows in ((3, 1, 40), (4, 2, 15)):
        again = score_again(tmp_path / "captured", engine, seed, draws)
        assert again.num_rows == rows
        first = again.column("vae_answer_elbo").to_numpy()
        assert again.column("elbo").to_numpy().tobytes() == first.tobytes()
    kept = table.filter(pa.compute.equal(table["vae_operation"], "reconstruct"))
    answer = np.array(kept["vae_answer_x_loc"].to_pylist(), np.float32)
    assert answer.tobytes() == requests[3].outputs["x_loc"].tobytes()


def test_rows_of_a_mixed_table_are_kept_in_its_own_columns(tmp_path: Path, mixed: Engine) -> None:
    schema = mixed.bundle.manifest.schema
    assert schema is not None
    table = with_oddities(draw_table(60, 5))
    arrays = {name: np.array(table[name].to_pylist(), object) for name in schema.sources}
    x = TableEncoder(schema).encode_arrays(arrays).x
    requests = [answered(mixed, "score", x, seed=2), answered(mixed, "impute", x, seed=2)]
    kept = keep(tmp_path / "captured", mixed.bundle, requests)
    assert kept.num_rows == 120
    assert {*schema.sources} <= {*kept.column_names}
    assert kept["opened"].type == pa.date32()
    assert kept["visits"].type == pa.int64()
    assert kept["colour"].to_pylist()[0] == table["colour"].to_pylist()[0]
    again = score_again(tmp_path / "captured", mixed, 2, 1)
    assert (
        again.column("elbo").to_numpy().tobytes()
        == again.column("vae_answer_elbo").to_numpy().tobytes()
    )


def test_an_x_that_no_table_has_is_left_out(tmp_path: Path, mixed: Engine) -> None:
    x = mixed.bundle.golden()["score.x"][:2].copy()
    schema = mixed.bundle.manifest.schema
    assert schema is not None
    place = next(n for n, column in enumerate(schema.columns) if column.kind == "category")
    x[0, place] = 0.25  # no code of a word
    kept = keep(tmp_path / "captured", mixed.bundle, [answered(mixed, "encode", x)])
    assert kept["vae_row"].to_pylist() == [1]


@pytest.mark.parametrize("value", [1e10, -5, 3e38, -3e38])
def test_a_number_that_is_no_code_of_a_word_is_left_out_and_harms_no_other_row(
    tmp_path: Path, mixed: Engine, value: float
) -> None:
    x = mixed.bundle.golden()["score.x"][:2].copy()
    schema = mixed.bundle.manifest.schema
    assert schema is not None
    x[0, [bool(column.words) for column in schema.columns]] = value
    kept = keep(tmp_path / "captured", mixed.bundle, [answered(mixed, "encode", x)])
    assert kept["vae_row"].to_pylist() == [1]


def test_columns_are_left_out_and_hashed_in_rows_and_in_answers(
    tmp_path: Path, mixed: Engine
) -> None:
    x = mixed.bundle.golden()["score.x"]
    options = {"left_out": frozenset(["income"]), "hashed": {"colour": b"key"}}
    requests = [answered(mixed, "reconstruct", x)]
    kept = keep(tmp_path / "captured", mixed.bundle, requests, **options)
    assert "income" not in kept.column_names
    words = [each for each in kept["colour"].to_pylist() if each is not None]
    assert words
    assert all(len(each) == 64 for each in words)
    schema = mixed.bundle.manifest.schema
    assert schema is not None
    answers = np.array(kept["vae_answer_x_loc"].to_pylist())
    for place, column in enumerate(schema.columns):
        hidden = column.table_column in ("income", "colour")
        assert np.isnan(answers[:, place]).all() == hidden, column.name


def test_a_column_that_the_model_lacks_stops_the_capture(
    tmp_path: Path, engine: Engine, x: np.ndarray
) -> None:
    """A misspelt name must not let through what it was to keep out."""
    capture = Capture(capture_options(tmp_path / "captured", left_out=frozenset(["incme"])))
    capture.begin(engine.bundle)
    capture.add(answered(engine, "encode", x[:3]))
    capture.finish()
    assert "no column 'incme'" in str(capture.status().fault)
    assert capture.dropped_rows == 3
    assert parts(tmp_path / "captured") == []


def test_the_oldest_parts_give_way(
    tmp_path: Path, engine: Engine, x: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "captured"
    capture = Capture(capture_options(folder, part_bytes=600))
    capture.begin(engine.bundle)
    for start in range(0, 50, 10):
        capture.add(answered(engine, "encode", x[start : start + 10]))
    capture.finish()
    found = parts(folder)
    assert len(found) >= 4
    (folder / "notes.txt").write_text("a person's own file")
    size = sum(part.stat().st_size for part in found[-2:])
    fewer = Capture(capture_options(folder, keep_bytes=size))
    fewer.tick()
    assert parts(folder) == found[-2:]
    assert fewer.status().parts == 2
    os.utime(found[-2], (1, 1))
    fresh = Capture(capture_options(folder))
    fresh.tick()
    assert parts(folder) == found[-1:]
    assert fresh.status().rows == int(found[-1].stem.rpartition("-")[2])
    assert (folder / "notes.txt").exists()


def test_what_a_killed_server_left_half_written_is_read_by_nobody_and_removed(
    tmp_path: Path, engine: Engine, x: np.ndarray
) -> None:
    keep(tmp_path, engine.bundle, [answered(engine, "encode", x[:3])])
    (part,) = parts(tmp_path)
    half = tmp_path / f".{part.name}.0123abcd"
    half.write_bytes(part.read_bytes()[:100])
    assert [name for name, _, _ in find_files(str(tmp_path))] == [part.name]
    Capture(capture_options(tmp_path)).tick()
    assert half.exists()  # another server may be writing it
    os.utime(half, (1, 1))
    Capture(capture_options(tmp_path)).tick()
    assert not half.exists()


def test_what_cannot_be_removed_does_not_keep_the_oldest_parts(
    tmp_path: Path, engine: Engine, x: np.ndarray
) -> None:
    keep(tmp_path, engine.bundle, [answered(engine, "encode", x[:3])])
    (part,) = parts(tmp_path)
    stuck = tmp_path / "captured-20000101T000000000000-000000-5.parquet"
    stuck.mkdir()
    theirs = tmp_path / "theirs"
    theirs.write_text("a person's own file")
    link = tmp_path / "captured-20000101T000000000001-000000-1.parquet"
    link.symlink_to(theirs)
    for old in (stuck, part):
        os.utime(old, (1, 1))
    os.utime(link, (1, 1), follow_symlinks=False)
    Capture(capture_options(tmp_path)).tick()
    assert {path.name for path in tmp_path.iterdir()} == {stuck.name, theirs.name}


@contextmanager
def no_room() -> Iterator[None]:
    """Let no file grow beyond a few bytes, as on a full disk."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (16, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_full_disk_is_a_fault_until_there_is_room(
    tmp_path: Path, engine: Engine, x: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(capture_module, "RETRY_S", 0.0)
    capture = Capture(capture_options(tmp_path, part_bytes=1000))
    capture.begin(engine.bundle)
    with no_room():
        for start in range(0, 100, 10):
            capture.add(answered(engine, "encode", x[start : start + 10]))
    assert "cannot write" in str(capture.status().fault)
    assert parts(tmp_path) == []
    lost = capture.dropped_rows
    assert 0 < lost < 100
    capture.add(answered(engine, "encode", x[100:110]))
    capture.finish()
    assert capture.status().fault is None
    assert capture.status().rows == 110 - lost
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []


def test_rows_that_cannot_be_written_do_not_hinder_those_after_them(
    tmp_path: Path, engine: Engine, x: np.ndarray, caplog: pytest.LogCaptureFixture
) -> None:
    capture = Capture(capture_options(tmp_path))
    capture.begin(engine.bundle)
    rows = answered(engine, "encode", x[:3])
    capture.add(replace(rows, request="\ud800"))  # half a character, which no file can hold
    capture.flush()
    capture.add(rows)
    capture.finish()
    assert "3 rows could not be captured" in caplog.text
    assert (capture.dropped_rows, capture.status().rows) == (3, 3)


def test_requests_of_one_row_fill_the_memory_that_they_take(
    tmp_path: Path, engine: Engine, x: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Their arrays are a hundredth of it."""
    capture = Capture(capture_options(tmp_path, part_bytes=2**20))
    capture.begin(engine.bundle)
    message = b"".join(answered(engine, "encode", x[:1]).pack())
    with no_room():
        tracemalloc.start()
        for _ in range(2000):
            capture.add(LiveRows.unpack(bytes(bytearray(message))))
        held, _ = tracemalloc.get_traced_memory()
        tracemalloc.stop()
    assert capture.dropped_rows > 0
    assert held < 2 * 2**20


def test_a_folder_that_cannot_be_made_is_refused_at_the_start(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(UsageRefused, match=r"--capture .*file/captured: Not a directory"):
        check_capture(tmp_path / "file" / "captured")
    check_capture(tmp_path / "new" / "captured")
    assert [*(tmp_path / "new" / "captured").iterdir()] == []


def test_a_folder_in_a_bundle_is_refused_since_it_would_break_the_bundle(tmp_path: Path) -> None:
    bundle = tmp_path / "bundle"
    shutil.copytree(MIXED, bundle)
    with pytest.raises(UsageRefused, match="--capture must lie outside the bundle"):
        check_capture(bundle / "new" / "captured")
    open_bundle(bundle)
