"""Write the files that deploy a model: a Triton repository, a KServe resource, a Docker context.

In: a verified `Source`. Out: a folder, whole or absent. Names come from a registry, so each is
quoted for the file that holds it, and none is put in a comment. Raises `UsageRefused` if the folder
is not empty or a name or number cannot be used, and `VaeError` if the folder cannot be written.
"""

import json
import re
import shlex
import shutil
from collections.abc import Callable, Mapping
from importlib import metadata
from pathlib import Path
from typing import Literal

from serving.bundle import MANIFEST, SIGNATURE
from serving.errors import UsageRefused
from serving.files import refuse_in_bundle, staged_folder
from serving.operations import Operation, Tensor
from serving.source import Source

DeployTarget = Literal["triton", "kserve", "docker"]

MAX_BATCH_SIZE = 1024  # rows that Triton puts into one run
REST_PORT = 8080
GRPC_PORT = 8081
BUNDLE_IN_IMAGE = "/srv/bundle"
KEY_FILE = "verify_key.pub"
KEY_IN_IMAGE = f"/srv/{KEY_FILE}"
USER_ID = 10001  # a number, so that Kubernetes can see that it is not root

_EXAMPLE_STORE = "http://mlflow.example.com:5000"
_TRITON_TYPES = {"uint8": "TYPE_UINT8", "float32": "TYPE_FP32"}
_IMAGE = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:/@-]*")
_HEALTH_CHECK = (
    "import urllib.request as u; u.build_opener(u.ProxyHandler({})).open("  # without a proxy
    f"'http://127.0.0.1:{REST_PORT}/v2/health/ready', timeout=2)"
)


def write_deployment(
    source: Source,
    target: DeployTarget,
    out: Path,
    *,
    alias: str | None = None,
    image: str | None = None,
    verify_key: Path | None = None,
) -> tuple[str, ...]:
    """Write the files of `target` to the new or empty folder `out`; return their relative names.

    `alias` is the alias that a container follows, if any; Triton always gets the version itself.
    `image` is the image that KServe runs, by default `vae-serve:TAG`; the others do not use it.
    With the file of a public key, a Docker image asks for signatures by its holder too.
    """
    image = default_image(source) if image is None else image
    if _IMAGE.fullmatch(image) is None:
        raise UsageRefused(f"image must be REPOSITORY:TAG or REPOSITORY@DIGEST, got {image!r}")
    refuse_in_bundle(out, "--out")
    _check_place(out.resolve())
    with staged_folder(out) as folder:
        TARGETS[target](source, folder, image, alias, verify_key)
        files = (path for path in folder.rglob("*") if path.is_file())
        return tuple(sorted(path.relative_to(folder).as_posix() for path in files))


def next_steps(source: Source, target: DeployTarget, out: Path, store: str = "") -> tuple[str, ...]:
    """Return the commands of a shell that run what `write_deployment` wrote to `out`.

    `store` is the URI of the registry; a container reaches only that of a server.
    """
    folder, image = shlex.quote(str(out)), default_image(source)
    if target == "triton":
        return (f"tritonserver --model-repository={folder}",)
    if target == "kserve":
        resource = shlex.quote(str(out / "inferenceservice.yaml"))
        return (
            f"docker push {image}  # made by vae deploy --target docker",
            f"kubectl apply -f {resource}",
        )
    reached = store if store.startswith(("http:", "https:")) else _EXAMPLE_STORE
    variable, note = "", ""
    if source.name is not None:
        variable = f" -e {shlex.quote(f'MLFLOW_TRACKING_URI={reached}')}"
        note = "  # the URI of your tracking server" if reached != store else ""
    ports = f"-p {REST_PORT}:{REST_PORT} -p {GRPC_PORT}:{GRPC_PORT}"
    return (
        f"pip wheel --no-deps -w {folder} {_checkout()}",
        f"docker build -t {image} {folder}",
        f"docker run {ports}{variable} {image}{note}",
    )


def _checkout() -> str:
    """Return the checkout that this package runs from, or a word for one."""
    folder = Path(__file__).parent.parent
    found = (folder / "pyproject.toml").is_file()
    return shlex.quote(str(folder)) if found else "CHECKOUT_OF_VAE_PIPELINE"


def default_image(source: Source) -> str:
    """Return the image's name, tagged by the bundle that it holds, or by the package's version."""
    digest = source.bundle.manifest.digest
    return f"vae-serve:{metadata.version('vae-pipeline') if source.name else digest[:12]}"


def _check_place(place: Path) -> None:
    if place == Path.cwd():  # replacing it would leave the shell in a removed folder
        raise UsageRefused(f"--out {place} is the working folder: name a new folder")
    if place.exists() and not (place.is_dir() and not any(place.iterdir())):
        raise UsageRefused(f"--out {place} exists and is not an empty folder: name a new folder")


