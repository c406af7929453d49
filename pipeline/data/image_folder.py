"""Read a folder of images of one size, in the order of their names.

If all pixels of all images are gray, whatever their format, the rows are gray; otherwise gray
images get three equal channels. If each image lies in a folder below, the name of that folder is
its label. Raises `DataRefused` if an image cannot be read, or is of another size.
"""

import contextlib
import math
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from serving.console import say
from serving.errors import DataRefused
from serving.files import reading
from serving.io.image_files import is_image_name, read_image, read_image_shape
from serving.io.image_folders import keep_images
from serving.io.memory import require_memory
from serving.io.remote_paths import Place

if TYPE_CHECKING:
    from serving.io.filesystems import Location

Array = NDArray[Any]


class ImageFolder:
    """The images of a folder or a URI.

    Args:
        source: where they are, and what messages call them.

    Raises:
        DataRefused: there are none, or the first one cannot be read.
    """

    def __init__(self, source: Place) -> None:
        self.source = source
        self.files, note = find_images(source)
        if not self.files:
            raise DataRefused(f"{source} has no images")
        if note:
            say(note)
        self.size = self._read_shape(self.files[0])[:2]
        self._checked = False
        folders = [name.split("/")[:-1] for name, *_ in self.files]
        self.labels = np.array([names[0] for names in folders]) if all(folders) else None

    def read(self, shape: tuple[int, ...]) -> Array:
        """Decode all images to `shape`: (rows, *shape) of bytes."""
        require_memory(self.source, len(self.files) * math.prod(shape))
        self.require_one_size()
        return self.read_some(0, len(self.files), shape)

    def require_one_size(self) -> None:
        """Look at the size of each image, before all of them are decoded.

        Raises:
            DataRefused: one differs from the first.
        """
        height, width = self.size
        for file in () if self._checked else self.files[1:]:
            other = self._read_shape(file)
            if other[:2] != self.size:
                raise DataRefused(
                    f"images must be of one size: {self.files[0][1]} has {width}x{height} pixels, "
                    f"{file[1]} has {other[1]}x{other[0]}"
                )
        self._checked = True

    def read_some(self, start: int, stop: int, shape: tuple[int, ...]) -> Array:
        """Decode the images from `start` to `stop`."""
        files = self.files[start:stop]
        x = np.empty((len(files), *shape), np.uint8)
        for row, (_, location, _) in zip(x, files, strict=True):
            with _opened(location) as content:
                row[...] = read_image(content, shape)
        return x

    @staticmethod
    def _read_shape(file: "tuple[str, Location, Any]") -> tuple[int, ...]:
        with _opened(file[1]) as content:
            return read_image_shape(content)


def find_images(source: Place) -> "tuple[list[tuple[str, Location, Any]], str]":
    """Find the images below a folder by name, as `vae score` does, and what is passed over."""
    from serving.io.filesystems import find_files

    files, note = keep_images(source, find_files(str(source)))
    return [file for file in files if is_image_name(file[0])], note


@contextlib.contextmanager
def _opened(location: "Location") -> Iterator[bytes]:
    """Read a file, and name it in what the block refuses."""
    with reading(location):
        content = location.read()
    try:
        yield content
    except DataRefused as err:
        raise type(err)(f"cannot read {location}: {err}") from err
