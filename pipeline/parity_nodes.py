"""Find where a graph first leaves the model: the first output, and the first node.

In: a bundle, the model and a failed report. Out: a `Difference`. The graph is exported again from
the weights, and its every value computed with ONNX's reference evaluator in float64 and in float32.
The candidate runs as it failed, each of its values an output; the first of them, in the order of
running, that is further from float64 than float32's noise names the node.
"""

import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np
import onnx
from onnx import ModelProto, NodeProto, TensorProto, numpy_helper
from onnx.reference import ReferenceEvaluator

from pipeline.export import save_graph
from pipeline.model import VAE
from pipeline.parity_cases import repeat_rows
from pipeline.parity_result import Comparison, Difference, ParityReport
from pipeline.parity_rules import errors_of
from pipeline.parity_runs import settle_cases
from pipeline.precision import reduce_model
from pipeline.reference import Array, Budget
from serving.bundle import Bundle
from serving.engine import PROVIDERS, open_session, session_options
from serving.operations import Operation

Values = Mapping[str, Array]


def find_difference(
    bundle: Bundle, model: VAE, x: Array, report: ParityReport
) -> Difference | None:
    """Locate the first failure of a report; None where its graphs cannot be run."""
    reduced = reduce_model(model, bundle.manifest.precision, bundle.manifest.ranges)
    failed = next((row for row in report.comparisons if not row.passed), None)
    if failed is not None:
        return _differing_node(bundle, model, reduced, x, failed)
    return _differing_weight(bundle, reduced)


def _differing_node(
    bundle: Bundle, model: VAE, reduced: VAE, x: Array, failed: Comparison
) -> Difference | None:
    operation = bundle.operations[failed.operation]
    graph = onnx.load(bundle.path / operation.graph)
    feeds = _feeds(bundle, reduced, operation, x, failed)
    fresh = _export(model, reduced, operation)
    exact, rounded = _evaluate(_in_float64(fresh), feeds), _evaluate(fresh, feeds)
    found = _run(graph, feeds, failed)
    where = {"graph": operation.graph, "output": f"{operation.name}.{failed.output}"}
    for node in graph.graph.node:
        for value in node.output:
            detail = _detail(found.get(value), exact.get(value), rounded.get(value))
            if detail:
                return _difference(node, value, detail, **where)
    return Difference(
        **where,
        node="none",
        op_type="",
        value="",
        detail="each value is right where all of them are outputs: what differs is how nodes were "
        f"fused at level {failed.level}, or the batch",
    )


def _differing_weight(bundle: Bundle, model: VAE) -> Difference | None:
    """The first node that takes a weight which is not the model's."""
    state = {name: value.numpy() for name, value in model.state_dict().items()}
    for operation in bundle.operations.values():
        graph = onnx.load(bundle.path / operation.graph).graph
        arrays = {item.name: numpy_helper.to_array(item) for item in graph.initializer}
        for node in graph.node:
            for name in node.input:
                if name in state and arrays[name].tobytes() != state[name].tobytes():
                    detail = f"its weight {name} differs, too little to be seen in an output"
                    return _difference(
                        node, node.output[0], detail, graph=operation.graph, output=""
                    )
    return None


def _difference(node: NodeProto, value: str, detail: str, *, graph: str, output: str) -> Difference:
    return Difference(
        graph=graph,
        output=output,
        node=node.name,
        op_type=node.op_type,
        value=value,
        detail=detail,
    )


def _detail(value: Array | None, exact: Array | None, rounded: Array | None) -> str:
    """How a node's value differs from the model's; empty where it does not."""
    if value is None or exact is None or rounded is None:
        return "the export of the weights has no such value"
    if exact.dtype.kind != "f":
        return "" if np.array_equal(value, rounded) else f"{value!r} for {rounded!r}"
    error, reason = errors_of(value, exact, rounded)
    budget = Budget.from_noise(exact, rounded)
    if reason or error.max() <= budget.max:
        return reason
    return f"off by {error.max():.3g}, allowed {budget.max:.3g}"


def _feeds(
    bundle: Bundle, reduced: VAE, operation: Operation, x: Array, failed: Comparison
) -> dict[str, Array]:
    """The graph's inputs of the comparison that failed."""
    rows, likelihood = repeat_rows(x), bundle.manifest.likelihood
    cases = dict(settle_cases(reduced, operation, rows, likelihood))
    names = zip(operation.graph_inputs(), operation.inputs, strict=True)
    return {name: cases[failed.rows][tensor.name][: failed.batch] for name, tensor in names}


def _export(model: VAE, reduced: VAE, operation: Operation) -> ModelProto:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, operation.graph)
        save_graph(path, model, operation, {}, reduced)
        return onnx.load(path)


def _evaluate(graph: ModelProto, feeds: Values) -> dict[str, Array]:
    """Every value of a graph by its name, in the dtypes that the graph has."""
    kinds = {item.name: item.type.tensor_type.elem_type for item in graph.graph.input}
    typed = {
        name: array.astype(onnx.helper.tensor_dtype_to_np_dtype(kinds[name]))
        for name, array in feeds.items()
    }
    values = dict(ReferenceEvaluator(graph).run(None, typed, intermediate=True))
    return {name: np.asarray(value) for name, value in values.items()}


def _run(graph: ModelProto, feeds: Values, failed: Comparison) -> dict[str, Array]:
    """Every value of a graph in onnxruntime, as the comparison that failed had it."""
    names = [value for node in graph.graph.node for value in node.output if value]
    known = {item.name for item in graph.graph.output}
    extended = ModelProto()
    extended.CopyFrom(graph)
    extended.graph.output.extend(onnx.ValueInfoProto(name=n) for n in names if n not in known)
    device = next(device for device, name in PROVIDERS.items() if name == failed.provider)
    options = session_options(failed.threads, failed.level)
    session = open_session(extended.SerializeToString(), options, device, tf32=failed.tf32)
    return dict(zip(names, session.run(names, dict(feeds)), strict=True))


def _in_float64(graph: ModelProto) -> ModelProto:
    """The same graph with every float32 in it a float64."""
    wide = ModelProto()
    wide.CopyFrom(graph)
    del wide.graph.value_info[:]
    for item in (*wide.graph.input, *wide.graph.output):
        if item.type.tensor_type.elem_type == TensorProto.FLOAT:
            item.type.tensor_type.elem_type = TensorProto.DOUBLE
    for tensor in _tensors(wide):
        if tensor.data_type == TensorProto.FLOAT:
            values = numpy_helper.to_array(tensor).astype(np.float64)
            tensor.CopyFrom(numpy_helper.from_array(values, tensor.name))
    for node in wide.graph.node:
        for attribute in node.attribute:
            if (
                node.op_type == "Cast"
                and attribute.name == "to"
                and attribute.i == TensorProto.FLOAT
            ):
                attribute.i = TensorProto.DOUBLE
    return wide


def _tensors(graph: ModelProto) -> Iterator[TensorProto]:
    yield from graph.graph.initializer
    for node in graph.graph.node:
        yield from (item.t for item in node.attribute if item.HasField("t"))
