"""The rows that `vae evaluate MODEL --data …` uses."""

import contextlib
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from numpy.typing import NDArray
from PIL import Image
from pyarrow import parquet

from pipeline.cli.data_loading import rows_to_evaluate
from pipeline.data.dataset import Dataset
from pipeline.data.plan import Resources
from pipeline.data.streaming.loading import load_streamed
from pipeline.model.checkpoint import Checkpoint
from serving.errors import DataRefused, UsageRefused, VaeError
from tests.trained_models import Trained, draw_images, draw_table


def test_without_data_the_rows_are_the_held_out_ones(trained: Trained) -> None:
    checkpoint, dataset = trained
    np.testing.assert_array_equal(rows_to_evaluate(checkpoint, None).x, dataset.test.x)


def test_the_training_data_in_another_place_gives_its_held_out_rows(
    trained: Trained, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    checkpoint, dataset = trained
    np.save(tmp_path / "moved.npy", draw_images(400))
    rows = rows_to_evaluate(checkpoint, str(tmp_path / "moved.npy"))
    assert rows.sha256 == dataset.test.sha256
    assert "the model's own held-out rows" in capsys.readouterr().err


def test_the_data_of_a_streamed_training_in_another_place(
    trained: Trained, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Fewer of them are held out than the share tells, and all of them need not fit in memory."""
    checkpoint, _ = trained
    monkeypatch.setattr("pipeline.data.streaming.first_pass.HELD_OUT_BYTES", 7 * 64)
    np.save(tmp_path / "moved.npy", draw_images(400))
    settings: dict[str, Any] = {"valid_fraction": 0.1, "test_fraction": 0.1}
    path = str(tmp_path / "moved.npy")
    dataset = load_streamed(path, Resources(memory=1), **settings)
    checkpoint = replace(checkpoint, data=dataset.describe())
    rows = rows_to_evaluate(checkpoint, path)
    np.testing.assert_array_equal(rows.x, dataset.test.x)
    assert len(rows.x) < 40
    np.save(tmp_path / "other.npy", draw_images(33))
    assert len(rows_to_evaluate(checkpoint, str(tmp_path / "other.npy")).x) == 33


@pytest.fixture
def streamed_model(
    trained: Trained, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> tuple[Checkpoint, list[str]]:
    """A model of 400 streamed images, and the list of the sources that are streamed anew."""
    np.save(tmp_path / "own.npy", draw_images(400))
    settings: dict[str, Any] = {"valid_fraction": 0.1, "test_fraction": 0.1}
    dataset = load_streamed(str(tmp_path / "own.npy"), Resources(memory=1), **settings)
    seen: list[str] = []

    def load(source: str, *given: Any, **chosen: Any) -> Dataset:
        seen.append(source)
        return load_streamed(source, *given, **chosen)

    monkeypatch.setattr("pipeline.data.streaming.loading.load_streamed", load)
    return replace(trained[0], data=dataset.describe()), seen


def save_gray(folder: Path, x: NDArray[Any]) -> Path:
    folder.mkdir()
    for number, image in enumerate(x):
        Image.fromarray(image).save(folder / f"{number:03}.png")
    return folder


def save_as(folder: Path, kind: str) -> Path:
    """Save the model's rows, or others, in one of several formats."""
    own, path = draw_images(400), folder / kind
    if kind == "images":
        return save_gray(path, own[:30])
    if kind.endswith(".parquet"):
        rows = pa.FixedSizeListArray.from_arrays(pa.array(own.reshape(-1)), 30)
        parquet.write_table(pa.table({"x": rows[: 399 if "fewer" in kind else 400]}), path)
    elif kind.endswith(".npz"):
        np.savez(path, x_train=own[:300], x_test=own[: 100 if "same" in kind else 50])
    else:
        np.save(path, {"fewer": own[:399], "wider": draw_images(400)[:, :, :4]}.get(path.stem, own))
    return path


@pytest.mark.parametrize(
    ("kind", "read"),
    [
        ("same.npy", True),
        ("same.parquet", True),
        ("same.npz", True),
        ("fewer.npy", False),
        ("wider.npy", False),
        ("fewer.parquet", False),
        ("fewer.npz", False),
        ("images", False),
    ],
)
def test_rows_of_other_number_or_shape_are_not_streamed_to_be_compared(
    streamed_model: tuple[Checkpoint, list[str]], tmp_path: Path, kind: str, read: bool
) -> None:
    checkpoint, seen = streamed_model
    path = str(save_as(tmp_path, kind))
    seen.clear()
    with contextlib.suppress(DataRefused):  # rows of another shape
        rows_to_evaluate(checkpoint, path)
    assert seen == ([path] if read else [])


def test_a_full_disk_does_not_end_an_evaluation_that_fits_in_memory(
    streamed_model: tuple[Checkpoint, list[str]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def refuse(*given: Any, **chosen: Any) -> Dataset:
        raise VaeError("cannot write x.npy: No space left on device")

    checkpoint, _ = streamed_model
    monkeypatch.setattr("pipeline.data.streaming.loading.load_streamed", refuse)
    np.save(tmp_path / "other.npy", draw_images(400)[::-1])
    rows = rows_to_evaluate(checkpoint, str(tmp_path / "other.npy"))
    np.testing.assert_array_equal(rows.x, draw_images(400)[::-1])
    said = " ".join(capsys.readouterr().err.split())
    assert "cannot tell whether the model learned from some of these rows: cannot write" in said
    monkeypatch.setattr("pipeline.data.streaming.measuring.measure_source", lambda *given: 1 << 60)
    with pytest.raises(VaeError, match="No space left"):
        rows_to_evaluate(checkpoint, str(tmp_path / "other.npy"))


def test_data_that_has_moved_is_asked_for(trained: Trained) -> None:
    checkpoint, _ = trained
    config = replace(checkpoint.config, data=replace(checkpoint.config.data, data="gone.npy"))
    checkpoint = replace(checkpoint, config=config)
    with pytest.raises(UsageRefused, match=r"is not at 'gone.npy': --data names where it is now"):
        rows_to_evaluate(checkpoint, None)


def test_other_data_gives_its_test_set(trained: Trained, tmp_path: Path) -> None:
    test = draw_images(33)[:, ::-1]
    np.savez(tmp_path / "other.npz", x_train=draw_images(20), x_test=test)
    rows = rows_to_evaluate(trained[0], str(tmp_path / "other.npz"))
    np.testing.assert_array_equal(rows.x, test)


@pytest.mark.parametrize("count", [1, 33])
def test_other_data_without_a_test_set_gives_all_rows(
    count: int, trained: Trained, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    np.save(tmp_path / "other.npy", draw_images(count))
    assert len(rows_to_evaluate(trained[0], str(tmp_path / "other.npy")).x) == count
    assert "rows of other data" in capsys.readouterr().err


def test_the_array_of_the_training_is_read_where_it_is(trained: Trained, tmp_path: Path) -> None:
    checkpoint, _ = trained
    config = replace(checkpoint.config, data=replace(checkpoint.config.data, array="b"))
    checkpoint = replace(checkpoint, config=config)
    first, second = draw_images(9), draw_images(11)
    np.savez(tmp_path / "with.npz", x=first, b=second)
    np.savez(tmp_path / "without.npz", x=first, more=second)
    np.save(tmp_path / "x.npy", first)
    for name, array, expected in (
        ("with.npz", "", second),
        ("with.npz", "x", first),
        ("without.npz", "", first),
        ("x.npy", "", first),
    ):
        rows = rows_to_evaluate(checkpoint, str(tmp_path / name), array)
        np.testing.assert_array_equal(rows.x, expected)
    with pytest.raises(UsageRefused, match="has no array 'b'; it has x, more"):
        rows_to_evaluate(checkpoint, str(tmp_path / "without.npz"), "b")


def test_other_data_gives_its_validation_set_if_it_has_no_test_set(
    trained: Trained, tmp_path: Path
) -> None:
    valid = draw_images(33)[:, ::-1]
    np.savez(tmp_path / "other.npz", x_train=draw_images(20), x_val=valid)
    np.testing.assert_array_equal(
        rows_to_evaluate(trained[0], str(tmp_path / "other.npz")).x, valid
    )


def test_the_training_data_with_a_validation_set_gives_its_held_out_rows(
    trained: Trained, tmp_path: Path
) -> None:
    checkpoint, dataset = trained
    np.savez(tmp_path / "moved.npz", x_train=draw_images(400), x_val=draw_images(9))
    rows = rows_to_evaluate(checkpoint, str(tmp_path / "moved.npz"))
    assert rows.sha256 == dataset.test.sha256


@pytest.mark.parametrize(
    ("x", "message"),
    [
        pytest.param(
            np.zeros((9, 5, 5), np.uint8),
            r"rows of uint8 \(5, 5\), but the model takes uint8 \(6, 5\)",
            id="shape",
        ),
        pytest.param(
            np.full((9, 6, 5), 0.5, np.float32),
            r"rows of float32 \(6, 5\), but the model",
            id="dtype",
        ),
    ],
)
def test_rows_that_do_not_fit_are_refused(
    x: np.ndarray, message: str, trained: Trained, tmp_path: Path
) -> None:
    np.save(tmp_path / "other.npy", x)
    with pytest.raises(DataRefused, match=message):
        rows_to_evaluate(trained[0], str(tmp_path / "other.npy"))


def test_another_table_needs_no_label_and_an_array_no_columns(
    trained_table: Trained, tmp_path: Path
) -> None:
    checkpoint, _ = trained_table
    data = replace(checkpoint.config.data, columns=("b", "a", "c", "d"), label="kind")
    named = replace(checkpoint, config=replace(checkpoint.config, data=data))
    x = draw_table(20)
    np.save(tmp_path / "x.npy", x)
    table = pa.table(dict(zip("bacd", x.T, strict=True)))
    parquet.write_table(table, tmp_path / "x.parquet")
    labelled = table.append_column("kind", pa.array(range(20)))
    parquet.write_table(labelled, tmp_path / "labelled.parquet")
    for name in ("x.npy", "x.parquet", "labelled.parquet"):
        np.testing.assert_array_equal(rows_to_evaluate(named, str(tmp_path / name)).x, x)
    parquet.write_table(table.drop_columns(["a"]), tmp_path / "less.parquet")
    with pytest.raises(UsageRefused, match="no column 'a'; it has b"):
        rows_to_evaluate(named, str(tmp_path / "less.parquet"))
