"""Signed webhooks are accepted, all others are refused."""

import base64
import hashlib
import hmac
import time
from collections.abc import Callable, Mapping
from typing import Any

import httpx
import pytest

from serving.errors import Unauthorized
from serving.server.auth import MAX_AGE_S, Access
from tests.serving.running import Running
from tests.serving.server.secured import KEY, SECRET


def sign(body: bytes, *, secret: str = SECRET, age_s: float = 0, delivery: str = "d-1") -> Any:
    """Return headers as mlflow.webhooks.delivery makes them."""
    stamp = str(int(time.time() - age_s))
    signed = f"{delivery}.{stamp}.{body.decode()}"
    digest = hmac.new(secret.encode(), signed.encode(), hashlib.sha256).digest()
    return {
        "X-MLflow-Signature": f"v1,{base64.b64encode(digest).decode()}",
        "X-MLflow-Delivery-Id": delivery,
        "X-MLflow-Timestamp": stamp,
    }


@pytest.mark.full_environment
def test_the_signature_is_the_one_that_mlflow_makes() -> None:
    delivery = pytest.importorskip("mlflow.webhooks.delivery", reason="mlflow is not installed")
    body = '{"entity": "model_version_alias"}'
    stamp = str(int(time.time()))
    headers = {
        "x-mlflow-signature": delivery._generate_hmac_signature(SECRET, "d-9", stamp, body),
        "x-mlflow-delivery-id": "d-9",
        "x-mlflow-timestamp": stamp,
    }
    Access(webhook_secret=SECRET).check_webhook(headers, body.encode())


BODY = b'{"entity": "model_version_alias", "action": "created", "data": {"alias": "champion"}}'


def test_a_signed_webhook_is_accepted_without_the_key(https: httpx.Client) -> None:
    response = https.post("/webhooks/mlflow", content=BODY, headers=sign(BODY))
    assert (response.status_code, response.content) == (202, b"")
    late = sign(BODY, age_s=MAX_AGE_S - 30)
    assert https.post("/webhooks/mlflow", content=BODY, headers=late).status_code == 202


def changed(**headers: str | bytes | None) -> dict[str, Any]:
    """Return valid headers with some changed or left out."""
    names = {"signature": "Signature", "delivery": "Delivery-Id", "stamp": "Timestamp"}
    all_headers = sign(BODY) | {f"X-MLflow-{names[k]}": value for k, value in headers.items()}
    return {name: value for name, value in all_headers.items() if value is not None}


UNSIGNED: Mapping[str, Callable[[], dict[str, Any]]] = {
    "unsigned": dict,
    "the key": lambda: {"authorization": f"Bearer {KEY}"},
    "another secret": lambda: sign(BODY, secret="other"),
    "another body": lambda: sign(BODY + b" "),
    "another delivery": lambda: changed(delivery="d-2"),
    "another time": lambda: changed(stamp=str(int(time.time()) + 9)),
    "old": lambda: sign(BODY, age_s=MAX_AGE_S + 30),
    "of the future": lambda: sign(BODY, age_s=-MAX_AGE_S - 30),
    "no time": lambda: changed(stamp=None),
    "no delivery": lambda: changed(delivery=None),
    "no signature": lambda: changed(signature=None),
    "a word for a time": lambda: changed(stamp="now"),
    "a negative time": lambda: changed(stamp="-1"),
    "a huge time": lambda: changed(stamp="9" * 5000),
    "a digit that is no number": lambda: changed(stamp="²".encode()),
    "an empty signature": lambda: changed(signature="v1,"),
    "a signature of no version": lambda: changed(signature=sign(BODY)["X-MLflow-Signature"][3:]),
}


@pytest.mark.parametrize("case", UNSIGNED)
def test_a_webhook_that_is_not_signed_is_refused(https: httpx.Client, case: str) -> None:
    response = https.post("/webhooks/mlflow", content=BODY, headers=UNSIGNED[case]())
    assert response.status_code == 401, response.text
    assert "not signed with this server's secret" in response.json()["error"]


@pytest.mark.parametrize("stamp", ["²", "\u0661", "9" * 5000, ""], ids=lambda text: text[:3])
def test_a_time_that_is_no_number_is_unauthorized(stamp: str) -> None:
    headers = {name.lower(): value for name, value in changed(stamp=stamp).items()}
    with pytest.raises(Unauthorized):
        Access(webhook_secret=SECRET).check_webhook(headers, BODY)


def test_without_a_secret_a_webhook_needs_the_key(locked: Running) -> None:
    url = f"{locked.rest}/webhooks/mlflow"
    assert httpx.post(url, content=BODY, headers=sign(BODY)).status_code == 401
    assert httpx.post(url, content=BODY, headers={"x-api-key": KEY}).status_code == 202


def test_a_webhook_that_is_too_long_is_refused_before_it_is_read(https: httpx.Client) -> None:
    body = b" " * 2**15
    response = https.post("/webhooks/mlflow", content=body, headers=sign(body))
    assert response.status_code == 413
    assert response.json() == {"error": "a body may have 16384 bytes: send less"}
