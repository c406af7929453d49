"""Two small clients of a server, which send and receive arrays in binary.

`Client` blocks, `AsyncClient` is awaited; both keep their connections open. An answer that is an
error raises the exception class of its status, with the server's message: `UsageRefused` for 400,
`NotFound`, `Overloaded`, `NotReady`, `DeadlineExceeded` and so on.

Rows are one array `x`, or for a model of a mixed table its columns: a DataFrame of pandas, a Table
of pyarrow, or a dict of sequences. Rows that are columns are reconstructed as a dict of columns.
"""

import os
from collections.abc import Mapping
from typing import Any, Generic, Self, TypeVar

import httpx
import numpy as np

from serving import errors
from serving.errors import DataRefused, UsageRefused, VaeError
from serving.frames import FrameRefused, is_frame, read_frame
from serving.protocol.http_body import BINARY, HEADER_LENGTH, decode_response, encode_request
from serving.protocol.messages import DATATYPES, Array, InferRequest, InferResponse, Parameter

_ERRORS: Mapping[int, type[VaeError]] = {
    400: UsageRefused,
    401: errors.Unauthorized,
    404: errors.NotFound,
    408: errors.BodyTimeout,
    413: errors.TooLarge,
    429: errors.Overloaded,
    503: errors.NotReady,
    504: errors.DeadlineExceeded,
}
Rows = Any
"""One array `x`, or a data frame."""
Http = TypeVar("Http", httpx.Client, httpx.AsyncClient)


class _Calls(Generic[Http]):
    """What both clients share: the request of each call, and the reading of its answer."""

    _open: type[Http]

    def __init__(
        self, url: str, *, api_key: str | None = None, timeout_s: float = 30.0, version: str = ""
    ) -> None:
        key = api_key or os.environ.get("VAE_API_KEY")
        # compressing an answer takes longer than computing it, and floats hardly shrink
        headers = {"accept-encoding": "identity"}
        if key:
            headers["authorization"] = f"Bearer {key}"
        self._http: Http = self._open(base_url=url, headers=headers, timeout=timeout_s)
        self._suffix = f"/versions/{version}" if version else ""

    def _request(
        self, operation: str, inputs: Mapping[str, Rows], parameters: Mapping[str, Parameter]
    ) -> httpx.Request:
        columns: Mapping[str, Array] = {}
        if is_frame(rows := inputs.get("x")):
            columns = _read_columns(rows)
            inputs = {name: array for name, array in inputs.items() if name != "x"}
        arrays = {name: np.asarray(array) for name, array in inputs.items()}
        for name, array in arrays.items():
            if array.dtype == np.float64:
                arrays[name] = array.astype(np.float32)
            elif array.dtype not in DATATYPES:
                raise DataRefused(f"{name} must be uint8 or float32, got {array.dtype}")
        request = InferRequest(operation, arrays, parameters=parameters, columns=columns)
        body, length = encode_request(request)
        return self._http.build_request(
            "POST",
            f"/v2/models/{operation}{self._suffix}/infer",
            content=body,
            headers={"content-type": BINARY, HEADER_LENGTH: str(length)},
        )

    def _columns(self, answer: httpx.Response) -> tuple[str, ...]:
        _raise_refusal(answer)
        return tuple(answer.json()["parameters"].get("x_columns", ()))

    def _response(self, answer: httpx.Response) -> InferResponse:
        _raise_refusal(answer)
        return decode_response(answer.content, answer.headers.get(HEADER_LENGTH))


def _raise_refusal(answer: httpx.Response) -> None:
    if answer.status_code == httpx.codes.OK:
        return
    try:
        message = str(answer.json()["error"])
    except (ValueError, KeyError, TypeError):
        message = answer.text[:200]
    raise _ERRORS.get(answer.status_code, VaeError)(message)


def _read_columns(rows: Rows) -> dict[str, Array]:
    try:
        return read_frame(rows)
    except FrameRefused as err:
        raise DataRefused(str(err)) from err


def _rows_like(x: Rows, response: InferResponse, array: str) -> Any:
    """Return the columns of a table if `x` is one, else an array of the answer."""
    return response.outputs if is_frame(x) else response.outputs[array]


