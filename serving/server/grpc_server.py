"""The gRPC side of the server: take calls on the event loop, and give each its answer or status.

`serving.server.grpc_calls` has the table of calls, and the function that answers each.
"""

import asyncio
import logging
import time
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from functools import cached_property
from inspect import isasyncgenfunction
from typing import Any, NamedTuple

import grpc
from google.protobuf.message import DecodeError

from serving.errors import DataRefused, NotReady, Unauthorized, VaeError
from serving.server.auth import Access
from serving.server.batching import Admission
from serving.server.grpc_reflection import describe_services
from serving.server.logging_config import log_answer
from serving.server.service import Service
from serving.server.tracing import Tracer

LOG = logging.getLogger(__name__)
MAX_MESSAGE = 1000
"""Characters of an error message; clients refuse metadata of more than a few kilobytes."""
MAX_LOGGED = 128
"""Characters of a name or an id in the log: a message may hold megabytes of them."""
LEAST_PING_INTERVAL_MS = 100
"""Clients may ping this often to keep a connection; gRPC's default is five minutes."""

UnaryCall = Callable[["GrpcServer", Any, Any], Awaitable[Any]]
StreamCall = Callable[["GrpcServer", AsyncIterator[Any], Any], AsyncIterator[Any]]


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
    """Answers gRPC calls on the event loop that starts it.

    Args:
        service: the inference service that all transports share.
        methods: the table of calls, by the name of their gRPC service.
        access: the API key, if there is one.
        tracer: makes the spans.
        max_bytes: largest message that is read, after it was decompressed.
        max_calls: calls in progress at a time, half of them streams; more are refused.
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
        self.access_log = access_log
        self._stopping = asyncio.Event()
        self._streams = Admission(max(1, max_calls // 2))
        self._server = grpc.aio.server(
            options=[
                ("grpc.max_receive_message_length", max_bytes),
                ("grpc.max_send_message_length", -1),
                ("grpc.so_reuseport", 1),
                ("grpc.keepalive_permit_without_calls", 1),
                ("grpc.http2.min_ping_interval_without_data_ms", LEAST_PING_INTERVAL_MS),
            ],
            maximum_concurrent_rpcs=max_calls,
        )
        for name, table in methods.items():
            handlers = {call: self._handler(call, method) for call, method in table.items()}
            self._server.add_generic_rpc_handlers(
                (grpc.method_handlers_generic_handler(name, handlers),)
            )

    async def start(self, address: str, certificate: tuple[bytes, bytes] | None) -> None:
        """Listen at `host:port`, over TLS if given a private key and a certificate chain."""
        if certificate is None:
            self._server.add_insecure_port(address)
        else:
            credentials = grpc.ssl_server_credentials([certificate])
            self._server.add_secure_port(address, credentials)
        await self._server.start()

    async def stop(self, grace_s: float) -> None:
        """Refuse new calls, end streams that wait, and give calls in progress time to end."""
        self._stopping.set()
        await self._server.stop(grace_s)

    @property
    def stopping(self) -> bool:
        """Whether streams must end."""
        return self._stopping.is_set()

    @cached_property
    def descriptions(self) -> Any:
        """Answers the calls of server reflection."""
        return describe_services(self.methods)

    def _handler(self, name: str, method: Method) -> Any:
        read = _reader(method.request)
        if isasyncgenfunction(method.call):
            return grpc.stream_stream_rpc_method_handler(self._stream(name, method), read, _write)
        return grpc.unary_unary_rpc_method_handler(self._unary(name, method), read, _write)

    def _unary(self, name: str, method: Method) -> Any:
        call, key_needed = method.call, bool(self.access.api_key) and not method.open

        async def answer(message: Any, context: Any) -> Any:
            started = time.perf_counter()
            try:
                if key_needed:
                    self._check_key(context)
                if isinstance(message, VaeError):
                    raise message
                return await call(self, message, context)
            except Exception as err:  # noqa: BLE001 - every error becomes a status
                if method.counted and isinstance(err, Unauthorized):
                    asked = getattr(message, "model_name", "")
                    self.service.record("grpc", asked, err.status, 0.0)
                await _refuse(context, err)
            finally:
                if self.access_log:
                    self._log(name, message, context, started)

        return answer

    def _stream(self, name: str, method: Method) -> Any:
        call, key_needed = method.call, bool(self.access.api_key) and not method.open

        async def answer(messages: Any, context: Any) -> AsyncIterator[Any]:
            started = time.perf_counter()
            try:
                if key_needed:
                    self._check_key(context)
                with self._streams:
                    async for reply in call(self, self._until_stopped(messages), context):
                        yield reply
            except Exception as err:  # noqa: BLE001 - as above
                await _refuse(context, err)
            finally:
                if self.access_log:
                    self._log(name, None, context, started)

        return answer

    def _check_key(self, context: Any) -> None:
        metadata = dict(context.invocation_metadata())
        self.access.check(metadata.get("authorization"), metadata.get("x-api-key"))

    def _log(self, name: str, message: Any, context: Any, started: float) -> None:
        code = context.code() or grpc.StatusCode.OK.name
        text = f"{name} {getattr(message, 'model_name', '')[:MAX_LOGGED]} {code}"
        log_answer(LOG, text, getattr(message, "id", "")[:MAX_LOGGED], started)

    async def _until_stopped(self, messages: AsyncIterator[Any]) -> AsyncIterator[Any]:
        """Yield the requests of a stream; the server's end must not wait for the next one."""
        stopping = asyncio.ensure_future(self._stopping.wait())
        incoming = aiter(messages)
        try:
            while True:
                coming = asyncio.ensure_future(anext(incoming, None))
                await asyncio.wait((coming, stopping), return_when=asyncio.FIRST_COMPLETED)
                if not coming.done():
                    coming.cancel()
                    raise NotReady("the server is stopping: call again")
                message = coming.result()
                if message is None:
                    return
                if isinstance(message, VaeError):
                    raise message
                yield message
        finally:
            stopping.cancel()


async def _refuse(context: Any, err: Exception) -> None:
    """End a call with the status of an error; an unexpected error shows no more than an id."""
    if isinstance(err, VaeError):
        if err.status == 500:
            LOG.error("%s", err)
        code = getattr(grpc.StatusCode, err.grpc_status)
        await context.abort(code, str(err)[:MAX_MESSAGE])
    if context.cancelled():
        raise err
    given = uuid.uuid4().hex
    LOG.error("internal error", exc_info=err, extra={"request_id": given})
    await context.abort(grpc.StatusCode.INTERNAL, f"internal error, request {given}")


def _reader(message: Any) -> Callable[[bytes], Any]:
    """Return what reads a call's requests.

    Bytes that are no such message become the error that the call is answered with: an exception
    here would end the call as UNKNOWN, with the names of Python's classes.
    """

    def read(content: bytes) -> Any:
        try:
            return message.FromString(content)
        except DecodeError:
            return DataRefused("the request is not a message of this call's type")

    return read


def _write(reply: Any) -> bytes:
    content: bytes = reply.SerializeToString()
    return content
