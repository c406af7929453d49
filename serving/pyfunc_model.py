"""The MLflow pyfunc of a registered version, logged as code; it needs only numpy and onnxruntime.

It imports nothing from this project, because MLflow loads this file into processes that have the
version but not the package. `params` choose the operation:
`{"operation": "score", "num_samples": 8, "seed": 7}`. A version is logged without a schema of its
inputs: a schema of MLflow refuses float64 for float32 and refuses a table of columns, turns 300
into the byte 44, and cannot depend on the operation. Here rows of another type are converted if
that changes no value, and refused otherwise.

A version of a model of a mixed table names its columns, of any type. It has a copy of the modules
that read data frames (`serving.frames`) among its artifacts, so that their rows are those of every
other door.
"""

import base64
import hashlib
import importlib
import json
import os
import shutil
import sys
import tempfile
from pathlib import Path
from types import ModuleType
from typing import Any

import mlflow
import numpy as np

os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")  # read when onnxruntime is imported
import onnxruntime

_MAX_BATCH = 1024
_MAX_DECODED = 4096
_MAX_SEED = 2**63 - 1
_COUNTED = ("sample", "draw")
"""Operations that make a new row for each row of their input, whatever it is."""
_ROWS_OF_X = ("x_loc", "x_filled", "x")
"""Outputs that are rows of a table, in the order in which one is chosen."""


