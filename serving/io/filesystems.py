"""Files by path or URI, on this machine or on any file system that pyarrow or fsspec opens.

Raises `DataRefused` where there is nothing to read, `UsageRefused` where no file system fits.
"""

import contextlib
import fnmatch
import posixpath
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
from pyarrow import fs

from serving.errors import DataRefused, UsageRefused, VaeError

_PATTERN = frozenset("*?[")
_TEMPORARY = "_tmp."


@dataclass(frozen=True, slots=True)
class Place:
    """A path in a file system."""

    system: fs.FileSystem
    path: str

    @property
    def is_local(self) -> bool:
        """Whether it lies on this machine."""
        return isinstance(self.system, fs.LocalFileSystem)

    def __truediv__(self, name: str) -> "Place":
        return Place(self.system, posixpath.join(self.path, name))

    def __str__(self) -> str:
        return self.path if self.is_local else f"{self.system.type_name}:{self.path}"

    def info(self) -> fs.FileInfo:
        """Kind, size and time of change; a kind of its own where there is nothing."""
        return self.system.get_file_info(self.path)

    def exists(self) -> bool:
        """Whether there is a file or a folder."""
        return bool(self.info().type != fs.FileType.NotFound)

    def open(self) -> pa.NativeFile:
        """Open to read, at any position."""
        return self.system.open_input_file(self.path)

    def read(self) -> bytes:
        """The whole content."""
        with self.open() as file:
            return bytes(file.read())


def locate(location: str) -> Place:
    """Find the file system of a path or a URI.

    Raises:
        UsageRefused: there is no name, or no file system opens the URI.
    """
    if not location:
        raise UsageRefused("a path must have a name, got ''")
    if "://" not in location:
        return Place(fs.LocalFileSystem(), str(Path(location).absolute()))
    try:
        return Place(*fs.FileSystem.from_uri(location))
    except pa.ArrowInvalid:
        return _locate_by_fsspec(location)
    except OSError as err:
        raise VaeError(f"cannot reach {location}: {err}") from err


def find_files(location: str) -> list[tuple[str, Place, fs.FileInfo]]:
    """Files at a path: itself, those of a folder or of a pattern, by name relative to the folder.

    Names that start with `_` or `.` are left out of folders: markers, and files being written.

    Raises:
        DataRefused: there is no file.
    """
    is_uri = "://" in location
    is_pattern = bool(_PATTERN & set(location)) and (is_uri or not locate(location).exists())
    found: list[tuple[str, fs.FileInfo]]
    if is_pattern:
        parts = location.split("/")
        first = next(index for index, part in enumerate(parts) if _PATTERN & set(part))
        place = locate("/".join(parts[:first]) or ("/" if location.startswith("/") else "."))
        pattern = "/".join(parts[first:]).split("/")
        found = [item for item in _list_files(place) if _fits(item[0].split("/"), pattern)]
    else:
        place = locate(location)
        info = place.info()
        if info.type == fs.FileType.NotFound:
            raise DataRefused(f"no file {location}")
        found = [(info.base_name, info)] if info.is_file else _list_files(place)
    if not found:
        raise DataRefused(f"no files in {location}")
    return [(name, Place(place.system, info.path), info) for name, info in sorted(found)]


@contextlib.contextmanager
def replacing(place: Place) -> Iterator[pa.NativeFile]:
    """Give a stream to a temporary file; it takes the place's name when the block ends well.

    Raises:
        VaeError: the file cannot be written.
    """
    folder, name = posixpath.split(place.path)
    temporary = posixpath.join(folder, f"{_TEMPORARY}{uuid.uuid4().hex}.{name}")
    try:
        place.system.create_dir(folder, recursive=True)
        with place.system.open_output_stream(temporary) as stream:
            yield stream
        place.system.move(temporary, place.path)
    except OSError as err:
        raise VaeError(f"cannot write {place}: {err}") from err
    finally:
        with contextlib.suppress(OSError):
            if place.system.get_file_info(temporary).is_file:
                place.system.delete_file(temporary)


def remove_leftovers(folder: Place) -> None:
    """Delete what processes that were killed were about to write below a folder."""
    selector = fs.FileSelector(folder.path, recursive=True)
    for info in folder.system.get_file_info(selector):
        if info.base_name.startswith(_TEMPORARY):
            folder.system.delete_file(info.path)


def _list_files(place: Place) -> list[tuple[str, fs.FileInfo]]:
    """Files below a folder by relative name."""
    selector = fs.FileSelector(place.path, recursive=True, allow_not_found=True)
    root = place.path.rstrip("/") + "/"
    items = ((info.path.removeprefix(root), info) for info in place.system.get_file_info(selector))
    return [
        (name, info)
        for name, info in items
        if info.is_file and not any(part[0] in "_." for part in name.split("/"))
    ]


def _fits(parts: list[str], pattern: list[str]) -> bool:
    """Whether a path fits a pattern, of which `**` stands for any number of folders."""
    if not pattern:
        return not parts
    if pattern[0] == "**":
        return any(_fits(parts[index:], pattern[1:]) for index in range(len(parts) + 1))
    return (
        bool(parts) and fnmatch.fnmatchcase(parts[0], pattern[0]) and _fits(parts[1:], pattern[1:])
    )


def _locate_by_fsspec(location: str) -> Place:
    scheme = location.partition("://")[0]
    try:
        import fsspec

        system: Any = fsspec.filesystem(scheme)
    except ImportError as err:
        raise UsageRefused(f"no file system opens {location}: pip install fsspec ({err})") from err
    except ValueError as err:
        raise UsageRefused(f"no file system opens {location}: {err}") from err
    path = system._strip_protocol(location)
    return Place(fs.PyFileSystem(fs.FSSpecHandler(system)), path)
