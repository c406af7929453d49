"""Outputs are whole or absent, bad ones are refused early, and unreadable files are named."""

import os
import zlib
from collections.abc import Iterator
from pathlib import Path

import pytest

from serving.bundle import Bundle
from serving.errors import DataRefused, UsageRefused, VaeError
from serving.files import (
    check_output_file,
    check_output_folder,
    reading,
    refuse_in_bundle,
    staged_file,
    staged_folder,
)


@pytest.fixture(params=[0o022, 0o027, 0o077], ids=oct)
def umask(request: pytest.FixtureRequest) -> Iterator[int]:
    before = os.umask(request.param)
    yield request.param
    os.umask(before)


def test_a_file_is_replaced_when_the_block_ends(tmp_path: Path) -> None:
    target = tmp_path / "x.txt"
    target.write_text("old")
    with target.open() as reader:
        with staged_file(target) as temporary:
            temporary.write_text("new")
            assert temporary.parent == target.parent
            assert target.read_text() == "old"
        assert reader.read() == "old"  # replaced, not overwritten
    assert target.read_text() == "new"
    assert list(tmp_path.iterdir()) == [target]


def fail_to_write(target: Path, error: BaseException) -> None:
    with staged_file(target) as temporary:
        temporary.write_text("half of the n")
        raise error


@pytest.mark.parametrize("exists", [True, False], ids=["old target", "no target"])
@pytest.mark.parametrize(
    ("error", "raised"),
    [
        (ValueError("bad"), ValueError),
        (KeyboardInterrupt(), KeyboardInterrupt),
        (OSError(28, "No space left on device"), VaeError),
    ],
    ids=["error", "interrupt", "full disk"],
)
def test_a_failed_write_leaves_everything_as_it_was(
    tmp_path: Path, exists: bool, error: BaseException, raised: type[BaseException]
) -> None:
    target = tmp_path / "x.txt"
    if exists:
        target.write_text("old")
    with pytest.raises(raised):
        fail_to_write(target, error)
    assert [(path, path.read_text()) for path in tmp_path.iterdir()] == [(target, "old")] * exists


def test_a_folder_takes_its_name_when_the_block_ends(tmp_path: Path) -> None:
    empty, deep = tmp_path / "empty", tmp_path / "a" / "b"
    empty.mkdir()
    for target in (empty, deep):
        with staged_folder(target) as temporary:
            (temporary / "x.txt").write_text("new")
            assert temporary.parent == target.parent
            assert not (target / "x.txt").exists()
        assert [path.name for path in target.iterdir()] == ["x.txt"]
        assert list(target.parent.glob(".*")) == []


def test_a_folder_behind_a_link_is_filled_and_the_link_kept(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "real")
    with staged_folder(tmp_path / "link") as temporary:
        (temporary / "x.txt").write_text("new")
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "real" / "x.txt").read_text() == "new"


def fail_to_fill(target: Path, error: BaseException) -> None:
    with staged_folder(target) as temporary:
        (temporary / "a").mkdir()
        (temporary / "a" / "x.txt").write_text("half of the n")
        raise error


