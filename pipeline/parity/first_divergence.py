"""Find where a graph first differs from the model: the first output, and the first node.

In: a bundle, the model and a failed report. Out: a `Difference`. The graph is exported again from
the weights, and every value in it is computed with ONNX's reference evaluator in float64 and in
float32. The candidate runs as it did when it failed, with every value as an output. The first
value, in execution order, that differs from float64 by more than the noise of float32 names the
node. If the noise hides the difference, the values of both graphs are compared by their bytes.
"""

import logging
import tempfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import numpy as np
import onnx
from onnx import ModelProto, NodeProto, TensorProto, numpy_helper
from onnx.reference import ReferenceEvaluator

from pipeline.export.graph_export import save_graph
from pipeline.export.quantization import convert_precision
from pipeline.model.operations import Array, Tolerance
from pipeline.model.vae import VAE
from pipeline.parity.comparison_result import Comparison
from pipeline.parity.comparisons import unambiguous_cases
from pipeline.parity.inputs import repeat_rows
from pipeline.parity.report import Difference, ParityReport
from pipeline.parity.row_counts import choose_counts
from pipeline.parity.tolerances import errors_of
from serving.bundle import Bundle
from serving.operations import Operation
from serving.sessions import device_of, open_session

Values = Mapping[str, Array]
Detail = Callable[[str, Array], str]
"""Describes how a value, given by name, is wrong; empty if it is right."""


def find_difference(
    bundle: Bundle, model: VAE, x: Array, report: ParityReport
) -> Difference | None:
    """Locate the first failure of a report; None if its graphs do not open or do not run."""
    try:
        return _locate(bundle, model, x, report)
    except Exception as err:  # noqa: BLE001  the verdict must not be lost with its explanation
        logging.getLogger(__name__).warning("the first node that differs is not known: %s", err)
        return None


def _locate(bundle: Bundle, model: VAE, x: Array, report: ParityReport) -> Difference | None:
    if not report.comparisons:
        return None
    failed = next((row for row in report.comparisons if not row.passed), None)
    if failed is not None:
        return _find(bundle, model, x, failed, _beyond_noise) or _nowhere(bundle, failed)
    by_rows = sorted(report.comparisons, key=lambda row: row.batch)
    widest = {bundle.all_forms[row.operation].graph: row for row in by_rows}
    found = (_find(bundle, model, x, widest[graph], _other_bytes) for graph in bundle.graphs)
    return next((difference for difference in found if difference), None)


def _find(
    bundle: Bundle, model: VAE, x: Array, row: Comparison, judge: Callable[..., Detail]
) -> Difference | None:
    operation = bundle.all_forms[row.operation]
    reduced = convert_precision(model, bundle.manifest.precision, bundle.manifest.ranges)
    graph, fresh = onnx.load(bundle.path / operation.graph), _export(model, operation, reduced)
    feeds = _feeds(bundle, reduced, operation, x, row)
    detail = judge(fresh, feeds, row)
    found = _run(graph, feeds, row)
    known = {name for node in fresh.graph.node for name in node.output}
    strange: dict[str, NodeProto] = {}
    output = "" if row.passed else f"{operation.label}.{row.output}"
    for node in graph.graph.node:
        for value in filter(None, node.output):
            if value not in known:
                strange[value] = node
            elif said := detail(value, found[value]):
                taken = ", ".join(name for name in node.input if name in strange)
                said += (
                    f"; it takes {taken}, which the model's own export does not have"
                    if taken
                    else ""
                )
                return _difference(operation, output, node, value, said)
    for value, node in strange.items():
        said = "the model's own export does not have this value"
        return _difference(operation, output, node, value, said)
    return None


def _beyond_noise(fresh: ModelProto, feeds: Values, _: Comparison) -> Detail:
    """Judge values by those of float64, with the noise of float32 as the tolerance."""
    exact, rounded = _evaluate(widen_to_float64(fresh), feeds), _evaluate(fresh, feeds)

    def detail(name: str, value: Array) -> str:
        if exact[name].dtype.kind != "f":
            return "" if np.array_equal(value, rounded[name]) else f"not {rounded[name]}"
        error, reason = errors_of(value, exact[name], rounded[name])
        tolerance = Tolerance.from_noise(exact[name], rounded[name])
        if reason or error.max() <= tolerance.max:
            return reason
        return f"off by {error.max():.3g}, allowed {tolerance.max:.3g}"

    return detail


def _other_bytes(fresh: ModelProto, feeds: Values, row: Comparison) -> Detail:
    """Judge values by those of the model's own export, byte for byte."""
    expected = _run(fresh, feeds, row)

    def detail(name: str, value: Array) -> str:
        if value.tobytes() == expected[name].tobytes():
            return ""
        return "differs from the model's own export, by less than the tolerance of an output"

    return detail


def _nowhere(bundle: Bundle, failed: Comparison) -> Difference:
    return Difference(
        graph=bundle.all_forms[failed.operation].graph,
        output=f"{failed.operation}.{failed.output}",
        node="none",
        op_type="",
        value="",
        detail="every value is right if all of them are outputs: what differs is how nodes were "
        f"fused at level {failed.level}, or the batch",
    )


def _difference(
    operation: Operation, output: str, node: NodeProto, value: str, detail: str
) -> Difference:
    return Difference(
        graph=operation.graph,
        output=output,
        node=node.name or value,
        op_type=node.op_type,
        value=value,
        detail=detail,
    )


def _feeds(
    bundle: Bundle, reduced: VAE, operation: Operation, x: Array, failed: Comparison
) -> dict[str, Array]:
    counts = choose_counts(reduced)
    rows = repeat_rows(x, counts.different)
    cases = dict(unambiguous_cases(reduced, operation, rows, bundle.manifest, counts))
    names = zip(operation.graph_inputs(), operation.inputs, strict=True)
    return {
        name: repeat_rows(cases[failed.rows][tensor.name], failed.batch) for name, tensor in names
    }


def _export(model: VAE, operation: Operation, reduced: VAE) -> ModelProto:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, operation.graph)
        save_graph(path, model, operation, {}, reduced)
        return onnx.load(path)


def _evaluate(graph: ModelProto, feeds: Values) -> dict[str, Array]:
    kinds = {item.name: item.type.tensor_type.elem_type for item in graph.graph.input}
    typed = {
        name: array.astype(onnx.helper.tensor_dtype_to_np_dtype(kinds[name]))
        for name, array in feeds.items()
    }
    with np.errstate(all="ignore"):  # rows that are far away overflow on purpose
        values = dict(ReferenceEvaluator(graph).run(None, typed, intermediate=True))
    return {name: np.asarray(value) for name, value in values.items()}


def _run(graph: ModelProto, feeds: Values, failed: Comparison) -> dict[str, Array]:
    names = [value for node in graph.graph.node for value in node.output if value]
    known = {item.name for item in graph.graph.output}
    extended = ModelProto()
    extended.CopyFrom(graph)
    extended.graph.output.extend(onnx.ValueInfoProto(name=n) for n in names if n not in known)
    session = open_session(
        extended.SerializeToString(),
        device_of(failed.provider),
        threads=failed.threads,
        level=failed.level,
        tf32=failed.tf32,
    )
    return dict(zip(names, session.run(names, dict(feeds)), strict=True))


def widen_to_float64(graph: ModelProto) -> ModelProto:
    """Return the same graph with float64 in place of float32."""
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
