"""The oldest onnxruntime that bundles are made for runs them, within the self-check's budgets."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from serving.bundle import Bundle

OLDEST = Path(sys.prefix, "oldest")
ROOT = Path(__file__).parents[2]
SCRIPT = """
import json, sys
import numpy, onnxruntime
from serving.noise import noise_vectors

bundle = sys.argv[1]
golden = dict(numpy.load(f"{bundle}/golden.npz"))
manifest = json.load(open(f"{bundle}/manifest.json"))
found = {"versions": [onnxruntime.__version__, numpy.__version__], "errors": {}, "noise": {}}

def run(graph, feeds):
    session = onnxruntime.InferenceSession(f"{bundle}/{graph}", providers=["CPUExecutionProvider"])
    return dict(zip([output.name for output in session.get_outputs()], session.run(None, feeds)))

for name, operation in manifest["operations"].items():
    tensors = [golden[f"{name}.{tensor['name']}"] for tensor in operation["inputs"]]
    outputs = run(operation["graph"], dict(zip(operation["graph_inputs"], tensors)))
    for output, value in outputs.items():
        key = f"{name}.{output}"
        error = float(abs(value - golden[key]).max())
        found["errors"][key] = [error, float(golden[f"{key}.budget"])]

for number, seed in enumerate(golden["noise.seed"]):
    rows, draws = golden["noise.eps"].shape[1], golden["score_noise.eps"].shape[2]
    inputs = {"seed": numpy.array([seed])}
    noise = {"start": golden["noise.start"], "rows": numpy.array([rows])}
    of_rows = {"hash": golden["score_noise.hash"], "num_samples": numpy.array([draws])}
    for graph, more in (("noise", noise), ("score_noise", of_rows)):
        eps = run(f"{graph}.onnx", inputs | more)["eps"]
        same = eps.tobytes() == golden[f"{graph}.eps"][number].tobytes()
        found["noise"][f"{graph} of {seed}"] = same
drawn = noise_vectors(golden["score.x"], manifest["latent_dim"])
found["noise"]["numpy"] = all((golden[key] == value).all() for key, value in drawn.items())
print(json.dumps(found))
"""


@pytest.mark.parametrize("kind", ["sealed", "sealed_table"])
def test_the_oldest_runtime_runs_every_graph(kind: str, request: pytest.FixtureRequest) -> None:
    bundle: Bundle = request.getfixturevalue(kind)
    env = {**os.environ, "PYTHONPATH": f"{OLDEST}:{ROOT}"}
    command = [sys.executable, "-c", SCRIPT, str(bundle.path)]
    done = subprocess.run(command, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["versions"] == ["1.15.0", "1.26.4"]
    assert found["errors"].keys() == {
        f"{name}.{tensor.name}"
        for name, operation in bundle.operations.items()
        for tensor in operation.outputs
    }
    for key, (error, budget) in found["errors"].items():
        assert error <= budget, key
    assert len(found["noise"]) == 7
    assert all(found["noise"].values()), found["noise"]
