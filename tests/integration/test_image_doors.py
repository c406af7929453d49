"""The same images and arrays at every door: each reads the same rows, or refuses them.

The doors are training, `vae evaluate`, `vae score`, `vae reconstruct`, tables of image files, the
rows of a Spark frame, MLflow's pyfunc and the server. The last two take arrays alone.
"""

import gzip
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pyarrow as pa
import pytest
from click.testing import CliRunner, Result
from numpy.typing import NDArray
from pyarrow import dataset, parquet

from pipeline.cli.data_loading import rows_to_evaluate
from pipeline.cli.main import cli
from pipeline.data.dataset import load_dataset
from pipeline.data.readers import read_source
from pipeline.data.selection import Selection
from serving import Client
from serving.batch.scorer import Scorer, provenance_of
from serving.bundle import Bundle
from serving.engine import Engine
from serving.errors import DataRefused, UsageRefused, VaeError
from serving.source import Source
from tests.integration.test_pyfunc import load_model
from tests.serving.io.images import encode, frames, png, turned
from tests.serving.running import serve
from tests.trained_models import Trained, make_bundle, tiny_config, train_checkpoint

Array = NDArray[Any]

SHAPE = (6, 5, 3)
X = np.random.default_rng(1).integers(0, 256, (8, *SHAPE), dtype=np.uint8)
GRAY = X[0, ..., 0]


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Trained:
    folder = tmp_path_factory.mktemp("colours")
    np.save(folder / "x.npy", np.random.default_rng(0).integers(0, 256, (60, *SHAPE), np.uint8))
    found = load_dataset(str(folder / "x.npy"), valid_fraction=0.1, test_fraction=0.25)
    return train_checkpoint(found, tiny_config(found)), found


