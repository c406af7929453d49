"""Spans reach a collector, continue the caller's trace, and describe the request."""

import json
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import grpc
import httpx
import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from serving.protocol import open_inference_pb2 as pb
from tests.serving.conftest import SEALED
from tests.serving.running import serve
from tests.serving.server.asking import CASES, body, message

TRACE, PARENT = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
SAMPLE = CASES[3]
PATH = "/v2/models/sample/infer"


@contextmanager
def collector() -> Iterator[tuple[str, list[Any]]]:
    """An OTLP collector: give its URL, and the spans that it has received."""
    spans: list[Any] = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            content = self.rfile.read(int(self.headers["content-length"]))
            if self.path == "/v1/traces":
                spans.append(ExportTraceServiceRequest.FromString(content))
            self.send_response(200)
            self.end_headers()

        def log_message(self, *arguments: Any) -> None:
            """Log nothing."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, args=(0.02,))
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}", spans
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


@pytest.fixture(scope="module")
def exports(tmp_path_factory: pytest.TempPathFactory, slow_tier: None) -> list[Any]:
    """The spans of a few requests; the server sends them when it ends."""
    folder = tmp_path_factory.mktemp("tracing")
    with collector() as (endpoint, found):
        variables = {"OTEL_EXPORTER_OTLP_ENDPOINT": endpoint, "OTEL_BSP_SCHEDULE_DELAY": "600000"}
        with serve(folder, SEALED, "--drain", "2", **variables) as running:
            with httpx.Client(base_url=running.rest) as client:

                def ask(key: str, traceparent: str | None, **changes: Any) -> int:
                    headers = {"traceparent": traceparent} if traceparent else {}
                    content = {**body(SAMPLE), "id": key, **changes}
                    return client.post(PATH, json=content, headers=headers).status_code

                assert ask("rest", f"00-{TRACE}-{PARENT}-01") == 200
                assert ask("alone", None) == 200
                assert ask("nonsense", "00-zz") == 200
                assert ask("not sampled", f"00-{TRACE}-{PARENT}-00") == 200
                assert ask("refused", None, parameters={"seed": -1}) == 400
            with grpc.insecure_channel(running.grpc) as channel:
                call: Any = channel.unary_unary(
                    "/inference.GRPCInferenceService/ModelInfer",
                    request_serializer=pb.ModelInferRequest.SerializeToString,
                    response_deserializer=pb.ModelInferResponse.FromString,
                )
                request = message(SAMPLE)
                request.id = "grpc"
                call(request, metadata=(("traceparent", f"00-{TRACE}-{PARENT}-01"),))
            assert found == []
    return found


def spans(exports: list[Any]) -> dict[str, Any]:
    """Return every span by the id of its request, or by its name if it has none."""
    found: dict[str, Any] = {}
    for export in exports:
        for resource in export.resource_spans:
            for scope in resource.scope_spans:
                for span in scope.spans:
                    found[attributes(span).get("vae.request_id", "refused")] = span
    return found


def attributes(span: Any) -> dict[str, Any]:
    pairs = ((pair.key, pair.value) for pair in span.attributes)
    return {key: getattr(value, value.WhichOneof("value")) for key, value in pairs}


def test_one_span_for_each_request_that_the_caller_wants_traced(exports: list[Any]) -> None:
    assert sorted(spans(exports)) == ["alone", "grpc", "nonsense", "refused", "rest"]


@pytest.mark.parametrize("transport", ["rest", "grpc"])
def test_a_span_continues_the_caller_s_trace(exports: list[Any], transport: str) -> None:
    span = spans(exports)[transport]
    assert span.trace_id.hex() == TRACE
    assert span.parent_span_id.hex() == PARENT
    assert span.name == "infer sample"
    assert span.kind == span.SPAN_KIND_SERVER
    assert 0 < span.end_time_unix_nano - span.start_time_unix_nano < 60e9


@pytest.mark.parametrize("transport", ["rest", "grpc"])
def test_a_span_holds_the_parameters_and_the_version(exports: list[Any], transport: str) -> None:
    digest = json.loads((SEALED / "manifest.json").read_text())["digest"]
    said = attributes(spans(exports)[transport])
    assert said["vae.operation"] == "sample"
    assert said["vae.version"] == digest[:12]
    assert (said["vae.seed"], said["vae.num_samples"]) == (11, 2)


@pytest.mark.parametrize("key", ["alone", "nonsense"])
def test_without_a_trace_of_the_caller_s_there_is_a_new_one(exports: list[Any], key: str) -> None:
    span = spans(exports)[key]
    assert span.parent_span_id == b""
    assert span.trace_id.hex() not in (TRACE, "0" * 32)


def test_a_refused_request_ends_its_span_as_an_error(exports: list[Any]) -> None:
    span = spans(exports)["refused"]
    assert span.status.code == span.status.STATUS_CODE_ERROR
    assert attributes(span)["vae.operation"] == "sample"


def test_the_service_has_a_name(exports: list[Any]) -> None:
    names = {
        pair.value.string_value
        for export in exports
        for resource in export.resource_spans
        for pair in resource.resource.attributes
        if pair.key == "service.name"
    }
    assert names == {"vae"}


@pytest.mark.slow
def test_a_large_seed_does_not_lose_the_other_spans(tmp_path: Path) -> None:
    with collector() as (endpoint, found):
        variables = {"OTEL_EXPORTER_OTLP_ENDPOINT": endpoint, "OTEL_BSP_SCHEDULE_DELAY": "600000"}
        with serve(tmp_path, SEALED, "--drain", "1", **variables) as running:
            for key, seed in (("before", 1), ("large", 2**64 - 1), ("after", 2)):
                content = {"inputs": [], "id": key, "parameters": {"seed": seed}}
                answer = httpx.post(f"{running.rest}{PATH}", json=content)
                assert answer.status_code in (200, 400), answer.text
    assert {"before", "after"} <= {*spans(found)}


@pytest.mark.slow
def test_a_collector_that_is_down_delays_no_stop(tmp_path: Path) -> None:
    with collector() as (endpoint, _):
        pass
    variables = {
        "OTEL_EXPORTER_OTLP_ENDPOINT": endpoint,
        "OTEL_EXPORTER_OTLP_TIMEOUT": "600",  # it tries for longer than the drain lasts
        "OTEL_BSP_SCHEDULE_DELAY": "50",
    }
    arguments = ("--drain", "15", "--log-format", "json")
    with serve(tmp_path, SEALED, *arguments, **variables) as running:
        for _ in range(5):
            assert httpx.post(f"{running.rest}{PATH}", json=body(SAMPLE)).status_code == 200
        running.process.terminate()
        assert running.process.wait(60) == 0
        said = [json.loads(line) for line in running.log.read_text().splitlines()]
    assert "Killing" not in str(said)


@pytest.mark.slow
@pytest.mark.parametrize("variable", ["", "OTEL_EXPORTER_OTLP_ENDPOINT"], ids=["none", "endpoint"])
def test_opentelemetry_is_imported_only_where_an_endpoint_is_set(variable: str) -> None:
    code = (
        "import os, sys\n"
        "for name in [*os.environ]:\n"
        "    if name.startswith('OTEL_'): del os.environ[name]\n"
        f"if {variable!r}: os.environ[{variable!r}] = 'http://127.0.0.1:9'\n"
        "import serving.server.worker\n"
        "tracer = serving.server.worker.open_tracer()\n"
        "with tracer.span((), 'encode') as span: pass\n"
        "print(any(name.startswith('opentelemetry') for name in sys.modules))\n"
        "sys.stdout.flush()\n"
        "os._exit(0)\n"  # there is no collector to export to
    )
    command = [sys.executable, "-c", code]
    result = subprocess.run(command, capture_output=True, text=True, check=True)
    assert result.stdout.strip() == str(bool(variable))
