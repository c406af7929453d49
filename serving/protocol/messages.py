"""The Open Inference Protocol, version 2, without a transport: requests, answers, datatypes.

A transport reads an `InferRequest`, gives it to `serving.server.service`, and writes the
`InferResponse`. Tensors that do not follow the protocol raise `DataRefused`. Both messages are
named tuples: each request makes them, and a frozen dataclass takes several times longer to make.
Source: the Open Inference Protocol specification, required API and tensor data sections.
"""

import contextlib
import math
from array import array
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import chain
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from serving.errors import DataRefused, UsageRefused
from serving.operations import Tensor

Array = NDArray[Any]
MAX_VALUES = 2**28
"""Values of one tensor. A size of 0 counts as 1 here, since numpy multiplies the other sizes."""
MAX_AXES = 8
MAX_TENSORS = 8
"""Inputs or outputs of one request: more than any operation has, and few to look at."""
MAX_ROWS = 4096
"""Rows times draws of one request; more need several requests, or a batch job."""
Parameter = str | int | float | bool
PARAMETERS = ("seed", "num_samples", "timeout", "binary_data_output")
"""The parameters of a request that a trace tells; `content_type` means something too."""
_UNSUPPORTED: Mapping[str, str] = {
    "shared_memory_region": "send the tensor in the body",
    "shared_memory_offset": "send the tensor in the body",
    "shared_memory_byte_size": "send the tensor in the body",
    "classification": "ask for the whole output",
}
"""Parameters of Triton's tensors and outputs that would change the answer, and what to do."""

_DTYPES: Mapping[str, np.dtype[Any]] = {"FP32": np.dtype("<f4"), "UINT8": np.dtype("u1")}
DATATYPES: Mapping[np.dtype[Any], str] = {dtype: name for name, dtype in _DTYPES.items()}
"""The protocol's names of the dtypes that graphs have."""
_FROM_LIST: Mapping[np.dtype[Any], Callable[[list[Any]], Any]] = {
    np.dtype("<f4"): lambda values: array("f", values),
    np.dtype("u1"): bytes,
}
"""Convert a flat list of numbers to bytes, several times faster than numpy, or raise."""


Layouts = Sequence[tuple[str, np.dtype[Any], tuple[int, ...], int, int]]
"""Name, dtype, shape, values and bytes of tensors that follow each other."""


class InferRequest(NamedTuple):
    """A request of one operation; `outputs` names the outputs wanted, and is empty for all."""

    model: str
    inputs: Mapping[str, Array]
    version: str = ""
    id: str = ""
    outputs: Sequence[str] = ()
    parameters: Mapping[str, Parameter] = MappingProxyType({})
    columns: Mapping[str, Array] = MappingProxyType({})
    """Columns of a table in place of `x`, as `serving.protocol.column_tensors` reads them."""


class InferResponse(NamedTuple):
    """The outputs that one version computed for a request, or columns of a table."""

    model: str
    version: str
    outputs: Mapping[str, Array]
    id: str = ""
    parameters: Mapping[str, Parameter] = MappingProxyType({})


def wire_dtype(name: str, datatype: object) -> np.dtype[Any]:
    """Return the little-endian dtype of a datatype; refuse one that no graph takes."""
    if not isinstance(datatype, str) or datatype not in _DTYPES:
        raise DataRefused(f"datatype of {name} must be {' or '.join(_DTYPES)}, got {datatype!r}")
    return _DTYPES[datatype]


def wire_shape(name: str, shape: object) -> tuple[int, ...]:
    """Return a shape as a tuple; refuse sizes that are not whole numbers from 0, or too many."""
    if not isinstance(shape, (list, tuple)):
        raise DataRefused(f"shape of {name} must be a list of numbers, got {shape!r}")
    if len(shape) > MAX_AXES or not {*map(type, shape)} <= {int} or min(shape, default=0) < 0:
        got = f"{len(shape)} sizes" if len(shape) > MAX_AXES else list(shape)
        raise DataRefused(f"shape of {name} must be at most {MAX_AXES} sizes from 0, got {got}")
    if math.prod(size or 1 for size in shape) > MAX_VALUES:
        raise DataRefused(
            f"{name} may hold at most {MAX_VALUES} values, got the shape {list(shape)}"
        )
    return tuple(shape)


def refuse_unsupported(name: str, parameters: Mapping[str, Parameter]) -> None:
    """Refuse a parameter of a tensor or an output that would change the answer; ignore others.

    Raises:
        UsageRefused: there is such a parameter, and it is not 0 or empty.
    """
    if not parameters or _UNSUPPORTED.keys().isdisjoint(parameters):
        return
    for parameter, advice in _UNSUPPORTED.items():
        if parameters.get(parameter):
            raise UsageRefused(f"{parameter} of {name} is not supported: {advice}")


def refuse_to_load(parameters: Iterable[str]) -> None:
    """Refuse parameters of a load that bring a model along; ignore others.

    Raises:
        DataRefused: there is such a parameter.
    """
    for name in parameters:
        if name == "config" or name.startswith("file:"):
            raise DataRefused(f"load takes no {name[:40]!r}: versions come from the registry")


