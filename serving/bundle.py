"""Read and verify a bundle: a directory of ONNX graphs and the manifest that seals them.

In: a directory. Out: a `Bundle`. A file that is missing, damaged or not listed raises
`VerificationFailed` with its name; a missing directory raises `UsageRefused`.
"""

import hashlib
import json
import zipfile
from collections.abc import Mapping
from dataclasses import MISSING, dataclass, field, fields
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from serving.errors import DeviceUnavailable, UsageRefused, VerificationFailed
from serving.operations import LATER, Operation, operation_table, portable_forms
from serving.schema import Schema
from serving.value_range import MAX_BYTE, Range, guess_range, max_byte_of, picture_range

SCHEMA_VERSION = 2
"""Of bundles that are written. Those of schema 1 are read too: they lack `MORE_GRAPHS`, and do not
say what each graph needs."""
MANIFEST = "manifest.json"
SIGNATURE = "model.sig"
"""Optional, and the only file that the manifest does not list; see `serving.signatures`."""
PARITY = "parity.json"
CARD = "MODEL_CARD.md"
GOLDEN = "golden.npz"
WEIGHTS = "weights.pt"
METRICS = "metrics.json"
HELD_OUT = "held_out.npz"
"""Optional: bundles of early versions, and those migrated from them, lack it."""
SAMPLES = "samples.png"
RECONSTRUCTIONS = "reconstructions.png"
GRAPHS = ("encoder.onnx", "decoder.onnx", "reconstruct.onnx", "score.onnx")
NOISE_GRAPHS = ("noise.onnx", "score_noise.onnx")
DRAW_NOISE_GRAPH = "draw_noise.onnx"
PORTABLE_GRAPHS = ("score_portable.onnx",)
MORE_GRAPHS = (*PORTABLE_GRAPHS, *NOISE_GRAPHS)
"""What schema 2 added to `GRAPHS`; a bundle with the operations `LATER` has their graphs too."""
REQUIRED = (*GRAPHS, WEIGHTS, GOLDEN, METRICS)
_FLOAT64 = "float64"


@dataclass(frozen=True, slots=True, kw_only=True)
class Manifest:
    """The description of a bundle; `digest` covers all of it and, by their hashes, its files."""

    schema_version: int
    digest: str
    files: Mapping[str, Mapping[str, Any]]
    """The `sha256` and `bytes` of every file but the manifest and the signature."""
    x_shape: tuple[int, ...]
    x_dtype: str
    latent_dim: int
    likelihood: str
    operations: Mapping[str, Any]
    opset: int
    versions: Mapping[str, str]
    run_id: str | None
    git: Mapping[str, Any]
    data: Mapping[str, Any]
    seed: int
    config: Mapping[str, Any]
    precision: str = "float32"
    """Format of the numbers in the graphs: float32, fp16 or int8."""
    ranges: Mapping[str, Any] | None = None
    """Smallest and largest input of every int8 layer."""
    needs: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    """What each graph needs of a runtime: `opset`, `ir_version`, and `types` of elements."""
    migrated_from: str | None = None
    """Digest of the bundle of an earlier schema that this one was, with the same weights."""

    @property
    def columns(self) -> tuple[str, ...]:
        """Names of the features, if the model was trained on a table with a column for each."""
        return tuple(self.data.get("columns", ()))

    @property
    def schema(self) -> Schema | None:
        """The kinds of the columns of a mixed table, whose gaps are NaN in `x`."""
        known = self.data.get("schema")
        return Schema.from_json(known) if known else None

    @property
    def max_byte(self) -> int:
        """The largest byte that the likelihood allows in `x`."""
        if self.likelihood in ("gaussian", "categorical"):
            return MAX_BYTE
        return max_byte_of(self.data.get("range", (0, MAX_BYTE))[1])

    @property
    def unit_range(self) -> bool:
        """Whether the values of `x` must be from 0 to 1."""
        return self.x_dtype == "float32" and self.likelihood.endswith("bernoulli")


@dataclass(frozen=True, slots=True)
class Bundle:
    """A directory whose files match its manifest."""

    path: Path
    manifest: Manifest

    @property
    def operations(self) -> Mapping[str, Operation]:
        """The operations of this model, by name."""
        manifest = self.manifest
        table = operation_table(
            manifest.x_shape,
            manifest.x_dtype,
            manifest.latent_dim,
            mixed=manifest.schema is not None,
        )
        return {
            name: row
            for name, row in table.items()
            if name in manifest.operations or name not in LATER
        }

    @property
    def portable_forms(self) -> Mapping[str, Operation]:
        """Operations in float32 alone, by label; a bundle of schema 1 has none."""
        return portable_forms(self.operations) if self.manifest.schema_version > 1 else {}

    @property
    def all_forms(self) -> Mapping[str, Operation]:
        """The operations and their portable forms, by label."""
        return {**self.operations, **self.portable_forms}

    @property
    def graphs(self) -> tuple[str, ...]:
        """The graphs of the operations, in all their forms."""
        return tuple(dict.fromkeys(form.graph for form in self.all_forms.values()))

    @property
    def noise_graphs(self) -> tuple[str, ...]:
        """The graphs that draw noise; a bundle of schema 1 has none."""
        if self.manifest.schema_version == 1:
            return ()
        return (*NOISE_GRAPHS, *((DRAW_NOISE_GRAPH,) if "draw" in self.operations else ()))

    def operations_for(self, *, float64: bool) -> Mapping[str, Operation]:
        """Return the operations, by name, in forms that need float64 only if that is allowed.

        Raises:
            DeviceUnavailable: the bundle is of schema 1, and has no form without float64.
        """
        if float64:
            return self.operations
        if not self.manifest.needs:
            raise DeviceUnavailable(
                "score.onnx needs float64, which only cpu and cuda are known to have, and a bundle "
                "of schema 1 has no other form of it: run vae migrate"
            )
        needs = self.manifest.needs
        forms = {str(form.name): form for form in self.portable_forms.values()}
        return {
            name: forms[name] if _FLOAT64 in needs[operation.graph]["types"] else operation
            for name, operation in self.operations.items()
        }

    def golden(self) -> dict[str, NDArray[Any]]:
        """Read a few inputs and torch's outputs for them, for the self-check."""
        try:
            with np.load(self.path / GOLDEN, allow_pickle=False) as arrays:
                return dict(arrays)
        except (OSError, ValueError, EOFError, zipfile.BadZipFile) as err:
            raise VerificationFailed(f"cannot read {self.path / GOLDEN}: {err}") from err

    def picture_range(self) -> Range:
        """Return the values of a black and of a white pixel, in the units of `x`."""
        known = self.manifest.data.get("range")
        values = known or guess_range(self.golden()["encode.x"])
        return picture_range(self.manifest.x_dtype, (values[0], values[1]))

    def read_json(self, name: str) -> Any:
        """Read one of the JSON files, `metrics.json` for example."""
        return json.loads((self.path / name).read_bytes())