@pytest.mark.parametrize(
    ("error", "raised", "message"),
    [
        (ValueError("bad"), ValueError, "^bad$"),
        (KeyboardInterrupt(), KeyboardInterrupt, None),
        (
            OSError(28, "No space left on device"),
            VaeError,
            "^cannot write .*/out: No space left on device$",
        ),
    ],
    ids=["error", "interrupt", "full disk"],
)
def test_a_folder_that_fails_leaves_nothing(
    tmp_path: Path, error: BaseException, raised: type[BaseException], message: str | None
) -> None:
    with pytest.raises(raised, match=message):
        fail_to_fill(tmp_path / "out", error)
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_is_not_empty_is_never_replaced(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine").write_text("old")
    with (
        pytest.raises(VaeError, match=r"cannot write .*/out: Directory not empty"),
        staged_folder(tmp_path / "out") as temporary,
    ):
        (temporary / "x.txt").write_text("new")
    assert [path.name for path in tmp_path.rglob("*")] == ["out", "mine"]


def test_outputs_have_the_rights_that_the_user_gives(tmp_path: Path, umask: int) -> None:
    with staged_file(tmp_path / "x.txt") as file:
        file.write_text("new")
    with staged_folder(tmp_path / "out"):
        pass
    assert (tmp_path / "x.txt").stat().st_mode & 0o777 == 0o666 & ~umask
    assert (tmp_path / "out").stat().st_mode & 0o777 == 0o777 & ~umask
    assert os.umask(umask) == umask


def test_a_good_target_is_not_touched(tmp_path: Path) -> None:
    target = tmp_path / "x.npy"
    target.write_text("old")
    check_output_file(target, (".npy", ".png"))
    check_output_file(tmp_path / "new.png", (".npy", ".png"))
    check_output_file(tmp_path / "NEW.PNG", (".npy", ".png"))
    assert [(path, path.read_text()) for path in tmp_path.iterdir()] == [(target, "old")]


@pytest.mark.parametrize(
    "name", ["bundle/x.npy", "bundle/a/x.npy", "bundle/a/b/x.npy", "link/x.npy", "linked/x.npy"]
)
def test_a_target_in_a_bundle_is_refused(bundle: Bundle, tmp_path: Path, name: str) -> None:
    (tmp_path / "bundle" / "a" / "b").mkdir(parents=True)
    (tmp_path / "link").symlink_to("bundle")
    (tmp_path / "linked").symlink_to("bundle/a")
    message = r"must lie outside the bundle .*/bundle, which may hold"
    with pytest.raises(UsageRefused, match=f"--out {message}"):
        check_output_file(tmp_path / name, (".npy", ".png"))
    with pytest.raises(UsageRefused, match=f"--out {message}"):
        check_output_folder(tmp_path / name)
    with pytest.raises(UsageRefused, match=f"it {message}"):
        refuse_in_bundle(tmp_path / name, "it")
    assert not (tmp_path / name).exists()


def test_a_manifest_of_another_kind_makes_no_bundle(tmp_path: Path) -> None:
    (tmp_path / "manifest.json").write_text("{}")
    check_output_file(tmp_path / "x.npy", (".npy",))


@pytest.mark.parametrize(
    ("target", "message"),
    [
        ("x.csv", "--out must end in .npy, .png, got 'x.csv'"),
        ("npy", "--out must end in .npy, .png, got 'npy'"),
        ("/no/such/folder/x.npy", "cannot write /no/such/folder/x.npy: No such file or directory"),
        ("/dev/null/x.npy", "cannot write /dev/null/x.npy: Not a directory"),
    ],
    ids=["other suffix", "no suffix", "no folder", "file for a folder"],
)
def test_a_bad_target_is_refused_before_the_work(target: str, message: str) -> None:
    with pytest.raises(UsageRefused) as caught:
        check_output_file(Path(target), (".npy", ".png"))
    assert str(caught.value) == message
    assert caught.value.exit_code == 2


@pytest.mark.parametrize("name", ["x", "a/b/x"], ids=["new", "below a new folder"])
def test_a_folder_that_can_be_made_is_not_refused_and_not_made(tmp_path: Path, name: str) -> None:
    check_output_folder(tmp_path / name)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("kind", ["folder", "file"])
def test_an_output_folder_that_exists_is_refused(tmp_path: Path, kind: str) -> None:
    out = tmp_path / "out"
    out.mkdir() if kind == "folder" else out.touch()
    with pytest.raises(UsageRefused) as caught:
        check_output_folder(out)
    assert str(caught.value) == f"--out {out} exists: name a new folder"


def test_an_output_folder_that_cannot_be_made_is_refused() -> None:
    with pytest.raises(UsageRefused) as caught:
        check_output_folder(Path("/dev/null/other"))
    assert str(caught.value) == "cannot write to /dev/null: Not a directory"
    assert caught.value.exit_code == 2


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (IsADirectoryError(21, "Is a directory"), "x.npy is a folder: give a file"),
        (
            PermissionError(13, "Permission denied"),
            "cannot read x.npy: [Errno 13] Permission denied",
        ),
        (ValueError("first\nsecond"), "cannot read x.npy: first"),
        (EOFError(), "cannot read x.npy: EOFError"),
        (zlib.error("incorrect header check"), "cannot read x.npy: incorrect header check"),
        (KeyError("asked for"), "cannot read x.npy: 'asked for'"),
        (DataRefused("it is empty"), "it is empty"),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, Exception) else "",
)
def test_a_file_that_cannot_be_read_is_named_in_one_line(error: Exception, message: str) -> None:
    with pytest.raises(DataRefused) as caught, reading("x.npy", KeyError):
        raise error
    assert str(caught.value) == message


def test_a_missing_file_is_a_usage_error() -> None:
    with pytest.raises(UsageRefused) as caught, reading("x.npy"):
        raise FileNotFoundError(2, "No such file or directory")
    assert str(caught.value) == "no file x.npy"


def test_other_errors_than_those_of_reading_pass() -> None:
    with pytest.raises(KeyError), reading("x.npy"):
        raise KeyError("a mistake of ours")
