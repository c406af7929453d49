"""Noise as graphs, so that any runtime draws the bits that `serving.noise` draws.

Integers below 2⁵³ and single products and sums of float32 alone: what gives the same bits
everywhere. docs/noise.md is the specification.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from pipeline.export.graph_export import IR_VERSION, OPSET
from serving.bundle import DRAW_NOISE_GRAPH, NOISE_GRAPHS
from serving.noise import DRAWN, HASHED, NUMBERED
from serving.normals import OCTAVES, PLACE_BITS, SEGMENT_BITS, load_table
from serving.philox import KEY_STEPS, LOW, MULTIPLIERS, ROUNDS, WORDS

_HALF = 2**16


class _Nodes:
    """The nodes of a graph as they are added, and its constants."""

    def __init__(self) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.constants: dict[str, onnx.TensorProto] = {}

    def add(self, op: str, *inputs: str | int, **attributes: Any) -> str:
        """Add a node; whole numbers become constants. Return the name of its output."""
        names = [self.constant(str(i), i) if isinstance(i, int) else i for i in inputs]
        output = f"{op.lower()}_{len(self.nodes)}"
        self.nodes.append(helper.make_node(op, names, [output], output, **attributes))
        return output

    def constant(self, name: str, value: Any) -> str:
        """Add a constant, unless there is one of this name."""
        if name not in self.constants:
            self.constants[name] = numpy_helper.from_array(np.asarray(value), name)
        return name

    def divide(self, value: str, power_of_two: int) -> tuple[str, str]:
        """Return the quotient and the rest of a number that is not negative."""
        return self.add("Div", value, power_of_two), self.add("BitwiseAnd", value, power_of_two - 1)

    def low_and_high(self, value: str) -> tuple[str, str]:
        """Return the words of 64 bits, which int64 holds as a negative number if its top is set."""
        low = self.add("BitwiseAnd", value, LOW)
        high = self.add("Div", self.add("Sub", value, low), LOW + 1)
        return low, self.add("BitwiseAnd", high, LOW)

    def product(self, word: str, multiplier: int) -> tuple[str, str]:
        """Return the high and the low word of a product, which int64 would not hold."""
        top, bottom = divmod(multiplier, _HALF)
        carry, last = self.divide(self.add("Mul", word, bottom), _HALF)
        high, middle = self.divide(self.add("Add", self.add("Mul", word, top), carry), _HALF)
        return high, self.add("Add", self.add("Mul", middle, _HALF), last)


def write_noise_graphs(
    folder: Path, latent_dim: int, features: int, metadata: Mapping[str, str]
) -> None:
    """Write the graphs into a bundle's folder, with its description."""
    numbered, hashed = NOISE_GRAPHS
    graphs = {
        numbered: noise_graph(latent_dim),
        hashed: score_noise_graph(latent_dim),
        DRAW_NOISE_GRAPH: noise_graph(features, DRAWN),
    }
    for name, model in graphs.items():
        helper.set_model_props(model, dict(sorted(metadata.items())))
        (folder / name).write_bytes(model.SerializeToString(deterministic=True))


