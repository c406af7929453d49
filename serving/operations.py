"""The table of operations: names, graphs, input and output tensors.

Export, parity, requests and Parquet columns all use it. Axis 0 of every tensor is `batch`.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Literal

OperationName = Literal[
    "encode", "decode", "reconstruct", "sample", "score", "draw", "impute", "explain"
]
Axis = int | Literal["batch", "num_samples"]
By = Literal["elbo", "log_likelihood", "iw_elbo", "latent", "column_max", "consistency", "combined"]
"""The score by which rows are compared; the smaller, the more unusual is a row. `latent` is minus
the KL, `column_max` the smallest `column_lift` of a row, `combined` a `CombinedScore`."""
IN_FLOAT64: tuple[OperationName, ...] = ("score", "draw", "impute", "explain")
"""Operations whose graphs compute in float64, and that have a portable form without it."""
LATER: tuple[OperationName, ...] = ("draw", "impute", "explain")
"""Operations that bundles of earlier versions lack."""


@dataclass(frozen=True, slots=True)
class Tensor:
    """A named array; a string in `shape` is an axis of free length."""

    name: str
    dtype: str
    shape: tuple[Axis, ...]


@dataclass(frozen=True, slots=True)
class Operation:
    """A function that computes each row independently: a graph with named inputs and outputs."""

    name: OperationName
    graph: str
    inputs: tuple[Tensor, ...]
    outputs: tuple[Tensor, ...]
    copies: int = 1
    """How often the graph decodes a row for each draw of noise."""
    portable: bool = False
    """Whether the graph is the form in float32 alone of an operation that has another."""

    @property
    def label(self) -> str:
        """The name of the operation in this form, in reports and in keys of golden rows."""
        return f"{self.name}_portable" if self.portable else self.name

    @property
    def is_drawn(self) -> bool:
        """Whether it takes several draws of noise for each row of data."""
        return any("num_samples" in tensor.shape for tensor in self.inputs)

    def graph_inputs(self) -> tuple[str, ...]:
        """Return the names of the graph's own inputs, in order: `sample` feeds `eps` to `z`."""
        return ("z",) if self.name == "sample" else tuple(tensor.name for tensor in self.inputs)


def operation_table(
    x_shape: tuple[int, ...], x_dtype: str, latent_dim: int, *, mixed: bool = False
) -> Mapping[str, Operation]:
    """Return the operations of a model whose `x` is (batch, *x_shape) of `x_dtype`, by name.

    If its columns are `mixed`, of several kinds, a score is also of each of them, `impute` fills
    gaps, and `explain` judges each cell by a row in which it is hidden.
    """
    x = Tensor("x", x_dtype, ("batch", *x_shape))
    x_loc = Tensor("x_loc", "float32", ("batch", *x_shape))
    z, z_loc, z_scale, eps = (
        Tensor(name, "float32", ("batch", latent_dim)) for name in ("z", "z_loc", "z_scale", "eps")
    )
    noise, drawn = (Tensor(name, "float32", ("batch", *x_shape)) for name in ("noise", "x"))
    score_eps = Tensor("eps", "float32", ("batch", "num_samples", latent_dim))
    scores = tuple(
        Tensor(name, "float32", ("batch",)) for name in ("elbo", "log_likelihood", "kl", "iw_elbo")
    )
    if mixed:
        scores += (
            Tensor("consistency", "float32", ("batch",)),
            Tensor("column_log_likelihood", "float32", ("batch", *x_shape)),
            Tensor("column_lift", "float32", ("batch", *x_shape)),
        )
    rows: tuple[Operation, ...] = (
        Operation("encode", "encoder.onnx", (x,), (z_loc, z_scale)),
        Operation("decode", "decoder.onnx", (z,), (x_loc,)),
        Operation("reconstruct", "reconstruct.onnx", (x,), (x_loc,)),
        Operation("sample", "decoder.onnx", (eps,), (x_loc,)),
        Operation("score", "score.onnx", (x, score_eps), scores),
        Operation("draw", "draw.onnx", (z, noise), (drawn,)),
    )
    if mixed:
        filled = (
            Tensor("x_filled", "float32", ("batch", *x_shape)),
            Tensor("log_weights", "float32", ("batch", "num_samples")),
            Tensor("z", "float32", ("batch", "num_samples", latent_dim)),
        )
        lift = Tensor("column_lift", "float32", ("batch", *x_shape))
        rows += (
            Operation("impute", "impute.onnx", (x, score_eps), filled),
            Operation("explain", "explain.onnx", (x, score_eps), (lift,), copies=x_shape[0]),
        )
    return {row.name: row for row in rows}


def portable_forms(operations: Mapping[str, Operation]) -> Mapping[str, Operation]:
    """Return the forms, by label, that run on a device without float64."""
    forms = (replace(operations[n], portable=True) for n in IN_FLOAT64 if n in operations)
    return {form.label: replace(form, graph=f"{form.label}.onnx") for form in forms}
