"""Bundles of schema 1, as vae-pipeline wrote them before there were graphs of noise."""

import shutil
from dataclasses import asdict
from pathlib import Path

from pipeline.export.bundle_export import npz_bytes
from pipeline.export.manifest import seal
from serving.bundle import GOLDEN, NOISE_GRAPHS, Bundle


def write_schema_1(bundle: Bundle, out: Path) -> Bundle:
    """Copy a bundle without what schema 2 has; the report of parity is about the same files."""
    shutil.copytree(bundle.path, out)
    for name in NOISE_GRAPHS:
        (out / name).unlink()
    golden = {k: v for k, v in bundle.golden().items() if not k.startswith(("noise", "score_n"))}
    (out / GOLDEN).write_bytes(npz_bytes(golden))
    content = asdict(bundle.manifest) | {"schema_version": 1}
    return Bundle(out, seal(out, content))
