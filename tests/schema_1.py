"""Bundles of schema 1, as vae-pipeline wrote them before there were graphs of noise."""

import json
import shutil
from dataclasses import asdict
from pathlib import Path

from pipeline.export.bundle_export import npz_bytes
from pipeline.export.manifest import seal
from serving.bundle import GOLDEN, MORE_GRAPHS, PARITY, Bundle

LATER = ("noise.", "score_noise.", "score_portable.")
"""What the keys of golden rows begin with that schema 1 does not have."""


def write_schema_1(bundle: Bundle, out: Path) -> Bundle:
    """Copy a bundle without what schema 2 has; the report of parity is about the rest."""
    shutil.copytree(bundle.path, out)
    for name in MORE_GRAPHS:
        (out / name).unlink()
    golden = {key: value for key, value in bundle.golden().items() if not key.startswith(LATER)}
    (out / GOLDEN).write_bytes(npz_bytes(golden))
    report = bundle.read_json(PARITY)
    report["files"] = {k: v for k, v in report["files"].items() if k not in MORE_GRAPHS}
    for key in ("comparisons", "elbo"):
        report[key] = [row for row in report[key] if row["operation"] != "score_portable"]
    (out / PARITY).write_text(json.dumps(report))
    content = asdict(bundle.manifest) | {"schema_version": 1}
    del content["needs"]
    return Bundle(out, seal(out, content))
