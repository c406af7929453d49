"""A Docker context builds an image that serves the model, and checks its health."""

import http.server
import json
import os
import shlex
import subprocess
import sys
import threading
from importlib import metadata
from pathlib import Path

import pytest

from serving.bundle import Bundle, open_bundle
from serving.deploy import next_steps, write_deployment
from serving.source import Source, open_source
from tests.serving.deployments import HOSTILE, argument, instructions
from tests.signing import make_key, signed

INSTRUCTIONS = {
    "FROM", "COPY", "RUN", "USER", "WORKDIR", "ENV", "EXPOSE", "HEALTHCHECK", "STOPSIGNAL", "CMD",
}  # fmt: skip


def test_dockerfile_of_a_version(registered: Source, tmp_path: Path) -> None:
    write_deployment(registered, "docker", tmp_path / "out")
    check = argument(tmp_path / "out", "HEALTHCHECK")
    assert instructions(tmp_path / "out") == [
        ("FROM", "python:3.11-slim"),
        ("COPY", "vae_pipeline-*.whl /tmp/"),
        (
            "RUN",
            'pip install --no-cache-dir "$(echo /tmp/vae_pipeline-*.whl)[registry]"'
            " && rm /tmp/*.whl",
        ),
        ("RUN", "useradd --create-home --uid 10001 vae"),
        ("USER", "10001"),
        ("WORKDIR", "/home/vae"),
        ("ENV", "ORT_DISABLE_TELEMETRY=1"),
        ("EXPOSE", "8080 8081"),
        ("HEALTHCHECK", check),
        ("STOPSIGNAL", "SIGTERM"),
        (
            "CMD",
            '["vae", "serve", "--model", "models:/vae/7", "--host", "0.0.0.0", '
            '"--port", "8080", "--grpc-port", "8081"]',
        ),
    ]
    assert {name for name, _ in instructions(tmp_path / "out")} == INSTRUCTIONS
    assert (tmp_path / "out" / ".dockerignore").read_text() == "*\n!vae_pipeline-*.whl\n"
    text = (tmp_path / "out" / "Dockerfile").read_text()
    assert "#   pip wheel --no-deps -w DIR .\n" in text
    assert "-e MLFLOW_TRACKING_URI=" in text


def test_docker_context_of_a_bundle_holds_the_bundle(bundle: Bundle, tmp_path: Path) -> None:
    out = tmp_path / "out"
    write_deployment(Source(bundle), "docker", out)
    assert open_bundle(out / "bundle").manifest.digest == bundle.manifest.digest
    copies = [rest for name, rest in instructions(out) if name == "COPY"]
    assert copies == [
        "vae_pipeline-*.whl /tmp/",
        "--chown=10001:10001 bundle/ /srv/bundle/",
    ]
    assert json.loads(argument(out, "CMD"))[:4] == ["vae", "serve", "--model", "/srv/bundle"]
    assert (out / ".dockerignore").read_text() == "*\n!vae_pipeline-*.whl\n!bundle\n"
    assert "[registry]" not in (out / "Dockerfile").read_text()


def test_an_image_with_a_key_serves_only_what_is_signed(bundle: Bundle, tmp_path: Path) -> None:
    key = make_key(tmp_path)
    for source in (Source(signed(bundle, key)), Source(bundle, "vae", "7")):
        out = tmp_path / str(source.name)
        write_deployment(source, "docker", out, verify_key=key.public)
        lines = instructions(out)
        assert ("COPY", "--chown=10001:10001 verify_key.pub /srv/verify_key.pub") in lines
        assert ("ENV", "VAE_VERIFY_KEY=/srv/verify_key.pub") in lines
        assert "!verify_key.pub\n" in (out / ".dockerignore").read_text()
        extras = "[registry,sign]" if source.name else "[sign]"
        assert f"whl){extras}" in (out / "Dockerfile").read_text()
        assert (out / "verify_key.pub").read_bytes() == key.public.read_bytes()
    open_source(str(tmp_path / "None" / "bundle"), key.public)


def test_the_extras_of_the_wheel_exist() -> None:
    extras = metadata.metadata("vae-pipeline").get_all("Provides-Extra") or []
    assert "registry" in extras


@pytest.mark.slow
@pytest.mark.parametrize(("status", "healthy"), [(200, True), (503, False), (None, False)])
def test_docker_health_check_asks_the_server_and_no_proxy(
    registered: Source, tmp_path: Path, status: int | None, healthy: bool
) -> None:
    asked: list[str] = []

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked.append(self.path)
            self.send_response(status or 0)
            self.end_headers()

        def log_message(self, *args: object) -> None:
            pass

    write_deployment(registered, "docker", tmp_path / "out")
    flags, command = argument(tmp_path / "out", "HEALTHCHECK").split("CMD ")
    assert shlex.split(flags) == [
        *("--interval=10s", "--timeout=3s"),
        *("--start-period=60s", "--retries=3"),
    ]
    python, dash_c, code = json.loads(command)
    assert (python, dash_c) == ("python", "-c")
    assert "http://127.0.0.1:8080/v2/health/ready" in code

    with http.server.HTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        port = server.server_port
        if status is None:  # nothing listens
            server.shutdown()
            server.server_close()
        done = subprocess.run(
            [sys.executable, "-c", code.replace(":8080/", f":{port}/")],
            env={**os.environ, "http_proxy": "http://127.0.0.1:9", "no_proxy": ""},
            capture_output=True,
            check=False,
        )
        server.shutdown() if status is not None else None
        thread.join()
    assert (done.returncode == 0) == healthy
    assert asked == ([] if status is None else ["/v2/health/ready"])


def test_a_hostile_name_stays_a_string_for_docker(bundle: Bundle, tmp_path: Path) -> None:
    write_deployment(Source(bundle, HOSTILE, "7"), "docker", tmp_path / "out")
    write_deployment(Source(bundle, "vae", "7"), "docker", tmp_path / "plain")
    found, plain = instructions(tmp_path / "out"), instructions(tmp_path / "plain")
    assert json.loads(argument(tmp_path / "out", "CMD"))[3] == f"models:/{HOSTILE}/7"
    assert found[:-1] == plain[:-1]


@pytest.mark.parametrize(
    ("store", "shown"),
    [
        ("https://mlflow.my.example/a b", "'MLFLOW_TRACKING_URI=https://mlflow.my.example/a b' "),
        ("sqlite:////home/me/mlflow.db", "MLFLOW_TRACKING_URI=http://mlflow.example.com:5000 "),
    ],
    ids=["server", "file"],
)
def test_the_command_to_run_names_a_store_that_a_container_reaches(
    bundle: Bundle, tmp_path: Path, store: str, shown: str
) -> None:
    """A variable of the shell may be unset, and a file is not in the container."""
    source = Source(bundle, name="vae", version="7")
    *_, run = next_steps(source, "docker", tmp_path, store)
    assert f" -e {shown}" in run
    assert "$" not in run
    assert run.endswith("# the URI of your tracking server") is store.startswith("sqlite")
    assert "MLFLOW" not in next_steps(Source(bundle), "docker", tmp_path)[-1]
