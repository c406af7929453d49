"""Rows that a worker has answered, as one datagram to the observer of the server.

In: the arrays of one request. Out: a message that is whole or not sent at all. Workers and the
observer are processes of one machine and of one version, so arrays travel as they are in memory.
"""

import struct
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import orjson
from numpy.typing import NDArray

Array = NDArray[Any]

MAX_MESSAGE = 192 * 1024
"""Bytes of a message: what a socket takes at Linux's default of 208 KiB, with room for its own."""
REQUEST_BYTES = 2048
"""Memory of a request that is held, beside its arrays: most requests have one row of few bytes."""
_LENGTH = struct.Struct("<I")


@dataclass(frozen=True, slots=True, kw_only=True)
class LiveRows:
    """The rows of one request, and its answer if it is captured."""

    operation: str
    version: str
    digest: str
    """Of the version that answered."""
    time: float
    """When it answered, as a Unix time."""
    request: str
    """The id of the request; empty if it has none."""
    x: Array
    """(rows, *x_shape), as the graph takes them."""
    watched: bool = True
    """Whether to score the rows."""
    captured: bool = False
    """Whether to keep the rows and the answer."""
    seed: int | None = None
    """None if nothing was drawn, or if the client gave `eps`."""
    num_samples: int | None = None
    outputs: Mapping[str, Array] = field(default_factory=dict)
    """The tensors of the answer by name, (rows, ...); of a captured request only."""

    def pack(self) -> list[bytes | memoryview]:
        """Return the parts of the message, which `sendmsg` takes."""
        arrays = {"x": self.x, **self.outputs}
        plain = [np.ascontiguousarray(array) for array in arrays.values()]
        head = {
            name: getattr(self, name) for name in LiveRows.__slots__ if name not in ("x", "outputs")
        }
        head["arrays"] = [
            (name, array.dtype.str, array.shape) for name, array in zip(arrays, plain, strict=True)
        ]
        text = orjson.dumps(head)
        buffers = [array.reshape(-1).view(np.uint8).data for array in plain]
        return [_LENGTH.pack(len(text)), text, *buffers]

    @classmethod
    def unpack(cls, message: bytes) -> "LiveRows":
        """Read what `pack` wrote; the arrays are views of the message."""
        (length,) = _LENGTH.unpack_from(message)
        start = _LENGTH.size + length
        head = orjson.loads(message[_LENGTH.size : start])
        arrays: dict[str, Array] = {}
        for name, dtype, shape in head.pop("arrays"):
            kind = np.dtype(dtype)
            size = int(np.prod(shape, dtype=np.int64))
            arrays[name] = np.frombuffer(message, kind, size, start).reshape(shape)
            start += size * kind.itemsize
        x = arrays.pop("x")
        return cls(**head, x=x, outputs=arrays)

    @property
    def rows(self) -> int:
        """Number of rows."""
        return len(self.x)

    @property
    def size(self) -> int:
        """Bytes of the arrays."""
        return self.x.nbytes + sum(array.nbytes for array in self.outputs.values())

    @property
    def held_bytes(self) -> int:
        """Bytes of memory while the request is held."""
        return self.size + REQUEST_BYTES

    def without_answer(self, size: int) -> "LiveRows":
        """Return as many of the first rows as `size` bytes hold, to be watched alone."""
        row_bytes = max(1, self.x[:1].nbytes)
        return replace(self, x=self.x[: size // row_bytes], outputs={}, captured=False)
