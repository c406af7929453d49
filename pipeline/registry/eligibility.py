"""Reasons not to score a candidate at all; `--force` overrides none of them.

In: the verified candidate and champion, and the digest of the held-out rows. Out: a text per fault.
"""

import re
from collections.abc import Iterator
from dataclasses import replace
from typing import TYPE_CHECKING

from pipeline.config import REQUIREMENT, PromoteConfig
from pipeline.parity.check import parity_faults
from pipeline.registry.approvals import APPROVAL, approval_faults
from pipeline.registry.device_checks import check_faults
from pipeline.registry.gate import metric_faults
from serving.bundle import METRICS, Manifest
from serving.mlflow_store import find_in_store
from serving.source import Source

if TYPE_CHECKING:
    from mlflow import MlflowClient

REQUIRE_TAG = "gate.require"
"""Tag of a registered model with words that are added to `--require`."""


def add_required(
    client: "MlflowClient", name: str, config: PromoteConfig
) -> tuple[PromoteConfig, list[str]]:
    """Add what the model's tag requires to `config.require`; return the faults of the tag too."""
    model = find_in_store(client.get_registered_model, name)
    text = "" if model is None else model.tags.get(REQUIRE_TAG, "")
    words = [word.strip() for word in text.split(",") if text]
    faults = [
        f"the tag {REQUIRE_TAG} of {name} has {word!r}: correct it to cpu, cuda, the names of "
        f"plugins or {APPROVAL}, with commas"
        for word in words
        if re.fullmatch(REQUIREMENT, word) is None
    ]
    return replace(config, require=tuple(dict.fromkeys((*config.require, *words)))), faults


def eligibility_faults(
    candidate: Source,
    champion: Source | None,
    test_sha256: str,
    config: PromoteConfig,
    promoter: str,
) -> Iterator[str]:
    """Yield the reasons why the candidate cannot be scored and compared."""
    yield from parity_faults(candidate.bundle)
    yield from check_faults(candidate, [word for word in config.require if word != APPROVAL])
    if APPROVAL in config.require:
        yield from approval_faults(candidate, promoter)
    yield from metric_faults(candidate.bundle.read_json(METRICS))
    if champion is not None:
        manifests = candidate.bundle.manifest, champion.bundle.manifest
        yield from _kind_faults(*manifests)
        yield from _scale_faults(*manifests)
    yield from _data_faults(candidate, champion, test_sha256, config)


def _kind_faults(new: Manifest, old: Manifest) -> Iterator[str]:
    for field in ("x_shape", "x_dtype", "likelihood"):
        if getattr(new, field) != getattr(old, field):
            yield (
                f"{field} is {getattr(new, field)}, but the champion's is {getattr(old, field)}, "
                "so their ELBOs cannot be compared: register it under another --name"
            )


def _scale_faults(new: Manifest, old: Manifest) -> Iterator[str]:
    """Compare the scales of bytes: the bernoulli's value of a share depends on it."""
    if "bernoulli" in new.likelihood and new.max_byte != old.max_byte:
        yield (
            f"bytes are shares of {new.max_byte}, but the champion's of {old.max_byte}, so their "
            "ELBOs cannot be compared: register it under another --name"
        )


def _data_faults(
    candidate: Source, champion: Source | None, test_sha256: str, config: PromoteConfig
) -> Iterator[str]:
    """Check the rows on which both are scored: the candidate's, and by default the champion's."""
    own = candidate.bundle.manifest.data["splits"]["test"]["sha256"]
    if test_sha256 != own:
        yield (
            "the held-out rows are not those that the version was evaluated on: "
            f"sha256 {test_sha256[:12]}, its manifest says {own[:12]}"
        )
    if champion is None or config.allow_new_data:
        return
    other = champion.bundle.manifest.data["splits"]["test"]["sha256"]
    if own != other:
        yield (
            f"champion {champion.version} was evaluated on other held-out rows, sha256 "
            f"{other[:12]}, the candidate on {own[:12]}: train on the champion's data, or compare "
            "both on the candidate's rows with --allow-new-data"
        )
