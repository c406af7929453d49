"""Render a bundle's model card: what the model is, how good, how checked, and how to call it.

In: the manifest's content, the held-out metrics and, once it was checked, the parity report. Out:
Markdown.
"""

from collections.abc import Mapping
from typing import Any

from serving.bundle import SAMPLES

_TEMPLATE = """# Variational autoencoder, {shape} {x_dtype}

{likelihood} likelihood, latent size {latent_dim}, layers {hidden_dims}, {activation}; preset
`{preset}`, seed {seed}; graphs in {precision}.
{picture}
## Held-out data

{rows} rows of `{source}`, in nats; ± is a standard error over rows.

| quantity | value |
|---|---|
| ELBO | {elbo:.2f} ± {elbo_se:.2f} |
| log-likelihood | {log_likelihood:.2f} |
| KL | {kl:.2f} |
| NLL ({nll_samples} importance samples) | {nll:.2f} ± {nll_se:.2f} |
| active latents | {active_units} of {latent_dim} |

## Parity of ONNX and torch

{parity}

## How to call it

| operation | graph | inputs | outputs |
|---|---|---|---|
{operations}

```python
import numpy as np
import onnxruntime

encoder = onnxruntime.InferenceSession("encoder.onnx", providers=["CPUExecutionProvider"])
decoder = onnxruntime.InferenceSession("decoder.onnx", providers=["CPUExecutionProvider"])
z_loc, z_scale = encoder.run(None, {{"x": np.zeros({example}, np.{x_dtype})}})
(x_loc,) = decoder.run(None, {{"z": z_loc}})
```

`x` and `x_loc` are in the data's own units: a client needs no scaler. Bounds are in nats, larger is
better.

## Origin

| what | value |
|---|---|
| MLflow run | {run_id} |
| git commit | {git} |
| training rows | {train_rows}, sha256 {train_sha256} |
| held-out rows | {rows}, sha256 {test_sha256} |
| versions | {versions} |
"""


def render_card(
    content: Mapping[str, Any], metrics: Mapping[str, Any], parity: Mapping[str, Any] | None
) -> str:
    """Fill the card in from the manifest's `content`, the metrics and the parity report."""
    config = content["config"]
    splits = content["data"]["splits"]
    git = content["git"]
    pictured = len(content["x_shape"]) == 2 and content["x_dtype"] == "uint8"
    return _TEMPLATE.format(
        **metrics,
        shape=" by ".join(str(size) for size in content["x_shape"]),
        x_dtype=content["x_dtype"],
        likelihood=content["likelihood"].capitalize(),
        latent_dim=content["latent_dim"],
        hidden_dims="-".join(str(width) for width in config["model"]["hidden_dims"]) or "none",
        activation=config["model"]["activation"],
        preset=config["preset"],
        precision=content["precision"],
        seed=content["seed"],
        picture=f"\n![samples from the prior]({SAMPLES})\n" if pictured else "",
        source=content["data"]["source"],
        parity=_describe_parity(parity),
        operations="\n".join(
            f"| {name} | {row['graph']} | {_tensors(row['inputs'])} | {_tensors(row['outputs'])} |"
            for name, row in content["operations"].items()
        ),
        example=(1, *content["x_shape"]),
        run_id=content["run_id"],
        git=f"{git['sha']}{' with uncommitted changes' if git['dirty'] else ''}",
        train_rows=splits["train"]["rows"],
        train_sha256=splits["train"]["sha256"],
        test_sha256=splits["test"]["sha256"],
        versions=", ".join(f"{name} {value}" for name, value in content["versions"].items()),
    )


def _describe_parity(parity: Mapping[str, Any] | None) -> str:
    if parity is None:
        return "Not checked yet: run `vae check`."
    rows, machine = parity["comparisons"], parity["machine"]
    wrong = sum(fault["rule"] == "weights" for fault in parity["graph_faults"])
    return (
        f"**{str(parity['verdict']).capitalize()}** on {' and '.join(parity['devices'])} "
        f"({machine.get('processor', 'unknown')}): {len(rows)} comparisons of every output "
        f"with torch in float64, {sum(row['passed'] for row in rows)} within the error that "
        f"torch's float32 makes; {wrong} weights differ. "
        "All of them stand in `parity.json`."
        f"{_describe_reduction(parity.get('reduction'))}"
    )


def _describe_reduction(reduction: Mapping[str, Any] | None) -> str:
    """What the rounding of the weights costs; the metrics above are those of float32."""
    if reduction is None:
        return ""
    precision, cost = reduction["precision"], reduction["cost"]
    text = (
        f"\n\nThe graphs are in **{precision}**, torch ran with their weights; the metrics above "
        f"are those of float32. {_measured(reduction)}"
    )
    if cost is None:
        return text
    rows = (
        f"| {row['operation']}, batch {row['batch']} | {row['float32_rows_per_s']:,.0f} rows/s "
        f"| {row['rows_per_s']:,.0f} rows/s |"
        for row in cost["rates"]
    )
    sizes = (
        f"| {graph} | {size['float32']:,} bytes | {size['reduced']:,} bytes |"
        for graph, size in cost["bytes"].items()
    )
    head = [f"{text}\n", f"| what | float32 | {precision} |", "|---|---|---|"]
    return "\n".join([*head, *sizes, *rows])


def _measured(reduction: Mapping[str, Any]) -> str:
    if reduction["difference"] is None:
        return "Their ELBO is no number."
    return (
        f"Over {reduction['rows']} held-out rows their ELBO is "
        f"{reduction['difference']:+.2g} nats from float64's, allowed {reduction['budget']:.2g}."
    )


def _tensors(tensors: list[Mapping[str, Any]]) -> str:
    return ", ".join(
        f"`{t['name']}` {t['dtype']} ({', '.join(str(axis) for axis in t['shape'])})"
        for t in tensors
    )
