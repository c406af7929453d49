"""Folders that are splits, folders that are labels, and what is neither clearly."""

from pathlib import Path

import pytest

from pipeline.data.split_folders import find_split_folders
from serving.errors import DataRefused


def make(folder: Path, names: str) -> Path:
    for name in names.split():
        (folder / name).mkdir()
    return folder


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        ("train test", "train:train test:test"),
        ("training testing", "train:training test:testing"),
        ("Train Test", "train:Train test:Test"),
        ("TRAIN TEST VAL", "train:TRAIN valid:VAL test:TEST"),
        ("train val", "train:train valid:val"),
        ("train valid test", "train:train valid:valid test:test"),
        ("training_set test_set", "train:training_set test:test_set"),
        ("train-images test-images", "train:train-images test:test-images"),
        ("seg_train seg_test", "train:seg_train test:seg_test"),
        ("Training Validation Testing .git _old", "train:Training valid:Validation test:Testing"),
        ("cat dog", ""),
        ("train bus plane", ""),
        ("test_tube beaker", ""),
        ("train", ""),
        ("test", ""),
        ("split=train split=test", ""),
        ("", ""),
    ],
    ids=str,
)
def test_folders_are_splits_or_labels(tmp_path: Path, names: str, expected: str) -> None:
    found = find_split_folders(make(tmp_path, names))
    assert " ".join(f"{split}:{path.name}" for split, path in found.items()) == expected


@pytest.mark.parametrize(
    ("names", "message"),
    [
        ("train test extra", "{} has 'extra' beside 'train' and 'test': move it into one of them"),
        ("cat dog test", "{} has 'test' but no 'train': its rows would be trained on; put the"),
        ("test val", "{} has 'val' and 'test' but no 'train': its rows would be trained on"),
        ("train Training test", "{} has 'Training' and 'train', which both name one split"),
        ("train val validation", "{} has 'val' and 'validation', which both name one split"),
    ],
    ids=["a third", "labels and a test set", "nothing to train on", "twice", "twice in words"],
)
def test_rows_are_neither_ignored_nor_mixed(tmp_path: Path, names: str, message: str) -> None:
    with pytest.raises(DataRefused) as caught:
        find_split_folders(make(tmp_path, names))
    assert str(caught.value).startswith(message.format(tmp_path))
