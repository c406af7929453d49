"""Files are found by path, pattern and URI, and written whole or not at all."""

from pathlib import Path

import pytest

from serving.errors import DataRefused, UsageRefused, VaeError
from serving.io.filesystems import Location, find_files, locate, remove_leftovers, staged_stream
from serving.io.image_folders import keep_images

FILES = ("a.parquet", "b/empty.parquet", "b/x.parquet", "c.parquet")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Four files of data, and three that are none."""
    for name in (*FILES, "_SUCCESS", ".hidden", "_temporary/part.parquet"):
        (tmp_path / "in" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "in" / name).write_text(name)
    return tmp_path / "in"


def names(path: str) -> list[str]:
    return [name for name, _, _ in find_files(path)]


def test_a_path_through_a_parent_is_shown_as_it_is(folder: Path) -> None:
    (folder.parent / "link").symlink_to(folder / "b")
    assert str(locate(f"{folder}/b/../a.parquet")) == f"{folder}/a.parquet"
    assert str(locate(f"{folder.parent}/link/../a.parquet")) == f"{folder}/a.parquet"
    assert str(locate(f"{folder.parent}/link/x.parquet")) == f"{folder.parent}/link/x.parquet"
    assert [str(place) for _, place, _ in find_files(f"{folder}/b/../c*")] == [
        f"{folder}/c.parquet"
    ]


def test_a_folder_is_its_files_by_name(folder: Path) -> None:
    assert names(str(folder)) == list(FILES)
    assert [location.read().decode() for _, location, _ in find_files(str(folder))] == list(FILES)


def test_links_are_followed_but_not_in_circles_and_broken_ones_are_told(folder: Path) -> None:
    (folder / "b" / "up").symlink_to(folder)
    (folder / "d").symlink_to(folder / "b")
    (folder / "e.parquet").symlink_to("nowhere")
    (folder / "f.parquet").symlink_to("f.parquet")
    found = find_files(str(folder))
    here = ["a.parquet", *(f"{part}/{name}.parquet" for part in "bd" for name in ("empty", "x"))]
    assert sorted(name for name, _, info in found if info.is_file) == sorted([*here, "c.parquet"])
    kept, note = keep_images(folder, found)
    assert len(kept) == len(found) - 2
    said = (
        "6 files; passed over 2 other files, 2 .parquet (e.parquet, f.parquet); "
        "2 of them broken links"
    )
    assert note == f"{folder}: {said}"


def test_a_folder_of_broken_links_has_no_files(tmp_path: Path) -> None:
    (tmp_path / "x.png").symlink_to("nowhere")
    with pytest.raises(DataRefused, match=r"no files in .*, only broken links"):
        find_files(str(tmp_path))


def test_a_table_that_keeps_deleted_rows_is_refused(folder: Path) -> None:
    (folder / "_delta_log").mkdir()
    with pytest.raises(DataRefused, match="is a Delta table, whose files may hold deleted rows"):
        find_files(str(folder))


@pytest.mark.parametrize(
    ("pattern", "expected"),
    [
        ("*.parquet", ["a.parquet", "c.parquet"]),
        ("*/x.parquet", ["b/x.parquet"]),
        ("**/*.parquet", ["a.parquet", "b/empty.parquet", "b/x.parquet", "c.parquet"]),
        ("[ab].parquet", ["a.parquet"]),
        ("b/?.parquet", ["x.parquet"]),
    ],
    ids=["star", "folder", "any depth", "set", "letter"],
)
def test_a_pattern_finds_files(folder: Path, pattern: str, expected: list[str]) -> None:
    for root in (str(folder), f"file://{folder}"):
        assert names(f"{root}/{pattern}") == expected


def test_a_file_whose_name_is_a_pattern_is_that_file(tmp_path: Path) -> None:
    (tmp_path / "x[1].npy").touch()
    (tmp_path / "x1.npy").touch()
    assert names(str(tmp_path / "x[1].npy")) == ["x[1].npy"]


@pytest.mark.parametrize(
    ("name", "message", "kind"),
    [
        ("none", "no file {path}", UsageRefused),
        ("*.csv", "no files in {path}", UsageRefused),
        ("_temporary", "no files in", DataRefused),
    ],
    ids=["missing", "pattern", "folder"],
)
def test_nothing_to_read_is_refused(
    folder: Path, name: str, message: str, kind: type[VaeError]
) -> None:
    if name == "_temporary":
        (folder / name / "part.parquet").unlink()
    with pytest.raises(kind) as caught:
        find_files(str(folder / name))
    assert str(caught.value).startswith(message.format(path=folder / name))


def test_no_name_is_not_the_working_folder() -> None:
    with pytest.raises(UsageRefused, match="a path must have a name, got ''"):
        locate("")


def test_a_file_system_that_nobody_knows_is_refused() -> None:
    with pytest.raises(UsageRefused, match="no file system opens what://x"):
        locate("what://x/y.parquet")


def test_a_stream_takes_its_name_when_the_block_ends(tmp_path: Path) -> None:
    location = locate(str(tmp_path / "a" / "x.txt"))
    with staged_stream(location) as stream:
        stream.write(b"new")
        assert not location.exists()
    assert location.read() == b"new"
    assert [path.name for path in files_below(tmp_path)] == ["x.txt"]


def files_below(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if path.is_file()]


def fail_to_write(location: Location, error: Exception) -> None:
    with staged_stream(location) as stream:
        stream.write(b"half of the n")
        raise error


@pytest.mark.parametrize(
    ("error", "raised"), [(ValueError("bad"), ValueError), (OSError("full"), VaeError)], ids=repr
)
def test_a_stream_that_fails_leaves_the_old_file(
    tmp_path: Path, error: Exception, raised: type[Exception]
) -> None:
    (tmp_path / "x.txt").write_text("old")
    with pytest.raises(raised):
        fail_to_write(locate(str(tmp_path / "x.txt")), error)
    assert [(path.name, path.read_text()) for path in files_below(tmp_path)] == [("x.txt", "old")]


def test_leftovers_of_killed_processes_are_removed(folder: Path) -> None:
    (folder / "b" / "_tmp.0a1b.x.parquet").touch()
    remove_leftovers(locate(str(folder)))
    assert not (folder / "b" / "_tmp.0a1b.x.parquet").exists()
    assert names(str(folder)) == list(FILES)
