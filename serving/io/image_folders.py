"""Keep the images of a folder, and say which other files are passed over."""

from collections import Counter
from collections.abc import Sequence
from pathlib import PurePosixPath
from typing import TypeVar

from serving.io.image_files import is_image_name

_File = TypeVar("_File", bound=tuple[str, object, object])
_LISTED = 3


def keep_images(source: object, files: Sequence[_File]) -> tuple[list[_File], str]:
    """Keep the images if there are any, else all files.

    Args:
        source: what was given, for the note.
        files: as `serving.io.filesystems.find_files` returns them; the first items are the names.

    Returns:
        The files to read, and a note that counts and names the others; empty if there are none.
    """
    images = [file for file in files if is_image_name(file[0])]
    others = [file[0] for file in files if not is_image_name(file[0])]
    if not images or not others:
        return list(files), ""
    return images, f"{source}: {len(images):,} images; passed over {list_files(others)}"


def list_files(names: Sequence[str]) -> str:
    """Count files by suffix and name the first ones, for a message."""
    kinds = Counter(PurePosixPath(name).suffix.lower() or "no suffix" for name in names)
    counted = ", ".join(f"{count:,} {kind}" for kind, count in kinds.most_common(_LISTED + 2))
    more = ", …" if len(names) > _LISTED else ""
    word = "file" if len(names) == 1 else "files"
    return f"{len(names):,} other {word}, {counted} ({', '.join(names[:_LISTED])}{more})"
