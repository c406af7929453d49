"""Click options from the config dataclasses, so that no default or help text is written twice."""

import csv
import math
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

import click

from pipeline.config import PRESETS, Option, preset_settings, settings_of

Decorator = Callable[[Callable[..., Any]], Callable[..., Any]]

_SPACE_AT_END = re.compile(r'("[^"]*")|\s+(?=,|$)')
"""Quoted text as its group, else the space after a word, which the csv module keeps."""


class Widths(click.ParamType[tuple[int, ...]]):
    """Comma-separated layer widths; an empty string is no layer."""

    name = "widths"

    def convert(self, value: Any, param: Any, ctx: Any) -> tuple[int, ...]:
        """Read `512,256`."""
        try:
            widths = tuple(int(part) for part in value.split(",")) if value else ()
        except ValueError:
            self.fail(f"{value!r} is no list of widths such as 512,256", param, ctx)
        if any(width < 1 for width in widths):
            self.fail(f"widths must be at least 1, got {value!r}", param, ctx)
        return widths


class Words(click.ParamType[tuple[str, ...]]):
    """Comma-separated words without repetition, of a list where there is one."""

    name = "words"

    def __init__(self, known: tuple[str, ...]) -> None:
        self.known = known

    def convert(self, value: Any, param: Any, ctx: Any) -> tuple[str, ...]:
        """Read `cpu, cuda`; a word with a comma or with outer spaces stands in double quotes."""
        trimmed = _SPACE_AT_END.sub(lambda found: found[1] or "", value)
        listed = next(csv.reader([trimmed], skipinitialspace=True)) if trimmed else []
        words = tuple(dict.fromkeys(listed))
        if self.known and (unknown := [word for word in words if word not in self.known]):
            self.fail(f"{unknown[0]!r} is not one of {', '.join(self.known)}.", param, ctx)
        return words


class Number(click.FloatRange):
    """A finite number within limits, which NaN passes unseen."""

    def convert(self, value: Any, param: Any, ctx: Any) -> float:
        """Read `0.1`."""
        number = float(super().convert(value, param, ctx))
        if not math.isfinite(number):
            self.fail(f"{value!r} is not a finite number.", param, ctx)
        return number

    def _describe_range(self) -> str:
        """What help shows; click shows a limit of None where there is none."""
        return "" if self.min is self.max is None else super()._describe_range()


class NumberOrNone(Number):
    """A finite number, or the word none."""

    def convert(self, value: Any, param: Any, ctx: Any) -> Any:
        """Read `0.1` or `none`."""
        return None if value == "none" else super().convert(value, param, ctx)


def settings_options(*sections: type) -> Decorator:
    """Add an option for every setting of the sections; one not given is None: the preset's."""
    settings = [setting for section in sections for setting in settings_of(section)]

    def decorate(function: Callable[..., Any]) -> Callable[..., Any]:
        for name, kind, option, default in reversed(settings):
            flag = name.replace("_", "-")
            function = click.option(
                f"--{flag}/--no-{flag}" if kind is bool else f"--{flag}",
                type=_click_type(kind, option),
                is_flag=kind is bool,
                default=None,
                help=f"{option.help}  [default: {_describe_default(name, default)}]",
            )(function)
        return function

    return decorate


preset_option = click.option(
    "--preset",
    type=click.Choice(list(PRESETS)),
    default="default",
    show_default=True,
    help="A named set of settings; options given beside it win",
)


def chosen(settings: dict[str, Any]) -> dict[str, Any]:
    """The settings that were given; a path to data is made whole, for use from other folders."""
    given = {name: value for name, value in settings.items() if value is not None}
    source = given.get("data", "mnist")
    path = Path(source).expanduser()
    if source != "mnist" and path.exists():  # the name stays a name, whatever lies here
        given["data"] = str(path.absolute())
    return given


def given_beside(option: str, *allowed: str) -> dict[str, Any]:
    """The value of each `allowed` option, None where it was not given beside `option`.

    Raises:
        click.UsageError: another option was given, which is named.
    """
    context = click.get_current_context()
    values: dict[str, Any] = {}
    for parameter in context.command.params:
        name = str(parameter.name)
        given = context.get_parameter_source(name) is not click.core.ParameterSource.DEFAULT
        if parameter.opts[0] in allowed:
            values[name] = context.params[name] if given else None
        elif given and parameter.opts[0] != option:
            raise click.UsageError(
                f"{parameter.opts[0]} cannot be given beside {option}, which takes all settings "
                f"from the run but {', '.join(allowed)}"
            )
    return values


def _describe_default(name: str, default: Any) -> str:
    if isinstance(default, tuple):
        shown = ",".join(map(str, default))
    elif isinstance(default, float):
        shown = f"{default:g}"
    else:
        shown = "none" if default is None else "false" if default is False else str(default)
    return f"{shown}, or the preset's" if name in preset_settings() else shown


def _click_type(kind: Any, option: Option) -> click.ParamType[Any]:
    if get_origin(kind) is Literal:
        return click.Choice(get_args(kind))
    if get_origin(kind) is tuple:
        item = get_args(kind)[0]
        return Widths() if item is int else Words(get_args(item))
    if kind is int:
        return click.IntRange(_whole(option.min), _whole(option.max))
    if kind is bool:
        return click.BOOL
    if kind == float | None:
        return NumberOrNone(option.min, option.max, min_open=option.open_min)
    if kind is float:
        return Number(option.min, option.max, min_open=option.open_min)
    return click.STRING


def _whole(bound: float | None) -> int | None:
    return None if bound is None else int(bound)
