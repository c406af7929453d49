"""Corruptions of a bundle, each with the rule that is meant to catch it."""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
from onnx import GraphProto, ModelProto, NodeProto, TensorProto, helper, numpy_helper

from pipeline.export.manifest import seal
from pipeline.model.vae import VAE
from pipeline.parity.comparison_result import Rule
from serving.bundle import GRAPHS, NOISE_GRAPHS, Bundle, open_bundle

Graphs = Mapping[str, ModelProto]
Arrays = dict[str, Any]
ENCODER, DECODER, SCORE = "encoder.onnx", "decoder.onnx", "score.onnx"


@dataclass(frozen=True, slots=True)
class Mutation:
    """A corruption; `sole` says that no other rule than `rule` sees it."""

    name: str
    rule: Rule
    change: Callable[[Graphs, Arrays], None]
    """Takes the graphs of the bundle, to be changed, and the weights of another training."""
    sole: bool = False


def corrupt(bundle: Bundle, mutation: Mutation, other: VAE) -> Bundle:
    """Change graphs and seal the bundle, as one who can write it would."""
    graphs = read_graphs(bundle)
    mutation.change(graphs, weights_of(other))
    return write_graphs(bundle, graphs)


def weights_of(model: VAE) -> Arrays:
    return {name: value.numpy() for name, value in model.state_dict().items()}


def read_graphs(bundle: Bundle) -> dict[str, ModelProto]:
    return {name: onnx.load(bundle.path / name) for name in (*GRAPHS, *NOISE_GRAPHS)}


def write_graphs(bundle: Bundle, graphs: Graphs) -> Bundle:
    for name, proto in graphs.items():
        (bundle.path / name).write_bytes(proto.SerializeToString(deterministic=True))
    return reseal(bundle)


def change_report(bundle: Bundle, **changes: Any) -> Bundle:
    """Change keys of `parity.json`, whatever they say then, and seal the bundle again."""
    content = {**bundle.read_json("parity.json"), **changes}
    (bundle.path / "parity.json").write_text(json.dumps(content))
    return reseal(bundle)


def reseal(bundle: Bundle) -> Bundle:
    content = json.loads((bundle.path / "manifest.json").read_text())
    seal(bundle.path, content)
    return open_bundle(bundle.path)


def set_arrays(proto: ModelProto, arrays: Mapping[str, Any]) -> None:
    """Replace initializers by name."""
    for item in proto.graph.initializer:
        if item.name in arrays:
            item.CopyFrom(numpy_helper.from_array(arrays[item.name], item.name))


def weights(change: Callable[[Arrays], None], graph: str = ENCODER) -> Any:
    """A mutation of initializers."""

    def mutate(graphs: Graphs, _: Arrays) -> None:
        items = graphs[graph].graph.initializer
        arrays = {item.name: numpy_helper.to_array(item).copy() for item in items}
        change(arrays)
        set_arrays(graphs[graph], arrays)

    return mutate


def nodes(change: Callable[[GraphProto], None], graph: str = ENCODER) -> Any:
    """A mutation of the graph itself; every weight stays where it is."""
    return lambda graphs, _: change(graphs[graph].graph)


def replace_value(graph: GraphProto, value: str, *added: NodeProto) -> None:
    """Rename `value` where it is made to `plain`; `added` make it from that."""
    index, maker = next((i, node) for i, node in enumerate(graph.node) if value in node.output)
    maker.output[list(maker.output).index(value)] = "plain"
    rest = list(graph.node)
    del graph.node[:]
    graph.node.extend([*rest[: index + 1], *added, *rest[index + 1 :]])


def constant(graph: GraphProto, name: str, value: Any, dtype: Any = np.float32) -> None:
    graph.initializer.append(numpy_helper.from_array(np.array(value, dtype), name))


