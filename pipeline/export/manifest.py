"""Seal a folder of files as a bundle: write its manifest, and replace files in a sealed bundle."""

import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from serving.bundle import (
    MANIFEST,
    SCHEMA_VERSION,
    SIGNATURE,
    Bundle,
    Manifest,
    file_entry,
    manifest_digest,
    read_manifest,
)
from serving.files import staged_file


def seal(folder: Path, content: Mapping[str, Any]) -> Manifest:
    """Write the manifest: every file of `folder` with its digest, and one digest of everything.

    A signature is removed: it was of other files.
    """
    (folder / SIGNATURE).unlink(missing_ok=True)
    names = sorted(file.name for file in folder.iterdir() if file.name != MANIFEST)
    entries = {name: file_entry(folder / name) for name in names}
    content = {"schema_version": SCHEMA_VERSION, **content, "files": entries}
    content["digest"] = manifest_digest(content)
    with staged_file(folder / MANIFEST) as temporary:
        temporary.write_text(json.dumps(content, indent=1, allow_nan=False))
    return read_manifest(folder)


def replace_files(bundle: Bundle, files: Mapping[str, str]) -> Bundle:
    """Write texts into a bundle by file name, and seal it again."""
    for name, text in files.items():
        with staged_file(bundle.path / name) as temporary:
            temporary.write_text(text)
    return Bundle(bundle.path, seal(bundle.path, asdict(bundle.manifest)))
