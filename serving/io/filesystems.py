"""Find files by path or URI, on this machine or on any file system that pyarrow or fsspec opens.

Raises `UsageRefused` if there is nothing at a path, or if no file system fits the URI, and
`DataRefused` if a folder has nothing to read.
"""

import contextlib
import fnmatch
import json
import os
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
_VERSIONS = (
    *("ETag", "etag", "Content-MD5", "Digest", "md5Hash", "generation"),
    *("Last-Modified", "LastModified", "last_modified", "updated"),
)
"""What file systems of fsspec tell that is another when a file is written again."""
_LOGS = {"_delta_log": "Delta", ".hoodie": "Hudi"}


@dataclass(frozen=True, slots=True)
class Location:
    """A path in a file system."""

    system: fs.FileSystem
    path: str

    @property
    def is_local(self) -> bool:
        """Whether the file system is this machine's own."""
        return isinstance(self.system, fs.LocalFileSystem)

    def __truediv__(self, name: str) -> "Location":
        return Location(self.system, posixpath.join(self.path, name))

    def __str__(self) -> str:
        return self.path if self.is_local else f"{self.system.type_name}:{self.path}"

    def info(self) -> fs.FileInfo:
        """Return kind, size and time of change; the kind is `NotFound` if there is no such path."""
        return self.system.get_file_info(self.path)

    def version(self, info: fs.FileInfo) -> str:
        """Return what tells a file from others at its path; empty if nothing does.

        It is the time of change, which `info` holds, or what fsspec knows in its place: a checksum
        or another time.
        """
        if info.mtime_ns is not None:
            return str(info.mtime_ns)
        handler = getattr(self.system, "handler", None)
        if not isinstance(handler, fs.FSSpecHandler):
            return ""
        system: Any = handler.fs
        try:
            found = system.info(self.path)
            told = {name: str(found[name]) for name in _VERSIONS if found.get(name)}
            with contextlib.suppress(NotImplementedError):
                told["modified"] = system.modified(self.path).isoformat()
        except (OSError, LookupError, AttributeError):
            return ""
        return json.dumps(told) if told else ""

    def exists(self) -> bool:
        """Whether the path is a file or a folder."""
        return bool(self.info().type != fs.FileType.NotFound)

    def open(self) -> pa.NativeFile:
        """Open the file for reading from any position."""
        return self.system.open_input_file(self.path)

    def read(self) -> bytes:
        """Return the whole content."""
        with self.open() as file:
            return bytes(file.read())


def locate(path: str) -> Location:
    """Find the file system of a path or a URI.

    Raises:
        UsageRefused: `path` is empty, or no file system opens the URI.
    """
    if not path:
        raise UsageRefused("a path must have a name, got ''")
    if "://" not in path:
        place = Path(path).absolute()
        real = place.resolve() if ".." in place.parts else place  # a person reads it
        return Location(fs.LocalFileSystem(), str(real))
    try:
        return Location(*fs.FileSystem.from_uri(path))
    except pa.ArrowInvalid:
        return _locate_by_fsspec(path)
    except OSError as err:
        raise VaeError(f"cannot reach {path}: {err}") from err


def find_files(path: str) -> list[tuple[str, Location, fs.FileInfo]]:
    """Find the files of a path, a URI or a pattern: the file itself, or those below a folder.

    They are sorted by their names relative to the folder. Below a folder, names that start with `_`
    or `.` are left out, because they are markers or files that are still being written. Links are
    followed, but not to a folder that holds them; a broken one is listed, as what is no file.

    Raises:
        UsageRefused: there is nothing at the path, or nothing that fits the pattern.
        DataRefused: the folder has no file, or is a table of which some files hold deleted rows.
    """
    is_uri = "://" in path
    is_pattern = bool(_PATTERN & set(path)) and (is_uri or not locate(path).exists())
    found: list[tuple[str, fs.FileInfo]]
    if is_pattern:
        parts = path.split("/")
        first = next(index for index, part in enumerate(parts) if _PATTERN & set(part))
        location = locate("/".join(parts[:first]) or ("/" if path.startswith("/") else "."))
        pattern = parts[first:]
        found = [item for item in _list_files(location) if _fits(item[0].split("/"), pattern)]
    else:
        location = locate(path)
        info = location.info()
        if info.type == fs.FileType.NotFound:
            raise UsageRefused(f"no file {path}")
        _refuse_versioned(location)
        found = [(info.base_name, info)] if info.is_file else _list_files(location)
    if not any(info.is_file for _, info in found):
        refused = UsageRefused if is_pattern else DataRefused
        raise refused(f"no files in {path}" + (", only broken links" if found else ""))
    return [(name, Location(location.system, info.path), info) for name, info in sorted(found)]


