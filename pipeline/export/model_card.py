"""Render the model card: what the model is, how good it is, how it was checked, how to call it.

In: the manifest's content, the held-out metrics and, once parity was checked, the section on it.
Out: Markdown.
"""

import json
import shlex
from collections.abc import Mapping, Sequence
from typing import Any

from serving.bundle import METRICS, RECONSTRUCTIONS, SAMPLES
from serving.errors import VerificationFailed
from serving.io.images import is_picture

# paragraphs are lines: MLflow shows a break in one as a break, and no space below a table
_TEMPLATE = """# Variational autoencoder for rows of {shape} {x_dtype}

{likelihood} likelihood, latent size {latent_dim}, {model} with layers {hidden_dims}, \
{activation}; preset `{preset}`, seed {seed}; graphs in {precision}. `x` and `x_loc` are in the \
data's own units, so a client needs no scaler.
{notices}{samples}
## Data

`{source}`
{columns}
| split | rows | sha256 |
|---|--:|---|
{splits}

`sha256` is the digest of the rows of a split.

## How good it is

| quantity | value |
|---|--:|
| ELBO | {elbo:.2f} ± {elbo_se:.2f} |
| log-likelihood | {log_likelihood:.2f} ± {log_likelihood_se:.2f} |
| KL | {kl:.2f} ± {kl_se:.2f} |
| NLL, {nll_samples} importance samples | {nll:.2f} ± {nll_se:.2f} |
| active latents | {active_units} of {latent_dim} |
{more}
On {rows:,} held-out rows, in nats; ± is a standard error over rows. Larger is better, except for \
the KL and the NLL.

{reconstructions}## Parity of ONNX and torch

{parity}

## How to call it

`bundle` is this folder; a registered version is `models:/NAME/VERSION`.

```sh
vae sample --model bundle --count 64 --seed 7 --out samples.{suffix}
vae reconstruct rows.{suffix} --model bundle --out reconstructions.{suffix}
vae score rows.{suffix} scores/ --model bundle --num-samples 16 --seed 7
```

`held_out.npz`, if it is there, has the scores of held-out rows, from which `vae score` finds the \
p-value of a new row, and `vae monitor` since when rows have drifted. Of a mixed table it also \
holds centres of training rows, each the mean of two or more.

In Python, with the serving package (no torch):

```python
import numpy as np

from serving.engine import Engine
from serving.source import open_source

engine = Engine(open_source("bundle").bundle)
x = np.zeros({example}, np.{x_dtype})
x_loc = engine.reconstruct(x)
scores = engine.score(x, num_samples=16, seed=7)
```

Over HTTP, by the Open Inference Protocol:

```sh
vae serve --model bundle
curl -s localhost:8080/v2/models/sample/infer \\
  -d '{{"parameters": {{"seed": 7, "num_samples": 3}}, "inputs": []}}'
```

From the registry, with MLflow alone:

```python
import mlflow

model = mlflow.pyfunc.load_model("models:/NAME@champion")
scores = model.predict(x, params={{"operation": "score", "num_samples": 16, "seed": 7}})
```

| operation | graph | inputs | outputs |
|---|---|---|---|
{operations}

The graphs are plain ONNX of opset {opset}: any runtime that knows it opens them.{portable}

## Origin

| what | value |
|---|---|
| MLflow run | {run_id} |
| git commit | {git} |
| versions | {versions} |
"""


def render_card(
    content: Mapping[str, Any],
    metrics: Mapping[str, Any],
    parity: str = "Not checked yet: run `vae check`.",
) -> str:
    """Fill in the card from the manifest's `content` and the metrics; `parity` is its section.

    Raises:
        VerificationFailed: the metrics are those of an early version, and lack some.
    """
    try:
        return _fill_in(content, metrics, parity)
    except KeyError as err:
        raise VerificationFailed(
            f"{METRICS} has no {err.args[0]}: evaluate and export the model again"
        ) from err


