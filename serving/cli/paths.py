"""The types of options and arguments that name files, folders and models.

A shell completes the names of files.
"""

from pathlib import Path
from typing import Any

import click


class Origin(click.Path):
    """A file, a folder, a URI or a model to read, as text."""

    name = "path"

    def convert(self, value: Any, param: Any, ctx: Any) -> Any:
        """Refuse an empty name, which would be the working folder."""
        if value == "":
            self.fail("it must have a name, got ''", param, ctx)
        return super().convert(value, param, ctx)


class Target(Origin):
    """A file or a folder to write."""

    def convert(self, value: Any, param: Any, ctx: Any) -> Any:
        """Refuse also `-`, since stdout has the JSON line."""
        if value == "-":
            self.fail("stdout is for the JSON line: name a file, got '-'", param, ctx)
        return super().convert(value, param, ctx)


def target() -> Target:
    """Return the type of an output on this machine, which is a `Path`."""
    return Target(path_type=Path)
