"""The type of options that name a device: those of onnxruntime, and any plugin's."""

import re

import click
from click.shell_completion import CompletionItem


class DeviceName(click.ParamType[str]):
    """`cpu`, `cuda`, another word, NAME of a plugin, or NAME=LIBRARY."""

    name = "device"

    def __init__(self, *words: str) -> None:
        self._words = ("cpu", "cuda", *words)

    def get_metavar(self, param: click.Parameter, ctx: click.Context) -> str:
        """Return what stands in the help."""
        return f"[{'|'.join(self._words)}|NAME]"

    def convert(self, value: str, param: click.Parameter | None, ctx: click.Context | None) -> str:
        """Refuse what cannot be a name; whether there is such a device is found out later."""
        if re.fullmatch("[a-z][a-z0-9_]*(=.+)?", value) is None:
            self.fail(
                f"{value!r} is not one of {', '.join(map(repr, self._words))}, and not NAME or "
                "NAME=LIBRARY of a plugin, such as openvino",
                param,
                ctx,
            )
        return value

    def shell_complete(
        self, ctx: click.Context, param: click.Parameter, incomplete: str
    ) -> list[CompletionItem]:
        """Offer the devices that are always known."""
        return [CompletionItem(word) for word in self._words if word.startswith(incomplete)]
