"""The gate fails closed: it refuses a candidate whatever is wrong with it, and says what is."""

import contextlib
import json
import shutil
import sqlite3
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipeline.cli.results import raise_unless_promoted
from pipeline.config import PromoteConfig
from pipeline.registry import promotion
from pipeline.registry.audit_log import Decision, list_decisions
from pipeline.registry.scoring import score_version
from serving.bundle import Bundle
from serving.errors import VaeError
from serving.mlflow_store import connect
from tests.e2e.versions import reseal
from tests.pipeline.registry.versions import (
    champion,
    flip_byte,
    promote_with,
    register,
    stored_files,
)
from tests.trained_models import Trained


@pytest.fixture(scope="module")
def with_champion(
    sealed: Bundle, trained: Trained, empty_store: Path, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """A store whose version 1 is champion."""
    path = tmp_path_factory.mktemp("champion") / "mlflow.db"
    shutil.copy(empty_store, path)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{path}")
        promote_with(trained, register(sealed))
    return path


@pytest.fixture
def store(with_champion: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of that store; both share the files of version 1."""
    path = Path(shutil.copy(with_champion, tmp_path))
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{path}")
    return path


@dataclass(frozen=True, kw_only=True)
class Fault:
    """What is spoiled before version 2 goes through the gate, and how it must be refused."""

    exit_code: int
    message: str
    bundle: Callable[[Bundle], Bundle] = lambda bundle: bundle
    """Changes the bundle before it is registered."""
    stored: Callable[[Path], object] = lambda folder: None
    """Changes the registered files."""
    store: Callable[[sqlite3.Connection], object] = lambda database: None
    score: Callable[[np.ndarray], np.ndarray] = lambda elbo: elbo
    gate: dict[str, Any] = field(default_factory=dict)
    rows: dict[str, Any] = field(default_factory=dict)
    force_helps: bool = False


def promote_version(
    trained: Trained, version: str, fault: Fault, force: str | None = None
) -> Decision:
    """Promote as the command line does, which raises if the champion did not move."""
    gate = PromoteConfig(**fault.gate)
    decision = promote_with(trained, version, gate, force=force, **fault.rows)
    raise_unless_promoted(decision)
    return decision


def edit_json(name: str, **changes: Any) -> Callable[[Bundle], Bundle]:
    """Change a JSON file and seal the bundle again; None removes a key."""

    def edit(bundle: Bundle) -> Bundle:
        content = {**bundle.read_json(name), **changes}
        kept = {key: value for key, value in content.items() if value is not None}
        (bundle.path / name).write_text(json.dumps(kept))
        return reseal(bundle.path)

    return edit


def drop_parity(bundle: Bundle) -> Bundle:
    (bundle.path / "parity.json").unlink()
    return reseal(bundle.path)


def spoil_golden(bundle: Bundle) -> Bundle:
    golden = bundle.golden()
    golden["decode.x_loc"] += 1
    np.savez(bundle.path / "golden.npz", **golden)  # type: ignore[arg-type]
    return reseal(bundle.path)


def other_rows(bundle: Bundle) -> Bundle:
    splits = bundle.manifest.data["splits"]
    data = {**bundle.manifest.data, "splits": {**splits, "test": {"rows": 100, "sha256": "1" * 64}}}
    return reseal(bundle.path, data=data)


def spoil(value: float) -> Callable[[np.ndarray], np.ndarray]:
    return lambda elbo: np.where(np.arange(len(elbo)) == 3, value, elbo)


PENDING = "update model_versions set status = 'PENDING_REGISTRATION' where version = 2"
FAULTS = {
    "nan": Fault(
        exit_code=5, message="ELBO is not finite on 1 of 100 held-out rows", score=spoil(np.nan)
    ),
    "inf": Fault(
        exit_code=5, message="ELBO is not finite on 1 of 100 held-out rows", score=spoil(np.inf)
    ),
    "-inf": Fault(exit_code=5, message="ELBO is not finite on 1 of 100", score=spoil(-np.inf)),
    "missing metric": Fault(
        exit_code=5,
        message="metrics.json has no active_units: run vae export again",
        bundle=edit_json("metrics.json", active_units=None),
    ),
    "metric is nan": Fault(
        exit_code=5,
        message="metrics.json says nll is nan",
        bundle=edit_json("metrics.json", nll=float("nan")),
    ),
    "missing parity": Fault(
        exit_code=5, message="parity was not checked: run vae check", bundle=drop_parity
    ),
    "failed parity": Fault(
        exit_code=5, message="parity failed", bundle=edit_json("parity.json", verdict="failed")
    ),
    "parity of other files": Fault(
        exit_code=5,
        message="parity.json is about other files",
        bundle=edit_json("parity.json", files={"encoder.onnx": "0" * 64}),
    ),
    "parity of another provider": Fault(
        exit_code=5,
        message="parity.json is of cuda, but CPUExecutionProvider computed: run vae check",
        bundle=edit_json("parity.json", devices=["cuda"]),
    ),
    "parity on no provider": Fault(
        exit_code=5,
        message="parity.json places no node of cpu on CPUExecutionProvider: run vae check",
        bundle=edit_json("parity.json", placement={}),
    ),
    "missing file": Fault(
        exit_code=7,
        message="^cannot read version 2 of vae: score.onnx: No such file or directory$",
        stored=lambda folder: (folder / "score.onnx").unlink(),
    ),
    "changed file": Fault(
        exit_code=7,
        message="^version 2 of vae: score.onnx is not the file that was sealed",
        stored=lambda folder: flip_byte(folder / "score.onnx"),
    ),
    "other outputs than torch's": Fault(
        exit_code=7,
        message="^self-check of version 2 of vae failed: decode puts x_loc off by 1, allowed",
        bundle=spoil_golden,
    ),
    "artifacts deleted": Fault(
        exit_code=7,
        message="vae version 2 has no files at /.*/artifacts: bring them back, or register it ",
        stored=lambda folder: shutil.rmtree(folder.parents[1]),
    ),
    "not ready": Fault(
        exit_code=7,
        message="vae version 2 is PENDING_REGISTRATION, not READY: register it again",
        store=lambda database: database.execute(PENDING),
    ),
    "worse": Fault(
        exit_code=5,
        message=r"not shown to be as good: .*-1\.100 ± 0\.000 nats .* allowed is -1",
        score=lambda elbo: elbo - 1.1,
        force_helps=True,
    ),
    "below the limit": Fault(
        exit_code=5, message="is below --min-elbo -1", gate={"min_elbo": -1.0}, force_helps=True
    ),
    "collapsed": Fault(
        exit_code=5,
        message="--min-active-units is 4",
        gate={"min_active_units": 4},
        force_helps=True,
    ),
    "other rows than its own": Fault(
        exit_code=5,
        message="not those that the version was evaluated on: sha256 000000000000, its manifest",
        rows={"sha256": "0" * 64},
    ),
    "other rows than the champion's": Fault(
        exit_code=5,
        message="champion 1 was evaluated on other held-out rows, .* with --allow-new-data",
        bundle=other_rows,
        rows={"sha256": "1" * 64},
    ),
    "stale base": Fault(
        exit_code=6,
        message="the champion was moved meanwhile: run the gate again",
        score=lambda elbo: (connect().delete_registered_model_alias("vae", "champion"), elbo)[1],
    ),
}


@pytest.mark.parametrize("fault", FAULTS.values(), ids=FAULTS.keys())
def test_fault(
    bundle: Bundle,
    trained: Trained,
    store: Path,
    fault: Fault,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with monkeypatch.context() as patch:  # register_bundle would refuse what has no parity
        patch.setattr("pipeline.registry.versions.parity_faults", lambda *_, **__: [])
        version = register(fault.bundle(reseal(bundle.path, seed=1)))
    fault.stored(stored_files(version))
    with contextlib.closing(sqlite3.connect(store)) as database, database:
        fault.store(database)

    def score(source: Any, *arguments: Any) -> Any:
        elbo = score_version(source, *arguments)
        return fault.score(elbo) if source.version == version else elbo

    monkeypatch.setattr(promotion, "score_version", score)
    with pytest.raises(VaeError, match=fault.message) as caught:
        promote_version(trained, version, fault)
    assert caught.value.exit_code == fault.exit_code
    status = "stale" if fault.exit_code == 6 else "refused"
    row = list_decisions("vae")[0]
    assert row["decision"] == status
    assert fault.exit_code != 7 or row["reasons"] == str(caught.value)
    assert champion() == (None if fault.exit_code == 6 else "1")
    if fault.force_helps:
        assert promote_version(trained, version, fault, "it is so").decision == "promoted"
    elif fault.exit_code != 6:
        with pytest.raises(VaeError, match=fault.message):
            promote_version(trained, version, fault, "it is so")
        assert champion() == "1"


@pytest.mark.usefixtures("store")
def test_without_a_fault_it_passes(bundle: Bundle, trained: Trained) -> None:
    assert promote_with(trained, register(reseal(bundle.path, seed=1))).decision == "promoted"
    assert champion() == "2"


@pytest.mark.usefixtures("store")
def test_new_data_is_accepted_on_request(bundle: Bundle, trained: Trained) -> None:
    version = register(other_rows(reseal(bundle.path, seed=1)))
    gate = PromoteConfig(allow_new_data=True)
    assert promote_with(trained, version, gate, sha256="1" * 64).decision == "promoted"
    assert champion() == "2"
