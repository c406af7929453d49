"""Run a bundle's golden rows in some onnxruntime, without this project: golden.py BUNDLE PROVIDER.

It prints, in JSON, the versions, the largest error of each output beside its budget, the number of
nodes by provider and graph where onnxruntime can tell, and whether the graphs of noise give the
bundle's own bits.
"""

import json
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort

bundle, provider = Path(sys.argv[1]), sys.argv[2]
manifest = json.loads((bundle / "manifest.json").read_text())
golden = dict(np.load(bundle / "golden.npz"))
errors: dict[str, list[float]] = {}
placement: dict[str, dict[str, int]] = {}
noise: dict[str, bool] = {}


def run(graph: str, feeds: dict[str, Any], on: str = provider) -> dict[str, Any]:
    """Return the outputs of a graph, by name."""
    options = ort.SessionOptions()
    options.log_severity_level = 3
    tells = hasattr(ort.InferenceSession, "get_provider_graph_assignment_info")
    if tells:
        options.add_session_config_entry("session.record_ep_graph_assignment_info", "1")
    session = ort.InferenceSession(str(bundle / graph), options, providers=[on])
    nodes = Counter[str]()
    for part in session.get_provider_graph_assignment_info() if tells else ():
        nodes[part.ep_name] += len(part.get_nodes())
    placement[graph] = dict(nodes)
    names = [output.name for output in session.get_outputs()]
    return dict(zip(names, session.run(names, feeds), strict=True))


for name, operation in manifest["operations"].items():
    forms = {name: operation["graph"]}
    if "float64" in manifest["needs"][operation["graph"]]["types"]:
        forms[f"{name}_portable"] = f"{name}_portable.onnx"
        if provider != "CPUExecutionProvider":
            del forms[name]
    for form, graph in forms.items():
        rows = [golden[f"{form}.{tensor['name']}"] for tensor in operation["inputs"]]
        feeds = dict(zip(operation["graph_inputs"], rows, strict=True))
        for output, value in run(graph, feeds).items():
            error = float(abs(value - golden[f"{form}.{output}"]).max())
            errors[f"{form}.{output}"] = [error, float(golden[f"{form}.{output}.budget"])]

for number, seed in enumerate(golden["noise.seed"]):
    count, draws = golden["noise.eps"].shape[1], golden["score_noise.eps"].shape[2]
    inputs = {"seed": np.array([seed])}
    numbered = {"start": golden["noise.start"], "rows": np.array([count])}
    hashed = {"hash": golden["score_noise.hash"], "num_samples": np.array([draws])}
    for graph, more in (("noise", numbered), ("score_noise", hashed)):
        eps = run(f"{graph}.onnx", inputs | more, on="CPUExecutionProvider")["eps"]
        expected = golden[f"{graph}.eps"][number]
        noise[f"{graph} of {seed}"] = eps.tobytes() == expected.tobytes()

versions = [ort.__version__, np.__version__]
found = {"versions": versions, "errors": errors, "placement": placement, "noise": noise}
print(json.dumps(found))
