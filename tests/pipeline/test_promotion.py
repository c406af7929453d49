import json
import multiprocessing
import os
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipeline import promotion
from pipeline.config import PromoteConfig
from pipeline.data import Split
from pipeline.errors import ParityFailed
from pipeline.manifest import add_report
from pipeline.promotion import Decision, history, promote, resolve_version, rollback
from pipeline.registry import register_bundle
from pipeline.tracking import tracked_run
from serving.bundle import Bundle, Manifest
from serving.errors import UsageRefused, VaeError, VerificationFailed
from serving.source import alias_version, connect, fetch_version, open_source
from tests.pipeline.conftest import Trained, make_bundle, tiny_config, train_checkpoint

pytestmark = pytest.mark.usefixtures("store")

GATE = PromoteConfig()


@pytest.fixture(scope="module")
def worse(trained: Trained, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """A model of the same data that hardly learned."""
    weak = train_checkpoint(trained[1], tiny_config(trained[1], epochs=1, learning_rate=1e-5))
    return make_bundle(tmp_path_factory.mktemp("worse") / "bundle", (weak, trained[1]))


def register(bundle: Bundle, name: str = "vae") -> str:
    with tracked_run("test") as run:
        return register_bundle(run, bundle, name)


def put(trained: Trained, version: str, **changes: Any) -> Decision:
    def load_test(manifest: Manifest) -> Split:
        return replace(trained[1].test, **changes)

    return promote("vae", version, load_test, GATE, threads=1)


def verify_version(version: str, folder: Path) -> str:
    return fetch_version(connect(), "vae", version, folder).bundle.manifest.digest


def champion() -> str | None:
    return alias_version(connect(), "vae", "champion")


def stored_files(version: str) -> Path:
    client = connect()
    source = client.get_model_version("vae", version).source
    model = client.get_logged_model(source.removeprefix("models:/"))
    return Path(model.artifact_location.removeprefix("file://")) / "artifacts" / "bundle"


def test_a_version_is_its_bundle_with_its_lineage(sealed: Bundle) -> None:
    version = register(sealed)
    client = connect()
    registered = client.get_model_version("vae", version)
    assert registered.tags["bundle.sha256"] == sealed.manifest.digest
    assert registered.tags["git.sha"] == "0" * 40
    assert registered.tags["git.dirty"] == "False"
    splits = sealed.manifest.data["splits"]
    for split in ("train", "valid", "test"):
        assert registered.tags[f"data.{split}.sha256"] == splits[split]["sha256"]
    assert alias_version(client, "vae", "candidate") == version == "1"
    assert champion() is None
    source = open_source("models:/vae@candidate")
    assert (source.name, source.version) == ("vae", "1")
    assert source.bundle.manifest == sealed.manifest
    assert open_source("models:/vae/1").bundle.manifest == sealed.manifest


def test_the_same_bundle_is_registered_once(sealed: Bundle, worse: Bundle) -> None:
    assert [register(sealed), register(worse), register(sealed)] == ["1", "2", "1"]
    assert alias_version(connect(), "vae", "candidate") == "1"


def test_a_bundle_without_parity_is_not_registered(bundle: Bundle) -> None:
    report = bundle.read_json("parity.json") | {"verdict": "failed"}
    with pytest.raises(ParityFailed, match="cannot be registered: parity failed"):
        register(add_report(bundle, report))
    assert connect().search_model_versions("name='vae'") == []


def test_first_promotion_says_that_there_is_no_baseline(sealed: Bundle, trained: Trained) -> None:
    decision = put(trained, register(sealed))
    assert decision.decision == "promoted"
    assert decision.previous is None
    assert "no champion to compare with" in decision.reasons[0]
    assert champion() == "1"
    assert alias_version(connect(), "vae", "previous") is None
    assert open_source("models:/vae@champion").version == "1"


def test_a_worse_candidate_is_refused_and_recorded(
    sealed: Bundle, worse: Bundle, trained: Trained
) -> None:
    put(trained, register(sealed))
    decision = put(trained, register(worse))
    assert decision.decision == "refused"
    assert "is too low" in decision.reasons[0]
    assert decision.judgement is not None
    assert decision.judgement.difference is not None
    assert decision.judgement.difference < 0
    assert champion() == "1"
    rows = history("vae")
    assert [(row["version"], row["decision"]) for row in rows] == [
        ("2", "refused"),
        ("1", "promoted"),
    ]
    assert rows[0]["reasons"] == decision.reasons[0]
    client = connect()
    assert client.get_model_version("vae", "2").tags["gate.status"] == "refused"
    artifact = client.download_artifacts(rows[0]["run_id"], "decision.json")
    record = json.loads(Path(artifact).read_text())
    assert record["judgement"]["elbo"] == decision.judgement.elbo
    assert record["previous"] == "1"


def test_a_better_candidate_replaces_the_champion_and_rollback_returns_it(
    sealed: Bundle, worse: Bundle, trained: Trained
) -> None:
    put(trained, register(worse))
    decision = put(trained, register(sealed))
    assert decision.decision == "promoted"
    assert (champion(), alias_version(connect(), "vae", "previous")) == ("2", "1")
    back = rollback("vae", threads=1)
    assert (back.decision, back.version, back.previous) == ("promoted", "1", "2")
    assert champion() == "1"
    assert [row["action"] for row in history("vae")] == ["rollback", "promote", "promote"]
    with pytest.raises(UsageRefused, match="no previous champion to go back to"):
        rollback("vae", threads=1)


def test_promoting_the_champion_again_changes_nothing(sealed: Bundle, trained: Trained) -> None:
    put(trained, register(sealed))
    decision = put(trained, "1")
    assert decision.decision == "promoted"
    assert decision.reasons == ("version 1 is the champion already",)
    assert connect().get_model_version("vae", "1").tags["gate.status"] == "promoted"
    assert alias_version(connect(), "vae", "previous") is None


def test_other_held_out_rows_are_refused(sealed: Bundle, trained: Trained) -> None:
    decision = put(trained, register(sealed), sha256="0")
    assert decision.decision == "refused"
    assert "not those that the version was evaluated on" in decision.reasons[0]
    assert champion() is None


def test_models_of_other_data_are_not_compared(
    sealed: Bundle, trained: Trained, trained_table: Trained, tmp_path: Path
) -> None:
    put(trained, register(sealed))
    decision = put(trained_table, register(make_bundle(tmp_path / "table", trained_table)))
    assert decision.decision == "refused"
    assert [reason.split(" is ")[0] for reason in decision.reasons] == [
        "x_shape",
        "x_dtype",
        "likelihood",
    ]


@pytest.mark.parametrize("value", [np.nan, np.inf], ids=str)
def test_scores_that_are_not_finite_are_refused(
    sealed: Bundle, trained: Trained, monkeypatch: pytest.MonkeyPatch, value: float
) -> None:
    version = register(sealed)
    monkeypatch.setattr(promotion, "_score", lambda *_: np.array([value, -1.0]))
    assert put(trained, version).decision == "refused"
    assert champion() is None


def test_a_champion_that_moved_meanwhile_makes_the_decision_stale(
    sealed: Bundle, worse: Bundle, trained: Trained, monkeypatch: pytest.MonkeyPatch
) -> None:
    register(worse)
    version = register(sealed)
    real = promotion._score

    def move_then_score(*arguments: Any) -> Any:
        connect().set_registered_model_alias("vae", "champion", "1")
        return real(*arguments)

    monkeypatch.setattr(promotion, "_score", move_then_score)
    decision = put(trained, version)
    assert decision.decision == "stale"
    assert champion() == "1"
    assert history("vae")[0]["decision"] == "stale"


def test_changed_files_in_the_registry_are_found(
    sealed: Bundle, trained: Trained, tmp_path: Path
) -> None:
    version = register(sealed)
    assert verify_version(version, tmp_path) == sealed.manifest.digest
    assert open_source("models:/vae/1").version == "1"  # a good copy in the cache helps nobody
    graph = stored_files(version) / "decoder.onnx"
    content = bytearray(graph.read_bytes())
    content[-1] ^= 1
    graph.write_bytes(content)
    with pytest.raises(VerificationFailed, match=r"decoder.onnx is not the file that was sealed"):
        verify_version(version, Path(tempfile.mkdtemp(dir=tmp_path)))
    with pytest.raises(VerificationFailed, match=r"decoder.onnx"):
        put(trained, version)
    assert champion() is None
    row = history("vae")[0]
    assert row["decision"] == "refused"
    assert "decoder.onnx" in str(row["reasons"])


def test_a_resealed_bundle_in_the_registry_is_found(
    sealed: Bundle, worse: Bundle, tmp_path: Path
) -> None:
    """Someone who writes files and manifest alike still cannot write the registered digest."""
    version = register(sealed)
    for file in worse.path.iterdir():
        (stored_files(version) / file.name).write_bytes(file.read_bytes())
    with pytest.raises(VerificationFailed, match="registered was"):
        verify_version(version, tmp_path)


def test_a_damaged_cache_is_fetched_again(sealed: Bundle) -> None:
    register(sealed)
    cached = open_source("models:/vae/1").bundle.path
    (cached / "decoder.onnx").write_bytes(b"rot")
    assert open_source("models:/vae/1").bundle.manifest == sealed.manifest


def test_references(sealed: Bundle) -> None:
    register(sealed)
    assert resolve_version("vae", "@candidate") == "1"
    assert resolve_version("vae", "7") == "7"
    with pytest.raises(UsageRefused, match="vae has no version @champion"):
        resolve_version("vae", "@champion")
    with pytest.raises(UsageRefused, match="must be a number or an alias"):
        resolve_version("vae", "latest")
    with pytest.raises(UsageRefused, match=r"models:/NAME@ALIAS or models:/NAME/VERSION"):
        open_source("models:/vae")
    with pytest.raises(UsageRefused, match="vae has no champion"):
        open_source("models:/vae@champion")
    with pytest.raises(UsageRefused, match=r"vae has no version 99 in sqlite:"):
        open_source("models:/vae/99")
    with pytest.raises(UsageRefused, match=r"vae has no version 99 in sqlite:"):
        promote("vae", "99", lambda manifest: Split(np.zeros(0), ""), GATE, threads=1)
    assert history("vae") == []


def test_an_abandoned_lease_is_taken_over(
    sealed: Bundle, trained: Trained, monkeypatch: pytest.MonkeyPatch
) -> None:
    version = register(sealed)
    lease = "vae--promotion-lease"
    connect().create_registered_model(lease, tags={"owner": "gone"})
    monkeypatch.setattr(promotion, "LEASE_S", 0)
    assert put(trained, version).decision == "promoted"
    assert connect().search_registered_models(f"name='{lease}'") == []


def test_a_held_lease_is_respected(
    sealed: Bundle, trained: Trained, monkeypatch: pytest.MonkeyPatch
) -> None:
    version = register(sealed)
    monkeypatch.setattr(promotion, "LEASE_WAIT_S", 0.3)
    connect().create_registered_model("vae--promotion-lease")  # not even its tags are there yet
    decision = put(trained, version)
    assert decision.decision == "stale"
    assert "another promotion of vae is under way" in decision.reasons[0]
    assert champion() is None
    assert history("vae")[0]["decision"] == "stale"


def test_a_lease_that_was_taken_over_is_left_to_its_new_owner(store: Path) -> None:
    client, lease = connect(), "vae--promotion-lease"
    with promotion._lease(client, "vae"):
        client.delete_registered_model(lease)
        client.create_registered_model(lease, tags={"owner": "other"})
    assert client.get_registered_model(lease).tags["owner"] == "other"


@pytest.mark.parametrize("digest", ["", "/", "../../mine", "0" * 63], ids=str)
def test_a_tag_that_is_no_digest_never_becomes_a_path(
    sealed: Bundle, tmp_path: Path, digest: str
) -> None:
    register(sealed)
    mine = tmp_path / "mine"
    mine.mkdir()
    connect().set_model_version_tag("vae", "1", "bundle.sha256", digest or str(mine))
    with pytest.raises(VerificationFailed, match=r"has no digest in its tag bundle.sha256"):
        open_source("models:/vae/1")
    assert mine.exists()


def test_nothing_moves_without_a_record(
    sealed: Bundle, trained: Trained, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where the audit cannot be written, the champion stays."""
    version = register(sealed)
    client = connect()
    client.delete_experiment(client.create_experiment("vae-promotions"))
    with pytest.raises(VaeError, match="the MLflow store"):
        put(trained, version)
    assert champion() is None


def test_an_interrupted_promotion_says_whether_it_moved(
    sealed: Bundle, trained: Trained, monkeypatch: pytest.MonkeyPatch
) -> None:
    version = register(sealed)
    real = promotion._flip

    def flip_then_interrupt(*arguments: Any) -> Decision:
        real(*arguments)
        raise KeyboardInterrupt

    for flip, outcome in ((promotion._score, "refused"), (flip_then_interrupt, "promoted")):
        with monkeypatch.context() as patch:
            if outcome == "refused":
                patch.setattr(
                    promotion, "_score", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt)
                )
            else:
                patch.setattr(promotion, "_flip", flip)
            with pytest.raises(KeyboardInterrupt):
                put(trained, version)
        assert history("vae")[0]["decision"] == outcome
        assert champion() == (version if outcome == "promoted" else None)


def test_a_refused_rollback_is_recorded(sealed: Bundle, worse: Bundle, trained: Trained) -> None:
    put(trained, register(worse))
    put(trained, register(sealed))
    (stored_files("1") / "decoder.onnx").write_bytes(b"rot")
    with pytest.raises(VerificationFailed, match=r"decoder.onnx"):
        rollback("vae", threads=1)
    assert champion() == "2"
    assert (history("vae")[0]["action"], history("vae")[0]["decision"]) == ("rollback", "refused")


def test_an_operator_without_a_name_is_a_number(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail() -> str:
        raise KeyError("uid not found")

    monkeypatch.setattr("getpass.getuser", fail)
    assert promotion._operator() == str(os.getuid())


def _promote_in_process(start: Any, results: Any, version: str, data: tuple[Any, str]) -> None:
    def load_test(manifest: Manifest) -> Split:
        return Split(*data)

    real = promotion._flip

    def flip_together(client: Any, decision: Decision) -> Decision:
        start.wait()
        return real(client, decision)

    promotion._flip = flip_together
    results.put(promote("vae", version, load_test, GATE, threads=1).decision)


def test_of_two_promotions_at_once_one_wins(
    sealed: Bundle, worse: Bundle, trained: Trained
) -> None:
    versions = [register(sealed), register(worse)]
    context = multiprocessing.get_context("spawn")
    start, results = context.Barrier(2), context.Queue()
    data = (trained[1].test.x, trained[1].test.sha256)
    workers = [
        context.Process(target=_promote_in_process, args=(start, results, version, data))
        for version in versions
    ]
    for worker in workers:
        worker.start()
    outcomes = [results.get(timeout=120) for _ in workers]
    for worker in workers:
        worker.join()
    assert sorted(outcomes) == ["promoted", "stale"]
    winner = next(row for row in history("vae") if row["decision"] == "promoted")
    assert champion() == winner["version"]
