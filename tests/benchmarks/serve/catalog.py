"""The servers, each set up as a competent user of it would do, with the better of its settings.

`{bin}`, `{port}` and the like are filled in at the start. Every server has one worker process,
because it has one core; every session has one thread.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from tests.benchmarks.serve.wires import MODEL, V2_BINARY, V2_GRPC, V2_JSON, Wire, plain_json

ONNXRUNTIME = "onnxruntime==1.31.1"
FAST_HTTP = ("uvicorn==0.54.0", "uvloop==0.23.0", "httptools==0.9.0")
"""uvicorn uses the last two if they are installed; `uvicorn[standard]` installs them."""


@dataclass(frozen=True, slots=True)
class Peer:
    """How to install one server, start it, and send it requests."""

    name: str
    requirements: tuple[str, ...]
    command: tuple[str, ...]
    health: str
    wires: tuple[Wire, ...]
    setting: str
    env: Mapping[str, str] = field(default_factory=dict)
    prepare: tuple[str, ...] = ()
    """A command to run once before."""
    announces: bool = False
    """Whether it prints a line to stdout when it is ready."""
    fragile: bool = False
    """Whether it may crash when connections are closed, so that each cell has a new process."""

    @property
    def folder(self) -> str:
        """Its environment variables."""
        return self.name.split()[0]


AT_PEAK = 32
"""Numbers of connections at which the peak is measured."""

OURS = Peer(
    name="vae",
    requirements=(),
    command=(
        *("{bin}/python", "-m", "pipeline.cli", "serve", "--model", "{bundle}"),
        *("--port", "{port}", "--grpc-port", "{grpc_port}"),
    ),
    health="/v2/health/ready",
    wires=(V2_JSON, V2_BINARY, V2_GRPC),
    setting="defaults",
    announces=True,
)

ECHO = Peer(
    name="echo",
    requirements=(),
    command=("{bin}/python", "-m", "tests.benchmarks.serve.transports", "{port}", "{grpc_port}"),
    health="/0",
    wires=(V2_BINARY, V2_GRPC),
    setting="our transports, which answer with as many bytes",
)
"""Not a peer: the floor of each wire."""

MLSERVER_TUNED = Peer(
    name="mlserver tuned",
    # its worker process does not start with a later uvloop
    requirements=("mlserver==1.7.1", ONNXRUNTIME, "uvloop==0.21.0"),
    command=("{bin}/mlserver", "start", "{work}"),
    health=f"/v2/models/{MODEL}/ready",
    wires=(V2_JSON, V2_GRPC),
    # measured: adaptive batching, with 2 or 20 ms, is slower at both 1 and 32 connections
    setting="in-process, no batching, no gzip",
    env={
        "MLSERVER_HTTP_PORT": "{port}",
        "MLSERVER_GRPC_PORT": "{grpc_port}",
        "MLSERVER_METRICS_PORT": "{metrics_port}",
        "MLSERVER_PARALLEL_WORKERS": "0",
        "MLSERVER_DEBUG": "false",
        "MLSERVER_GZIP_ENABLED": "false",
        "MLSERVER_MODEL_NAME": MODEL,
        "MLSERVER_MODEL_IMPLEMENTATION": "on_mlserver.Reconstruct",
    },
)

MLSERVER = replace(
    MLSERVER_TUNED,
    name="mlserver",
    setting="as it comes: a worker process, gzip",
    env={
        name: value
        for name, value in MLSERVER_TUNED.env.items()
        if name not in ("MLSERVER_PARALLEL_WORKERS", "MLSERVER_GZIP_ENABLED")
    },
)

BENTOML = Peer(
    name="bentoml",
    requirements=("bentoml==1.4.39", ONNXRUNTIME, *FAST_HTTP),
    command=("{bin}/bentoml", "serve", "on_bentoml:Reconstruct", "--port", "{port}"),
    health="/readyz",
    wires=(plain_json("/reconstruct", "x", None),),
    setting="batchable to 128 rows, no access log",
    env={"BENTOML_DO_NOT_TRACK": "true", "BENTOML_HOME": "{work}"},
)

LITSERVE = Peer(
    name="litserve",
    requirements=("litserve==0.2.19", ONNXRUNTIME, *FAST_HTTP),
    command=("{bin}/python", "{peers}/on_litserve.py", "{port}"),
    health="/health",
    wires=(plain_json("/predict", "x", "x_loc"),),
    setting="one worker, fast queue, no batching",
)

MLFLOW = Peer(
    name="mlflow models serve",
    requirements=("mlflow==3.17.2", ONNXRUNTIME, *FAST_HTTP),
    prepare=("{bin}/python", "{peers}/on_mlflow.py", "{work}/model"),
    command=(
        *("{bin}/mlflow", "models", "serve", "--model-uri", "{work}/model", "--workers", "1"),
        *("--env-manager", "local", "--port", "{port}"),
    ),
    health="/ping",
    wires=(plain_json("/invocations", "inputs", "predictions"),),
    setting="pyfunc with a signature, one worker, no access log",
    env={"MLFLOW_DISABLE_TELEMETRY": "true", "UVICORN_ACCESS_LOG": "false"},
)

FASTAPI = Peer(
    name="fastapi",
    requirements=("fastapi==0.165.0", ONNXRUNTIME, *FAST_HTTP),
    command=(
        *("{bin}/uvicorn", "on_fastapi:app", "--port", "{port}"),
        *("--no-access-log", "--log-level", "warning"),
    ),
    health="/docs",
    wires=(plain_json("/reconstruct", "x", "x_loc"),),
    setting="async route, pydantic models, uvloop and httptools",
)

TRITON = Peer(
    name="triton",
    requirements=("nvidia-pytriton==0.7.0", ONNXRUNTIME),
    prepare=("{bin}/python", "{peers}/on_triton.py", "{site}/pytriton/tritonserver", "{work}"),
    command=(
        *("{site}/pytriton/tritonserver/bin/tritonserver", "--model-repository", "{work}/models"),
        *("--backend-directory", "{work}/backends"),
        *("--http-port", "{port}", "--grpc-port", "{grpc_port}"),
        *("--metrics-port", "{metrics_port}", "--allow-gpu-metrics=false"),
    ),
    health="/v2/health/ready",
    wires=(V2_BINARY, V2_GRPC),
    setting="Python backend around onnxruntime, dynamic batching, one instance",
    env={"LD_LIBRARY_PATH": "{site}/nvidia_pytriton.libs"},
    fragile=True,
)

PEERS = {
    "vae": OURS,
    "triton": TRITON,
    "mlserver": MLSERVER,
    "mlserver-tuned": MLSERVER_TUNED,
    "bentoml": BENTOML,
    "litserve": LITSERVE,
    "mlflow": MLFLOW,
    "fastapi": FASTAPI,
}
