"""Make OpenTelemetry spans of requests, if an OTLP endpoint is configured."""

import contextlib
import os
import threading
from collections.abc import Iterator
from typing import Any

from serving.errors import UsageRefused
from serving.protocol.messages import PARAMETERS, InferRequest

CLOSE_S = 1.0
"""Seconds that a worker waits at its end for its last spans to be sent."""
ENDPOINTS = ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT")


class Span:
    """A span of one request; without tracing it does nothing."""

    def __init__(self, span: Any = None) -> None:
        self._span = span

    def annotate(self, version: str, request: InferRequest) -> None:
        """Add the version that answered, and the request's id and parameters."""
        if self._span is None:
            return
        self._span.set_attribute("vae.version", version)
        self._span.set_attribute("vae.request_id", request.id)
        for name in PARAMETERS:
            if name in request.parameters:
                self._span.set_attribute(f"vae.{name}", request.parameters[name])


_NO_SPAN = contextlib.nullcontext(Span())


class Tracer:
    """Makes spans, as children of the span in the caller's `traceparent`."""

    def __init__(self, provider: Any = None) -> None:
        self._provider = provider

    def span(self, headers: Any, operation: str) -> contextlib.AbstractContextManager[Span]:
        """Return a span around one inference; `headers` are HTTP headers, or gRPC's metadata."""
        return _NO_SPAN if self._provider is None else self._span(headers, operation)

    def close(self) -> None:
        """Send the spans that have not been sent yet."""
        if self._provider is not None:
            # in a thread: the provider tries for a long time to reach a collector that is down
            closing = threading.Thread(target=self._provider.shutdown, daemon=True)
            closing.start()
            closing.join(CLOSE_S)

    @contextlib.contextmanager
    def _span(self, headers: Any, operation: str) -> Iterator[Span]:
        from opentelemetry.trace import SpanKind
        from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

        pairs = headers.items() if hasattr(headers, "items") else headers
        context = TraceContextTextMapPropagator().extract(dict(pairs))
        tracer = self._provider.get_tracer("vae-pipeline")
        with tracer.start_as_current_span(
            f"infer {operation}", context=context, kind=SpanKind.SERVER
        ) as span:
            span.set_attribute("vae.operation", operation)
            yield Span(span)


def open_tracer() -> Tracer:
    """Return a tracer that exports to the endpoint of the OTLP variables, if one is set.

    Raises:
        UsageRefused: an endpoint is set, and the exporter is not installed.
    """
    if not any(os.environ.get(name) for name in ENDPOINTS):
        return Tracer()
    try:
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
        from opentelemetry.sdk.resources import Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor
    except ImportError as err:
        raise UsageRefused("tracing needs OpenTelemetry: pip install 'vae-pipeline[otel]'") from err
    resource = Resource.create({"service.name": os.environ.get("OTEL_SERVICE_NAME", "vae")})
    provider = TracerProvider(resource=resource, shutdown_on_exit=False)
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
    return Tracer(provider)
