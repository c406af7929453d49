"""The option `--config`: values for the other options, from a file or from a model.

In: a TOML file whose keys are names of options, or a model, whose training settings are taken.
Settings may stand in tables named after their sections. Out: click's `default_map`, so that an
option that is given, and a variable of the environment, come first. Raises `click.BadParameter` if
the file cannot be read, has a key that names no option, or a value that the option refuses.
"""

import tomllib
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import Any, TypeVar

import click

from serving.cli.paths import Origin

_Function = TypeVar("_Function", bound=Callable[..., Any])
_PLACE = f"{__name__}.place"
"""Where a click context keeps what was read."""


class Setting(click.Option):
    """An option for a setting of a model or of a stage, which belongs to a section."""

    def __init__(self, *args: Any, section: str, heading: str, **attributes: Any) -> None:
        super().__init__(*args, **attributes)
        self.section = section
        self.heading = heading


def config_option(others: Sequence[click.Option] = ()) -> Callable[[_Function], _Function]:
    """Add `--config`; a setting among `others` that the command does not have is passed over."""

    def read(ctx: click.Context, option: click.Parameter, place: str | None) -> str | None:
        if place is not None and not ctx.resilient_parsing:
            ctx.meta[_PLACE] = place
            ctx.default_map = _values(ctx, _read_content(place), _by_flag(others), place)
        return place

    return click.option(
        "--config",
        type=Origin(),
        callback=read,
        is_eager=True,
        expose_value=False,
        help="TOML file of options; or a model, to take the settings of its training. Options "
        "that are given come first",
    )


def config_place(ctx: click.Context) -> str | None:
    """Return what `--config` named, None if it was not given."""
    place: str | None = ctx.meta.get(_PLACE)
    return place


def _read_content(place: str) -> Mapping[str, Any]:
    path = Path(place).expanduser()
    if place.startswith("models:") or path.is_dir():
        from serving.source import open_source

        return open_source(place).bundle.manifest.config
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise click.BadParameter(f"no file {place}") from None
    except OSError as err:
        raise click.BadParameter(f"cannot read {place}: {err.strerror}") from err
    except ValueError as err:  # of its syntax, or of its encoding
        raise click.BadParameter(f"{place} is no TOML file: {err}") from err


def _by_flag(options: Sequence[click.Option]) -> dict[str, click.Option]:
    return {flag.lstrip("-"): item for item in options for flag in item.opts}


def _values(
    ctx: click.Context, content: Mapping[str, Any], others: Mapping[str, click.Option], place: str
) -> dict[str, Any]:
    """Return texts for the options of a command, by the names of their parameters."""
    own = _by_flag([item for item in ctx.command.params if isinstance(item, click.Option)])
    del own["config"]
    values: dict[str, Any] = {}
    for section, key, value in _entries(content, others, place):
        option = own.get(key)
        if section and not (isinstance(option, Setting) and option.section == section):
            option = None  # a setting that this command does not have, and an option of its name
        setting = option or others.get(key)
        if setting is None:
            raise click.BadParameter(
                f"{place} has {key!r}, which is no option of vae {ctx.info_name}; "
                f"{_nearest(key, own)}"
            )
        text = _checked(ctx, setting, value, f"{place} has a bad {key!r}")
        if option is None:
            continue
        if option.name in values:
            raise click.BadParameter(f"{place} has {key!r} twice")
        values[str(option.name)] = text
    return values


def _entries(
    content: Mapping[str, Any], others: Mapping[str, click.Option], place: str
) -> Iterator[tuple[str, str, Any]]:
    """Yield section, key and value; the section is empty for a key that stands outside of one."""
    sections: dict[str, list[str]] = {}
    for flag, item in others.items():
        if isinstance(item, Setting):
            sections.setdefault(item.section, []).append(flag)
    for key, value in content.items():
        if not isinstance(value, Mapping):
            yield "", _as_flag(key), value
            continue
        if key not in sections:
            allowed = f"the sections are {', '.join(sections)}" if sections else "there are none"
            raise click.BadParameter(f"{place} has the section [{key}]; {allowed}")
        for name in value:
            if _as_flag(name) not in sections[key]:
                raise click.BadParameter(
                    f"{place} has {name!r} in [{key}], which is no setting there; "
                    f"{_nearest(_as_flag(name), sections[key])}"
                )
            yield key, _as_flag(name), value[name]


def _as_flag(key: str) -> str:
    """Return a key as options are spelled; they take underscores, too."""
    return key.replace("_", "-")


def _nearest(key: str, names: Collection[str]) -> str:
    found = get_close_matches(key, names, n=1)
    return f"did you mean {found[0]!r}?" if found else "vae config shows all keys"


def _checked(ctx: click.Context, option: click.Option, value: Any, complaint: str) -> Any:
    """Return a value as it is written on the command line, if the option takes it."""
    if option.multiple and isinstance(value, list):
        text: Any = [_as_text(item) for item in value]
    elif isinstance(value, list | tuple):
        text = ",".join(_quoted(item) for item in value)
    else:
        text = _as_text(value)
    try:
        option.type_cast_value(ctx, text)
    except click.BadParameter as err:
        raise click.BadParameter(f"{complaint}: {err.message}") from err
    return text


def _as_text(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    return "none" if value is None else str(value)


def _quoted(item: Any) -> str:
    """Quote a text as in a CSV line: it may have a comma."""
    return '"{}"'.format(item.replace('"', '""')) if isinstance(item, str) else _as_text(item)
