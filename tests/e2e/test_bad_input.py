"""Bad input gives the user one line and the right exit code, and leaves nothing half-written."""

import gzip
import struct
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from pipeline.config import DATA_KINDS
from tests.e2e.conftest import TINY, draw_images, run_vae
from tests.e2e.refusals import refusal, run_statuses, tree, versions

IDX = struct.pack(">HBB3I", 0, 8, 3, 4, 6, 5) + bytes(120)
needs_no_cuda = pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has CUDA")


def write(name: str, content: bytes) -> Callable[[Path], None]:
    return lambda folder: void((folder / name).write_bytes(content))


def save(name: str, x: np.ndarray) -> Callable[[Path], None]:
    return lambda folder: np.save(folder / name, x)


def void(value: object) -> None:
    """Make an expression of any value one that gives None."""


BAD_ROWS: dict[str, tuple[str, Callable[[Path], object], str]] = {
    "folder": ("x", lambda folder: (folder / "x").mkdir(), "no files in x"),
    "wrong magic": (
        "x.bin",
        write("x.bin", b"\x89HDF\r\n\x1a\n"),
        "x.bin is not read: it is an HDF5 file; open it by h5py and save the array by "
        "numpy.save; a table by pandas.read_hdf and to_parquet",
    ),
    "text": (
        "x.txt",
        write("x.txt", b"1,2,3\n"),
        "x.txt is none of the files that are read, Parquet, Arrow, CSV, .npy, .npz, IDX, or images "
        "(PNG, JPEG, WebP, BMP, GIF, TIFF, PNM): it starts with '1,2,3'",
    ),
    "CSV without names": (
        "x.csv",
        write("x.csv", b"1,2,3\n4,5,6\n"),
        "the first line of x.csv must name the columns, got 1, 2, 3",
    ),
    "CSV of a header": (
        "x.csv",
        write("x.csv", b"a,b,c\n"),
        "x.csv must hold at least one row, it has none",
    ),
    "truncated gz": (
        "x.gz",
        write("x.gz", gzip.compress(IDX)[:-9]),
        "cannot read x.gz: Compressed file ended before the end-of-stream marker was reached",
    ),
    "IDX cut off": (
        "x.idx",
        write("x.idx", IDX[:-1]),
        "x.idx is cut off: shape (4, 6, 5) needs 136 bytes, got 135",
    ),
    "wrong shape": (
        "x.npy",
        save("x.npy", np.zeros((4, 5, 6), np.uint8)),
        "column 'x' is fixed_size_list<item: fixed_size_list<item: uint8>[6]>[5], "
        "but x takes rows of (6, 5)",
    ),
    "wrong values": (
        "x.npy",
        save("x.npy", np.full((4, 6, 5), 0.5, np.float32)),
        "bad row, file 'x.npy', row 0: x is not a whole number from 0 to 255; ",
    ),
    "empty set": (
        "x.npy",
        save("x.npy", np.zeros((0, 6, 5), np.uint8)),
        "x.npy must hold at least one row, it has none",
    ),
    "one number": (
        "x.npy",
        save("x.npy", np.zeros((), np.uint8)),
        "x.npy must hold at least one row, got ()",
    ),
}


@pytest.mark.parametrize(("name", "make", "message"), BAD_ROWS.values(), ids=BAD_ROWS.keys())
def test_rows_that_cannot_be_scored_are_refused(
    bundle: Path, tmp_path: Path, name: str, make: Callable[[Path], object], message: str
) -> None:
    make(tmp_path)
    before = tree(tmp_path)
    result = run_vae(tmp_path, "score", name, "scores", "--model", "bundle")
    assert refusal(result, 3).replace(f"{tmp_path}/", "").startswith(message)
    after = tree(tmp_path)
    assert {key: after[key] for key in after if not key.startswith("scores")} == before
    assert not [key for key in after if "part-" in key]


@pytest.mark.parametrize("name", ["none.npy", "none/", "*.npy", "none://x"])
@pytest.mark.parametrize("command", ["score", "reconstruct", "evaluate", "train"])
def test_nothing_at_a_path_is_a_usage_error(
    bundle: Path, tmp_path: Path, command: str, name: str
) -> None:
    before = tree(tmp_path)
    arguments = {
        "score": ("score", name, "scores", "--model", "bundle"),
        "reconstruct": ("reconstruct", name, "--model", "bundle", "--out", "y.png"),
        "evaluate": ("evaluate", "bundle", "--data", name),
        "train": ("train", "--data", name),
    }
    result = run_vae(tmp_path, *arguments[command])
    assert refusal(result, 2).startswith(("no file", "no data at"))
    assert tree(tmp_path) == before


