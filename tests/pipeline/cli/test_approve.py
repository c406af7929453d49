"""`vae approve`, and the gate that asks for it."""

from typing import Any

import pytest

from pipeline.cli import registry
from pipeline.registry import audit_log
from serving.bundle import Bundle
from serving.errors import VaeError
from tests.pipeline.registry.versions import register

pytestmark = pytest.mark.usefixtures("store")


def test_an_approval_is_recorded_and_asked_for(
    vae: Any, sealed: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    said: list[str] = []
    monkeypatch.setattr(registry, "say", lambda text, **_: said.append(text))
    register(sealed)
    asked = ("promote", "1", "--require", "cpu,approval", "--min-active-units", "0")
    with pytest.raises(VaeError, match=r"was refused: version 1 lacks an approval, nob") as caught:
        vae(*asked)
    assert caught.value.exit_code == 5
    with monkeypatch.context() as patch:
        patch.setattr(audit_log, "operator_name", lambda: "grace")
        given = vae("approve", "1", "--reason", " reviewed with the risk team ")
    digest = sealed.manifest.digest
    assert given == {
        "name": "vae",
        "version": "1",
        "digest": digest,
        "decision": "approved",
        "reasons": ["reviewed with the risk team"],
        "operator": "grace",
    }
    assert said == [f"grace approves of version 1 of vae, bundle {digest[:12]}"]
    (row,) = vae("list")["versions"]
    assert row["approved_by"] == ["grace"]
    assert vae(*asked)["decision"] == "promoted"
    vae("history")
    assert any("  approve     1  approved   grace: reviewed" in line for line in said)