def _write_triton(
    source: Source, folder: Path, image: str, alias: str | None, key: Path | None
) -> None:
    number = _version_number(source)
    for operation in source.bundle.operations.values():
        version_folder = folder / operation.name / str(number)
        version_folder.mkdir(parents=True)
        shutil.copyfile(source.bundle.path / operation.graph, version_folder / "model.onnx")
        config = _triton_config(source, operation, number)
        (folder / operation.name / "config.pbtxt").write_text(config, encoding="ascii")


def _triton_config(source: Source, operation: Operation, number: int) -> str:
    notes = {
        "sample": "# The graph is the decoder: its input is z. Draw it from a standard normal.\n",
        "score": "# Draw eps from a standard normal. Each output has the shape (batch, 1).\n",
    }
    inputs = zip(operation.graph_inputs(), operation.inputs, strict=True)
    tensors = [_triton_tensor("input", name, tensor) for name, tensor in inputs]
    tensors += [_triton_tensor("output", tensor.name, tensor) for tensor in operation.outputs]
    parameters = {"bundle.sha256": source.bundle.manifest.digest}
    if source.name is not None:
        parameters["registered_model"] = source.name
    lines = [
        f'name: "{operation.name}"\nbackend: "onnxruntime"\nmax_batch_size: {MAX_BATCH_SIZE}',
        *tensors,
        f"dynamic_batching {{ }}\nversion_policy {{ specific {{ versions: [ {number} ] }} }}",
    ]
    for key, value in parameters.items():
        lines.append(f'parameters {{ key: "{key}" value {{ string_value: {_protobuf(value)} }} }}')
    return notes.get(operation.name, "") + "\n".join(lines) + "\n"


def _triton_tensor(side: str, name: str, tensor: Tensor) -> str:
    """Describe a tensor without its batch axis; for Triton, one value for each row is [1]."""
    if tensor.dtype not in _TRITON_TYPES:
        raise UsageRefused(
            f"dtype for Triton must be {' or '.join(_TRITON_TYPES)}, got {tensor.dtype!r}"
        )
    dims = ", ".join(str(-1 if isinstance(axis, str) else axis) for axis in tensor.shape[1:])
    shape = f"dims: [ {dims} ]" if dims else "dims: [ 1 ] reshape { shape: [ ] }"
    return f'{side} {{ name: "{name}" data_type: {_TRITON_TYPES[tensor.dtype]} {shape} }}'


def _write_kserve(
    source: Source, folder: Path, image: str, alias: str | None, key: Path | None
) -> None:
    # Kubernetes replaces $(NAME) in arguments; $$ stands for one $
    command = [_yaml(argument.replace("$", "$$")) for argument in _serve_command(source, alias)]
    store = f"""\
          # Your tracking server: the version is fetched from it when the container starts.
          - name: MLFLOW_TRACKING_URI
            value: "{_EXAMPLE_STORE}"
"""
    text = f"""\
# Build and push the image first: vae deploy --target docker writes its build context.
# Knative opens one port of each container, and probes that one: REST here. For gRPC, change it to
# {{name: h2c, containerPort: {GRPC_PORT}}}, and both httpGet to tcpSocket: {{port: {GRPC_PORT}}}.
# PROTOCOL stays v2 then: KServe does not accept grpc-v2 for a custom container.
apiVersion: serving.kserve.io/v1beta1
kind: InferenceService
metadata:
  name: {_yaml(_resource_name(source.name))}
  annotations:
    vae-pipeline/model: {_yaml(_reference(source, alias))}
    vae-pipeline/bundle-sha256: {_yaml(source.bundle.manifest.digest)}
spec:
  predictor:
    containers:
      - name: kserve-container
        image: {_yaml(image)}
        command: [{", ".join(command[:2])}]
        args: [{", ".join(command[2:])}]
        env:
          - {{name: PROTOCOL, value: v2}}  # a custom container's protocolVersion
{"" if source.name is None else store}\
        ports:
          - {{name: http1, containerPort: {REST_PORT}, protocol: TCP}}
        readinessProbe:
          httpGet: {{path: /v2/health/ready, port: {REST_PORT}}}
          periodSeconds: 5
          timeoutSeconds: 2
          failureThreshold: 3
          successThreshold: 1
        livenessProbe:
          httpGet: {{path: /v2/health/live, port: {REST_PORT}}}
          initialDelaySeconds: 60
          periodSeconds: 10
          timeoutSeconds: 2
        resources:
          requests: {{cpu: "1", memory: 1Gi}}
          limits: {{cpu: "2", memory: 2Gi}}
"""
    (folder / "inferenceservice.yaml").write_text(text, encoding="ascii")


