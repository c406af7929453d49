"""Make `tests/serving/mixed_bundle`, a model of a mixed table, for tests without torch.

Run `python -m tests.make_mixed_bundle` when the bundle's format changes. No test compares its
bytes.
"""

import contextlib
import shutil
import tempfile
from pathlib import Path

from pyarrow import parquet

from pipeline.data.dataset import load_dataset
from pipeline.evaluation.evaluate import evaluate
from pipeline.export.bundle_export import export_bundle
from tests.mixed_rows import draw_table
from tests.trained_models import tiny_config, train_checkpoint

TARGET = Path(__file__).parent / "serving" / "mixed_bundle"


def main() -> None:
    """Train for a moment and export."""
    shutil.rmtree(TARGET, ignore_errors=True)
    with tempfile.TemporaryDirectory() as folder, contextlib.chdir(folder):
        parquet.write_table(draw_table(1500, 0), "accounts.parquet")
        dataset = load_dataset(
            "accounts.parquet", valid_fraction=0.1, test_fraction=0.1, likelihood="auto"
        )
        config = tiny_config(dataset, likelihood="mixed", hidden_dims=(12,), epochs=20)
        checkpoint = train_checkpoint(dataset, config)
        metrics = evaluate(checkpoint.model, dataset.test.x, nll_samples=4, seed=0)
        # without a report of parity, which is twice as large as all the rest
        export_bundle(TARGET, checkpoint, metrics.to_json(), dataset.test.x)


if __name__ == "__main__":
    main()
