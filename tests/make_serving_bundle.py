"""Make `tests/serving/bundle`, which the serving tests use where torch is not installed.

Run `python -m tests.make_serving_bundle` when the bundle's format changes.
"""

import contextlib
import shutil
import tempfile
from pathlib import Path

from tests.trained_models import draw_images, load, make_bundle, tiny_config, train_checkpoint

TARGET = Path(__file__).parent / "serving" / "bundle"


def main() -> None:
    """Train for a moment and export."""
    shutil.rmtree(TARGET, ignore_errors=True)
    with tempfile.TemporaryDirectory() as folder, contextlib.chdir(folder):
        dataset = load(Path(), draw_images(400))
        make_bundle(TARGET, (train_checkpoint(dataset, tiny_config(dataset)), dataset))


if __name__ == "__main__":
    main()