def _write_docker(
    source: Source, folder: Path, image: str, alias: str | None, key: Path | None
) -> None:
    ignored = "*\n!vae_pipeline-*.whl\n"  # ignore all but what the image needs
    if source.name is not None:
        copy = "# Start it with -e MLFLOW_TRACKING_URI=...: the model is fetched from there."
    else:
        ignored += "!bundle\n"
        copy = f"COPY --chown={USER_ID}:{USER_ID} bundle/ {BUNDLE_IN_IMAGE}/"
        (folder / "bundle").mkdir()
        signature = (SIGNATURE,) if (source.bundle.path / SIGNATURE).exists() else ()
        for name in (*source.bundle.manifest.files, MANIFEST, *signature):
            shutil.copyfile(source.bundle.path / name, folder / "bundle" / name)
    if key is not None:
        shutil.copyfile(key, folder / KEY_FILE)
        ignored += f"!{KEY_FILE}\n"
        copy += f"\nCOPY --chown={USER_ID}:{USER_ID} {KEY_FILE} {KEY_IN_IMAGE}"
        copy += f"\nENV VAE_VERIFY_KEY={KEY_IN_IMAGE}"
    extras = [*(["registry"] if source.name else []), *(["sign"] if key else [])]
    extra = f"[{','.join(extras)}]" if extras else ""
    text = f"""\
# The package is a wheel beside this file. Build it in a checkout of vae-pipeline with
#   pip wheel --no-deps -w DIR .
# where DIR is this folder. Then run: docker build -t NAME:TAG DIR
FROM python:3.11-slim
COPY vae_pipeline-*.whl /tmp/
RUN pip install --no-cache-dir "$(echo /tmp/vae_pipeline-*.whl){extra}" && rm /tmp/*.whl
RUN useradd --create-home --uid {USER_ID} vae
USER {USER_ID}
WORKDIR /home/vae
{copy}
ENV ORT_DISABLE_TELEMETRY=1
EXPOSE {REST_PORT} {GRPC_PORT}
HEALTHCHECK --interval=10s --timeout=3s --start-period=60s --retries=3 \\
    CMD {json.dumps(["python", "-c", _HEALTH_CHECK])}
STOPSIGNAL SIGTERM
CMD {json.dumps(_serve_command(source, alias))}
"""
    (folder / "Dockerfile").write_text(text, encoding="ascii")
    (folder / ".dockerignore").write_text(ignored, encoding="ascii")


TARGETS: Mapping[DeployTarget, Callable[[Source, Path, str, str | None, Path | None], None]] = {
    "triton": _write_triton,
    "kserve": _write_kserve,
    "docker": _write_docker,
}
"""The functions that write each target's files, given source, folder, image, alias and key."""


def _serve_command(source: Source, alias: str | None) -> list[str]:
    ports = ["--port", str(REST_PORT), "--grpc-port", str(GRPC_PORT)]
    return ["vae", "serve", "--model", _reference(source, alias), "--host", "0.0.0.0", *ports]


def _reference(source: Source, alias: str | None) -> str:
    if source.name is None:
        return BUNDLE_IN_IMAGE
    if alias is not None:
        return f"models:/{source.name}@{alias}"
    return f"models:/{source.name}/{_version_number(source)}"


def _version_number(source: Source) -> int:
    """Return the registry's number, or 1; it names a folder, so only a number is taken."""
    version = "1" if source.version is None else source.version
    if re.fullmatch("0*[1-9][0-9]{0,17}", version) is None:
        raise UsageRefused(f"version must be a positive whole number, got {version!r}")
    return int(version)


def _resource_name(name: str | None) -> str:
    """Return a name that KServe accepts: lower-case letters, digits and dashes, a letter first."""
    plain = re.sub("[^a-z0-9]+", "-", (name or "").lower()).strip("-")
    label = plain if plain[:1].isalpha() else f"vae-{plain}"
    return label[:40].rstrip("-")  # KServe appends to it, and Kubernetes takes 63 characters


def _protobuf(text: str) -> str:
    """Quote a string for protobuf's text format: UTF-8 with octal escapes."""
    plain = (chr(b) if 32 <= b < 127 and b not in b'"\\' else f"\\{b:03o}" for b in text.encode())
    return f'"{"".join(plain)}"'


def _yaml(text: str) -> str:
    r"""Quote a string for YAML, which takes \UXXXXXXXX, but no surrogate pairs as JSON does."""
    plain = (c if " " <= c <= "~" and c not in '"\\' else f"\\U{ord(c):08x}" for c in text)
    return f'"{"".join(plain)}"'
