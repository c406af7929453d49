"""Check the API key of requests, and the signature of MLflow's webhooks."""

import base64
import hashlib
import hmac
import re
import time
from dataclasses import dataclass
from typing import Any

from serving.errors import Unauthorized

MAX_AGE_S = 300
"""An older webhook is refused, since it may be a replay."""


@dataclass(frozen=True, slots=True)
class Access:
    """The secrets of one server; without an API key it answers everyone."""

    api_key: str = ""
    webhook_secret: str = ""

    def check(self, authorization: str | None, api_key: str | None) -> None:
        """Compare the key in `Authorization: Bearer KEY` or `X-API-Key: KEY` with the server's.

        Raises:
            Unauthorized: the server has a key, and the request does not carry it.
        """
        if not self.api_key:
            return
        scheme, _, token = (authorization or "").partition(" ")
        given = token if scheme.lower() == "bearer" else api_key or ""
        if not hmac.compare_digest(given.encode(), self.api_key.encode()):
            raise Unauthorized("this server needs an API key: send Authorization: Bearer KEY")

    def check_webhook(self, headers: Any, body: bytes) -> None:
        """Check MLflow's signature, or the API key if the server has no webhook secret.

        Raises:
            Unauthorized: the body was not signed with the secret, or was signed too long ago.
        """
        if not self.webhook_secret:
            self.check(headers.get("authorization"), headers.get("x-api-key"))
            return
        delivery, stamp = headers.get("x-mlflow-delivery-id"), headers.get("x-mlflow-timestamp")
        signed = f"{delivery}.{stamp}.".encode() + body
        digest = hmac.new(self.webhook_secret.encode(), signed, hashlib.sha256).digest()
        expected = f"v1,{base64.b64encode(digest).decode()}"
        given = headers.get("x-mlflow-signature") or ""
        fresh = re.fullmatch("[0-9]{1,12}", stamp or "") is not None
        fresh = fresh and abs(time.time() - int(stamp)) <= MAX_AGE_S
        if not (fresh and hmac.compare_digest(given.encode(), expected.encode())):
            raise Unauthorized("the webhook is not signed with this server's secret, or is too old")