def test_rows_that_cannot_be_reconstructed_are_refused(bundle: Path, tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", np.zeros((0, 6, 5), np.uint8))
    before = tree(tmp_path)
    result = run_vae(tmp_path, "reconstruct", "x.npy", "--model", "bundle", "--out", "y.png")
    assert refusal(result, 3) == "x.npy must hold at least one row, it has none"
    assert tree(tmp_path) == before


@pytest.mark.parametrize(
    ("out", "message"),
    [
        ("y.txt", "--out must end in .png, .npy, .parquet, .csv, got 'y.txt'"),
        ("none/y.parquet", "cannot write none/y.parquet: No such file or directory"),
        ("/dev/null/y.parquet", "cannot write /dev/null/y.parquet: Not a directory"),
    ],
    ids=["another kind", "no folder", "no place"],
)
def test_a_target_that_cannot_be_written_is_refused_before_the_work(
    bundle: Path, tmp_path: Path, out: str, message: str
) -> None:
    before = tree(tmp_path)
    result = run_vae(tmp_path, "reconstruct", "none.npy", "--model", "bundle", "--out", out)
    assert refusal(result, 2) == message
    assert tree(tmp_path) == before


@pytest.mark.parametrize(
    ("reference", "exit_code", "message"),
    [
        ("none", 2, "no folder none"),
        (
            "models:/vae",
            2,
            "model must be a bundle folder, models:/NAME@ALIAS or models:/NAME/VERSION, "
            "got 'models:/vae'",
        ),
        (
            "models:/vae/latest",
            2,
            "model must be a bundle folder, models:/NAME@ALIAS or models:/NAME/VERSION, "
            "got 'models:/vae/latest'",
        ),
    ],
    ids=["no folder", "no version", "no number"],
)
def test_a_reference_to_no_model_is_refused(
    tmp_path: Path, reference: str, exit_code: int, message: str
) -> None:
    result = run_vae(tmp_path, "sample", "--model", reference, "--out", "y.npy")
    assert refusal(result, exit_code) == message
    assert tree(tmp_path) == {}


@pytest.mark.usefixtures("store")
def test_a_model_that_nobody_promoted_is_refused(tmp_path: Path) -> None:
    result = run_vae(tmp_path, "sample", "--model", "models:/nothing@champion", "--out", "y.npy")
    message = refusal(result, 2)
    assert message.startswith("nothing has no champion in sqlite:")
    assert message.endswith("/mlflow.db: run vae run, or promote a version")
    assert not (tmp_path / "y.npy").exists()


@pytest.mark.parametrize("name", ["y.npy", "y.parquet", "y.png"])
def test_a_full_disk_leaves_no_file(bundle: Path, tmp_path: Path, name: str) -> None:
    """A limit of 4 kB on files makes writing fail as it does on a full disk."""
    limited = (
        "import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096)); "
        "from pipeline.cli.main import main; main()"
    )
    before = tree(tmp_path)
    result = run_vae(
        tmp_path,
        *("sample", "--model", "bundle", "--count", "400", "--out", name),
        command=(sys.executable, "-c", limited),
    )
    message = refusal(result, 1)
    assert message.startswith(f"cannot write {name}: ")
    assert message.endswith("File too large")
    assert tree(tmp_path) == before


def test_an_unknown_preset_is_a_usage_error(tmp_path: Path) -> None:
    result = run_vae(tmp_path, "run", "--preset", "exmaple")
    assert result.returncode == 2
    assert result.stdout == ""
    assert result.stderr.splitlines()[-1] == (
        "Error: Invalid value for '--preset': 'exmaple' is not one of 'default', 'seed', "
        "'example', 'burda', 'conv', 'resnet'."
    )
    assert tree(tmp_path) == {}


NORMAL = np.random.default_rng(0).normal(size=(300, 4)).clip(-2, 2).astype(np.float32)
BAD_DATA: dict[str, tuple[Callable[[Path], object], tuple[str, ...], str]] = {
    "missing": (
        lambda folder: None,
        (),
        f"no data at 'x.npy': give {DATA_KINDS}",
    ),
    "NaN": (
        save("x.npy", np.where(np.arange(300)[:, None] == 17, np.nan, NORMAL)),
        (),
        "{folder}/x.npy must be finite: 1 of 300 rows are not, the first is row 17, feature 0; "
        "--drop-missing leaves out rows with a NaN",
    ),
    "out of support": (
        save("x.npy", NORMAL),
        ("likelihood bernoulli; rows of float32 (4,)",),
        "a bernoulli likelihood needs bytes, or floats from 0 to 1; got -2 to 2: "
        "use --likelihood gaussian",
    ),
}


@pytest.mark.usefixtures("store")
@pytest.mark.parametrize(("make", "before", "message"), BAD_DATA.values(), ids=BAD_DATA.keys())
def test_data_that_cannot_be_learned_from_is_refused_before_a_run_is_opened(
    made: Path,
    tmp_path: Path,
    make: Callable[[Path], object],
    before: tuple[str, ...],
    message: str,
) -> None:
    make(tmp_path)
    arguments = ("--data", "x.npy", "--likelihood", "bernoulli", "--epochs", "1")
    result = run_vae(tmp_path, "run", *arguments, "--out", "other", *TINY)
    lines = tuple(line.format(folder=tmp_path) for line in before)
    exit_code = 2 if message.startswith("no data at") else 3
    assert refusal(result, exit_code, lines) == message.format(folder=tmp_path)
    assert not (tmp_path / "other").exists()
    assert run_statuses(tmp_path) == run_statuses(made)
    assert versions(tmp_path) == ["1"]


def test_data_that_has_moved_is_named_by_check(made: Path, bundle: Path, tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", draw_images(300)[::-1])
    before = tree(tmp_path)
    result = run_vae(tmp_path, "check", "bundle", "--data", "x.npy")
    assert refusal(result, 3).startswith("x.npy is not the data that the model was trained with: ")
    assert tree(tmp_path) == before


@pytest.mark.parametrize(
    ("out", "message"),
    [
        ("bundle", "--out bundle exists: name a new folder"),
        ("/dev/null/other", "cannot write to /dev/null: Not a directory"),
    ],
    ids=["exists", "no place"],
)
def test_a_bundle_is_not_exported_over_something(
    bundle: Path, tmp_path: Path, out: str, message: str
) -> None:
    before = tree(tmp_path)
    result = run_vae(tmp_path, "export", "--run-id", "0" * 32, "--out", out)
    assert refusal(result, 2) == message
    assert tree(tmp_path) == before


def test_a_store_that_cannot_be_written_is_named(made: Path, store: Path, tmp_path: Path) -> None:
    uri = f"sqlite:///file:{store}?mode=ro&uri=true"
    before = store.read_bytes()
    arguments = ("--data", str(made / "x.npy"), "--epochs", "1", *TINY)
    result = run_vae(tmp_path, "run", *arguments, MLFLOW_TRACKING_URI=uri)
    said = ("likelihood bernoulli, for bytes; rows of uint8 (6, 5)",)
    assert refusal(result, 1, said) == (
        f"the MLflow store {uri} refused: attempt to write a readonly database"
    )
    assert store.read_bytes() == before
    assert not (tmp_path / "bundles").exists()


def test_a_store_that_cannot_be_made_is_named(made: Path, tmp_path: Path) -> None:
    uri = "sqlite:////dev/null/store/mlflow.db"
    result = run_vae(tmp_path, "register", str(made / "bundle"), MLFLOW_TRACKING_URI=uri)
    assert refusal(result, 1).startswith(f"the MLflow store {uri} refused: ")
    assert tree(tmp_path) == {}


def test_a_server_that_does_not_answer_is_named(tmp_path: Path) -> None:
    uri = "http://127.0.0.1:9"
    result = run_vae(
        tmp_path, "history", MLFLOW_TRACKING_URI=uri, MLFLOW_HTTP_REQUEST_MAX_RETRIES="1"
    )
    message = refusal(result, 1)
    assert message.startswith(f"the MLflow store {uri} refused: ")
    assert "Connection refused" in message
    assert tree(tmp_path) == {}


@needs_no_cuda
@pytest.mark.usefixtures("store")
def test_training_on_a_gpu_that_is_not_there_ends_with_8(made: Path, tmp_path: Path) -> None:
    arguments = ("--data", str(made / "x.npy"), "--epochs", "1", "--device", "cuda")
    result = run_vae(tmp_path, "train", *arguments)
    assert refusal(result, 8).startswith("device cuda is not available: torch ")
    assert run_statuses(tmp_path) == run_statuses(made)


@needs_no_cuda
def test_checking_on_a_gpu_that_is_not_there_ends_with_8(bundle: Path, tmp_path: Path) -> None:
    before = tree(tmp_path)
    result = run_vae(tmp_path, "check", "bundle", "--device", "cuda")
    assert refusal(result, 8).startswith("device cuda is not available: ")
    assert tree(tmp_path) == before


@needs_no_cuda
def test_sampling_on_a_gpu_that_is_not_there_ends_with_8(bundle: Path, tmp_path: Path) -> None:
    before = tree(tmp_path)
    arguments = ("--model", "bundle", "--device", "cuda", "--out", "y.npy")
    result = run_vae(tmp_path, "sample", *arguments)
    assert refusal(result, 8).startswith("device cuda is not available: ")
    assert tree(tmp_path) == before
