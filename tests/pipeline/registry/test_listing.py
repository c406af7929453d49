"""The list of versions: figures and aliases of all, with a number of requests that stays."""

import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from mlflow import MlflowClient

from pipeline.registry.listing import list_versions, render_table
from serving.bundle import Bundle
from serving.errors import UsageRefused
from serving.mlflow_store import connect
from tests.pipeline.registry.versions import promote_with, register
from tests.trained_models import Trained

pytestmark = pytest.mark.usefixtures("store")


def test_a_row_holds_the_figures_of_its_bundle(
    sealed: Bundle, worse: Bundle, trained: Trained
) -> None:
    promote_with(trained, register(worse))
    promote_with(trained, register(sealed))
    connect().set_model_version_tag("vae", "2", "parity.cuda", '{"verdict": "failed"}')
    connect().set_model_version_tag("vae", "2", "parity.broken", "{")
    newest, oldest = list_versions("vae")
    assert newest["aliases"] == ["candidate", "champion"]
    assert oldest["aliases"] == ["previous"]
    for row, bundle in ((newest, sealed), (oldest, worse)):
        metrics = bundle.read_json("metrics.json")
        for name in ("elbo", "nll", "active_units"):
            assert row[name] == metrics[name]
        assert row["latent_dim"] == 3
        assert row["data"] == trained[1].source
        assert row["gate"] == "promoted"
    assert (newest["parity"], oldest["parity"]) == ("passed, cuda failed", "passed")
    lines = render_table([newest, oldest]).splitlines()
    assert [line.split()[0] for line in lines] == ["version", "2", "1"]
    assert f"{newest['elbo']:.2f}" in lines[1]
    assert f"{newest['active_units']} of 3" in lines[1]
    narrow = render_table([newest, oldest], 80).splitlines()
    assert max(map(len, narrow)) <= 80
    assert narrow[0].split() == ["version", "aliases", "ELBO", "active", "parity", "gate"]
    assert lines[0].index("aliases") == lines[1].index("candidate") == lines[2].index("previous")


def test_a_version_that_others_registered_has_gaps() -> None:
    client = connect()
    client.create_registered_model("vae")
    client.create_model_version("vae", "/nowhere", tags={"elbo": "good", "nll": "nan"})
    (row,) = list_versions("vae")
    assert {row[name] for name in ("elbo", "nll", "active_units", "parity", "run_id")} == {None}
    assert render_table([row]).splitlines()[1].split()[:3] == ["1", "-", "-"]


def test_a_model_that_is_missing_names_those_that_exist() -> None:
    with pytest.raises(UsageRefused, match=r"no model 'vae' in sqlite:.*: vae run makes the first"):
        list_versions("vae")
    for number in range(7):
        connect().create_registered_model(f"m{number}")
    connect().create_registered_model("m0--promotions")
    with pytest.raises(UsageRefused, match=r"it has m0, m1, m2, m3, m4 and 2 more$"):
        list_versions("vae")


def copy_version(database: Path, count: int) -> None:
    """Add versions 2 to `count`, equal to the first, in less time than MLflow needs."""
    with closing(sqlite3.connect(database)) as connection, connection:
        for table in ("model_versions", "model_version_tags"):
            names = [row[1] for row in connection.execute(f"PRAGMA table_info({table})")]
            others = ", ".join(name for name in names if name != "version")
            connection.execute(
                "WITH RECURSIVE number(n) AS "
                "(SELECT 2 UNION ALL SELECT n + 1 FROM number WHERE n < ?) "
                f"INSERT INTO {table} (version, {others}) "
                f"SELECT n, {others} FROM {table}, number WHERE version = 1",
                (count,),
            )


def count_requests(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Return a list that gets the name of every method of the client that is called."""
    called: list[str] = []

    def counted(name: str, method: Any) -> Any:
        def call(*given: Any, **named: Any) -> Any:
            called.append(name)
            return method(*given, **named)

        return call

    for name in ("search_model_versions", "get_model_version", "get_registered_model", "get_run"):
        monkeypatch.setattr(MlflowClient, name, counted(name, getattr(MlflowClient, name)))
    return called


def test_a_thousand_versions_take_as_many_requests_as_one(
    store: Path, sealed: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    register(sealed)
    called = count_requests(monkeypatch)
    assert len(list_versions("vae")) == 1
    before = called.copy()
    copy_version(store, 1000)
    rows = list_versions("vae")
    assert called == before * 2
    assert [row["version"] for row in rows] == [str(number) for number in range(1000, 0, -1)]
    assert [row["aliases"] for row in rows if row["aliases"]] == [["candidate"]]
    assert {row["elbo"] for row in rows} == {sealed.read_json("metrics.json")["elbo"]}
