"""The gRPC side of the server: take calls on the event loop, and give each its answer or status.

`serving.server.grpc_calls` has the table of calls, and the function that answers each.
"""

import asyncio
import logging
import time
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from functools import cached_property, partial
from inspect import isasyncgenfunction
from pathlib import Path
from typing import Any, NamedTuple

from google.protobuf.message import DecodeError

from serving.errors import DataRefused, Overloaded, Unauthorized, VaeError
from serving.http2.budget import Budget
from serving.http2.server import Http2Server
from serving.protocol import open_inference_pb2 as pb
from serving.server.auth import Access
from serving.server.batching import Admission
from serving.server.grpc_call import BoundMethod, Call
from serving.server.grpc_reflection import describe_services
from serving.server.grpc_wire import CallRefused, Content, read_head
from serving.server.logging_config import log_answer
from serving.server.service import Service
from serving.server.tracing import Tracer
from serving.server.turns import Turns

LOG = logging.getLogger(__name__)
MAX_MESSAGE = 1000
"""Characters of an error message; clients refuse metadata of more than a few kilobytes."""
MAX_LOGGED = 128
"""Characters of a name or an id in the log: a message may hold megabytes of them."""
MAX_UNSENT = 2**27
"""Bytes of answers that clients do not take; the client that is stuck for longest is cut off."""
MAX_RECEIVED = 16
"""Messages of the largest size that may be in memory, from their first byte to their answer."""

Parts = tuple[bytes | memoryview, ...]
Reply = Any
"""A message, or the `Parts` of one that has been written."""
UnaryCall = Callable[["GrpcServer", Any, Call], Awaitable[Reply]]
StreamCall = Callable[["GrpcServer", AsyncIterator[Any], Call], AsyncIterator[Reply]]


class Method(NamedTuple):
    """One line of the table of calls."""

    call: Any
    """A `UnaryCall`, or a `StreamCall`, which is an asynchronous generator of replies."""
    request: Any
    """The class of its request."""
    reply: Any
    open: bool = False
    """Whether it answers without an API key."""
    counted: bool = False
    """Whether it is an inference, which is counted when it is refused for its key."""
    many_requests: bool = False
    """Whether a client may send more than one request in a call."""


Methods = Mapping[str, Method]


