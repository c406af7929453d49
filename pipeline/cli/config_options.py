"""Make click options from the config dataclasses, which alone hold defaults and help texts."""

import csv
import math
import re
from collections.abc import Callable, Container, Iterator
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

import click

from pipeline.config import REQUIREMENT, SECTIONS, Option, PromoteConfig, settings_of
from pipeline.presets import PRESETS, preset_settings
from serving.cli.config_file import Setting, config_option
from serving.cli.paths import Origin

Decorator = Callable[[Callable[..., Any]], Callable[..., Any]]

_SPACE_AT_END = re.compile(r'("[^"]*")|\s+(?=,|$)')
"""Matches quoted text (group 1), or spaces after a word, which the csv module would keep."""


class Widths(click.ParamType[tuple[int, ...]]):
    """Comma-separated layer widths; an empty string means no layers."""

    name = "widths"

    def convert(self, value: Any, param: Any, ctx: Any) -> tuple[int, ...]:
        """Read `512,256`."""
        try:
            widths = tuple(int(part) for part in value.split(",")) if value else ()
        except ValueError:
            self.fail(f"{value!r} is not a list of widths such as 512,256", param, ctx)
        if any(width < 1 for width in widths):
            self.fail(f"widths must be at least 1, got {value!r}", param, ctx)
        return widths


class Words(click.ParamType[tuple[str, ...]]):
    """Comma-separated words without repetition; if `known` has words, only these are allowed."""

    name = "words"

    def __init__(self, known: tuple[str, ...]) -> None:
        self.known = known

    def convert(self, value: Any, param: Any, ctx: Any) -> tuple[str, ...]:
        """Read `cpu, cuda`; a word that has a comma or outer spaces must be in double quotes."""
        trimmed = _SPACE_AT_END.sub(lambda found: found[1] or "", value)
        listed = next(csv.reader([trimmed], skipinitialspace=True)) if trimmed else []
        words = tuple(dict.fromkeys(listed))
        if self.known and (unknown := [word for word in words if word not in self.known]):
            self.fail(f"{unknown[0]!r} is not one of {', '.join(self.known)}.", param, ctx)
        return words


class Integer(click.IntRange):
    """A whole number within limits; click's own name for it is `integer range`."""

    name = "integer"


class Number(click.FloatRange):
    """A finite number within limits; click's own check of limits lets NaN pass."""

    name = "number"

    def convert(self, value: Any, param: Any, ctx: Any) -> float:
        """Read `0.1`."""
        number = float(super().convert(value, param, ctx))
        if not math.isfinite(number):
            self.fail(f"{value!r} is not a finite number.", param, ctx)
        return number

    def _describe_range(self) -> str:
        """Return the range for the help text; click would show a missing limit as None."""
        return "" if self.min is self.max is None else super()._describe_range()


class NumberOrNone(Number):
    """A finite number, or the word none."""

    def convert(self, value: Any, param: Any, ctx: Any) -> Any:
        """Read `0.1` or `none`."""
        return None if value == "none" else super().convert(value, param, ctx)


def settings_options(*sections: type, only: Container[str] | None = None) -> Decorator:
    """Add an option for every setting of the sections; None means that the preset decides.

    With `only`, those of other names are left out.
    """
    settings = list(_describe_settings(*sections, only=only))

    def decorate(function: Callable[..., Any]) -> Callable[..., Any]:
        for flag, attributes in reversed(settings):
            function = click.option(flag, cls=Setting, **attributes)(function)
        return function

    return decorate


def _describe_settings(
    *sections: type, only: Container[str] | None = None
) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield what declares the option of each setting: its flag, and its attributes."""
    names = {section: name for name, section in SECTIONS.items()}
    for section in sections:
        for name, kind, option, default in settings_of(section):
            if only is not None and name not in only:
                continue
            flag = name.replace("_", "-")
            yield (
                f"--{flag}/--no-{flag}" if kind is bool else f"--{flag}",
                {
                    "section": names[section],
                    "heading": str(section.__doc__).rstrip("."),
                    "type": _click_type(kind, option),
                    "is_flag": kind is bool,
                    "default": None,
                    "help": f"{option.help}  [default: {_describe_default(name, default)}]",
                },
            )


_PRESET: dict[str, Any] = {
    "type": click.Choice(list(PRESETS)),
    "default": "default",
    "show_default": True,
    "help": "A named set of settings; options given with it override it",
}
preset_option = click.option("--preset", **_PRESET)


def chosen(settings: dict[str, Any]) -> dict[str, Any]:
    """Return the settings that were given; paths are made absolute, to hold anywhere."""
    given = {name: value for name, value in settings.items() if value is not None}
    for name in ("data", "schema"):
        source = given.get(name, "")
        path = Path(source).expanduser()
        if source not in ("", "mnist") and path.exists():  # mnist is never a folder
            given[name] = str(_without_dots(path))
    return given


def _without_dots(path: Path) -> Path:
    """Make a path absolute; its last part may be a link, whose own suffix says what it is."""
    return path.resolve() if path.name in ("", "..") else path.parent.resolve() / path.name


def gate_config(settings: dict[str, Any]) -> PromoteConfig:
    """Remove the gate's settings from `settings` and return them as a config.

    Raises:
        click.BadParameter: what is required is neither an approval nor a device's name.
    """
    names = [name for name, *_ in settings_of(PromoteConfig)]
    config = PromoteConfig(**chosen({name: settings.pop(name) for name in names}))
    for name in config.require:
        if re.fullmatch(REQUIREMENT, name) is None:
            raise click.BadParameter(
                f"{name!r} is no device: give cpu, cuda, the names of plugins or approval, with "
                "commas",
                param_hint="'--require'",
            )
    return config


def given_beside(option: str, *allowed: str) -> dict[str, Any]:
    """Return the values of the `allowed` options, None for each that was not given.

    Those that a command keeps in its context are allowed, and not returned.

    Raises:
        click.UsageError: an option was given that is neither `option` nor allowed.
    """
    context = click.get_current_context()
    values: dict[str, Any] = {}
    for parameter in context.command.params:
        name = str(parameter.name)
        given = context.get_parameter_source(name) is not click.core.ParameterSource.DEFAULT
        if parameter.opts[0] in allowed and not parameter.expose_value:
            continue
        if parameter.opts[0] in allowed:
            values[name] = context.params[name] if given else None
        elif given and parameter.opts[0] != option:
            raise click.UsageError(
                f"{parameter.opts[0]} cannot be combined with {option}, which takes all settings "
                f"from the run except {', '.join(allowed)}"
            )
    return values


def _describe_default(name: str, default: Any) -> str:
    if isinstance(default, tuple | str):
        shown = default if isinstance(default, str) else ",".join(map(str, default))
        shown = shown or "none"
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
        return Integer(_as_int(option.min), _as_int(option.max))
    if kind is bool:
        return click.BOOL
    if kind == float | None:
        return NumberOrNone(option.min, option.max, min_open=option.open_min)
    if kind is float:
        return Number(option.min, option.max, min_open=option.open_min)
    return Origin() if option.path else click.STRING


def _as_int(bound: float | None) -> int | None:
    return None if bound is None else int(bound)


# a file may have every setting, also those that a command lacks
settings_file = config_option(
    [
        click.Option(["--preset"], **_PRESET),
        *(
            Setting([flag], **attributes)
            for flag, attributes in _describe_settings(*SECTIONS.values())
        ),
    ]
)
