"""Bundles of schema 1, as vae-pipeline wrote them before there were graphs of noise."""

import json
import shutil
from dataclasses import asdict
from pathlib import Path

from pipeline.export.bundle_export import npz_bytes
from pipeline.export.manifest import seal
from serving.bundle import GOLDEN, GRAPHS, PARITY, Bundle

OPERATIONS = ("encode", "decode", "reconstruct", "sample", "score")
"""What schema 1 has; golden rows are of these alone."""


def write_schema_1(bundle: Bundle, out: Path) -> Bundle:
    """Copy a bundle without what schema 2 has; the report of parity is about the rest."""
    shutil.copytree(bundle.path, out)
    later = {path.name for path in out.glob("*.onnx")} - {*GRAPHS}
    for name in later:
        (out / name).unlink()
    kept = tuple(f"{name}." for name in OPERATIONS)
    golden = {key: value for key, value in bundle.golden().items() if key.startswith(kept)}
    (out / GOLDEN).write_bytes(npz_bytes(golden))
    report = bundle.read_json(PARITY)
    report["files"] = {k: v for k, v in report["files"].items() if k not in later}
    for key in ("comparisons", "elbo"):
        report[key] = [row for row in report[key] if row["operation"] in OPERATIONS]
    (out / PARITY).write_text(json.dumps(report))
    content = asdict(bundle.manifest) | {"schema_version": 1}
    content["operations"] = {name: content["operations"][name] for name in OPERATIONS}
    del content["needs"]
    return Bundle(out, seal(out, content))