class GrpcServer:
    """Answers gRPC calls on the event loop that starts it, over the HTTP/2 of `serving.http2`.

    Args:
        service: the inference service that all transports share.
        methods: the table of calls, by the name of their gRPC service.
        access: the API key, if there is one.
        tracer: makes the spans.
        max_bytes: largest message that is read, after it was decompressed.
        max_calls: connections at a time, and calls in progress, half of them streams; more are
            refused.
        access_log: whether to log every call.
    """

    def __init__(
        self,
        service: Service,
        methods: Mapping[str, Methods],
        access: Access,
        tracer: Tracer,
        *,
        max_bytes: int,
        max_calls: int,
        access_log: bool = False,
    ) -> None:
        self.service = service
        self.methods = methods
        self.access = access
        self.tracer = tracer
        self.max_bytes = max_bytes
        self.access_log = access_log
        self.stopping = False
        """Whether streams must end."""
        self.streams: set[Call] = set()
        """Those in progress."""
        self.turns = Turns(service.room)
        self._calls = Admission(max_calls)
        self._streams = Admission(max(1, max_calls // 2))
        self._bound = {
            f"/{service}/{name}": self._bind(name, method)
            for service, table in methods.items()
            for name, method in table.items()
        }
        budget = Budget(MAX_RECEIVED * max_bytes, MAX_UNSENT)
        self._http2 = Http2Server(read_head, partial(Call, self), budget, max_calls)

    async def start(self, host: str, port: int, certificate: tuple[Path, Path] | None) -> None:
        """Listen, over TLS if given files of a certificate chain and its private key."""
        self.loop = asyncio.get_running_loop()
        await self._http2.start(host, port, certificate)

    async def stop(self, grace_s: float) -> None:
        """Refuse new calls, end streams that wait, and give calls in progress time to end."""
        self.stopping = True
        for stream in [*self.streams]:
            stream.wake()
        await self._http2.stop(grace_s)

    @cached_property
    def descriptions(self) -> Any:
        """Answers the calls of server reflection."""
        return describe_services(self.methods)

    def find(self, path: str) -> BoundMethod:
        """Return what answers the calls of a path."""
        return self._bound.get(path, _UNKNOWN)

    def refuse_at_once(self, message: Content) -> VaeError | None:
        """Return the refusal of an inference without a task; None if it needs one.

        It costs a fraction of one that a task finds.
        """
        if self.access.api_key or self.access_log:
            return None
        self.service.record("grpc", _asked(pb.ModelInferRequest, message), Overloaded.status, 0.0)
        admission = self.service.admission
        return admission.refusal() if admission.full else _NO_ROOM

    def _bind(self, name: str, method: Method) -> BoundMethod:
        streams = isasyncgenfunction(method.call)
        answer = self._answer_stream if streams else self._answer_call
        return BoundMethod(partial(answer, name, method), streams, method.counted)

    async def _answer_call(self, name: str, method: Method, call: Call, content: Content) -> None:
        started = time.perf_counter()
        message = None
        try:
            with self._calls:
                if self.access.api_key and not method.open:
                    self._check_key(call)
                message = _read(method.request, content)
                call.answer(*_write(await method.call(self, message, call)))
        except Exception as err:  # noqa: BLE001 - every error becomes a status
            if method.counted and isinstance(err, Unauthorized):
                self.service.record("grpc", _asked(method.request, content), err.status, 0.0)
            _refuse(call, err)
        finally:
            if self.access_log:
                self._log(name, message, call, started)

    async def _answer_stream(self, name: str, method: Method, call: Call, content: Content) -> None:
        started = time.perf_counter()
        try:
            if self.access.api_key and not method.open:
                self._check_key(call)
            with self._calls, self._streams:
                messages = _read_all(method.request, call)
                async for reply in method.call(self, messages, call):
                    await call.reply(*_write(reply))
                call.end()
        except Exception as err:  # noqa: BLE001 - as above
            _refuse(call, err)
        finally:
            if self.access_log:
                self._log(name, None, call, started)

    def _check_key(self, call: Call) -> None:
        metadata = dict(call.invocation_metadata())
        self.access.check(metadata.get("authorization"), metadata.get("x-api-key"))

    def _log(self, name: str, message: Any, call: Call, started: float) -> None:
        text = f"{name} {getattr(message, 'model_name', '')[:MAX_LOGGED]} {call.status}"
        log_answer(LOG, text, getattr(message, "id", "")[:MAX_LOGGED], started)


async def _refuse_unknown(call: Call, content: Content) -> None:
    call.refuse(CallRefused(f"no method {call.head.path[:100]!r}: reflection describes those here"))


_NO_ROOM = Overloaded("too many requests wait: try again in a moment")
_UNKNOWN = BoundMethod(_refuse_unknown, streams=True)  # it does not wait for a message


def _refuse(call: Call, err: Exception) -> None:
    """End a call with the status of an error; an unexpected error shows no more than an id."""
    if isinstance(err, VaeError):
        if err.status == 500:
            LOG.error("%s", err)
        call.refuse(err, str(err)[:MAX_MESSAGE])
        return
    given = uuid.uuid4().hex
    LOG.error("internal error", exc_info=err, extra={"request_id": given})
    call.refuse(VaeError(f"internal error, request {given}"))


def _read(message: Any, content: Content) -> Any:
    """Read a call's message.

    Raises:
        DataRefused: it is no such message.
    """
    try:
        return message.FromString(content)
    except DecodeError as err:
        raise DataRefused("the request is not a message of this call's type") from err


def _asked(message: Any, content: Content) -> str:
    """Return the name of the model that a request asks for."""
    try:
        name: str = getattr(_read(message, content), "model_name", "")
    except DataRefused:
        return ""
    return name


async def _read_all(message: Any, call: Call) -> AsyncIterator[Any]:
    async for content in call.messages():
        yield _read(message, content)


def _write(reply: Reply) -> Parts:
    return reply if isinstance(reply, tuple) else (reply.SerializeToString(),)
