"""Open a bundle from a folder, or from a version in the MLflow registry.

`models:/vae@champion` and `models:/vae/3` are fetched into a cache, where the bundle's digest names
the folder. A download is moved there once it is complete, and the files are verified at every
opening; with a public key, also that its holder signed them (`serving.signatures`). Raises
`VerificationFailed` if the files are not those that were registered or signed, and `VaeError` if
the store cannot be reached.
"""

import contextlib
import hashlib
import json
import re
import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from serving.bundle import SIGNATURE, Bundle, open_bundle
from serving.errors import UsageRefused, VaeError, VerificationFailed
from serving.files import staged_file
from serving.mlflow_store import (
    alias_version,
    connect,
    download_bundle,
    list_aliases,
    registered_version,
    store_name,
    tracking_uri,
)
from serving.signatures import check_signature
from serving.user_folders import cache_folder

if TYPE_CHECKING:
    from serving.mlflow_store import MlflowClient


_REFERENCE = re.compile(r"models:/(?P<name>[^/@]+)(@(?P<alias>[^/@]+)|/(?P<version>[0-9]+))")


@dataclass(frozen=True, slots=True)
class Source:
    """A verified bundle and, if it came from a registry, the version's name and number."""

    bundle: Bundle
    name: str | None = None
    version: str | None = None


@dataclass(frozen=True, slots=True)
class Registered:
    """A parsed `models:/` reference: an alias of a model, or one version of it."""

    name: str
    alias: str | None
    version: str | None


def parse_reference(reference: str) -> Registered | None:
    """Parse `models:/NAME@ALIAS` or `models:/NAME/VERSION`; return None for a path."""
    if not reference.startswith("models:"):
        return None
    match = _REFERENCE.fullmatch(reference)
    if match is None:
        raise UsageRefused(
            f"model must be a bundle folder, models:/NAME@ALIAS or models:/NAME/VERSION, "
            f"got {reference!r}"
        )
    return Registered(match["name"], match["alias"], match["version"])


def open_source(reference: str, verify_key: Path | None = None) -> Source:
    """Open the bundle at a path or a `models:/` reference; an alias is resolved once.

    With the file of a public key, the bundle must be signed by its holder.
    """
    registered = parse_reference(reference)
    if registered is None:
        return Source(_checked(open_bundle(Path(reference)), verify_key))
    client = connect()
    name, version = registered.name, registered.version
    if registered.alias is not None:
        version = alias_version(client, name, registered.alias)
    if version is None:
        aliases = ", ".join(list_aliases(client, name))
        hint = f"it has {aliases}" if aliases else "run vae run, or promote a version"
        raise UsageRefused(f"{name} has no {registered.alias} in {store_name()}: {hint}")
    return open_version(client, name, version, verify_key)


def open_cached(
    reference: str, verify_key: Path | None = None, follow: str = "alias"
) -> Source | None:
    """Open the version that `remember` stored for a reference, without asking the registry.

    Return None if there is none, if its files are damaged, or not signed by the holder of the key.
    What an alias named is not taken for what the ledger names, nor the reverse.
    """
    registered = parse_reference(reference)
    if registered is None:
        return None
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError, VerificationFailed):
        entry = json.loads(_entry_file(reference, follow).read_bytes())
        digest = str(entry["digest"])
        if re.fullmatch("[0-9a-f]{64}", digest):
            bundle = _checked(_open_sealed(cache_folder() / digest, digest), verify_key)
            return Source(bundle, registered.name, str(entry["version"]))
    return None


def remember(reference: str, source: Source, follow: str = "alias") -> None:
    """Store in the cache which version a reference names now, for `open_cached`."""
    entry = {"version": source.version, "digest": source.bundle.manifest.digest}
    with staged_file(_entry_file(reference, follow)) as temporary:
        temporary.write_text(json.dumps(entry))


def _entry_file(reference: str, follow: str) -> Path:
    words = [tracking_uri(), reference, *([] if follow == "alias" else [follow])]
    key = hashlib.sha256("\n".join(words).encode()).hexdigest()
    folder = cache_folder() / "references"
    folder.mkdir(exist_ok=True)
    return folder / f"{key}.json"


def open_version(
    client: "MlflowClient", name: str, version: str, verify_key: Path | None = None
) -> Source:
    """Open a version's bundle from the cache, or fetch it into the cache; verify it either way."""
    digest, model_uri = registered_version(client, name, version)
    import filelock

    folder = cache_folder() / digest
    with version_errors(name, version, folder), filelock.FileLock(f"{folder}.lock"):
        subject = f"{name} version {version}"
        try:
            bundle = _open_sealed(folder, digest)
        except VerificationFailed:
            shutil.rmtree(folder, ignore_errors=True)  # it is absent or damaged
            download_bundle(subject, model_uri, folder)
            bundle = _open_sealed(folder, digest)
        with contextlib.suppress(VerificationFailed):
            return Source(_checked(bundle, verify_key), name, version)
        _fetch_signature(subject, model_uri, folder)
        return Source(_checked(bundle, verify_key), name, version)


def _fetch_signature(subject: str, model_uri: str, folder: Path) -> None:
    """Put the signature of a version beside its files in the cache, which another may have filled.

    Versions of the same files have the same folder, also if one is signed and the other is not.
    """
    with tempfile.TemporaryDirectory(dir=folder.parent) as temporary:
        fetched = Path(temporary, folder.name)
        download_bundle(subject, model_uri, fetched)
        with contextlib.suppress(FileNotFoundError):
            (fetched / SIGNATURE).replace(folder / SIGNATURE)


def _checked(bundle: Bundle, verify_key: Path | None) -> Bundle:
    if verify_key is not None:
        check_signature(bundle, verify_key)
    return bundle


@contextlib.contextmanager
def version_errors(name: str | None, version: str | None, folder: Path) -> Iterator[None]:
    """Name a file `version 2 of vae: decoder.onnx` in errors, not by its path in a cache."""
    try:
        yield
    except VaeError as err:
        subject = f"version {version} of {name}"
        message = str(err).replace(f"{folder}/", f"{subject}: ").replace(str(folder), subject)
        raise type(err)(message) from err


def fetch_version(
    client: "MlflowClient",
    name: str,
    version: str,
    folder: Path,
    verify_key: Path | None = None,
) -> Source:
    """Fetch a version's files into `folder`, bypassing the cache, and verify them."""
    digest, model_uri = registered_version(client, name, version)
    fetched = folder / f"{name}-{version}"
    with version_errors(name, version, fetched):
        download_bundle(f"{name} version {version}", model_uri, fetched)
        return Source(_checked(_open_sealed(fetched, digest), verify_key), name, version)


def _open_sealed(folder: Path, digest: str) -> Bundle:
    if not folder.exists():  # `open_bundle` would call it a usage error
        raise VerificationFailed(f"no folder {folder}")
    bundle = open_bundle(folder)
    if bundle.manifest.digest != digest:
        raise VerificationFailed(
            f"{folder} holds bundle {bundle.manifest.digest[:12]}, but {digest[:12]} was registered"
        )
    return bundle
