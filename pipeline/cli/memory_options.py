"""Options that say what memory the rows of a training may take, and where others are kept."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from serving.cli.paths import target

if TYPE_CHECKING:
    from pipeline.data.plan import Resources
    from pipeline.training.processes import Processes

_SIZE = re.compile(r"(\d+(?:\.\d+)?) *([kMGT]?)(i?)B?", re.IGNORECASE)
_POWERS = {"": 0, "k": 1, "m": 2, "g": 3, "t": 4}
_MEMORY, _CACHE, _AGREED = (f"{__name__}.{name}" for name in ("memory", "cache", "agreed"))
"""Where a click context keeps the values, which are no settings of a model."""


class Size(click.ParamType[int]):
    """A number of bytes, such as 4GB or 512MiB."""

    name = "size"

    def convert(self, value: Any, param: Any, ctx: Any) -> int:
        """Read `4GB`."""
        found = _SIZE.fullmatch(value)
        size = 0
        if found is not None:
            base = 1024 if found[3] else 1000
            size = int(float(found[1]) * base ** _POWERS[found[2].lower()])
        if size < 1:
            self.fail(f"{value!r} is not a size such as 4GB or 512MiB", param, ctx)
        return size


def _keep(key: str) -> Callable[[click.Context, click.Parameter, Any], None]:
    def keep(ctx: click.Context, option: click.Parameter, value: Any) -> None:
        if value is not None:
            ctx.meta[key] = value

    return keep


cache_option = click.option(
    "--cache",
    type=target(),
    expose_value=False,
    callback=_keep(_CACHE),
    help="Folder for rows that are decoded once, of data that do not fit in the memory and cannot "
    "be read in any order  [default: in the user's cache folder]",
)
_memory_option = click.option(
    "--memory",
    type=Size(),
    expose_value=False,
    callback=_keep(_MEMORY),
    help="Memory for the rows, such as 4GB, of all processes of this machine together; data that "
    "need more are read anew in each epoch  "
    "[default: half of the machine's or the container's]",
)


def memory_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add `--memory` and `--cache`; `allowed_resources` heeds them."""
    return _memory_option(cache_option(command))


def allowed_resources(streamed: bool | None) -> "Resources":
    """Return what the options of this command allow; `streamed` tells what is settled."""
    from pipeline.data.plan import Resources, process_memory

    context = click.get_current_context(silent=True)
    given = context.meta if context else {}
    cache: Path | None = given.get(_CACHE)
    memory = given.get(_AGREED) or process_memory(given.get(_MEMORY))
    return Resources(memory=memory, cache=cache, streamed=streamed)


def agree_on_memory(processes: "Processes") -> None:
    """Let all processes of a training take what the one with the least memory may take.

    What is streamed, and in which windows, depends on it, and must be the same for all.
    """
    from pipeline.data.plan import process_memory

    given = click.get_current_context().meta
    (least,) = processes.agree(-process_memory(given.get(_MEMORY)))
    given[_AGREED] = -int(least)
