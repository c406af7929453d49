"""The pages of `--help`: groups, whole sentences, and any width of the screen."""

from collections.abc import Callable
from typing import Any

import click
import pytest

from pipeline.cli.main import cli
from pipeline.config import SECTIONS
from serving.cli.command import CONTEXT, Command
from serving.cli.help_page import first_sentence, group, group_of

FLAT = 8
"""Most options that a command may list without groups."""

Help = Callable[..., str]


@pytest.fixture
def help_page(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Help:
    """A function that returns the help of a command, as a screen of some width shows it."""

    def show(*words: str, width: int = 80, group: click.Command = cli) -> str:
        monkeypatch.setenv("COLUMNS", str(width))
        group.main([*words, "--help"], prog_name="vae", standalone_mode=False)
        return capsys.readouterr().out

    return show


def ungrouped(command: click.Command) -> list[str]:
    """Return the options that stand under no heading although others of the command do."""
    options = [item for item in command.params if isinstance(item, click.Option)]
    loose = [item.opts[0] for item in options if group_of(command, item) is None]
    return loose if len(loose) < len(options) or len(options) > FLAT else []


@pytest.mark.parametrize("name", list(cli.commands))
def test_every_option_stands_in_a_group(name: str) -> None:
    assert ungrouped(cli.commands[name]) == [], (
        f"these options of vae {name} are in no group: add @group('…') above the first of them, "
        f"or move them below one; a command without any group may have {FLAT} options"
    )


def test_every_command_stands_in_a_section() -> None:
    listed = [str(item.name) for part in cli.sections.values() for item in part]
    assert listed == list(cli.commands), "add commands to the group by cli.add_section"
    assert all(len(part) <= 9 for part in cli.sections.values())


@pytest.mark.parametrize("name", list(cli.commands))
def test_an_example_is_one_line_to_copy(name: str, help_page: Help) -> None:
    page = help_page(name)
    assert page.count("Example: ") == 1
    after = page.partition("Example: ")[2].splitlines()
    assert after[0].startswith(f"vae {name}")
    assert after[1].strip() == ""
    assert max(map(len, page.splitlines())) <= 80


def test_an_option_above_the_first_group_is_found() -> None:
    def nothing(**values: Any) -> None: ...

    below = click.option("--below")(nothing)
    command = click.command(cls=Command)(click.option("--above")(group("Some")(below)))
    assert ungrouped(command) == ["--above"]


def test_many_options_without_a_group_are_found() -> None:
    def nothing(**values: Any) -> None: ...

    for number in range(FLAT + 1):
        nothing = click.option(f"--o{number}")(nothing)
    assert len(ungrouped(click.command(cls=Command)(nothing))) == FLAT + 1


@pytest.mark.parametrize("width", [40, 80, 120, 300])
def test_the_list_of_commands_has_whole_sentences(help_page: Help, width: int) -> None:
    page = help_page(width=width)
    words = " ".join(page.split())
    for title, commands in cli.sections.items():
        assert f"\n{title}:\n" in page
        for command in commands:
            sentence = first_sentence(command)
            assert sentence.endswith(".")
            assert f" {command.name} {sentence}" in words
    assert "..." not in words.replace("[ARGS]...", "")
    assert max(map(len, page.splitlines())) <= min(width, 100)


@pytest.mark.parametrize("width", [40, 80, 120])
@pytest.mark.parametrize("name", list(cli.commands))
def test_a_page_fits_the_screen_and_cuts_nothing(help_page: Help, name: str, width: int) -> None:
    page = help_page(name, width=width)
    letters = "".join(page.split())  # on a narrow screen, a long word is broken
    command = cli.commands[name]
    for option in command.params:
        if isinstance(option, click.Option):
            assert f"\n  {option.opts[0]}" in page
            assert "".join(str(option.help).split()) in letters
    assert max(map(len, page.splitlines())) <= min(width, 100)


def test_the_groups_of_settings_are_the_sections_of_the_config(help_page: Help) -> None:
    page = help_page("run")
    headings = [line for line in page.splitlines() if line and line[0] not in " U"]
    sections = [
        f"{str(section.__doc__).rstrip('.')} [{name}]:"
        for name, section in SECTIONS.items()
        if name != "export"
    ]
    assert headings == [
        "Settings:",
        *sections,
        "Bundle and registry:",
        "Computing:",
        "Other:",
    ]


def test_options_follow_the_heading_above_them(help_page: Help) -> None:
    @click.command(cls=Command, context_settings=CONTEXT)
    @group("Cooking")
    @click.option("--salt")
    @click.option("--recipe", type=click.Choice(["a" * 20, "b" * 20]), help="The dish.")
    @group("Eating")
    @click.option("--spoon")
    def meal(**values: Any) -> None:
        """Make a meal."""

    assert help_page(group=meal).partition("Make a meal.\n")[2] == (
        f"""
Cooking:
  --salt TEXT
  --recipe NAME  The dish.  [{"a" * 20}, {"b" * 20}]

Eating:
  --spoon TEXT

Other:
  -h, --help  Show this message and exit.
"""
    )


def test_the_version_is_shown(capsys: pytest.CaptureFixture[str]) -> None:
    for flag in ("-V", "--version"):
        cli.main([flag], prog_name="vae", standalone_mode=False)
    first, second = capsys.readouterr().out.splitlines()
    assert first == second
    assert first.startswith("vae, version ")


@pytest.mark.parametrize(
    ("words", "nearest"),
    [(["trian"], "train"), (["run", "--epcohs", "3"], "--epochs")],
    ids=["command", "option"],
)
def test_a_typo_suggests_the_nearest(words: list[str], nearest: str) -> None:
    with pytest.raises(click.UsageError) as caught:
        cli.main(words, standalone_mode=False)
    assert caught.value.format_message().endswith(f"Did you mean {nearest!r}?")
