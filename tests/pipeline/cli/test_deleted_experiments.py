"""Experiments that a person deleted on MLflow's pages: named before any work, and history stays."""

from typing import Any

import pytest

from pipeline.registry.audit_log import list_decisions
from pipeline.registry.promotion import rollback
from serving.bundle import Bundle
from serving.errors import UsageRefused
from serving.mlflow_store import connect
from tests.pipeline.registry.versions import champion, promote_with, register
from tests.trained_models import Trained

TINY = ("--epochs", "1", "--hidden-dims", "16", "--latent-dim", "3", "--nll-samples", "2")


@pytest.fixture
def decided(store: object, sealed: Bundle, worse: Bundle, trained: Trained) -> list[dict[str, Any]]:
    """Promote 1, refuse it again, promote 2, roll back; return all decisions."""
    promote_with(trained, register(worse))
    promote_with(trained, register(sealed))
    rollback("vae", threads=1)
    register(sealed, "other")
    return list_decisions("vae")


def delete_experiment(name: str) -> str:
    client = connect()
    found = client.get_experiment_by_name(name)
    if found is None:
        client.create_experiment(name)
        return delete_experiment(name)
    client.delete_experiment(found.experiment_id)
    return str(found.experiment_id)


@pytest.mark.parametrize(
    ("experiment", "arguments"),
    [
        ("vae-promotions", ("promote", "2")),
        ("vae-promotions", ("rollback",)),
        ("vae-promotions", ("delete", "2")),
        ("vae-promotions", ("run", "--data", "{data}", *TINY)),
        ("vae", ("run", "--data", "{data}", "--no-promote", *TINY)),
        ("vae", ("train", "--data", "{data}", *TINY)),
        ("vae", ("register", "{bundle}")),
        ("vae-checks", ("check", "models:/vae/2")),
    ],
    ids=lambda value: value if isinstance(value, str) else value[0],
)
def test_a_deleted_experiment_is_named_before_any_work(
    vae: Any,
    decided: list[dict[str, Any]],
    trained: Trained,
    sealed: Bundle,
    monkeypatch: pytest.MonkeyPatch,
    experiment: str,
    arguments: tuple[str, ...],
) -> None:
    connect().delete_registered_model_alias("vae", "candidate")
    connect().set_registered_model_alias("vae", "previous", "2")
    if arguments[0] == "delete":
        connect().delete_registered_model_alias("vae", "previous")
    number, worked = delete_experiment(experiment), []
    for place in ("pipeline.training.loop.train_step", "pipeline.cli.stages.compare"):
        monkeypatch.setattr(place, lambda *_, **__: worked.append(1))
    before = [version.version for version in connect().search_model_versions("name='vae'")]
    places = {"data": trained[1].source, "bundle": str(sealed.path)}
    with pytest.raises(UsageRefused) as caught:
        vae(*(word.format(**places) for word in arguments))
    assert str(caught.value) == (
        f"experiment {experiment!r} was deleted: restore it with "
        f"mlflow experiments restore --experiment-id {number}"
    )
    assert caught.value.exit_code == 2
    assert worked == []
    assert champion() == "1"
    assert before == [row.version for row in connect().search_model_versions("name='vae'")]


def test_history_is_told_from_the_ledger(vae: Any, decided: list[dict[str, Any]]) -> None:
    number = delete_experiment("vae-promotions")
    answer = vae("history")
    assert not answer["complete"]
    keys = ("action", "version", "previous", "decision", "run_id")
    told = [{key: row[key] for key in keys} for row in answer["decisions"]]
    assert told == [{key: row[key] for key in keys} for row in decided]
    assert [row["reasons"] for row in answer["decisions"]] == [
        f"known from the ledger alone: its record, run {row['run_id']}, was deleted"
        for row in decided
    ]
    for known in decided:
        at = vae("history", "--at", known["moved_at"])
        assert (at["version"], at["certain"]) == (known["version"], True)
    connect().restore_experiment(number)
    assert vae("history") == {"name": "vae", "decisions": decided, "complete": True}


def test_history_says_what_restores_the_records(
    decided: list[dict[str, Any]], capsys: pytest.CaptureFixture[str]
) -> None:
    from pipeline.cli.main import cli

    number = delete_experiment("vae-promotions")
    cli.main(["history"], standalone_mode=False)
    said = capsys.readouterr().err
    assert f"mlflow experiments restore --experiment-id {number}" in said
    assert "no decision" not in said


@pytest.mark.parametrize("arguments", [("history",), ("list",), ("history", "--at", "2026-01-01")])
def test_an_unknown_model_is_refused(
    vae: Any, decided: list[dict[str, Any]], arguments: tuple[str, ...]
) -> None:
    with pytest.raises(UsageRefused) as caught:
        vae(*arguments, "--name", "vea")
    assert str(caught.value).startswith("there is no model 'vea' in sqlite:")
    assert str(caught.value).endswith(": it has other, vae")


def test_a_model_without_decisions_has_an_empty_history(
    vae: Any, sealed: Bundle, store: object
) -> None:
    register(sealed)
    assert vae("history") == {"name": "vae", "decisions": [], "complete": True}
