"""Which arrays of an `.npz` file are the rows, by the names that people give them."""

import pytest

from serving.errors import DataRefused, UsageRefused
from serving.io.array_choice import SplitName, choose_array, choose_splits, find_split

SPLITS: dict[str, tuple[str, dict[str, str], dict[str, str]]] = {
    "one of any name": ("rows", {"train": "rows"}, {}),
    "x and y": ("y x ids", {"train": "x"}, {"train": "y"}),
    "x goes before others": ("images X x", {"train": "x"}, {}),
    "upper case": ("X Y", {"train": "X"}, {"train": "Y"}),
    "scikit-learn": ("data target", {"train": "data"}, {"train": "target"}),
    "keras": (
        "x_train y_train x_test y_test",
        {"train": "x_train", "test": "x_test"},
        {"train": "y_train", "test": "y_test"},
    ),
    "MedMNIST": (
        "train_images val_images test_images train_labels val_labels test_labels",
        {"train": "train_images", "valid": "val_images", "test": "test_images"},
        {"train": "train_labels", "valid": "val_labels", "test": "test_labels"},
    ),
    "capitals": (
        "X_TRAIN X_VALID X_TEST",
        {"train": "X_TRAIN", "valid": "X_VALID", "test": "X_TEST"},
        {},
    ),
    "camels": ("trainX testX testY", {"train": "trainX", "test": "testX"}, {"test": "testY"}),
    "the split alone": (
        "Training validation testing",
        {"train": "Training", "valid": "validation", "test": "testing"},
        {},
    ),
    "x and a set to validate on": ("x x_val", {"train": "x", "valid": "x_val"}, {}),
    "the split goes before x": (
        "x x_train x_test",
        {"train": "x_train", "test": "x_test"},
        {},
    ),
    "training rows alone": ("x_train y_train", {"train": "x_train"}, {"train": "y_train"}),
    "test rows alone": ("x_test y_test", {"train": "x_test"}, {"train": "y_test"}),
    "two labels": ("x label target", {"train": "x"}, {}),
}


@pytest.mark.parametrize(("names", "rows", "labels"), SPLITS.values(), ids=SPLITS)
def test_rows_and_labels_of_the_splits(
    names: str, rows: dict[str, str], labels: dict[str, str]
) -> None:
    chosen = choose_splits("f", names.split())
    assert (chosen.rows, chosen.labels) == (rows, labels)


@pytest.mark.parametrize(
    "names",
    ["a b", "images data", "x_val x_test", "x_trainval x_test", "x_train_val x_test", ""],
    ids=["unknown", "two kinds of rows", "nothing to train on", "unknown train", "both", "none"],
)
def test_what_is_not_clear_is_refused(names: str) -> None:
    with pytest.raises(DataRefused) as caught:
        choose_splits("f.npz", names.split())
    listed = names.replace(" ", ", ") or "none"
    assert str(caught.value) == (
        "f.npz must hold one array of rows, or x, or x_train and x_test; it has "
        f"{listed}: name the one to read by --array"
    )


def test_a_name_is_asked_for_or_refused() -> None:
    assert choose_splits("f", ["a", "x"], "a").rows == {"train": "a"}
    assert choose_array("f", ["a", "x"], "a") == "a"
    for choose in (choose_splits, choose_array):
        with pytest.raises(UsageRefused) as caught:
            choose("f", list("acdefghijklmnopqrs"), "b")
        assert str(caught.value) == (
            "f has no array 'b'; it has a, c, d, e, f, g, h, i, j, k, l, m and 6 more"
        )


def test_a_sparse_matrix_is_named_so() -> None:
    names = ["indices", "indptr", "format", "shape", "data"]
    with pytest.raises(DataRefused, match=r"f is a sparse matrix of scipy: save its rows by"):
        choose_array("f", names)


@pytest.mark.parametrize(
    ("names", "expected"),
    [("y x", "x"), ("a", "a"), ("train_images train_labels", "train_images"), ("x x_test", "x")],
    ids=["x", "the only one", "the only rows", "x beside others"],
)
def test_one_array_to_score(names: str, expected: str) -> None:
    assert choose_array("f", names.split()) == expected


def test_of_several_splits_the_one_to_score_must_be_named() -> None:
    with pytest.raises(DataRefused, match="it has x_train, x_test: name the one to read by"):
        choose_array("f", ["x_train", "x_test"])


def test_unused_arrays_are_listed() -> None:
    names = ["x", "y", "ids", "more"]
    assert choose_splits("f", names).list_unused(names) == ["ids", "more"]


@pytest.mark.parametrize(
    ("name", "split", "rest"),
    [
        ("Training_set", "train", "set"),
        ("VAL", "valid", ""),
        ("dev-2", "valid", "2"),
        ("latest", None, "latest"),
        ("train_test", None, "train test"),
    ],
)
def test_words_of_a_name(name: str, split: SplitName | None, rest: str) -> None:
    assert find_split(name) == (split, frozenset(rest.split()))