class BundleModel(mlflow.pyfunc.PythonModel):  # type: ignore[misc]
    """Use rows `x`, or `z` to decode; sample or draw a row for each input row.

    Every call starts at the first noise of its seed: on Spark, where each batch of rows is a call,
    decode latents of your own instead. Rows are an array (batch, *shape) or (batch, size), a list,
    a dict of one array, or a DataFrame with a column of arrays or with a column for each value.
    Rows of a mixed table are a DataFrame of its columns, and are reconstructed as columns.
    """

    def load_context(self, context: Any) -> None:
        """Verify the files; a graph is opened, and verified again, when it is first used.

        If VAE_VERIFY_KEY names the file of a public key, its holder must have signed the bundle.
        """
        self._folder = Path(context.artifacts["bundle"])
        self._manifest = _verified_manifest(self._folder)
        if key := os.environ.get("VAE_VERIFY_KEY"):
            _check_signature(self._folder, self._manifest, Path(key))
        self._sessions: dict[str, Any] = {}
        schema = self._manifest["data"].get("schema")
        self._table = _Table(Path(context.artifacts["frames"]), schema) if schema else None

    # mlflow warns of any other type hint: it would derive the signature, which is logged separately
    def predict(
        self,
        context: Any,
        model_input: np.ndarray,
        params: Any = None,
    ) -> dict[str, Any]:
        """Run the operation in `params` and return its outputs by name."""
        params = {"operation": "reconstruct", "num_samples": 1, "seed": 0, **(params or {})}
        operations = self._manifest["operations"]
        name, seed, samples = params["operation"], params["seed"], params["num_samples"]
        if name not in operations:
            raise ValueError(f"operation must be one of {', '.join(operations)}, got {name!r}")
        if not 0 <= seed <= _MAX_SEED:
            raise ValueError(f"seed must be from 0 to {_MAX_SEED}, got {seed}")
        if not 1 <= samples <= _MAX_DECODED:
            raise ValueError(f"num_samples must be from 1 to {_MAX_DECODED}, got {samples}")
        operation = operations[name]
        table = self._table if self._table and self._table.is_frame(model_input) else None
        takes_x = operation["inputs"][0]["name"] == "x"
        if name in _COUNTED:  # the rows are only counted
            rows = _as_array(model_input)
        elif table and takes_x:
            rows = table.read(model_input)
        else:
            rows = _as_array(_checked(self._order_columns(model_input)))
            rows = self._cast(rows, operation["inputs"][0])
        drawn = _is_drawn(operation["inputs"])
        copies = self._manifest["x_shape"][0] if name == "explain" else 1
        step = max(1, min(_MAX_BATCH, _MAX_DECODED // samples) // copies) if drawn else _MAX_BATCH
        runs = []
        for start in range(0, max(len(rows), 1), step):
            feeds = self._feeds(name, rows[start : start + step], start, samples, seed)
            named = dict(zip(operation["graph_inputs"], feeds, strict=True))
            runs.append(self._session(operation["graph"]).run(None, named))
        names = [output["name"] for output in operation["outputs"]]
        columns = zip(*runs, strict=True)
        outputs = {key: np.concatenate(column) for key, column in zip(names, columns, strict=True)}
        found = [output for output in _ROWS_OF_X if output in names]
        return table.write(outputs[found[0]]) if table and found else outputs

    def _feeds(self, name: str, rows: Any, start: int, samples: int, seed: int) -> list[Any]:
        """Return the inputs of an operation, in order, for the rows from `start` on."""
        if name in _COUNTED:
            graphs = ("noise.onnx", "draw_noise.onnx")[: len(self._inputs(name))]
            noise = [self._draw(graph, seed=seed, start=start, rows=len(rows)) for graph in graphs]
            return [noise[0], *(own.reshape(-1, *self._manifest["x_shape"]) for own in noise[1:])]
        if _is_drawn(self._inputs(name)):
            unsigned = rows + rows.dtype.type(0)  # a zero has no sign
            if rows.dtype.kind == "f":
                unsigned[np.isnan(unsigned)] = np.nan  # and all gaps are the same
            hashed = b"".join(hashlib.sha256(row).digest()[:8] for row in unsigned)
            hashes = np.frombuffer(hashed, np.int64)
            return [
                rows,
                self._draw("score_noise.onnx", seed=seed, hash=hashes, num_samples=samples),
            ]
        return [rows]

    def _inputs(self, name: str) -> Any:
        return self._manifest["operations"][name]["inputs"]

    def _draw(self, graph: str, **inputs: Any) -> Any:
        """Draw noise by the graphs of the bundle."""
        feeds = {name: np.atleast_1d(np.int64(value)) for name, value in inputs.items()}
        return self._session(graph).run(None, feeds)[0]

    def _cast(self, rows: Any, tensor: Any) -> Any:
        """Convert rows to the shape and dtype of the tensor; refuse what would change a value."""
        name, dtype, shape = tensor["name"], tensor["dtype"], tuple(tensor["shape"][1:])
        if rows.shape[1:] not in (shape, (int(np.prod(shape)),)):
            raise ValueError(f"{name} must be {('batch', *shape)}, got {rows.shape}")
        if rows.dtype.kind not in "iuf":
            raise ValueError(f"{name} must be {dtype}, got {rows.dtype}")
        with np.errstate(invalid="ignore", over="ignore"):
            # by rows, of whose bytes noise is drawn; a DataFrame's values lie by columns
            values = rows.astype(dtype, order="C").reshape(len(rows), *shape)
        if dtype == "uint8" and not np.array_equal(values.ravel(), rows.ravel()):
            raise ValueError(f"{name} must be whole numbers from 0 to 255")
        largest = self._largest_byte() if dtype == "uint8" else np.inf
        if values.size and values.max() > largest:
            raise ValueError(f"{name} must be from 0 to {largest}, as in the model's training")
        if rows.dtype.kind in "iu" and not np.array_equal(values.ravel(), rows.ravel()):
            raise ValueError(f"{name} must be whole numbers that float32 holds exactly")
        if not (np.isfinite(values) | (np.isnan(values) & (self._table is not None))).all():
            raise ValueError(f"{name} must be finite in float32")
        bernoulli = self._manifest["likelihood"].endswith("bernoulli")
        unit = name == "x" and dtype == "float32" and bernoulli
        if unit and not ((values >= 0) & (values <= 1)).all():
            raise ValueError(f"{name} must be from 0 to 1 for a bernoulli likelihood")
        return values

    def _largest_byte(self) -> int:
        """Return the largest byte of `x`, as `serving.bundle.Manifest.max_byte` does."""
        largest = self._manifest["data"].get("range", (0, 255))[1]
        whole = self._manifest["likelihood"] in ("gaussian", "categorical")
        return 255 if whole or largest > 127 else max(1, int(largest))

    def _order_columns(self, rows: Any) -> Any:
        """Order a DataFrame's columns as in training; without any of these, it stays unchanged."""
        names = self._manifest["data"].get("columns", [])
        missing = [name for name in names if name not in getattr(rows, "columns", ())]
        if len(missing) == len(names):
            return rows
        if missing:
            raise ValueError(f"the model learned from a column {missing[0]!r}: the input has none")
        return rows[names]

    def _session(self, graph: str) -> Any:
        if graph not in self._sessions:
            options = onnxruntime.SessionOptions()
            options.intra_op_num_threads = options.inter_op_num_threads = 1
            # without it int8 products overflow on some processors
            options.add_session_config_entry("session.x64quantprecision", "1")
            content = _verified_file(self._folder / graph, self._manifest)
            self._sessions[graph] = onnxruntime.InferenceSession(
                content, options, providers=["CPUExecutionProvider"]
            )
        return self._sessions[graph]


def _is_drawn(inputs: Any) -> bool:
    """Whether an operation takes draws of noise for each row of data."""
    return any(tensor["name"] == "eps" for tensor in inputs[1:])


class _Table:
    """The columns of a mixed table, read and written by the version's own copy of the modules.

    They are imported under a name that only these sources have: other versions, and the package if
    it is installed, keep theirs.
    """

    def __init__(self, folder: Path, schema: Any) -> None:
        sources = b"".join(path.read_bytes() for path in sorted(folder.glob("*.py")))
        name = f"_vae_frames_{hashlib.sha256(sources).hexdigest()[:16]}"
        if name not in sys.modules:
            package = ModuleType(name)
            package.__path__ = [str(folder)]
            sys.modules[name] = package
        self._frames = importlib.import_module(f"{name}.frames")
        cells = importlib.import_module(f"{name}.table_cells")
        self._schema = importlib.import_module(f"{name}.schema").Schema.from_json(schema)
        self._encoder = cells.TableEncoder(self._schema)
        self._decode = cells.decode_table

    def is_frame(self, rows: Any) -> bool:
        """Whether rows are columns, and one of them is of the table."""
        if not self._frames.is_frame(rows):
            return False
        columns = rows if isinstance(rows, dict) else rows.columns
        names = {*map(str, getattr(rows, "column_names", columns))}  # those of an Arrow table
        return not names.isdisjoint(self._schema.sources)

    def read(self, rows: Any) -> Any:
        """Return `x`; refuse what the columns do not take, as a ValueError."""
        return self._frames.encode_frame(self._encoder, self._frames.read_frame(rows)).x

    def write(self, x: Any) -> Any:
        """Return the columns of `x`, by name."""
        return self._decode(self._schema, x)


def _verified_manifest(folder: Path) -> Any:
    """Read the manifest and check that it and every file are those that were sealed."""
    content = json.loads((folder / "manifest.json").read_bytes())
    rest = {key: value for key, value in content.items() if key != "digest"}
    canonical = json.dumps(rest, sort_keys=True, separators=(",", ":"), allow_nan=False)
    if content.get("digest") != hashlib.sha256(canonical.encode()).hexdigest():
        raise ValueError(f"{folder / 'manifest.json'} was changed after it was sealed")
    for name in content["files"]:
        _verified_file(folder / name, content)
    return content


def _verified_file(path: Path, manifest: Any) -> bytes:
    """Read a file of the bundle; it may lie in a store, where others can change it."""
    content = path.read_bytes()
    if hashlib.sha256(content).hexdigest() != manifest["files"][path.name]["sha256"]:
        raise ValueError(f"{path} is not the file that was sealed")
    return content


def _check_signature(folder: Path, manifest: Any, key: Path) -> None:
    """Check that the holder of a key signed the manifest and so all files, and that none was added.

    `serving.signatures` does the same, with more to say about what is wrong.
    """
    try:
        from model_signing import hashing, verifying
    except ImportError as err:
        raise ValueError(
            "VAE_VERIFY_KEY needs model-signing: pip install 'vae-pipeline[sign]'"
        ) from err
    try:
        verifier = verifying.Config().use_elliptic_key_verifier(public_key=key)
    except Exception as err:
        raise ValueError(f"VAE_VERIFY_KEY must name an EC public key, PEM, got {key}") from err
    path = folder / "model.sig"
    if not path.exists():
        raise ValueError(f"{folder} has no signature: register it with vae register --sign KEY")
    hashed = hashing.Config().set_ignored_paths(paths=[path.name], ignore_git_paths=False)
    hashed.set_allow_symlinks(True)
    with tempfile.TemporaryDirectory() as temporary:  # the bytes that are verified are parsed
        copy = Path(shutil.copy(path, temporary))
        try:
            verifier.set_hashing_config(hashed).verify(folder.resolve(), copy)
            envelope = json.loads(copy.read_bytes())["dsseEnvelope"]
            resources = json.loads(base64.b64decode(envelope["payload"]))["predicate"]["resources"]
            signed = {row["name"]: row["digest"] for row in resources}
            content = (folder / "manifest.json").read_bytes()
            if signed.get("manifest.json") != hashlib.sha256(content).hexdigest():
                raise ValueError("it is not of manifest.json")
        except Exception as err:  # a forged signature may break the library anywhere
            raise ValueError(
                f"{folder} is not signed by the holder of {key}: {err}; fetch what was signed, or "
                "register it with vae register --sign KEY"
            ) from err
    added = {file.name for file in folder.iterdir()} - {
        *manifest["files"],
        "manifest.json",
        path.name,
    }
    if added or json.loads(content) != manifest:
        raise ValueError(f"{folder} was changed after it was signed: {', '.join(sorted(added))}")


def _checked(rows: Any) -> Any:
    """Refuse whole numbers that float32 would round, beside columns of floats."""
    if hasattr(rows, "select_dtypes"):
        whole = rows.select_dtypes("integer").to_numpy()
        if whole.dtype.kind in "iu" and _would_round(whole):
            raise ValueError("the input must be whole numbers that float32 holds exactly")
    return rows


def _would_round(whole: Any) -> bool:
    return bool((whole.astype(np.float32).astype(whole.dtype) != whole).any())


def _as_array(rows: Any) -> Any:
    """Convert mlflow's input to one array; Spark and JSON give arrays inside arrays."""
    if isinstance(rows, dict):
        if len(rows) != 1:
            raise ValueError(f"the input must be one array, got {', '.join(rows) or 'none'}")
        rows = next(iter(rows.values()))
    if hasattr(rows, "columns") and rows.shape[1] == 1 and rows.dtypes.iloc[0].kind == "O":
        rows = rows.iloc[:, 0]  # a DataFrame of one column of arrays
    array = np.asarray(rows)
    if array.dtype.kind == "O" and array.ndim == 1 and len(array) and not np.isscalar(array[0]):
        array = np.stack([_as_array(row) for row in array])
    if array.ndim == 0:
        raise ValueError("the input must be rows of numbers, got one value")
    return array


mlflow.models.set_model(BundleModel())
