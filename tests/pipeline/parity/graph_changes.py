"""Changes of graphs for `mutations`: every weight stays where it is."""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from onnx import GraphProto, NodeProto, TensorProto, helper, numpy_helper


def replace_value(graph: GraphProto, value: str, *added: NodeProto) -> None:
    """Rename `value` where it is made to `plain`; `added` make it from that."""
    index, maker = next((i, node) for i, node in enumerate(graph.node) if value in node.output)
    maker.output[list(maker.output).index(value)] = "plain"
    rest = list(graph.node)
    del graph.node[:]
    graph.node.extend([*rest[: index + 1], *added, *rest[index + 1 :]])


def constant(graph: GraphProto, name: str, value: Any, dtype: Any = np.float32) -> None:
    graph.initializer.append(numpy_helper.from_array(np.array(value, dtype), name))


def weight_names(arrays: Mapping[str, Any], part: str) -> list[str]:
    """Name the weights of a net in its order, without its biases and its embedding of the rows."""
    return [
        name
        for name, value in arrays.items()
        if name.startswith(part) and value.ndim > 1 and "embed" not in name
    ]


def round_activations(graph: GraphProto) -> None:
    """What TF32 does to the second factor, with every weight untouched."""
    narrow = helper.make_node("Cast", ["plain"], ["narrow"], to=TensorProto.FLOAT16)
    wide = helper.make_node("Cast", ["narrow"], ["silu"], to=TensorProto.FLOAT)
    replace_value(graph, "silu", narrow, wide)


def cross_heads(graph: GraphProto) -> None:
    """The heads' weights stand under their names, but feed each other's output."""
    heads = {"encoder.z_loc": "encoder.z_log_scale", "encoder.z_log_scale": "encoder.z_loc"}
    for node in graph.node:
        for index, name in enumerate(node.input):
            part, _, kind = name.rpartition(".")
            if part in heads:
                node.input[index] = f"{heads[part]}.{kind}"


def drop_output(graph: GraphProto) -> None:
    del graph.output[1]


def other_width(graph: GraphProto) -> None:
    """z_scale has a column too many."""
    replace_value(
        graph, "z_scale", helper.make_node("Concat", ["plain", "plain"], ["z_scale"], axis=1)
    )
    graph.output[1].type.tensor_type.shape.dim[1].dim_value *= 2


def other_dtype(graph: GraphProto) -> None:
    replace_value(
        graph, "z_scale", helper.make_node("Cast", ["plain"], ["z_scale"], to=TensorProto.DOUBLE)
    )
    graph.output[1].type.tensor_type.elem_type = TensorProto.DOUBLE


def bump_at_batch(rows: int) -> Callable[[GraphProto], None]:
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


def mix_rows(graph: GraphProto) -> None:
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


def branch(graph: GraphProto) -> None:
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


def noise(scale: float) -> Callable[[GraphProto], None]:
    def change(graph: GraphProto) -> None:
        replace_value(
            graph,
            "z_loc",
            helper.make_node("RandomNormalLike", ["plain"], ["noise"], scale=scale),
            helper.make_node("Add", ["plain", "noise"], ["z_loc"]),
        )

    return change


def dropout(graph: GraphProto) -> None:
    constant(graph, "ratio", 0.1)
    constant(graph, "training", True, np.bool_)
    replace_value(
        graph, "silu", helper.make_node("Dropout", ["plain", "ratio", "training"], ["silu"])
    )


def batch_norm(graph: GraphProto) -> None:
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


def divide_again(graph: GraphProto) -> None:
    replace_value(graph, "div", helper.make_node("Div", ["plain", "likelihood.x_unit"], ["div"]))


def reverse_latents(graph: GraphProto) -> None:
    width = graph.input[0].type.tensor_type.shape.dim[1].dim_value
    constant(graph, "order", list(reversed(range(width))), np.int64)
    graph.node.insert(0, helper.make_node("Gather", ["z", "order"], ["reversed"], axis=1))
    for node in graph.node[1:]:
        node.input[:] = ["reversed" if name == "z" else name for name in node.input]


def drop_activation(graph: GraphProto) -> None:
    (product,) = (node for node in graph.node if "silu" in node.output)
    replace_value(graph, "silu", helper.make_node("Identity", product.input[:1], ["silu"]))


def one_draw(graph: GraphProto) -> None:
    """Every draw is the first one."""
    constant(graph, "first", [0], np.int64)
    constant(graph, "last", [1], np.int64)
    graph.node.insert(0, helper.make_node("Slice", ["eps", "first", "last", "last"], ["one"]))
    graph.node.insert(1, helper.make_node("Mul", ["eps", "zero"], ["none"]))
    graph.node.insert(2, helper.make_node("Add", ["one", "none"], ["same"]))
    constant(graph, "zero", 0)
    for node in graph.node[3:]:
        node.input[:] = ["same" if name == "eps" else name for name in node.input]


def scale_elbo(graph: GraphProto) -> None:
    """Six roundings of each ELBO, of one sign: less than the roundings that values are allowed."""
    constant(graph, "scale", 1 + 6 * 2**-23)
    replace_value(graph, "elbo", helper.make_node("Mul", ["plain", "scale"], ["elbo"]))


