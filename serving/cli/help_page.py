"""What `--help` prints: commands and options in groups, in whole sentences, as wide as the screen.

`group` names the group of the options that follow it. The help of a command that has no groups
lists its options under one heading.
"""

import re
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, TypeVar

import click

from serving.cli.config_file import Setting

_GROUPS = "__option_groups__"
_LONG_CHOICE = 30
"""Longest list of choices that stands beside its option; longer ones stand in the help text."""

_Function = TypeVar("_Function", bound=Callable[..., Any])


def group(title: str) -> Callable[[_Function], _Function]:
    """Put the options below, as far as the next group, under a heading of their own."""

    def decorate(function: _Function) -> _Function:
        groups = vars(function).setdefault(_GROUPS, {})
        for parameter in vars(function).get("__click_params__", ()):  # those below, so far
            groups.setdefault(parameter.name, title)
        return function

    return decorate


def group_of(command: click.Command, parameter: click.Parameter) -> str | None:
    """Return the heading that a parameter stands under, None if it has none."""
    if isinstance(parameter, Setting):
        return f"{parameter.heading} [{parameter.section}]"
    groups: dict[str | None, str] = getattr(command.callback, _GROUPS, {})
    return groups.get(parameter.name)


def first_sentence(command: click.Command) -> str:
    """Return what a command does, as the list of commands says it."""
    paragraph = (command.help or "").partition("\n\n")[0]
    return re.split(r"(?<=\.)\s", " ".join(paragraph.split()))[0]


def write_options(command: click.Command, ctx: click.Context, page: click.HelpFormatter) -> None:
    """Write the options of a command, in groups if it has any."""
    groups: dict[str, list[tuple[str, str]]] = {}
    for heading, record in _records(command, ctx):
        groups.setdefault(heading, []).append(record)
    # what click adds, such as --help, stands in no group
    rest = "Other" if len(groups) > 1 else "Options"
    for heading in sorted(groups, key=lambda heading: not heading):
        with page.section(heading or rest):
            page.write_dl(groups[heading])


def write_commands(
    sections: Mapping[str, Sequence[click.Command]], page: click.HelpFormatter
) -> None:
    """Write the list of commands, in sections that are aligned with each other."""
    width = max((len(str(item.name)) for part in sections.values() for item in part), default=0)
    for title, commands in sections.items():
        with page.section(title):
            page.write_dl([(f"{item.name:<{width}}", first_sentence(item)) for item in commands])


class HelpPage(click.HelpFormatter):
    """Text that fits the screen; click's is at least 50 columns wide."""

    def __init__(self, width: int | None = None, max_width: int | None = None) -> None:
        super().__init__(width=width, max_width=max_width)
        if width is None:
            self.width = min(self.width, max(shutil.get_terminal_size().columns - 2, 20))

    def write_dl(
        self, rows: Iterable[tuple[str, str]], col_max: int = 26, col_spacing: int = 2
    ) -> None:
        """Write names and texts in two columns; on a narrow screen a text begins below its name."""
        super().write_dl(rows, min(col_max, self.width // 3), col_spacing)


def _records(command: click.Command, ctx: click.Context) -> Iterator[tuple[str, tuple[str, str]]]:
    for parameter in command.get_params(ctx):
        record = parameter.get_help_record(ctx)
        if record is None or isinstance(parameter, click.Argument):
            continue
        name, text = record
        name = name.replace(" RANGE", "")  # the text has the range
        if isinstance(parameter.type, click.Choice):
            choices = parameter.make_metavar(ctx)
            if len(choices) > _LONG_CHOICE:
                name = name.replace(choices, "NAME")
                text += f"  [{choices.strip('[]').replace('|', ', ')}]"
        yield group_of(command, parameter) or "", (name, text)