@contextlib.contextmanager
def staged_stream(location: Location) -> Iterator[pa.NativeFile]:
    """Yield a stream to a temporary file; rename it to `location` if the block succeeds.

    Raises:
        VaeError: the file cannot be written.
    """
    folder, name = posixpath.split(location.path)
    temporary = posixpath.join(folder, f"{_TEMPORARY}{uuid.uuid4().hex}.{name}")
    try:
        location.system.create_dir(folder, recursive=True)
        with location.system.open_output_stream(temporary) as stream:
            yield stream
        location.system.move(temporary, location.path)
    except OSError as err:
        raise VaeError(f"cannot write {location}: {err}") from err
    finally:
        with contextlib.suppress(OSError):
            if location.system.get_file_info(temporary).is_file:
                location.system.delete_file(temporary)


def remove_leftovers(folder: Location) -> None:
    """Delete temporary files below a folder that killed processes left behind."""
    selector = fs.FileSelector(folder.path, recursive=True)
    for info in folder.system.get_file_info(selector):
        if info.base_name.startswith(_TEMPORARY):
            folder.system.delete_file(info.path)


def _refuse_versioned(location: Location) -> None:
    """Refuse a table that keeps a log of its files: some of them hold rows that were deleted."""
    for name, kind in _LOGS.items():
        if (location / name).exists():
            raise DataRefused(
                f"{location} is a {kind} table, whose files may hold deleted rows: read it by its "
                "own library, and write its rows as Parquet into another folder"
            )


def _list_files(location: Location) -> list[tuple[str, fs.FileInfo]]:
    root = location.path.rstrip("/") + "/"
    if location.is_local:
        files = location.system.get_file_info([*_walk(location.path, frozenset())])
        return [(info.path.removeprefix(root), info) for info in files]
    selector = fs.FileSelector(location.path, recursive=True, allow_not_found=True)
    items = (
        (info.path.removeprefix(root), info) for info in location.system.get_file_info(selector)
    )
    return [
        (name, info)
        for name, info in items
        if info.is_file and not any(part[0] in "_." for part in name.split("/"))
    ]


def _walk(folder: str, above: frozenset[str]) -> Iterator[str]:
    """Yield the paths below a folder that are no folders; pyarrow would follow links in circles."""
    real = os.path.realpath(folder)
    if real in above or not os.path.isdir(folder):
        return
    with os.scandir(folder) as entries:
        shown = [entry for entry in entries if entry.name[0] not in "_."]
    for entry in shown:
        if os.path.isdir(entry.path):  # entry.is_dir raises for a link to itself
            yield from _walk(entry.path, above | {real})
        else:
            yield entry.path


def _fits(parts: list[str], pattern: list[str]) -> bool:
    """Whether a path fits a pattern, in which `**` stands for any number of folders."""
    if not pattern:
        return not parts
    if pattern[0] == "**":
        return any(_fits(parts[index:], pattern[1:]) for index in range(len(parts) + 1))
    return (
        bool(parts) and fnmatch.fnmatchcase(parts[0], pattern[0]) and _fits(parts[1:], pattern[1:])
    )


def _locate_by_fsspec(uri: str) -> Location:
    scheme = uri.partition("://")[0]
    try:
        import fsspec

        system: Any = fsspec.filesystem(scheme)
    except ImportError as err:
        raise UsageRefused(f"no file system opens {uri}: pip install fsspec ({err})") from err
    except ValueError as err:
        raise UsageRefused(f"no file system opens {uri}: {err}") from err
    return Location(fs.PyFileSystem(fs.FSSpecHandler(system)), system._strip_protocol(uri))
