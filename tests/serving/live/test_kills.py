"""Capture under `kill -9`: at every moment, all that a reader finds is whole."""

import multiprocessing
import random
import time
from pathlib import Path

import numpy as np
import pytest
from pyarrow import parquet

from serving.bundle import open_bundle
from serving.engine import Engine
from serving.io.filesystems import find_files
from serving.live.capture import Capture
from tests.serving.conftest import SEALED
from tests.serving.live.requests import answered, capture_options

KILLS = 20


def capture_forever(folder: Path) -> None:
    """Write parts as fast as this machine can, each of some kilobytes."""
    engine = Engine(open_bundle(SEALED))
    x = np.random.default_rng(0).integers(0, 256, (200, 6, 5), dtype=np.uint8)
    rows = answered(engine, "reconstruct", x)
    capture = Capture(capture_options(folder))
    capture.begin(engine.bundle)
    while True:
        capture.add(rows)
        capture.flush()


@pytest.mark.slow(40)
def test_twenty_kills_leave_no_part_that_is_half_written(tmp_path: Path) -> None:
    generator = random.Random(0)
    spawn = multiprocessing.get_context("spawn")
    seen: set[str] = set()
    left = 0
    for _ in range(KILLS):
        process = spawn.Process(target=capture_forever, args=(tmp_path,))
        process.start()
        before = len(list(tmp_path.glob("captured-*")))
        until = time.monotonic() + 60
        while len(list(tmp_path.glob("captured-*"))) == before and time.monotonic() < until:
            time.sleep(0.001)
        time.sleep(generator.uniform(0, 0.05))
        process.kill()
        process.join()
        found = {name for name, _, _ in find_files(str(tmp_path))}
        for name in found - seen:
            assert parquet.read_table(tmp_path / name).num_rows == 200
        assert found - seen
        seen = found
        left += len(list(tmp_path.glob(".captured-*")))
    assert left, "no kill came while a part was being written: this test shows nothing"
