import ast
import http.server
import json
import os
import re
import shlex
import subprocess
import sys
import threading
from dataclasses import replace
from importlib import metadata
from pathlib import Path
from typing import Any

import click
import onnxruntime
import pytest

from pipeline.cli.main import cli
from serving import deploy
from serving.bundle import Bundle, open_bundle
from serving.deploy import TARGETS, DeployTarget, write_deployment
from serving.errors import UsageRefused, VaeError
from serving.source import Source

OPERATIONS = ("decode", "encode", "reconstruct", "sample", "score")
HOSTILE = "va\"e\n# x\nUSER root\n: - $(HOME) $x ${y} \\ ' {} [ä\x85\u2028😀"
TENSOR_TYPES = {"uint8": "tensor(uint8)", "float32": "tensor(float)"}
INSTRUCTIONS = {
    "FROM", "COPY", "RUN", "USER", "WORKDIR", "ENV", "EXPOSE", "HEALTHCHECK", "STOPSIGNAL", "CMD",
}  # fmt: skip


@pytest.fixture
def registered(bundle: Bundle) -> Source:
    return Source(bundle, "vae", "7")


def parse_config(path: Path) -> Any:
    """Parse a config.pbtxt as a Triton client does."""
    reason = "a client's package, not one of the server's"
    pb2 = pytest.importorskip("tritonclient.grpc.model_config_pb2", reason=reason)
    text_format = pytest.importorskip("google.protobuf.text_format", reason=reason)
    return text_format.Parse(path.read_text(), pb2.ModelConfig())


def parse_yaml(path: Path) -> Any:
    yaml = pytest.importorskip("yaml", reason="comes with mlflow, the server has no YAML")
    return yaml.safe_load(path.read_text())


def instructions(folder: Path) -> list[tuple[str, str]]:
    """The Dockerfile as (instruction, arguments), continuation lines joined."""
    text = (folder / "Dockerfile").read_text()
    assert "\\\r" not in text
    lines = [line for line in text.splitlines() if not line.startswith("#")]
    joined = "\n".join(lines).replace("\\\n", "")
    return [(line.split(" ", 1)[0], line.split(" ", 1)[1]) for line in joined.splitlines()]


def argument(folder: Path, instruction: str) -> str:
    """The arguments of the one instruction of this name."""
    (found,) = (rest for name, rest in instructions(folder) if name == instruction)
    return found


# --- the folder


@pytest.mark.parametrize("version", [None, "7"], ids=["a bundle folder", "a version"])
def test_lists_the_files_it_wrote(bundle: Bundle, tmp_path: Path, version: str | None) -> None:
    source = Source(bundle, version and "vae", version)
    triton = [(f"{name}/config.pbtxt", f"{name}/{version or 1}/model.onnx") for name in OPERATIONS]
    inside = [f"bundle/{path.name}" for path in bundle.path.iterdir()] if version is None else []
    expected: dict[DeployTarget, list[str]] = {
        "triton": [name for pair in triton for name in pair],
        "kserve": ["inferenceservice.yaml"],
        "docker": ["Dockerfile", ".dockerignore", *inside],
    }
    assert set(expected) == set(TARGETS)
    for target, names in expected.items():
        out = tmp_path / target
        assert write_deployment(source, target, out) == tuple(sorted(names))
        found = {str(path.relative_to(out)) for path in out.rglob("*") if path.is_file()}
        assert found == set(names)


def test_an_empty_folder_is_filled_and_a_missing_parent_made(
    registered: Source, tmp_path: Path
) -> None:
    empty = tmp_path / "empty"
    empty.mkdir(mode=0o700)
    deep = tmp_path / "a" / "b"
    for out in (empty, deep):
        assert write_deployment(registered, "docker", out) == (".dockerignore", "Dockerfile")
        assert out.stat().st_mode & 0o777 == 0o755


