"""Make `tests/serving/mixed_bundle`, a model of a mixed table, for tests where torch is not installed.

Run `python -m tests.make_mixed_bundle` when the bundle's format changes. No test compares its bytes.
"""

import contextlib
import shutil
import tempfile
from pathlib import Path

from pyarrow import parquet

from pipeline.data.dataset import load_dataset
from tests.mixed_rows import draw_table
from tests.trained_models import make_bundle, tiny_config, train_checkpoint

TARGET = Path(__file__).parent / "serving" / "mixed_bundle"


def main() -> None:
    """Train for a moment and export."""
    shutil.rmtree(TARGET, ignore_errors=True)
    with tempfile.TemporaryDirectory() as folder, contextlib.chdir(folder):
        parquet.write_table(draw_table(1500, 0), "accounts.parquet")
        dataset = load_dataset("accounts.parquet", valid_fraction=0.1, test_fraction=0.1)
        config = tiny_config(dataset, hidden_dims=(12,), epochs=20)
        make_bundle(TARGET, (train_checkpoint(dataset, config), dataset))


if __name__ == "__main__":
    main()