def refuse_many(tensors: Sequence[Any], what: str, columns: int = 0) -> None:
    """Refuse more inputs or outputs than any operation has, before each of them is read.

    The model's table may have `columns` beside them.

    Raises:
        DataRefused: there are too many.
    """
    if len(tensors) > MAX_TENSORS + columns:
        most = MAX_TENSORS + columns
        raise DataRefused(f"a request may have {most} {what}, got {len(tensors)}")


def from_bytes(name: str, datatype: object, shape: object, content: memoryview) -> Array:
    """Make an array from row-major little-endian bytes, without a copy if they are aligned."""
    dtype, sizes = wire_dtype(name, datatype), wire_shape(name, shape)
    wanted = math.prod(sizes) * dtype.itemsize
    if wanted != len(content):
        raise DataRefused(
            f"{name} of {datatype} {list(sizes)} needs {wanted} bytes, got {len(content)}"
        )
    tensor = np.frombuffer(content, dtype).reshape(sizes)
    return tensor if tensor.flags.aligned else tensor.copy()


def read_layouts(layouts: Layouts, body: bytes, start: int) -> dict[str, Array]:
    """Make arrays from the bytes of a body, which has been checked to hold them from `start` on."""
    arrays = {}
    for name, dtype, shape, size, nbytes in layouts:
        tensor = np.frombuffer(body, dtype, size, start).reshape(shape)
        arrays[name] = tensor if tensor.flags.aligned else tensor.copy()
        start += nbytes
    return arrays


def from_values(
    name: str,
    datatype: object,
    shape: object,
    values: object,
    *,
    booleans: bool = True,
    gaps: bool = False,
) -> Array:
    """Make an array from a list of numbers, flat or nested; refuse a number that does not fit.

    `booleans` is whether booleans may be among them: looking for them takes as long as the rest.
    With `gaps`, null stands for NaN, which JSON does not have.
    """
    dtype, sizes = wire_dtype(name, datatype), wire_shape(name, shape)
    if not booleans and isinstance(values, list) and len(values) == math.prod(sizes):
        with contextlib.suppress(TypeError, ValueError, OverflowError):
            return np.frombuffer(_FROM_LIST[dtype](values), dtype).reshape(sizes)
    gaps = gaps and dtype.kind == "f"
    numbers, found = _flatten(name, values, math.prod(sizes), gaps)
    if len(numbers) != math.prod(sizes) or (len(found) > 1 and found != sizes):
        raise DataRefused(f"data of {name} has shape {list(found)}, shape says {list(sizes)}")
    try:
        tensor = np.array(numbers, np.float64)
    except OverflowError as err:
        raise DataRefused(f"data of {name} holds a number that is too large") from err
    return exact(name, tensor, dtype).reshape(sizes)


def _flatten(
    name: str, values: object, most: int, gaps: bool
) -> tuple[list[int | float], tuple[int, ...]]:
    """Return the numbers of a list, flat or nested, and its shape; refuse other values but `gaps`.

    More than `most` of them, or more axes than a shape may have, are not looked at: each level
    takes as long as all the numbers.
    """
    if not isinstance(values, list):
        raise DataRefused(f"data of {name} must be a list of numbers")
    sizes = [len(values)]
    while values and type(values[0]) is list:
        if {*map(type, values)} != {list} or len({*map(len, values)}) != 1:
            raise DataRefused(f"data of {name} must be numbers in rows of one length")
        sizes.append(len(values[0]))
        if len(sizes) > MAX_AXES or math.prod(sizes) > most:
            raise DataRefused(
                f"data of {name} must be numbers in at most {MAX_AXES} lists inside each other, "
                f"{most} in all as the shape says; got more"
            )
        values = [*chain.from_iterable(values)]
    if not {*map(type, values)} <= ({int, float, type(None)} if gaps else {int, float}):
        raise DataRefused(f"data of {name} must be numbers")
    return values, tuple(sizes)


def exact(name: str, array: Array, dtype: np.dtype[Any]) -> Array:
    """Cast to `dtype`; a cast to integers must not change a value."""
    if array.dtype == dtype:
        return array
    with np.errstate(invalid="ignore", over="ignore"):
        cast = array.astype(dtype)
    if dtype.kind == "u" and not np.array_equal(cast, array):
        wrong = array[cast != array].flat[0]
        raise DataRefused(f"{name} must be whole numbers from 0 to 255, got {wrong}")
    return cast


def match_tensor(tensor: Tensor, array: Array) -> Array:
    """Return the array in the graph's dtype; floats become uint8 only where no value changes."""
    if array.dtype == tensor.dtype:
        return array
    if tensor.dtype == "uint8":
        return exact(tensor.name, array, np.dtype("u1"))
    raise DataRefused(
        f"datatype of {tensor.name} must be {datatype_of(tensor)}, got {DATATYPES[array.dtype]}"
    )


def datatype_of(tensor: Tensor) -> str:
    """Return the protocol's name for the dtype of a tensor."""
    return DATATYPES[np.dtype(tensor.dtype)]


def wire_tensor(tensor: Tensor) -> dict[str, Any]:
    """Describe a tensor of the operation table as metadata does, with -1 for a free axis."""
    return {
        "name": tensor.name,
        "datatype": datatype_of(tensor),
        "shape": [axis if isinstance(axis, int) else -1 for axis in tensor.shape],
    }
