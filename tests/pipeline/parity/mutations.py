"""Corruptions of a bundle, each with the rule that is meant to catch it."""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
from onnx import GraphProto, ModelProto, numpy_helper

from pipeline.export.manifest import seal
from pipeline.model.vae import VAE
from pipeline.parity.comparison_result import Rule
from serving.bundle import NOISE_GRAPHS, Bundle, open_bundle
from tests.pipeline.parity import graph_changes as changes
from tests.pipeline.parity.graph_changes import weight_names

Graphs = Mapping[str, ModelProto]
Arrays = dict[str, Any]
ENCODER, DECODER, SCORE = "encoder.onnx", "decoder.onnx", "score.onnx"
PORTABLE = "score_portable.onnx"
DRAW, IMPUTE = "draw.onnx", "impute.onnx"


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
    return {name: onnx.load(bundle.path / name) for name in (*bundle.graphs, *bundle.noise_graphs)}


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


def _other_normals(arrays: Arrays) -> None:
    """The normals of a whole table, each off by its last bit."""
    arrays["starts"] = np.nextafter(arrays["starts"], np.float32(9))


def _stale(graphs: Graphs, other: Arrays) -> None:
    set_arrays(graphs[DECODER], other)


MUTATIONS = (
    Mutation("one weight's sign", "values", weights(_flip_sign)),
    Mutation("one weight times 1 + 2^-10", "weights", weights(_nudge)),
    Mutation("a bias zeroed", "values", weights(_zero_bias)),
    Mutation("heads swapped, by weights", "values", weights(_swap_heads)),
    Mutation("heads swapped, by wires", "values", nodes(changes.cross_heads), sole=True),
    Mutation("two rows of a weight swapped", "values", weights(_swap_rows, DECODER)),
    Mutation("a NaN weight", "pattern", weights(_nan)),
    Mutation("weights through float16", "values", weights(_half)),
    Mutation("weights through bfloat16", "values", weights(_rounded(7))),
    Mutation("weights through TF32", "values", weights(_rounded(10))),
    Mutation("activations through ten bits", "values", nodes(changes.round_activations)),
    Mutation("an output missing", "interface", nodes(changes.drop_output), sole=True),
    Mutation("an output too wide", "interface", nodes(changes.other_width), sole=True),
    Mutation("an output in float64", "interface", nodes(changes.other_dtype)),
    Mutation("another value at batch 1", "batch", nodes(changes.bump_at_batch(1), DECODER)),
    Mutation("another value at batch 1000", "batch", nodes(changes.bump_at_batch(1000), DECODER)),
    Mutation("rows that feel each other", "batch", nodes(changes.mix_rows)),
    Mutation("a graph of another version", "values", _stale),
    Mutation("divided by 255 twice", "values", nodes(changes.divide_again), sole=True),
    Mutation("random numbers inside", "operators", nodes(changes.noise(1e-3))),
    Mutation("random numbers below the noise", "operators", nodes(changes.noise(1e-20)), sole=True),
    Mutation("random numbers, by the rerun", "rerun", nodes(changes.noise(1e-3))),
    Mutation("dropout in training mode", "operators", nodes(changes.dropout)),
    Mutation("batch norm in training mode", "operators", nodes(changes.batch_norm)),
    Mutation("a branch inside", "operators", nodes(changes.branch)),
    Mutation(
        "latents in another order", "values", nodes(changes.reverse_latents, DECODER), sole=True
    ),
    Mutation("an activation left out", "values", nodes(changes.drop_activation), sole=True),
    Mutation("one draw for all", "values", nodes(changes.one_draw, SCORE)),
    Mutation("the ELBO off by six roundings", "elbo", nodes(changes.scale_elbo, SCORE), sole=True),
    Mutation(
        "float64 in the portable graph",
        "needs",
        nodes(changes.smuggle_float64, PORTABLE),
        sole=True,
    ),
    Mutation(
        "a float64 constant", "needs", nodes(changes.add_float64_constant, PORTABLE), sole=True
    ),
    Mutation("one weight's sign, portable", "values", weights(_flip_sign, PORTABLE)),
    Mutation(
        "a weight hidden in a constant", "weights", nodes(changes.hide_weight, DECODER), sole=True
    ),
    Mutation("an operator that is none", "graph", nodes(changes.invalid)),
    Mutation("normals off by a bit", "noise", weights(_other_normals, NOISE_GRAPHS[0]), sole=True),
)

MIXED_MUTATIONS = tuple(
    Mutation(name, "values", nodes(change, graph=graph))
    for graph, name, change in (
        (ENCODER, "the gaps are not looked for", changes.see_no_gaps),
        (SCORE, "gaps count as seen", changes.count_gaps),
        (SCORE, "two words change places", changes.swap_words),
        (SCORE, "the columns of numbers are shifted", changes.shift_columns),
        (SCORE, "one column's words are another's", changes.cross_columns),
        (SCORE, "a lift without its reference", changes.drop_reference),
        (DRAW, "one column's draw is another's", changes.cross_draws),
        (DRAW, "one column's noise is another's", changes.cross_columns),
        (DRAW, "a word is never drawn", changes.never_draw_a_word),
        (IMPUTE, "the weights of importance are dropped", changes.weigh_all_alike),
        (IMPUTE, "cells that are seen are replaced", changes.replace_what_is_seen),
        (IMPUTE, "one column is filled as another", changes.cross_draws),
    )
)
"""Of models of mixed tables: every weight and buffer stays where it is."""
