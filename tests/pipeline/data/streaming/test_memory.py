"""A first pass and an epoch take little memory beside the rows that are kept."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from pyarrow import csv, parquet

ROWS, FEATURES = 1 << 19, 64
DATA_MB = ROWS * FEATURES * 4 / 2**20
"""128 MB, of which the process below may need a part; twice the rows need no more of it."""

PROGRAM = """
import re, sys
from pathlib import Path
import numpy as np
import pyarrow.dataset, pyarrow.parquet
from pipeline.data.plan import Resources
from pipeline.data.streaming import first_pass
from pipeline.data.streaming.loading import load_streamed

first_pass.HELD_OUT_BYTES = first_pass.SAMPLE_BYTES = 1 << 20

def anonymous(peak=[0]):
    status = Path("/proc/self/status").read_text()
    peak[0] = max(peak[0], int(re.search(r"RssAnon:\\s+(\\d+)", status)[1]) / 1024)
    return peak[0]

before = anonymous()
watched = first_pass.RunningDigest.add
def add(self, rows):
    anonymous()
    watched(self, rows)
first_pass.RunningDigest.add = add
data = load_streamed(
    sys.argv[1], Resources(memory=1, cache=Path(sys.argv[2])), valid_fraction=0.1, test_fraction=0.1
)
for block in np.random.default_rng(0).permutation(len(data.train.x.blocks)):
    data.train.x.read_block(int(block))
    anonymous()
print(data.train_rows, anonymous() - before)
"""


@pytest.mark.slow
@pytest.mark.parametrize("suffix", [".npy", ".parquet", ".csv"])
def test_memory_does_not_grow_with_the_data(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"x{suffix}"
    x = np.random.default_rng(0).integers(0, 99, (ROWS, FEATURES)).astype(np.float32) / 4
    if suffix == ".npy":
        np.save(path, x)
    else:
        table = pa.table({f"c{index}": x[:, index] for index in range(FEATURES)})
        if suffix == ".csv":
            csv.write_csv(table, path)
        else:
            parquet.write_table(table, path, row_group_size=10_000)
    del x
    command = [sys.executable, "-c", PROGRAM, str(path), str(tmp_path / "cache")]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    rows, more_mb = done.stdout.split()
    assert int(rows) > 0.9 * ROWS
    assert float(more_mb) < DATA_MB * 2 / 3