def test_a_folder_with_a_file_a_file_and_the_working_folder_are_refused(
    registered: Source, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    full, file, working = tmp_path / "full", tmp_path / "file", tmp_path / "working"
    full.mkdir()
    (full / ".hidden").write_text("mine")
    file.write_text("mine")
    working.mkdir()
    monkeypatch.chdir(working)
    for out, message in (
        (full, "full exists and is not an empty folder: name a new folder"),
        (file, "file exists and is not an empty folder: name a new folder"),
        (Path("."), "is the working folder"),
    ):
        with pytest.raises(UsageRefused, match=message):
            write_deployment(registered, "kserve", out)
    assert [path.read_text() for path in (full / ".hidden", file)] == ["mine", "mine"]
    assert list(working.iterdir()) == []


@pytest.mark.parametrize("target", TARGETS)
def test_a_write_that_fails_leaves_nothing(
    bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, target: DeployTarget
) -> None:
    before = sorted(tmp_path.iterdir())

    def fail(*args: object, **settings: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_text", fail)
    with pytest.raises(VaeError, match=r"cannot write .*out: No space left on device"):
        write_deployment(Source(bundle), target, tmp_path / "out")
    assert sorted(tmp_path.iterdir()) == before


@pytest.mark.parametrize("version", ["0", "-1", "../up", "1\n", "", "1" * 30, "٣"])
@pytest.mark.parametrize("target", TARGETS)
def test_a_version_that_is_no_positive_number_is_refused(
    bundle: Bundle, tmp_path: Path, target: DeployTarget, version: str
) -> None:
    with pytest.raises(UsageRefused, match="version must be a positive whole number, got"):
        write_deployment(Source(bundle, "vae", version), target, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_nothing_but_the_standard_library_and_serving_is_imported() -> None:
    tree = ast.parse(Path(deploy.__file__).read_text())
    assert not [
        node for node in ast.walk(tree) if isinstance(node, ast.Import) and node not in tree.body
    ]
    modules = {
        (node.module if isinstance(node, ast.ImportFrom) else node.names[0].name) or ""
        for node in ast.walk(tree)
        if isinstance(node, ast.Import | ast.ImportFrom)
    }
    assert "json" in modules
    assert {name.split(".")[0] for name in modules} <= {*sys.stdlib_module_names, "serving"}


# --- Triton


@pytest.mark.parametrize("version", [None, "7", "007"])
@pytest.mark.parametrize("name", OPERATIONS)
def test_triton_config_says_what_the_operation_table_says(
    bundle: Bundle, tmp_path: Path, name: str, version: str | None
) -> None:
    source = Source(bundle, version and "vae", version)
    write_deployment(source, "triton", tmp_path / "out")
    config = parse_config(tmp_path / "out" / name / "config.pbtxt")

    operation = bundle.operations[name]
    expected = type(config)(name=name, backend="onnxruntime", max_batch_size=1024)
    expected.dynamic_batching.SetInParent()
    expected.version_policy.specific.versions.append(int(version or 1))
    expected.parameters["bundle.sha256"].string_value = bundle.manifest.digest
    if version is not None:
        expected.parameters["registered_model"].string_value = "vae"
    data_types = {"uint8": "TYPE_UINT8", "float32": "TYPE_FP32"}
    for side, tensors in ((expected.input, operation.inputs), (expected.output, operation.outputs)):
        for tensor in tensors:
            renamed = "z" if (name, tensor.name) == ("sample", "eps") else tensor.name
            row = side.add(name=renamed, data_type=data_types[tensor.dtype])
            row.dims.extend(-1 if axis == "num_samples" else axis for axis in tensor.shape[1:])
            if not row.dims:  # Triton refuses empty dims: (batch,) is [1], reshaped to nothing
                row.dims.append(1)
                row.reshape.SetInParent()
    assert config == expected


def test_triton_config_of_score_in_plain_numbers(registered: Source, tmp_path: Path) -> None:
    write_deployment(registered, "triton", tmp_path / "out")
    config = parse_config(tmp_path / "out" / "score" / "config.pbtxt")
    assert [(t.name, list(t.dims)) for t in config.input] == [("x", [6, 5]), ("eps", [-1, 3])]
    assert [t.name for t in config.output] == ["elbo", "log_likelihood", "kl", "iw_elbo"]
    assert all(t.dims == [1] and t.HasField("reshape") for t in config.output)
    assert config.HasField("dynamic_batching")
    assert list(config.version_policy.specific.versions) == [7]
    assert len(config.instance_group) == 0


def test_triton_sample_says_that_its_input_is_z(registered: Source, tmp_path: Path) -> None:
    write_deployment(registered, "triton", tmp_path / "out")
    text = (tmp_path / "out" / "sample" / "config.pbtxt").read_text()
    assert text.startswith("# The graph is the decoder: its input is z.")


@pytest.mark.parametrize("name", OPERATIONS)
def test_triton_graph_is_the_bundles_and_fits_its_config(
    registered: Source, tmp_path: Path, name: str
) -> None:
    write_deployment(registered, "triton", tmp_path / "out")
    model = tmp_path / "out" / name / "7" / "model.onnx"
    bundle = registered.bundle
    assert model.read_bytes() == (bundle.path / bundle.operations[name].graph).read_bytes()

    config = parse_config(tmp_path / "out" / name / "config.pbtxt")
    session = onnxruntime.InferenceSession(str(model), providers=["CPUExecutionProvider"])
    onnx_types = {2: "tensor(uint8)", 11: "tensor(float)"}  # of DataType in model_config.proto
    for declared, found in (
        (config.input, session.get_inputs()),
        (config.output, session.get_outputs()),
    ):
        rows = [
            (row.name, onnx_types[row.data_type], [] if row.HasField("reshape") else list(row.dims))
            for row in declared
        ]
        assert rows == [
            (t.name, t.type, [-1 if isinstance(axis, str) else axis for axis in t.shape[1:]])
            for t in found
        ]
        assert all(isinstance(t.shape[0], str) for t in found), "Triton batches along axis 0"


def test_triton_refuses_a_type_that_it_is_not_told(registered: Source, tmp_path: Path) -> None:
    manifest = replace(registered.bundle.manifest, x_dtype="complex64")
    source = replace(registered, bundle=replace(registered.bundle, manifest=manifest))
    with pytest.raises(UsageRefused, match="gets uint8, float32 here, got 'complex64'"):
        write_deployment(source, "triton", tmp_path / "out")


# --- KServe


def container(source: Source, out: Path, **options: Any) -> Any:
    write_deployment(source, "kserve", out, **options)
    (only,) = parse_yaml(out / "inferenceservice.yaml")["spec"]["predictor"]["containers"]
    return only


def test_kserve_resource_of_a_version(registered: Source, tmp_path: Path) -> None:
    write_deployment(registered, "kserve", tmp_path / "out")
    probe = {"periodSeconds": 5, "timeoutSeconds": 2, "failureThreshold": 3, "successThreshold": 1}
    live = {"initialDelaySeconds": 60, "periodSeconds": 10, "timeoutSeconds": 2}
    assert parse_yaml(tmp_path / "out" / "inferenceservice.yaml") == {
        "apiVersion": "serving.kserve.io/v1beta1",
        "kind": "InferenceService",
        "metadata": {
            "name": "vae",
            "annotations": {
                "vae-pipeline/model": "models:/vae/7",
                "vae-pipeline/bundle-sha256": registered.bundle.manifest.digest,
            },
        },
        "spec": {
            "predictor": {
                "containers": [
                    {
                        "name": "kserve-container",
                        "image": f"vae-serve:{metadata.version('vae-pipeline')}",
                        "command": ["vae", "serve"],
                        "args": [
                            *("--model", "models:/vae/7", "--host", "0.0.0.0"),
                            *("--port", "8080", "--grpc-port", "8081"),
                        ],
                        "env": [
                            {"name": "PROTOCOL", "value": "v2"},
                            {
                                "name": "MLFLOW_TRACKING_URI",
                                "value": "http://mlflow.example.com:5000",
                            },
                        ],
                        "ports": [{"name": "http1", "containerPort": 8080, "protocol": "TCP"}],
                        "readinessProbe": {
                            "httpGet": {"path": "/v2/health/ready", "port": 8080},
                            **probe,
                        },
                        "livenessProbe": {
                            "httpGet": {"path": "/v2/health/live", "port": 8080},
                            **live,
                        },
                        "resources": {
                            "requests": {"cpu": "1", "memory": "1Gi"},
                            "limits": {"cpu": "2", "memory": "2Gi"},
                        },
                    }
                ]
            }
        },
    }


def test_kserve_runs_the_bundle_in_the_image(bundle: Bundle, tmp_path: Path) -> None:
    found = container(Source(bundle), tmp_path / "out")
    assert found["image"] == f"vae-serve:{bundle.manifest.digest[:12]}"
    assert found["args"][:2] == ["--model", "/srv/bundle"]
    assert found["env"] == [{"name": "PROTOCOL", "value": "v2"}]


def test_kserve_says_what_to_change_for_grpc(registered: Source, tmp_path: Path) -> None:
    write_deployment(registered, "kserve", tmp_path / "out")
    text = (tmp_path / "out" / "inferenceservice.yaml").read_text()
    assert "{name: h2c, containerPort: 8081}" in text
    assert "tcpSocket: {port: 8081}" in text


def test_kserve_takes_another_image(registered: Source, tmp_path: Path) -> None:
    image = "registry.example.com:5000/team/vae@sha256:abc"
    assert container(registered, tmp_path / "out", image=image)["image"] == image


@pytest.mark.parametrize("image", ["", "a b", 'a"', "a\n", "-a", "$(x)"])
@pytest.mark.parametrize("target", TARGETS)
def test_an_image_that_is_no_name_is_refused(
    registered: Source, tmp_path: Path, target: DeployTarget, image: str
) -> None:
    with pytest.raises(UsageRefused, match=r"image must be REPOSITORY:TAG or .*, got "):
        write_deployment(registered, target, tmp_path / "out", image=image)


@pytest.mark.parametrize(
    ("name", "resource"),
    [
        ("vae", "vae"),
        ("Team.VAE_2", "team-vae-2"),
        ("3d", "vae-3d"),
        ("--", "vae"),
        ("ä", "vae"),
        (HOSTILE, "va-e-x-user-root-home-x-y"),
        ("a" * 39 + " b", "a" * 39),
        ("9" * 90, "vae-" + "9" * 36),
    ],
)
def test_kserve_resource_has_a_name_that_kserve_takes(
    bundle: Bundle, tmp_path: Path, name: str, resource: str
) -> None:
    write_deployment(Source(bundle, name, "7"), "kserve", tmp_path / "out")
    found = parse_yaml(tmp_path / "out" / "inferenceservice.yaml")["metadata"]["name"]
    assert found == resource
    assert re.fullmatch("[a-z]([-a-z0-9]*[a-z0-9])?", found)  # IsvcNameFmt of KServe


# --- Docker


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


@pytest.mark.parametrize("target", ["docker", "kserve"])
def test_the_command_is_one_that_vae_takes(
    registered: Source, tmp_path: Path, target: DeployTarget
) -> None:
    write_deployment(registered, target, tmp_path / "out")
    if target == "docker":
        command = json.loads(argument(tmp_path / "out", "CMD"))
    else:
        only = container(registered, tmp_path / "again")
        command = only["command"] + only["args"]
    assert command[:2] == ["vae", "serve"]
    serve = cli.commands["serve"]
    parsed = serve.make_context("serve", command[2:]).params
    assert "models:/vae/7" in parsed.values()
    assert {"0.0.0.0", 8080, 8081} <= set(parsed.values())


def test_the_extras_of_the_wheel_exist() -> None:
    extras = metadata.metadata("vae-pipeline").get_all("Provides-Extra") or []
    assert "registry" in extras


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
        if status is None:  # nobody listens
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


# --- names of a registry


def test_a_hostile_name_stays_a_string_for_triton(bundle: Bundle, tmp_path: Path) -> None:
    write_deployment(Source(bundle, HOSTILE, "7"), "triton", tmp_path / "out")
    write_deployment(Source(bundle, "vae", "7"), "triton", tmp_path / "plain")
    for name in OPERATIONS:
        config = parse_config(tmp_path / "out" / name / "config.pbtxt")
        plain = parse_config(tmp_path / "plain" / name / "config.pbtxt")
        assert config.parameters["registered_model"].string_value == HOSTILE
        plain.parameters["registered_model"].string_value = HOSTILE
        assert config == plain


def test_a_hostile_name_stays_a_string_for_kserve(bundle: Bundle, tmp_path: Path) -> None:
    found = container(Source(bundle, HOSTILE, "7"), tmp_path / "out")
    plain = container(Source(bundle, "vae", "7"), tmp_path / "plain")
    # Kubernetes expands $(HOME), and takes $$ for one $
    assert found["args"][1] == f"models:/{HOSTILE}/7".replace("$", "$$")
    assert found == {**plain, "args": [plain["args"][0], found["args"][1], *plain["args"][2:]]}
    annotations = parse_yaml(tmp_path / "out" / "inferenceservice.yaml")["metadata"]["annotations"]
    assert annotations["vae-pipeline/model"] == f"models:/{HOSTILE}/7"


def test_a_hostile_name_stays_a_string_for_docker(bundle: Bundle, tmp_path: Path) -> None:
    write_deployment(Source(bundle, HOSTILE, "7"), "docker", tmp_path / "out")
    write_deployment(Source(bundle, "vae", "7"), "docker", tmp_path / "plain")
    found, plain = instructions(tmp_path / "out"), instructions(tmp_path / "plain")
    assert json.loads(argument(tmp_path / "out", "CMD"))[3] == f"models:/{HOSTILE}/7"
    assert found[:-1] == plain[:-1]


@pytest.mark.parametrize("target", ["docker", "kserve"])
def test_a_container_of_an_alias_follows_it(
    registered: Source, tmp_path: Path, target: DeployTarget
) -> None:
    write_deployment(registered, target, tmp_path / "out", alias="champion")
    (file,) = (f for f in (tmp_path / "out").iterdir() if f.name != ".dockerignore")
    assert f'"models:/{registered.name}@champion"' in file.read_text()


def test_triton_gets_the_version_that_the_alias_names_now(
    registered: Source, tmp_path: Path
) -> None:
    names = write_deployment(registered, "triton", tmp_path / "out", alias="champion")
    assert f"encode/{registered.version}/model.onnx" in names


def test_the_command_line_offers_every_target() -> None:
    (option,) = (o for o in cli.commands["deploy"].params if o.name == "target")
    assert isinstance(option.type, click.Choice)
    assert [*option.type.choices] == [*TARGETS]
