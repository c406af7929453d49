"""Runtimes that run a bundle's golden rows, each in a process and an installation of its own.

In: a bundle. Out: the largest error of each output as a share of its budget, by form and output.
`make setup-dev` installs them beside the packages of the tests.
"""

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
from numpy.typing import NDArray

from serving.bundle import Bundle
from serving.engine import Engine
from serving.operations import Operation

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
NODE = f"{sys.prefix}/bin/node"
WEB = Path(sys.prefix, "web", "node_modules")
OLDEST, OPENVINO, WEBGPU = (Path(sys.prefix, name) for name in ("oldest", "openvino", "webgpu"))
BROWSERS = (Path("/usr/lib/chromium"), Path("/opt/google/chrome"))
"""Their files have SwiftShader, a GPU in software, and a loader for it."""

Array = NDArray[Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    """What a runtime made of the golden rows."""

    version: str
    shares: Mapping[str, float]
    """Error as a share of the budget, by form and output, such as `score_portable.elbo`."""
    placement: Mapping[str, Mapping[str, int]] = field(default_factory=dict)
    """Nodes by provider, for each graph, where the runtime can tell."""
    noise: Mapping[str, bool] = field(default_factory=dict)
    """Whether the graphs of noise gave the bits that the bundle says."""


def run_here(bundle: Bundle) -> Found:
    """Run in this process, on the CPU."""
    engine = Engine(bundle, operations=bundle.all_forms)
    return Found(version=onnxruntime.__version__, shares=_shares_of(engine))


def run_oldest(bundle: Bundle) -> Found:
    """Run in the oldest onnxruntime that bundles are made for."""
    return _run_script(bundle, OLDEST, "CPUExecutionProvider")


def run_openvino(bundle: Bundle) -> Found:
    """Run in an onnxruntime that has OpenVINO as a provider, which no plugin is needed for."""
    return _run_script(bundle, OPENVINO, "OpenVINOExecutionProvider")


def run_webgpu(bundle: Bundle) -> Found:
    """Run on the plugin provider WebGPU, with SwiftShader for a GPU, in this project's engine."""
    script = (
        "import json, sys\n"
        "from pathlib import Path\n"
        "from serving.bundle import open_bundle\n"
        "from tests.clients.runtimes import shares_on\n"
        "print(json.dumps(shares_on(open_bundle(Path(sys.argv[1])), 'webgpu')))\n"
    )
    line = _run([sys.executable, "-c", script, str(bundle.path)], webgpu_variables())
    return Found(**json.loads(line))


def run_node(bundle: Bundle) -> Found:
    """Run in onnxruntime-web, which is WebAssembly, in Node."""
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        (folder / "golden.mjs").write_bytes((HERE / "golden.mjs").read_bytes())
        (folder / "node_modules").symlink_to(WEB)
        golden, runs = bundle.golden(), []
        for form in bundle.all_forms.values():
            runs.append(_describe_run(bundle, form, golden, folder))
        (folder / "runs.json").write_text(json.dumps(runs))
        _run([NODE, "golden.mjs", "runs.json"], {}, folder)
        shares = {}
        for form in bundle.all_forms.values():
            for tensor in form.outputs:
                name = f"{form.label}.{tensor.name}"
                value = np.fromfile(folder / name, "<f4").reshape(golden[name].shape)
                shares[name] = _share(value, golden, name)
    package = json.loads((WEB / "onnxruntime-web" / "package.json").read_text())
    return Found(version=package["version"], shares=shares)


RUNTIMES: Mapping[str, Callable[[Bundle], Found]] = {
    "onnxruntime": run_here,
    "oldest onnxruntime": run_oldest,
    "onnxruntime-web (WASM)": run_node,
    "OpenVINO": run_openvino,
    "WebGPU (plugin)": run_webgpu,
}


def webgpu_variables() -> dict[str, str]:
    """Return the environment in which the plugin for WebGPU finds a device."""
    driver = "vk_swiftshader_icd.json"
    browser = next((folder for folder in BROWSERS if (folder / driver).exists()), None)
    assert browser, "this needs SwiftShader, which Chromium brings: see .ci/run"
    return {
        "PYTHONPATH": f"{WEBGPU}:{ROOT}",
        "ORT_WEBGPU_EP_ALLOW_SOFTWARE_ADAPTER": "1",
        "VK_ICD_FILENAMES": str(browser / driver),
        "LD_LIBRARY_PATH": str(browser),
    }


def shares_on(bundle: Bundle, device: str) -> dict[str, Any]:
    """Run on a device of this project's engine; return the fields of `Found`."""
    forms = forms_without_float64(bundle)
    engine = Engine(bundle, device=device, operations=forms)
    return {
        "version": onnxruntime.__version__,
        "shares": _shares_of(engine),
        "placement": {"all": engine.placement()},
    }


def forms_without_float64(bundle: Bundle) -> dict[str, Operation]:
    """Return all operations, by label, in the forms that need no float64."""
    return {form.label: form for form in bundle.operations_for(float64=False).values()}


def _shares_of(engine: Engine) -> dict[str, float]:
    golden, shares = engine.bundle.golden(), {}
    for label, form in engine.operations.items():
        inputs = {tensor.name: golden[f"{label}.{tensor.name}"] for tensor in form.inputs}
        for output, value in engine.run(label, inputs).items():
            shares[f"{label}.{output}"] = _share(value, golden, f"{label}.{output}")
    return shares


def _share(value: Array, golden: Mapping[str, Array], name: str) -> float:
    return float(np.abs(value - golden[name]).max() / golden[f"{name}.budget"])


def _describe_run(
    bundle: Bundle, form: Operation, golden: Mapping[str, Array], folder: Path
) -> dict[str, Any]:
    inputs = []
    for tensor, name in zip(form.inputs, form.graph_inputs(), strict=True):
        file = f"{form.label}.{tensor.name}"
        (folder / file).write_bytes(golden[file].tobytes())
        dims = golden[file].shape
        inputs.append({"name": name, "type": tensor.dtype, "dims": dims, "file": file})
    outputs = {tensor.name: f"{form.label}.{tensor.name}" for tensor in form.outputs}
    return {"graph": str(bundle.path / form.graph), "inputs": inputs, "outputs": outputs}


def _run_script(bundle: Bundle, installation: Path, provider: str) -> Found:
    command = [sys.executable, str(HERE / "golden.py"), str(bundle.path), provider]
    found = json.loads(_run(command, {"PYTHONPATH": str(installation)}))
    return Found(
        version=found["versions"][0],
        shares={name: error / budget for name, (error, budget) in found["errors"].items()},
        placement=found["placement"],
        noise=found["noise"],
    )


def _run(command: list[str], variables: Mapping[str, str], folder: Path | None = None) -> str:
    """Run a program, and return the last line that it prints."""
    env = {**os.environ, **variables}
    done = subprocess.run(command, env=env, cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return (done.stdout.splitlines() or [""])[-1]