def smuggle_float64(graph: GraphProto) -> None:
    """A value that goes through float64 and comes back as it was."""
    wide = helper.make_node("Cast", ["plain"], ["wide"], to=TensorProto.DOUBLE)
    narrow = helper.make_node("Cast", ["wide"], ["kl"], to=TensorProto.FLOAT)
    replace_value(graph, "kl", wide, narrow)


def add_float64_constant(graph: GraphProto) -> None:
    """A number in float64 that only its narrowing uses."""
    constant(graph, "half", 0.5, np.float64)
    graph.node.insert(0, helper.make_node("Cast", ["half"], ["unused"], to=TensorProto.FLOAT))


def hide_weight(graph: GraphProto) -> None:
    """A weight under another name, with one number changed in its last bit."""
    arrays = {item.name: numpy_helper.to_array(item) for item in graph.initializer}
    weight = weight_names(arrays, "decoder.")[-1]
    array = arrays[weight].copy()
    array.flat[0] = np.nextafter(array.flat[0], np.float32(9))
    tensor = numpy_helper.from_array(array, "hidden")
    graph.node.insert(0, helper.make_node("Constant", [], ["hidden"], value=tensor))
    for node in graph.node:
        node.input[:] = ["hidden" if name == weight else name for name in node.input]


def invalid(graph: GraphProto) -> None:
    graph.node[0].op_type = "Reshapes"


def see_no_gaps(graph: GraphProto) -> None:
    constant(graph, "lowest", -np.inf)
    for node in graph.node:
        if node.op_type == "IsNaN":  # and nothing is less than that
            node.op_type = "Less"
            node.input.append("lowest")


def count_gaps(graph: GraphProto) -> None:
    """A gap holds a constant, and takes part with it."""
    gaps = next(node.output[0] for node in graph.node if node.op_type == "IsNaN")
    seen = next(node.output[0] for node in graph.node if gaps in node.input)
    node = next(node for node in graph.node if node.op_type == "Cast" and seen in node.input)
    node.input[0] = "all"
    place = list(graph.node).index(node)
    graph.node.insert(place, helper.make_node("Or", [gaps, seen], ["all"]))


def replace_input(graph: GraphProto, name: str, change: Callable[[Any], Any]) -> None:
    """Let nodes read a changed copy of an initializer, which stays as it is."""
    value = next(numpy_helper.to_array(i) for i in graph.initializer if i.name == name)
    constant(graph, "copy", change(value.copy()), value.dtype)
    for node in graph.node:
        for index, item in enumerate(node.input):
            if item == name:
                node.input[index] = "copy"


def swap_words(graph: GraphProto) -> None:
    def change(codes: Any) -> Any:
        codes[[0, 1]] = codes[[1, 0]]
        return codes

    replace_input(graph, "likelihood.parts.words.code", change)


def shift_columns(graph: GraphProto) -> None:
    def change(places: Any) -> Any:
        return np.concatenate([np.roll(places[:2], 1), places[2:]])

    replace_input(graph, "likelihood.places", change)


def cross_columns(graph: GraphProto) -> None:
    def change(places: Any) -> Any:
        return np.concatenate([places[:-2], places[-2:][::-1]])

    replace_input(graph, "likelihood.places", change)


def drop_reference(graph: GraphProto) -> None:
    """What is subtracted from the density given the rest of the row becomes zero."""
    replace_input(graph, "likelihood.reference.log_density", np.zeros_like)


def cross_draws(graph: GraphProto) -> None:
    """Give each of the last two columns the draw of the other."""

    def change(order: Any) -> Any:
        return np.concatenate([order[:-2], order[-2:][::-1]])

    replace_input(graph, "likelihood.order", change)


def never_draw_a_word(graph: GraphProto) -> None:
    def change(writable: Any) -> Any:
        writable[0] = 0
        return writable

    replace_input(graph, "likelihood.parts.words.writable", change)


def _maker_of(graph: GraphProto, output: str) -> NodeProto:
    return next(node for node in graph.node if output in node.output)


def weigh_all_alike(graph: GraphProto) -> None:
    """Each draw of a row counts as much as the others."""
    logs = _maker_of(graph, "log_weights").input[0]
    node = next(node for node in graph.node if node.op_type == "Exp" and logs in node.input)
    node.input[0] = "alike"
    mean = helper.make_node("ReduceMean", [logs, "last axis"], ["mean log"], keepdims=1)
    none = helper.make_node("Sub", [logs, logs], ["nothing"])
    place = list(graph.node).index(node)
    graph.node.insert(place, helper.make_node("Add", ["nothing", "mean log"], ["alike"]))
    graph.node.insert(place, none)
    graph.node.insert(place, mean)
    constant(graph, "last axis", [-1], np.int64)


def replace_what_is_seen(graph: GraphProto) -> None:
    node = _maker_of(graph, "x_filled")
    assert node.op_type == "Where"
    node.input[2] = node.input[1]
