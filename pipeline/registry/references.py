"""What a person may write for a version: `7`, `@candidate`, `models:/vae/7`, `models:/vae@ALIAS`.

In: the name of a registered model and a reference. Out: a name and a version's number.
"""

from serving.errors import UsageRefused
from serving.mlflow_store import alias_version, connect
from serving.source import parse_reference


def resolve_version(name: str, reference: str) -> tuple[str, str]:
    """Return the model and the number of a version; models:/ names its model itself.

    Raises:
        UsageRefused: the reference names no version.
    """
    if registered := parse_reference(reference):
        name = registered.name
        reference = registered.version or f"@{registered.alias}"
    if reference.isdecimal():
        return name, reference
    if not reference.startswith("@"):
        raise UsageRefused(
            "version must be a number, an alias such as @candidate, models:/NAME/VERSION or "
            f"models:/NAME@ALIAS, got {reference!r}"
        )
    number = alias_version(connect(), name, reference[1:])
    if number is None:
        raise UsageRefused(f"{name} has no version {reference}: run vae register first")
    return name, number
