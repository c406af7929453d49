"""The command line in this process."""

import json
from typing import Any

import pytest

from pipeline.cli.main import cli


@pytest.fixture
def vae(capsys: pytest.CaptureFixture[str]) -> Any:
    """A function that runs the command line and returns its JSON line, or raises its error."""

    def run(*arguments: str) -> Any:
        capsys.readouterr()
        cli.main([*arguments], standalone_mode=False)
        return json.loads(capsys.readouterr().out.splitlines()[-1])

    return run