def weight_names(arrays: Arrays, part: str) -> list[str]:
    """Name the weights of a net in its order, without its biases and its embedding of the rows."""
    return [
        name
        for name, value in arrays.items()
        if name.startswith(part) and value.ndim > 1 and "embed" not in name
    ]


def _flip_sign(arrays: Arrays) -> None:
    arrays["encoder.z_loc.weight"][0, 0] *= -1


def _nudge(arrays: Arrays) -> None:
    arrays[weight_names(arrays, "encoder.")[0]].flat[0] *= 1 + 2**-10


def _zero_bias(arrays: Arrays) -> None:
    biases = (name for name in arrays if "bias" in name and "embed" not in name)
    arrays[next(biases)][:] = 0


def _swap_heads(arrays: Arrays) -> None:
    a, b = "encoder.z_loc.weight", "encoder.z_log_scale.weight"
    arrays[a], arrays[b] = arrays[b], arrays[a]


def _swap_rows(arrays: Arrays) -> None:
    weight = arrays[weight_names(arrays, "decoder.")[-1]]
    weight[[0, 1]] = weight[[1, 0]]


def _nan(arrays: Arrays) -> None:
    arrays["encoder.z_loc.weight"][0, 0] = np.nan


def _rounded(bits: int) -> Callable[[Arrays], None]:
    """Keep `bits` of the mantissa's 23."""

    def change(arrays: Arrays) -> None:
        for name, value in arrays.items():
            if value.dtype == np.float32:
                step = np.int32(1 << (23 - bits))
                arrays[name] = ((value.view(np.int32) + step // 2) & -step).view(np.float32)

    return change


def _half(arrays: Arrays) -> None:
    for name, value in arrays.items():
        if value.dtype == np.float32:
            arrays[name] = value.astype(np.float16).astype(np.float32)


def _round_activations(graph: GraphProto) -> None:
    """What TF32 does to the second factor, with every weight untouched."""
    narrow = helper.make_node("Cast", ["plain"], ["narrow"], to=TensorProto.FLOAT16)
    wide = helper.make_node("Cast", ["narrow"], ["silu"], to=TensorProto.FLOAT)
    replace_value(graph, "silu", narrow, wide)


def _cross_heads(graph: GraphProto) -> None:
    """The heads' weights stand under their names, but feed each other's output."""
    heads = {"encoder.z_loc": "encoder.z_log_scale", "encoder.z_log_scale": "encoder.z_loc"}
    for node in graph.node:
        for index, name in enumerate(node.input):
            part, _, kind = name.rpartition(".")
            if part in heads:
                node.input[index] = f"{heads[part]}.{kind}"


def _drop_output(graph: GraphProto) -> None:
    del graph.output[1]


def _other_width(graph: GraphProto) -> None:
    """z_scale has a column too many."""
    replace_value(
        graph, "z_scale", helper.make_node("Concat", ["plain", "plain"], ["z_scale"], axis=1)
    )
    graph.output[1].type.tensor_type.shape.dim[1].dim_value *= 2


def _other_dtype(graph: GraphProto) -> None:
    replace_value(
        graph, "z_scale", helper.make_node("Cast", ["plain"], ["z_scale"], to=TensorProto.DOUBLE)
    )
    graph.output[1].type.tensor_type.elem_type = TensorProto.DOUBLE


def _bump_at_batch(rows: int) -> Callable[[GraphProto], None]:
    """Add 1 at one batch size: only a comparison at that size sees it."""

    def change(graph: GraphProto) -> None:
        constant(graph, "rows", [rows], np.int64)
        replace_value(
            graph,
            "x_loc",
            helper.make_node("Shape", ["plain"], ["size"], start=0, end=1),
            helper.make_node("Equal", ["size", "rows"], ["hit"]),
            helper.make_node("Cast", ["hit"], ["bump"], to=TensorProto.FLOAT),
            helper.make_node("Add", ["plain", "bump"], ["x_loc"]),
        )

    return change


def _mix_rows(graph: GraphProto) -> None:
    """Every row gets a hundredth of the batch's mean."""
    constant(graph, "little", 1e-2)
    constant(graph, "axis", [0], np.int64)
    replace_value(
        graph,
        "z_loc",
        helper.make_node("ReduceMean", ["plain", "axis"], ["batch_mean"], keepdims=1),
        helper.make_node("Mul", ["batch_mean", "little"], ["share"]),
        helper.make_node("Add", ["plain", "share"], ["z_loc"]),
    )


def _branch(graph: GraphProto) -> None:
    """A choice at run time whose two sides are the same."""
    value = helper.make_tensor_value_info("chosen", TensorProto.FLOAT, None)
    same = helper.make_graph(
        [helper.make_node("Identity", ["plain"], ["chosen"])], "s", [], [value]
    )
    constant(graph, "yes", True, np.bool_)
    node = helper.make_node("If", ["yes"], ["z_loc"])
    node.attribute.extend(
        helper.make_attribute(side, same) for side in ("then_branch", "else_branch")
    )
    replace_value(graph, "z_loc", node)


def _noise(scale: float) -> Callable[[GraphProto], None]:
    def change(graph: GraphProto) -> None:
        replace_value(
            graph,
            "z_loc",
            helper.make_node("RandomNormalLike", ["plain"], ["noise"], scale=scale),
            helper.make_node("Add", ["plain", "noise"], ["z_loc"]),
        )

    return change


def _dropout(graph: GraphProto) -> None:
    constant(graph, "ratio", 0.1)
    constant(graph, "training", True, np.bool_)
    replace_value(
        graph, "silu", helper.make_node("Dropout", ["plain", "ratio", "training"], ["silu"])
    )


def _batch_norm(graph: GraphProto) -> None:
    (silu,) = (item for item in graph.value_info if item.name == "silu")
    width = silu.type.tensor_type.shape.dim[1].dim_value
    for name, value in {"s": 1, "b": 0, "m": 0, "v": 1}.items():
        constant(graph, name, [value] * width)
    node = helper.make_node(
        "BatchNormalization",
        ["plain", "s", "b", "m", "v"],
        ["silu", "running_mean", "running_var"],
        training_mode=1,
    )
    replace_value(graph, "silu", node)


def _divide_again(graph: GraphProto) -> None:
    replace_value(graph, "div", helper.make_node("Div", ["plain", "likelihood.x_unit"], ["div"]))


def _reverse_latents(graph: GraphProto) -> None:
    width = graph.input[0].type.tensor_type.shape.dim[1].dim_value
    constant(graph, "order", list(reversed(range(width))), np.int64)
    graph.node.insert(0, helper.make_node("Gather", ["z", "order"], ["reversed"], axis=1))
    for node in graph.node[1:]:
        node.input[:] = ["reversed" if name == "z" else name for name in node.input]


def _drop_activation(graph: GraphProto) -> None:
    (product,) = (node for node in graph.node if "silu" in node.output)
    replace_value(graph, "silu", helper.make_node("Identity", product.input[:1], ["silu"]))


def _one_draw(graph: GraphProto) -> None:
    """Every draw is the first one."""
    constant(graph, "first", [0], np.int64)
    constant(graph, "last", [1], np.int64)
    graph.node.insert(0, helper.make_node("Slice", ["eps", "first", "last", "last"], ["one"]))
    graph.node.insert(1, helper.make_node("Mul", ["eps", "zero"], ["none"]))
    graph.node.insert(2, helper.make_node("Add", ["one", "none"], ["same"]))
    constant(graph, "zero", 0)
    for node in graph.node[3:]:
        node.input[:] = ["same" if name == "eps" else name for name in node.input]


def _scale_elbo(graph: GraphProto) -> None:
    """Six roundings of each ELBO, of one sign: less than the roundings that values are allowed."""
    constant(graph, "scale", 1 + 6 * 2**-23)
    replace_value(graph, "elbo", helper.make_node("Mul", ["plain", "scale"], ["elbo"]))


def _hide_weight(graph: GraphProto) -> None:
    """A weight under another name, with one number changed in its last bit."""
    arrays = {item.name: numpy_helper.to_array(item) for item in graph.initializer}
    weight = weight_names(arrays, "decoder.")[-1]
    array = arrays[weight].copy()
    array.flat[0] = np.nextafter(array.flat[0], np.float32(9))
    tensor = numpy_helper.from_array(array, "hidden")
    graph.node.insert(0, helper.make_node("Constant", [], ["hidden"], value=tensor))
    for node in graph.node:
        node.input[:] = ["hidden" if name == weight else name for name in node.input]


def _other_normals(arrays: Arrays) -> None:
    """The normals of a whole table, each off by its last bit."""
    arrays["starts"] = np.nextafter(arrays["starts"], np.float32(9))


def _stale(graphs: Graphs, other: Arrays) -> None:
    set_arrays(graphs[DECODER], other)


def _invalid(graph: GraphProto) -> None:
    graph.node[0].op_type = "Reshapes"


MUTATIONS = (
    Mutation("one weight's sign", "values", weights(_flip_sign)),
    Mutation("one weight times 1 + 2^-10", "weights", weights(_nudge)),
    Mutation("a bias zeroed", "values", weights(_zero_bias)),
    Mutation("heads swapped, by weights", "values", weights(_swap_heads)),
    Mutation("heads swapped, by wires", "values", nodes(_cross_heads), sole=True),
    Mutation("two rows of a weight swapped", "values", weights(_swap_rows, DECODER)),
    Mutation("a NaN weight", "pattern", weights(_nan)),
    Mutation("weights through float16", "values", weights(_half)),
    Mutation("weights through bfloat16", "values", weights(_rounded(7))),
    Mutation("weights through TF32", "values", weights(_rounded(10))),
    Mutation("activations through ten bits", "values", nodes(_round_activations), sole=True),
    Mutation("an output missing", "interface", nodes(_drop_output), sole=True),
    Mutation("an output too wide", "interface", nodes(_other_width), sole=True),
    Mutation("an output in float64", "interface", nodes(_other_dtype), sole=True),
    Mutation("another value at batch 1", "batch", nodes(_bump_at_batch(1), DECODER)),
    Mutation("another value at batch 1000", "batch", nodes(_bump_at_batch(1000), DECODER)),
    Mutation("rows that feel each other", "batch", nodes(_mix_rows)),
    Mutation("a graph of another version", "values", _stale),
    Mutation("divided by 255 twice", "values", nodes(_divide_again), sole=True),
    Mutation("random numbers inside", "operators", nodes(_noise(1e-3))),
    Mutation("random numbers below the noise", "operators", nodes(_noise(1e-20)), sole=True),
    Mutation("random numbers, by the rerun", "rerun", nodes(_noise(1e-3))),
    Mutation("dropout in training mode", "operators", nodes(_dropout)),
    Mutation("batch norm in training mode", "operators", nodes(_batch_norm)),
    Mutation("a branch inside", "operators", nodes(_branch), sole=True),
    Mutation("latents in another order", "values", nodes(_reverse_latents, DECODER), sole=True),
    Mutation("an activation left out", "values", nodes(_drop_activation), sole=True),
    Mutation("one draw for all", "values", nodes(_one_draw, SCORE)),
    Mutation("the ELBO off by six roundings", "elbo", nodes(_scale_elbo, SCORE), sole=True),
    Mutation("a weight hidden in a constant", "weights", nodes(_hide_weight, DECODER), sole=True),
    Mutation("an operator that is none", "graph", nodes(_invalid)),
    Mutation("normals off by a bit", "noise", weights(_other_normals, NOISE_GRAPHS[0]), sole=True),
)