def _fill_in(content: Mapping[str, Any], metrics: Mapping[str, Any], parity: str) -> str:
    config, data, git = content["config"], content["data"], content["git"]
    pictured = has_pictures(content["x_shape"], content["x_dtype"], data)
    return _TEMPLATE.format(
        **metrics,
        shape=" by ".join(str(size) for size in content["x_shape"]),
        suffix="csv" if data.get("columns") else "npy",
        x_dtype=content["x_dtype"],
        likelihood=content["likelihood"].replace("_", " ").capitalize(),
        latent_dim=content["latent_dim"],
        hidden_dims="-".join(str(width) for width in config["model"]["hidden_dims"]) or "none",
        model=config["model"].get("model", "mlp"),
        activation=config["model"]["activation"],
        preset=config["preset"],
        precision=content["precision"],
        seed=content["seed"],
        notices=render_warnings(metrics.get("warnings", ())),
        more=_describe_more(metrics),
        samples=f"\n![samples from the prior]({SAMPLES})\n" if pictured else "",
        source=data["source"],
        columns=_list_columns(data.get("columns", ())),
        splits="\n".join(
            f"| {name} | {split['rows']:,} | `{split['sha256']}` |"
            for name, split in data["splits"].items()
        ),
        reconstructions=f"{_PAIRS}\n\n" if pictured else "",
        parity=parity,
        operations="\n".join(
            f"| {name} | {row['graph']} | {_tensors(row['inputs'])} | {_tensors(row['outputs'])} |"
            for name, row in content["operations"].items()
        ),
        opset=content["opset"],
        portable=_PORTABLE if content.get("needs") else "",
        example=(1, *content["x_shape"]),
        run_id=content["run_id"] or "none",
        git=f"`{git['sha']}`{' with uncommitted changes' if git['dirty'] else ''}",
        versions=", ".join(f"{name} {value}" for name, value in content["versions"].items()),
    )


def address_card(card: str, name: str, version: str) -> str:
    """Return the card of a registered version, whose commands name the version."""
    reference = f"models:/{name}/{version}"
    addresses = {
        "models:/NAME/VERSION": reference,
        "models:/NAME@": f"models:/{name}@",
        "`bundle` is this folder; a registered version is": "This version is",
        "--model bundle": f"--model {shlex.quote(reference)}",
        'open_source("bundle")': f"open_source({json.dumps(reference)})",
    }
    for placeholder, address in addresses.items():
        card = card.replace(placeholder, address)
    return card


def render_figures(metrics: Mapping[str, Any], latent_dim: int) -> str:
    """Return the figures that matter in one line; ± is a standard error over rows."""
    return (
        f"ELBO {metrics['elbo']:.2f} ± {metrics['elbo_se']:.2f} nats, NLL {metrics['nll']:.2f} ± "
        f"{metrics['nll_se']:.2f}, KL {metrics['kl']:.2f}; {metrics['active_units']} of "
        f"{latent_dim} latents active, on {metrics['rows']:,} held-out rows"
    )


def render_warnings(texts: Sequence[str]) -> str:
    """Return a quote for each warning, with an empty line above it."""
    return "".join(f"\n> **Warning:** {text}.\n" for text in texts)


def has_pictures(x_shape: Sequence[int], x_dtype: str, data: Mapping[str, Any]) -> bool:
    """Whether a bundle holds pictures: its rows are images, of a range that is known."""
    return is_picture(x_shape) and (x_dtype == "uint8" or "range" in data)


_SHOWN_COLUMNS = 100
_PORTABLE = " `score` needs float64; `score_portable.onnx` is the same in float32 alone."
_PAIRS = f"Held-out rows, each line above its reconstructions:<br>![pairs]({RECONSTRUCTIONS})"


def _list_columns(names: Sequence[str]) -> str:
    """Name the features in the order of `x`, if they have names."""
    if not names:
        return ""
    plain = (" ".join(name.replace("`", "'").split()) for name in names[:_SHOWN_COLUMNS])
    shown = ", ".join(f"`{name}`" for name in plain)
    more = len(names) - _SHOWN_COLUMNS
    return f"\n{len(names):,} columns: {shown}{f' and {more:,} more' if more > 0 else ''}.\n"


def _describe_more(metrics: Mapping[str, Any]) -> str:
    lines = ""
    if (informative := metrics.get("informative_units")) is not None:
        lines += f"| informative latents | {informative} |\n"
    if (error := metrics.get("reconstruction_error")) is not None:
        lines += f"| root mean square error of reconstructions, in x's units | {error:.4g} |\n"
    if (bits := metrics.get("bits_per_dim")) is not None:
        lines += f"| NLL in bits per dimension | {bits:.3f} |\n"
    return lines


def _tensors(tensors: list[Mapping[str, Any]]) -> str:
    return ", ".join(
        f"`{t['name']}` {t['dtype']} ({', '.join(str(axis) for axis in t['shape'])})"
        for t in tensors
    )