@pytest.fixture(scope="module")
def bundle(trained: Trained, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return make_bundle(tmp_path_factory.mktemp("bundle") / "bundle", trained)


@pytest.fixture(scope="module")
def engine(bundle: Bundle) -> Engine:
    return Engine(bundle)


def write(folder: Path, files: Mapping[str, bytes]) -> Path:
    folder.mkdir()
    for name, content in files.items():
        (folder / name).write_bytes(content)
    return folder


def on_its_side(x: Array, kind: str) -> bytes:
    """Encode what is upright when it is turned clockwise, as orientation 6 says."""
    settings = {"lossless": True} if kind == "WEBP" else {}
    return turned(np.ascontiguousarray(np.rot90(x)), 6, kind, **settings)


IMAGES: dict[str, bytes] = {
    "0.png": encode(X[0]),
    "1.BMP": encode(X[1], "BMP"),
    "2.gif": encode(X[2], "GIF"),
    "3.tif": on_its_side(X[3], "TIFF"),
    "4.webp": on_its_side(X[4], "WEBP"),
    "5.ppm": encode(X[5], "PPM"),
    "6.PNG": on_its_side(X[6], "PNG"),
    "7.tiff": encode(X[7], "TIFF", compression="tiff_lzw"),
}
BESIDE = {"notes.txt": b"a,b", "labels.csv": b"file,label\n0.png,cat\n", "8.heic": b"ftyp"}


def save_gzipped(path: Path) -> Path:
    np.save(path.with_suffix(""), X)
    path.write_bytes(gzip.compress(path.with_suffix("").read_bytes()))
    return path


def save_named(path: Path) -> Path:
    with path.open("wb") as file:
        np.save(file, X)
    return path


def save_npz(path: Path, **arrays: Array) -> Path:
    np.savez(path, allow_pickle=True, **arrays)
    return path


SOURCES: dict[str, Callable[[Path], Path]] = {
    "folder of images": lambda folder: write(folder / "in", IMAGES | BESIDE),
    "npy": lambda folder: save_named(folder / "x.npy"),
    "upper case": lambda folder: save_named(folder / "X.NPY"),
    "gzipped": lambda folder: save_gzipped(folder / "x.npy.gz"),
    "npz with objects": lambda folder: save_npz(
        folder / "x.npz", images=X, names=np.array(["a", {}], object)
    ),
    "column of images": lambda folder: save_column(folder / "x.parquet", list(IMAGES.values())),
}


def save_column(path: Path, contents: list[bytes]) -> Path:
    parquet.write_table(pa.table({"image": contents}), path)
    return path


def vae(*arguments: object) -> Result:
    result = CliRunner().invoke(cli, [str(argument) for argument in arguments])
    if isinstance(result.exception, VaeError):
        raise result.exception
    assert result.exit_code == 0, result.output
    return result


def score(path: Path, bundle: Bundle, *more: object) -> dict[str, Array]:
    """The results of `vae score` in the order of the rows."""
    out = path.parent / f"{path.name}.scores"
    vae("score", path, out, "--model", bundle.path, "--workers", 1, "--seed", 7, *more)
    table = dataset.dataset(out, format="parquet", exclude_invalid_files=False).to_table()
    return {name: table[name].to_numpy() for name in ("elbo", "log_likelihood", "kl")}


def reconstruct(path: Path, bundle: Bundle, *more: object) -> Array:
    out = path.parent / "out.npy"
    vae("reconstruct", path, "--model", bundle.path, "--out", out, "--threads", 1, *more)
    return np.asarray(np.load(out))


@pytest.mark.parametrize("make", SOURCES.values(), ids=SOURCES)
def test_every_door_reads_the_same_rows(
    make: Callable[[Path], Path], tmp_path: Path, trained: Trained, bundle: Bundle, engine: Engine
) -> None:
    path = make(tmp_path)
    np.testing.assert_array_equal(read_source(str(path)).train.x, X, strict=True)
    np.testing.assert_array_equal(rows_to_evaluate(trained[0], str(path)).x, X, strict=True)
    assert reconstruct(path, bundle).tobytes() == engine.reconstruct(X).tobytes()
    expected = engine.score(X, num_samples=1, seed=7)
    for name, values in score(path, bundle).items():
        assert values.tobytes() == expected[name].tobytes()


def test_every_door_tells_what_it_passes_over(
    tmp_path: Path, trained: Trained, bundle: Bundle, capsys: pytest.CaptureFixture[str]
) -> None:
    path = write(tmp_path / "in", IMAGES | BESIDE)
    told = (
        f"{path}: 8 images; passed over 3 other files, 1 .heic, 1 .csv, 1 .txt (8.heic, "
        "labels.csv, notes.txt)"
    )
    read_source(str(path))
    rows_to_evaluate(trained[0], str(path))
    assert capsys.readouterr().err.splitlines()[:2] == [told, told]
    model = ("--model", bundle.path)
    for result in (
        vae("score", path, tmp_path / "out", *model),
        vae("reconstruct", path, *model, "--out", tmp_path / "x.npy"),
    ):
        assert told in result.stderr.splitlines()


GRAYS = X[..., 0]
GRAY_FORMATS: dict[str, Callable[[Array], bytes]] = {
    "PNG": encode,
    "RGB": lambda x: encode(x, mode="RGB"),
    "palette": lambda x: encode(x, mode="P"),
    "GIF": lambda x: encode(x, "GIF"),
    "WebP": lambda x: encode(x, "WEBP", lossless=True),
}


@pytest.mark.parametrize("make", GRAY_FORMATS.values(), ids=GRAY_FORMATS)
def test_gray_pixels_are_gray_in_every_format_and_a_colour_makes_all_coloured(
    make: Callable[[Array], bytes], tmp_path: Path, trained: Trained, bundle: Bundle, engine: Engine
) -> None:
    files = {f"{index}.png": make(x) for index, x in enumerate(GRAYS)}
    coloured = np.repeat(GRAYS[..., None], 3, -1)
    for path in (
        write(tmp_path / "in", files),
        save_column(tmp_path / "x.parquet", [*files.values()]),
    ):
        np.testing.assert_array_equal(read_source(str(path)).train.x, GRAYS, strict=True)
        # a model of colours takes them with three channels
        np.testing.assert_array_equal(rows_to_evaluate(trained[0], str(path)).x, coloured)
        expected = engine.score(coloured, num_samples=1, seed=7)["elbo"]
        assert score(path, bundle)["elbo"].tobytes() == expected.tobytes()
    files["9.png"] = encode(X[0])
    for path in (
        write(tmp_path / "more", files),
        save_column(tmp_path / "y.parquet", [*files.values()]),
    ):
        found = read_source(str(path)).train.x
        np.testing.assert_array_equal(found, [*coloured, X[0]], strict=True)


DEEP = png(X[0].astype(np.uint16) << 8, 16, 2)
REFUSED: dict[str, tuple[bytes, str]] = {
    "16 bits": (DEEP, "it has 16 bits per channel, and images are read with 8"),
    "transparent": (png(np.dstack([X[0], GRAY]), 8, 6), "parts of it are transparent"),
    "transparent colour": (
        png(X[0], 8, 2, (b"tRNS", X[0, 0, 0].astype(">u2").tobytes())),
        "parts of it are transparent",
    ),
    "on its side": (turned(X[0], 6, "JPEG"), "images must be of one size"),
    "animated": (frames("GIF", X[0], X[1]), "it has several frames or pages"),
    "pages": (frames("TIFF", X[0], X[1]), "it has several frames or pages"),
    "CMYK": (encode(X[0], "JPEG", mode="CMYK"), "its mode is CMYK"),
    "bomb": (png(GRAY[:1, :1], 8, 0, size=20_000), "more than 89,478,485"),
    "no image": (b"text", "it is not an image"),
}


@pytest.mark.parametrize(("content", "cause"), REFUSED.values(), ids=REFUSED)
def test_every_door_refuses_what_would_be_lost(
    content: bytes, cause: str, tmp_path: Path, trained: Trained, bundle: Bundle, engine: Engine
) -> None:
    folder = write(tmp_path / "in", {"0.png": IMAGES["0.png"], "1.png": content})
    column = save_column(tmp_path / "x.parquet", [IMAGES["0.png"], content])
    for read in (read_source, lambda source: rows_to_evaluate(trained[0], source)):
        with pytest.raises(DataRefused) as caught:
            read(str(folder))
        assert cause in str(caught.value)
        assert str(folder / "1.png") in str(caught.value)
    reason = "x is not an opaque 8-bit image of the model's size and colours"
    for path in (folder, column):
        for use in (score, reconstruct):
            with pytest.raises(DataRefused, match=reason):
                use(path, bundle)
    with pytest.raises(DataRefused, match=reason):
        read_source(str(column))
    batch = pa.record_batch({"image": [IMAGES["0.png"], content]})  # as Spark hands rows over
    scorer = Scorer(engine, provenance_of(Source(bundle), 7, 1), "score", batch.schema)
    good, bad = scorer(batch)
    assert (good.num_rows, bad["reason"].to_pylist()) == (1, [reason])


FILES: dict[str, tuple[str, bytes, str]] = {
    "MATLAB": ("x.mat", b"MATLAB 5.0", "is not read: it is a MATLAB file; load it by"),
    "HDF5": ("x.h5", b"\x89HDF\r\n\x1a\n", "is not read: it is an HDF5 file; open it"),
    "pickle": (
        "x.pkl",
        b"\x80\x05",
        "is not read: it is a pickle, which can",
    ),
    "tar": ("x.tar.gz", b"\x1f\x8b", "is not read: it is an archive; unpack it"),
    "text": ("x.dat", b"1;2;3\n", "is none of the files that are read"),
}


@pytest.mark.parametrize(("name", "content", "cause"), FILES.values(), ids=FILES)
def test_every_door_names_what_is_not_read(
    name: str, content: bytes, cause: str, tmp_path: Path, trained: Trained, bundle: Bundle
) -> None:
    path = tmp_path / name
    path.write_bytes(gzip.compress(b"tar") if name.endswith(".gz") else content)
    for use in (
        lambda: read_source(str(path)),
        lambda: rows_to_evaluate(trained[0], str(path)),
        lambda: score(path, bundle),
        lambda: reconstruct(path, bundle),
    ):
        with pytest.raises(DataRefused) as caught:
            use()
        assert str(caught.value).startswith(f"{path} {cause}")
        assert len(str(caught.value)) < 300 + len(str(path))


def test_every_door_takes_the_array_that_is_named(
    tmp_path: Path, trained: Trained, bundle: Bundle, engine: Engine
) -> None:
    path = save_npz(tmp_path / "x.npz", a=X[::-1], b=X)
    np.testing.assert_array_equal(read_source(str(path), Selection(array="b")).train.x, X)
    np.testing.assert_array_equal(rows_to_evaluate(trained[0], str(path), "b").x, X)
    assert reconstruct(path, bundle, "--array", "b").tobytes() == engine.reconstruct(X).tobytes()
    expected = engine.score(X, num_samples=1, seed=7)
    assert score(path, bundle, "--array", "b")["elbo"].tobytes() == expected["elbo"].tobytes()
    for name, error, message in (
        ("c", UsageRefused, "has no array 'c'; it has a, b"),
        ("", DataRefused, "it has a, b: name the one to read by --array"),
    ):
        for use in (
            lambda name=name: read_source(str(path), Selection(array=name)),
            lambda name=name: rows_to_evaluate(trained[0], str(path), name),
            lambda name=name: score(path, bundle, "--array", name, "--overwrite"),
            lambda name=name: reconstruct(path, bundle, "--array", name),
        ):
            with pytest.raises(error, match=message):
                use()


def test_latents_are_those_of_the_array_that_is_named(
    tmp_path: Path, bundle: Bundle, engine: Engine
) -> None:
    path = save_npz(tmp_path / "x.npz", a=X[::-1], b=X)
    out = tmp_path / "out.npy"
    arguments = (path, "--array", "b", "--model", bundle.path, "--out", out, "--threads", 1)
    vae("interpolate", *arguments, "--row", 2, "--row", 5, "--steps", 2)
    assert np.load(out).tobytes() == engine.reconstruct(X[[2, 5]]).tobytes()
    vae("traverse", *arguments, "--row", 2, "--latent", 0, "--steps", 3)
    z = np.repeat(engine.encode(X[2:3])["z_loc"], 3, axis=0)
    z[:, 0] = [-3, 0, 3]
    assert np.load(out).tobytes() == engine.decode(z).tobytes()
    z_file = save_npz(tmp_path / "z.npz", codes=z, more=z)
    vae("decode", z_file, "--array", "codes", *arguments[3:])
    assert np.load(out).tobytes() == engine.decode(z).tobytes()


def test_a_job_on_another_array_is_another_job(tmp_path: Path, bundle: Bundle) -> None:
    path = save_npz(tmp_path / "x.npz", a=X[::-1], b=X)
    score(path, bundle, "--array", "a")
    with pytest.raises(UsageRefused, match="--overwrite"):
        score(path, bundle, "--array", "b")


def test_pyfunc_and_the_server_take_arrays_and_no_image_files(
    tmp_path: Path, bundle: Bundle, engine: Engine
) -> None:
    model = load_model(bundle)
    expected = engine.reconstruct(X).tobytes()
    with serve(tmp_path, bundle.path) as running, Client(running.rest) as client:
        for x in (X, X.astype(np.float64)):
            assert model.predict(None, x)["x_loc"].tobytes() == expected
        assert client.reconstruct(X).tobytes() == expected
        first = X.transpose(0, 3, 1, 2)
        with pytest.raises(ValueError, match=r"x must be \('batch', 6, 5, 3\), got \(8, 3, 6, 5\)"):
            model.predict(None, first)
        with pytest.raises(ValueError, match="x must be"):
            model.predict(None, np.array([IMAGES["0.png"]], object))
        request = {"name": "x", "shape": [1], "datatype": "BYTES", "data": ["iVBORw0KGgo="]}
        answer = httpx.post(
            f"{running.rest}/v2/models/reconstruct/infer", json={"inputs": [request]}
        )
        assert answer.status_code == 400
