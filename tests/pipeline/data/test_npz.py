"""Arrays of an `.npz` file: sets of its own, an array by name, and what is beside them."""

from pathlib import Path

import numpy as np
import pytest

from pipeline.data.dataset import load_dataset
from pipeline.data.readers import read_source
from pipeline.data.selection import Selection
from serving.errors import UsageRefused
from tests.pipeline.data.test_dataset import BYTES, FLOATS, count_rows, load, save


def test_a_validation_set_of_the_data_s_own_is_used(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    parts = {"X_train": BYTES[:20], "X_val": BYTES[20:25], "X_test": BYTES[25:], "ids": BYTES}
    np.savez(tmp_path / "x.npz", allow_pickle=False, **parts)
    dataset = load(tmp_path / "x.npz", valid_fraction=0.5, test_fraction=0.5)
    for split, name in ((dataset.train, "X_train"), (dataset.valid, "X_val")):
        np.testing.assert_array_equal(split.x, parts[name])
    np.testing.assert_array_equal(dataset.test.x, parts["X_test"])
    assert capsys.readouterr().err == (
        f"{tmp_path / 'x.npz'}: X_train to train on, X_val to validate on, X_test to test on; "
        "not used: ids\n"
    )


def test_a_test_set_is_split_off_beside_a_validation_set(tmp_path: Path) -> None:
    np.savez(tmp_path / "x.npz", train=BYTES[:30], val=BYTES[30:])
    dataset = load(tmp_path / "x.npz", test_fraction=0.2)
    np.testing.assert_array_equal(dataset.valid.x, BYTES[30:])
    assert count_rows(dataset.sample, dataset.test.x) == count_rows(BYTES[:30])
    assert len(dataset.test.x) == 6


def test_an_array_is_chosen_by_name(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    np.savez(tmp_path / "x.npz", a=BYTES, b=BYTES[::-1], y=np.arange(40))
    dataset = load_dataset(str(tmp_path / "x.npz"), valid_fraction=0, test_fraction=0.1, array="b")
    assert dataset.digests() == load(save(tmp_path / "b.npy", BYTES[::-1]), 0).digests()
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("name", ["x.npy", "x.csv", "folder"])
def test_an_array_is_chosen_of_an_npz_alone(tmp_path: Path, name: str) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "x.npy").touch()
    (tmp_path / "x.csv").write_text("a\n1\n")
    save(tmp_path / "x.npy", FLOATS)
    with pytest.raises(UsageRefused, match=r"--array chooses from an \.npz file, and "):
        read_source(str(tmp_path / name), Selection(array="x"))


def test_what_is_no_array_beside_the_rows_is_not_read(tmp_path: Path) -> None:
    names = np.array([{"a": 1}] * 40, object)
    np.savez(tmp_path / "x.npz", x=FLOATS, names=names, y=names, allow_pickle=True)
    dataset = load(tmp_path / "x.npz")
    assert dataset.digests() == load(save(tmp_path / "x.npy", FLOATS)).digests()
    assert dataset.test.labels is None
