"""Paths at a URI, with those methods of `pathlib.Path` that reading needs.

So a reader takes a `Place`, whether it is on this machine or not. Nothing of pyarrow is imported
until a URI is looked at. Raises `VaeError` if the file system cannot be reached.
"""

import io
import posixpath
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from serving.io.filesystems import Location


class RemotePath:
    """A file or a folder at a URI, which `str` gives back.

    Args:
        uri: a URI that pyarrow or fsspec opens; what follows a `?` are settings of the file system.
    """

    def __init__(self, uri: str) -> None:
        plain, self._mark, self._query = uri.partition("?")
        self._plain = plain if plain.endswith("://") else plain.rstrip("/")

    def __str__(self) -> str:
        return f"{self._plain}{self._mark}{self._query}"

    def __repr__(self) -> str:
        return f"RemotePath({str(self)!r})"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, RemotePath) and str(self) == str(other)

    def __hash__(self) -> int:
        return hash(str(self))

    def __truediv__(self, name: str) -> "RemotePath":
        return self._beside(posixpath.join(self._plain, name))

    @property
    def name(self) -> str:
        """The last part."""
        return posixpath.basename(self._plain)

    @property
    def suffix(self) -> str:
        """The last suffix, with its dot."""
        return posixpath.splitext(self._plain)[1]

    @property
    def parent(self) -> "RemotePath":
        """The folder that holds it."""
        return self._beside(posixpath.dirname(self._plain))

    def exists(self) -> bool:
        """Whether it is a file or a folder."""
        return self._location().exists()

    def is_file(self) -> bool:
        """Whether it is a file."""
        return bool(self._location().info().is_file)

    def is_dir(self) -> bool:
        """Whether it is a folder."""
        from pyarrow import fs

        return bool(self._location().info().type == fs.FileType.Directory)

    def iterdir(self) -> "Iterator[RemotePath]":
        """Yield what is in the folder."""
        from pyarrow import fs

        location = self._location()
        infos: list[fs.FileInfo] = location.system.get_file_info(fs.FileSelector(location.path))
        return (self / info.base_name for info in infos)

    def open(self, mode: str = "rb") -> io.BufferedReader:
        """Open the file for reading from any position."""
        stream: Any = self._location().open()
        return io.BufferedReader(stream)

    def _beside(self, plain: str) -> "RemotePath":
        return RemotePath(f"{plain}{self._mark}{self._query}")

    def _location(self) -> "Location":
        from serving.io.filesystems import locate

        return locate(str(self))


Place = Path | RemotePath
"""A file or a folder on this machine, or at a URI."""


def list_folder(folder: Place) -> list[Place]:
    """Return what is in a folder, in the order of the names."""
    return sorted(folder.iterdir(), key=_name_of)


def _name_of(place: Place) -> str:
    return place.name


def to_place(source: str) -> Place:
    """Return the place of a path or a URI; one that starts with `file://` is a path."""
    if "://" not in source:
        return Path(source).expanduser()
    if not source.startswith("file://"):
        return RemotePath(source)
    from serving.io.filesystems import locate

    return Path(locate(source).path)
