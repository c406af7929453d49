"""Digits that are turned on their way to the server: live rows say what held-out rows cannot."""

import struct
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pipeline.config import PromoteConfig
from pipeline.data.dataset import load_dataset
from pipeline.registry.audit_log import Decision
from serving import Client
from serving.bundle import Bundle
from serving.engine import Engine
from serving.live_sums import merge_sums
from serving.mlflow_store import connect
from serving.p_values import default_samples
from serving.source import open_source
from tests.pipeline.registry.versions import champion, promote_with, register
from tests.serving.live.observed import live as live_status
from tests.serving.running import serve
from tests.serving.server.asking import wait_for
from tests.shared import make_once
from tests.trained_models import Trained, share_bundle, share_checkpoint

DEGREES = 15
TRAIN, TEST, LIVE = 4000, 500, 3000
GATE = PromoteConfig(margin=1.0)
SMALL = {"hidden_dims": (128,), "latent_dim": 8, "epochs": 8, "learning_rate": 3e-3}


def turn(x: np.ndarray) -> np.ndarray:
    turned = (Image.fromarray(row).rotate(DEGREES, Image.Resampling.BILINEAR) for row in x)
    return np.stack([np.asarray(each) for each in turned])


def write_idx(path: Path, x: np.ndarray) -> None:
    path.write_bytes(struct.pack(">HBB", 0, 8, x.ndim) + struct.pack(f">{x.ndim}I", *x.shape))
    with path.open("ab") as file:
        file.write(x.tobytes())


def train_on(
    tmp_path_factory: pytest.TempPathFactory, name: str, train: np.ndarray, test: np.ndarray
) -> tuple[Bundle, Trained]:
    """Train on some digits; hold out others, which are the same for all models."""

    def write(folder: Path) -> None:
        write_idx(folder / "train-images-idx3-ubyte", train)
        write_idx(folder / "t10k-images-idx3-ubyte", test)

    folder = make_once(tmp_path_factory, f"{name}-digits", write)
    dataset = load_dataset(str(folder), valid_fraction=0.1, test_fraction=0.1)
    trained = share_checkpoint(tmp_path_factory, f"{name}-net", dataset, **SMALL)
    return share_bundle(tmp_path_factory, f"{name}-bundle", trained), trained


@pytest.fixture(scope="module")
def digits() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Rows to train on, to hold out, and to send."""
    dataset = load_dataset("mnist", valid_fraction=0.1, test_fraction=0.1)
    live = dataset.test.x[TEST : TEST + LIVE]
    return dataset.sample[:TRAIN], dataset.test.x[:TEST], turn(live)


@pytest.fixture(scope="module")
def models(
    digits: tuple[np.ndarray, np.ndarray, np.ndarray],
    tmp_path_factory: pytest.TempPathFactory,
    slow_tier: None,
) -> dict[str, tuple[Bundle, Trained]]:
    """A model of upright digits, and one of turned digits; both hold out the same, upright."""
    train, test, _ = digits
    return {
        "upright": train_on(tmp_path_factory, "upright", train, test),
        "turned": train_on(tmp_path_factory, "turned", turn(train), test),
    }


def ask(trained: Trained, version: str, *, live: int, dry_run: bool = False) -> Decision:
    return promote_with(trained, version, replace(GATE, require_live=live), dry_run=dry_run)


@pytest.mark.parametrize(
    ("first", "second", "promoted"),
    [
        pytest.param("turned", "upright", False, id="better on held-out rows, worse on live ones"),
        pytest.param("upright", "turned", True, id="worse on held-out rows, better on live ones"),
    ],
)
@pytest.mark.slow(40)
def test_live_rows_decide(
    models: dict[str, tuple[Bundle, Trained]],
    digits: tuple[np.ndarray, np.ndarray, np.ndarray],
    store: Path,
    tmp_path: Path,
    first: str,
    second: str,
    promoted: bool,
) -> None:
    assert ask(models[first][1], register(models[first][0]), live=LIVE).decision == "promoted"
    version = register(models[second][0])
    trained = models[second][1]
    held_out = ask(trained, version, live=0, dry_run=True)
    assert (held_out.decision == "accepted") != promoted
    assert f"0 of {LIVE:,} live rows" in ask(trained, version, live=LIVE).reasons[0]

    live = digits[2]
    arguments = ("--watch-share", "1", "--shadow", f"models:/vae/{version}", "--drain", "1")
    uri = f"sqlite:///{store}"
    pair = models[first][0].manifest.digest, models[second][0].manifest.digest
    with (
        serve(tmp_path, "models:/vae@champion", *arguments, MLFLOW_TRACKING_URI=uri) as server,
        Client(server.rest) as client,
    ):

        def compares() -> bool:
            status = live_status(server)
            shadow = status.shadow if status else None
            return shadow is not None and shadow.fault is None and bool(shadow.digest)

        wait_for("the challenger is open", compares, server, patience_s=90)
        for start in range(0, LIVE, 100):
            client.infer("encode", {"x": live[start : start + 100]})
    tags = connect().get_model_version("vae", version).tags
    assert merge_sums(*pair, tags).rows == LIVE  # at the end, whatever waited

    decision = ask(trained, version, live=LIVE)
    assert (decision.decision == "promoted") == promoted, decision.reasons
    assert champion() == (version if promoted else "1")
    assert decision.judgement is not None
    compared = decision.judgement.live
    assert compared is not None
    if not promoted:
        assert decision.reasons[0].startswith("not shown to be as good on live rows: ")
    assert compared.difference == pytest.approx(difference(version, live), rel=1e-5)


def difference(version: str, live: np.ndarray) -> float:
    """What `vae score` computes by both versions, on the rows that were sent."""
    means = []
    for reference in (f"models:/vae/{version}", f"models:/vae/{3 - int(version)}"):
        source = open_source(reference)
        draws = default_samples(source.bundle, "score")
        means.append(Engine(source.bundle).score(live, draws, 0)["elbo"].astype(float).mean())
    return float(means[0] - means[1])
