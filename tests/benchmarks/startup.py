"""How long a user waits for `vae --help`."""

import subprocess
import sys
from collections.abc import Iterator

from tests.benchmarks.measure import Row, best_in_turns


def measure() -> Iterator[Row]:
    """Beside an interpreter that imports click and does nothing."""

    def run(*arguments: str) -> None:
        subprocess.run([sys.executable, *arguments], check=True, capture_output=True)

    help_s, click_s = best_in_turns(
        lambda: run("-m", "pipeline.cli", "--help"), lambda: run("-c", "import click"), rounds=10
    )
    yield Row("vae --help / python -c 'import click'", help_s, click_s, "at most 3x")
