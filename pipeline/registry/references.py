"""What a person may write for a version: `7`, `@candidate`, `models:/vae/7`, `models:/vae@ALIAS`.

In: the name of a registered model and a reference. Out: a name and a version's number.
"""

from typing import TYPE_CHECKING

from serving.errors import UsageRefused
from serving.ledger import ledger_name
from serving.mlflow_store import alias_version, connect, find_in_store, store_errors, store_name
from serving.source import parse_reference

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities.model_registry import RegisteredModel


def find_model(client: "MlflowClient", name: str) -> "RegisteredModel":
    """Return a registered model.

    Raises:
        UsageRefused: there is none of this name; the message lists some that there are.
    """
    model = find_in_store(client.get_registered_model, name)
    if model is not None:
        return model
    with store_errors():
        found = client.search_registered_models(max_results=100)
    known = {other.name for other in found}
    names = sorted(known - {ledger_name(other) for other in known})
    advice = f"it has {', '.join(names[:5])}" if names else "vae run makes the first one"
    more = f" and {len(names) - 5} more" if len(names) > 5 else ""
    raise UsageRefused(f"there is no model {name!r} in {store_name()}: {advice}{more}")


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
    client = connect()
    number = alias_version(client, name, reference[1:])
    if number is None:
        aliases = sorted(find_model(client, name).aliases)
        hint = f"it has @{', @'.join(aliases)}" if aliases else "give its number, or promote one"
        raise UsageRefused(f"{name} has no version {reference}: {hint}")
    return name, number
