"""The command `vae config`: the values that another command would use, and where they come from."""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click

from pipeline.cli.config_options import chosen
from pipeline.config import SECTIONS, configure, setting_names, settings_of
from pipeline.presets import PRESETS
from serving.cli.command import CONTEXT, Command
from serving.cli.config_file import Setting, config_place
from serving.cli.options import verify_key
from serving.cli.paths import target
from serving.console import finish, say

_DEFAULT = "default"
_COLUMN = 40
"""Where the source of a value begins, if the line is no longer."""


@dataclass(frozen=True, slots=True)
class _Value:
    """The value of an option, None if it has none; `section` is empty if it is no setting."""

    section: str
    name: str
    value: Any
    source: str


def _complete(ctx: click.Context, option: click.Parameter, incomplete: str) -> list[str]:
    return [name for name in _configurable(ctx) if name.startswith(incomplete)]


@click.command(
    "config",
    cls=Command,
    context_settings={**CONTEXT, "ignore_unknown_options": True, "allow_extra_args": True},
)
@click.argument("command", shell_complete=_complete)
@click.option("--write", type=target(), help="Also write them to a file for --config, .toml")
@click.pass_context
def show_config(ctx: click.Context, command: str, write: Path | None) -> None:
    """Show what a command would use, and from which source.

    COMMAND is one that takes --config; its own arguments and options follow it. The values are
    shown as a file that --config takes.

    Example: vae config train --preset conv --epochs 3 --write run.toml
    """
    from serving.files import check_output_file, staged_file

    if write is not None:
        check_output_file(write, (".toml",), "--write")
    assert ctx.parent is not None
    known = _configurable(ctx)
    if command not in known:
        raise click.BadParameter(
            f"must be one of {', '.join(known)}, got {command!r}", param_hint="COMMAND"
        )
    with known[command].make_context(command, list(ctx.args), parent=ctx.parent) as inner:
        values = list(_values_of(inner))
    text = _to_toml(values)
    say(text.rstrip(), wrap=False)
    if write is not None:
        with staged_file(write) as temporary:
            temporary.write_text(text, encoding="utf-8")
    used = {
        item.name: {
            "value": str(item.value) if isinstance(item.value, Path) else item.value,
            "source": item.source,
        }
        for item in values
    }
    finish({"command": command, "out": str(write) if write else None, "options": used})


def _configurable(ctx: click.Context) -> dict[str, click.Command]:
    """Return the commands that take `--config`, by name."""
    parent = ctx.find_root().command
    commands = parent.commands if isinstance(parent, click.Group) else {}
    return {
        name: item
        for name, item in commands.items()
        if any(option.name == "config" for option in item.params)
    }


def _values_of(ctx: click.Context) -> Iterator[_Value]:
    """Yield the value of each option; refuse what the command would refuse about its settings."""
    options = [item for item in ctx.command.params if isinstance(item, click.Option)]
    settings = [str(item.name) for item in options if isinstance(item, Setting)]
    given = chosen({name: ctx.params[name] for name in settings})
    preset = ctx.params.get("preset", "default")
    if "preset" in ctx.params:
        gate = setting_names()["promote"]
        configure(preset, **{name: given[name] for name in given if name not in gate})
    defaults = {name: row[-1] for part in SECTIONS.values() for name, *row in settings_of(part)}
    for option in options:
        name, flag = str(option.name), option.opts[0][2:]
        if not isinstance(option, Setting):
            if name != "config":
                value = verify_key() if name == "verify_key" else ctx.params.get(name)
                yield _Value("", flag, value, _source(ctx, option))
        elif name in given:
            yield _Value(option.section, flag, given[name], _source(ctx, option))
        elif name in PRESETS[preset]:
            yield _Value(option.section, flag, PRESETS[preset][name], f"preset {preset}")
        else:
            yield _Value(option.section, flag, defaults[name], _DEFAULT)


def _source(ctx: click.Context, option: click.Option) -> str:
    source = ctx.get_parameter_source(str(option.name))
    names = {
        click.core.ParameterSource.COMMANDLINE: "option",
        click.core.ParameterSource.ENVIRONMENT: str(option.envvar),
        click.core.ParameterSource.DEFAULT_MAP: str(config_place(ctx)),
    }
    return names.get(source, _DEFAULT) if source else _DEFAULT


def _to_toml(values: Sequence[_Value]) -> str:
    """Write the values as a file for `--config`; what is no setting and not given is a comment."""
    lines = []
    for section in ("", *SECTIONS):
        rows = [item for item in values if item.section == section]
        lines += ["", f"[{section}]"] if section and rows else []
        for item in rows:
            if section or item.value not in (None, ()):
                mark = "" if section or item.source != _DEFAULT else "# "
                line = f"{mark}{item.name} = {_toml_value(item.value)}"
                lines.append(f"{line:<{_COLUMN}}  # {item.source}")
    return "\n".join([*lines, ""])


def _toml_value(value: Any) -> str:
    if isinstance(value, tuple):
        return f"[{', '.join(map(_toml_value, value))}]"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, int | float):
        return repr(value)
    text = "none" if value is None else str(value)
    return json.dumps(text, ensure_ascii=False).replace("\x7f", "\\u007f")