class Client(_Calls[httpx.Client]):
    """A blocking client.

    Args:
        url: address of REST, for example `http://127.0.0.1:8080`.
        api_key: by default the environment variable `VAE_API_KEY`.
        timeout_s: timeout of each step of a request.
        version: the version that must answer; by default any.
    """

    _open = httpx.Client

    def infer(
        self, operation: str, inputs: Mapping[str, Rows], **parameters: Parameter
    ) -> InferResponse:
        """Run any operation; the answer names the version that computed it."""
        return self._response(self._http.send(self._request(operation, inputs, parameters)))

    def encode(self, x: Rows) -> Mapping[str, Array]:
        """Return the posterior of each row: `z_loc` and `z_scale`, (batch, latent_dim)."""
        return self.infer("encode", {"x": x}).outputs

    def decode(self, z: Array) -> Array:
        """Return the mean of p(x given z) in the data's units, (batch, *x_shape)."""
        return self.infer("decode", {"z": z}).outputs["x_loc"]

    def reconstruct(self, x: Rows) -> Any:
        """Decode the posterior mean of each row, (batch, *x_shape), or as columns as `x` is."""
        return _rows_like(x, self.infer("reconstruct", {"x": x}), "x_loc")

    def sample(self, num_samples: int, seed: int = 0) -> Array:
        """Draw from the prior and decode, (num_samples, *x_shape)."""
        response = self.infer("sample", {}, num_samples=num_samples, seed=seed)
        return response.outputs["x_loc"]

    def score(self, x: Rows, num_samples: int = 1, seed: int = 0) -> Mapping[str, Array]:
        """Return bounds on log p(x) of each row in nats, each (batch,).

        For a mixed table also `column_log_likelihood` (batch, columns), named by `x_columns`.
        """
        return self.infer("score", {"x": x}, num_samples=num_samples, seed=seed).outputs

    def impute(self, x: Rows, num_samples: int = 1, seed: int = 0) -> Any:
        """Fill the gaps of rows of a mixed table, (batch, columns), or as columns as `x` is."""
        response = self.infer("impute", {"x": x}, num_samples=num_samples, seed=seed)
        return _rows_like(x, response, "x_filled")

    def explain(self, x: Rows, num_samples: int = 1, seed: int = 0) -> Array:
        """Return `column_lift` of rows of a mixed table, (batch, columns), named by `x_columns`."""
        response = self.infer("explain", {"x": x}, num_samples=num_samples, seed=seed)
        return response.outputs["column_lift"]

    def x_columns(self) -> tuple[str, ...]:
        """Return the names of the columns of `x`, if the model is of a mixed table."""
        return self._columns(self._http.get(f"/v2/models/score{self._suffix}"))

    def ready(self) -> bool:
        """Whether the server takes requests; False too if it does not answer."""
        try:
            return self._http.get("/v2/health/ready").status_code == httpx.codes.OK
        except httpx.TransportError:
            return False

    def close(self) -> None:
        """Close the connections."""
        self._http.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()


class AsyncClient(_Calls[httpx.AsyncClient]):
    """A client whose calls are awaited; its arguments are those of `Client`."""

    _open = httpx.AsyncClient

    async def infer(
        self, operation: str, inputs: Mapping[str, Rows], **parameters: Parameter
    ) -> InferResponse:
        """Run any operation; the answer names the version that computed it."""
        return self._response(await self._http.send(self._request(operation, inputs, parameters)))

    async def encode(self, x: Rows) -> Mapping[str, Array]:
        """Return the posterior of each row: `z_loc` and `z_scale`, (batch, latent_dim)."""
        return (await self.infer("encode", {"x": x})).outputs

    async def decode(self, z: Array) -> Array:
        """Return the mean of p(x given z) in the data's units, (batch, *x_shape)."""
        return (await self.infer("decode", {"z": z})).outputs["x_loc"]

    async def reconstruct(self, x: Rows) -> Any:
        """Decode the posterior mean of each row, (batch, *x_shape), or as columns as `x` is."""
        return _rows_like(x, await self.infer("reconstruct", {"x": x}), "x_loc")

    async def sample(self, num_samples: int, seed: int = 0) -> Array:
        """Draw from the prior and decode, (num_samples, *x_shape)."""
        response = await self.infer("sample", {}, num_samples=num_samples, seed=seed)
        return response.outputs["x_loc"]

    async def score(self, x: Rows, num_samples: int = 1, seed: int = 0) -> Mapping[str, Array]:
        """Return bounds on log p(x) of each row in nats, each (batch,).

        For a mixed table also `column_log_likelihood` (batch, columns), named by `x_columns`.
        """
        response = await self.infer("score", {"x": x}, num_samples=num_samples, seed=seed)
        return response.outputs

    async def impute(self, x: Rows, num_samples: int = 1, seed: int = 0) -> Any:
        """Fill the gaps of rows of a mixed table, (batch, columns), or as columns as `x` is."""
        response = await self.infer("impute", {"x": x}, num_samples=num_samples, seed=seed)
        return _rows_like(x, response, "x_filled")

    async def explain(self, x: Rows, num_samples: int = 1, seed: int = 0) -> Array:
        """Return `column_lift` of rows of a mixed table, (batch, columns), named by `x_columns`."""
        response = await self.infer("explain", {"x": x}, num_samples=num_samples, seed=seed)
        return response.outputs["column_lift"]

    async def x_columns(self) -> tuple[str, ...]:
        """Return the names of the columns of `x`, if the model is of a mixed table."""
        return self._columns(await self._http.get(f"/v2/models/score{self._suffix}"))

    async def ready(self) -> bool:
        """Whether the server takes requests; False too if it does not answer."""
        try:
            return (await self._http.get("/v2/health/ready")).status_code == httpx.codes.OK
        except httpx.TransportError:
            return False

    async def close(self) -> None:
        """Close the connections."""
        await self._http.aclose()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *error: object) -> None:
        await self.close()