def noise_graph(width: int, stream: int = NUMBERED) -> onnx.ModelProto:
    """Build `seed, start, rows -> eps`: rows of latents or of cells, numbered from `start`."""
    nodes = _Nodes()
    start, count = (nodes.add("Squeeze", name) for name in ("start", "rows"))
    rows = nodes.add("Add", nodes.add("Range", 0, count, 1), start)
    eps = _normals(nodes, _words(nodes, rows, stream, -(-width // WORDS)), width)
    return _model(nodes, eps, ("seed", "start", "rows"), {}, ("rows", width))


def score_noise_graph(latent_dim: int) -> onnx.ModelProto:
    """Build `seed, hash, num_samples -> eps`: draws for rows of data with these hashes."""
    nodes = _Nodes()
    width = nodes.add("Mul", nodes.add("Squeeze", "num_samples"), latent_dim)
    blocks = nodes.add("Div", nodes.add("Add", width, WORDS - 1), WORDS)
    drawn = _normals(nodes, _words(nodes, "hash", HASHED, blocks), width)
    shape = [nodes.add("Shape", "hash"), "num_samples", nodes.constant("latent", [latent_dim])]
    eps = nodes.add("Reshape", drawn, nodes.add("Concat", *shape, axis=0), allowzero=1)
    sizes = {"hash": ["batch"]}
    return _model(nodes, eps, ("seed", "hash", "num_samples"), sizes, ("batch", "num", latent_dim))


def _words(nodes: _Nodes, rows: str, stream: int, blocks: str | int) -> str:
    """Philox4x32-10: return words, (rows, blocks, 4). See `serving.philox`."""
    low, high = nodes.low_and_high(nodes.add("Squeeze", "seed"))
    c, d = nodes.low_and_high(nodes.add("Unsqueeze", rows, nodes.constant("last", [-1])))
    a, b = nodes.add("Range", 0, blocks, 1), nodes.constant(str(stream), stream)
    for _ in range(ROUNDS):
        (p_high, p_low), (q_high, q_low) = map(nodes.product, (a, c), MULTIPLIERS)
        a = nodes.add("BitwiseXor", nodes.add("BitwiseXor", q_high, b), low)
        c = nodes.add("BitwiseXor", nodes.add("BitwiseXor", p_high, d), high)
        b, d = q_low, p_low
        low, high = (
            nodes.add("BitwiseAnd", nodes.add("Add", word, step), LOW)
            for word, step in zip((low, high), KEY_STEPS, strict=True)
        )
    parts = [nodes.add("Unsqueeze", word, "last") for word in (a, b, c, d)]
    return nodes.add("Concat", *parts, axis=-1)


def _normals(nodes: _Nodes, words: str, width: str | int) -> str:
    """Return normals, (rows, width). See `serving.normals`."""
    sign = nodes.add("BitwiseAnd", words, 1)
    odd = nodes.add("Sub", nodes.add("Add", words, 1), sign)
    octave = nodes.constant("last octave", OCTAVES - 1)
    for bits in (16, 8, 4, 2, 1):  # move the leading bit to the top
        small = nodes.add("Less", odd, 2 ** (OCTAVES - bits))
        odd = nodes.add("Where", small, nodes.add("Mul", odd, 2**bits), odd)
        octave = nodes.add("Sub", octave, nodes.add("Where", small, bits, 0))
    top, place = nodes.divide(odd, 2**PLACE_BITS)
    first = nodes.add("BitwiseAnd", top, 2**SEGMENT_BITS - 1)
    segment = nodes.add("Add", nodes.add("Mul", octave, 2**SEGMENT_BITS), first)
    start, slope = (
        nodes.add("Gather", nodes.constant(name, values), segment)
        for name, values in zip(("starts", "slopes"), load_table(), strict=True)
    )
    way = nodes.add("Mul", slope, nodes.add("Cast", place, to=TensorProto.FLOAT))
    size = nodes.add("Add", start, way)
    signed = nodes.add("Sub", 1, nodes.add("Mul", sign, 2))
    normals = nodes.add("Mul", size, nodes.add("Cast", signed, to=TensorProto.FLOAT))
    flat = nodes.add("Flatten", normals, axis=1)
    stop = nodes.add("Unsqueeze", width, nodes.constant("first", [0]))
    return nodes.add("Slice", flat, nodes.constant("from", [0]), stop, nodes.constant("axis", [1]))


def _model(
    nodes: _Nodes,
    eps: str,
    inputs: tuple[str, ...],
    sizes: dict[str, list[str]],
    shape: tuple[str | int, ...],
) -> onnx.ModelProto:
    nodes.nodes.append(helper.make_node("Identity", [eps], ["eps"], "eps"))
    graph = helper.make_graph(
        nodes.nodes,
        "noise",
        [
            helper.make_tensor_value_info(name, TensorProto.INT64, sizes.get(name, [1]))
            for name in inputs
        ],
        [helper.make_tensor_value_info("eps", TensorProto.FLOAT, shape)],
        [*nodes.constants.values()],
    )
    opsets = [helper.make_opsetid("", OPSET)]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=IR_VERSION)
    onnx.checker.check_model(model, full_check=True)
    return model