def open_bundle(path: Path, *, unsealed: tuple[str, ...] = ()) -> Bundle:
    """Verify every file and open the bundle; files in `unsealed` may differ or be absent."""
    manifest = read_manifest(path)
    bundle = Bundle(path, manifest)
    for name in dict.fromkeys((*REQUIRED, *bundle.graphs, *bundle.noise_graphs)):
        if name not in manifest.files:
            raise VerificationFailed(f"{path} is not complete: the manifest lists no {name}")
        if manifest.schema_version > 1 and name.endswith(".onnx") and name not in manifest.needs:
            raise VerificationFailed(f"{path / MANIFEST} does not say what {name} needs")
    for name, entry in manifest.files.items():
        if name not in unsealed:
            _verify_file(path / name, entry)
    present = {file.name for file in path.iterdir()}
    for name in sorted(present - {*manifest.files, MANIFEST, SIGNATURE, *unsealed}):
        raise VerificationFailed(f"{path / name} is not in the manifest: remove it")
    if manifest.operations != describe_operations(bundle.operations):
        raise VerificationFailed(f"{path / MANIFEST}: the operation table does not fit x_shape")
    return bundle


def read_manifest(path: Path) -> Manifest:
    """Read the manifest of the bundle at `path` and check its digest."""
    try:
        content = json.loads((path / MANIFEST).read_bytes())
    except FileNotFoundError:
        if not path.exists():
            raise UsageRefused(f"no folder {path}") from None
        raise VerificationFailed(f"{path} is not a bundle: it has no {MANIFEST}") from None
    except (OSError, ValueError) as err:
        raise VerificationFailed(f"cannot read {path / MANIFEST}: {err}") from err
    schema = content.get("schema_version") if isinstance(content, dict) else None
    if type(schema) is not int or not 1 <= schema <= SCHEMA_VERSION:
        raise VerificationFailed(
            f"{path / MANIFEST} is of schema {schema!r}, and this vae-pipeline reads 1 to "
            f"{SCHEMA_VERSION}: use the version of vae-pipeline that wrote it"
        )
    if content.get("digest") != manifest_digest(content):
        raise VerificationFailed(f"{path / MANIFEST} was changed after it was sealed")
    needed = {
        item.name
        for item in fields(Manifest)
        if item.default is MISSING and item.default_factory is MISSING
    }
    if missing := needed - content.keys():
        raise VerificationFailed(f"{path / MANIFEST} lacks {', '.join(sorted(missing))}")
    try:
        if any(Path(name).name != name for name in content["files"]):
            raise VerificationFailed(f"{path / MANIFEST} lists a file outside the bundle")
        return Manifest(**{**content, "x_shape": tuple(content["x_shape"])})
    except (TypeError, AttributeError) as err:
        raise VerificationFailed(f"{path / MANIFEST} cannot be used: {err}") from err


def manifest_digest(content: Mapping[str, Any]) -> str:
    """Return the SHA-256 of the manifest's content in canonical JSON, without the digest itself."""
    rest = {key: value for key, value in content.items() if key != "digest"}
    canonical = json.dumps(rest, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(canonical.encode()).hexdigest()


def file_entry(path: Path) -> dict[str, Any]:
    """Return the SHA-256 and size of a file, as the manifest lists them."""
    content = path.read_bytes()
    return {"sha256": hashlib.sha256(content).hexdigest(), "bytes": len(content)}


def describe_operations(operations: Mapping[str, Operation]) -> dict[str, Any]:
    """Return the operation table in JSON types, as the manifest holds it."""

    def describe(operation: Operation) -> dict[str, Any]:
        tensors = {"inputs": operation.inputs, "outputs": operation.outputs}
        return {
            "graph": operation.graph,
            "graph_inputs": list(operation.graph_inputs()),
            **{
                side: [{"name": t.name, "dtype": t.dtype, "shape": list(t.shape)} for t in row]
                for side, row in tensors.items()
            },
        }

    return {name: describe(operation) for name, operation in operations.items()}


def _verify_file(path: Path, entry: Mapping[str, Any]) -> None:
    try:
        found = file_entry(path)
    except OSError as err:
        raise VerificationFailed(f"cannot read {path}: {err.strerror}") from err
    if found != dict(entry):
        raise VerificationFailed(
            f"{path} is not the file that was sealed: sha256 {found['sha256'][:12]}, "
            f"manifest says {str(entry.get('sha256'))[:12]}"
        )
