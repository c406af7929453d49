"""Keep the images of a folder, or its files, and say which others are passed over."""

from collections import Counter
from collections.abc import Sequence
from pathlib import PurePosixPath
from typing import Any, TypeVar

from serving.io.image_files import is_image_name

_File = TypeVar("_File", bound=tuple[str, object, Any])
_LISTED = 3


def keep_images(source: object, files: Sequence[_File]) -> tuple[list[_File], str]:
    """Keep the images if there are any, else all files; broken links are never kept.

    Args:
        source: what was given, for the note.
        files: as `serving.io.filesystems.find_files` returns them: names, locations and infos.

    Returns:
        The files to read, and a note that counts and names the others; empty if there are none.
    """
    there = [file for file in files if file[2].is_file]
    images = [file for file in there if is_image_name(file[0])]
    kept, word = (images, "images") if images else (there, "files")
    names = {file[0] for file in kept}
    others = [file[0] for file in files if file[0] not in names]
    if not others:
        return kept, ""
    note = f"{source}: {len(kept):,} {word}; passed over {list_files(others)}"
    broken = len(files) - len(there)
    return kept, f"{note}; {broken:,} of them broken links" if broken else note


def list_files(names: Sequence[str]) -> str:
    """Count files by suffix and name the first ones, for a message."""
    kinds = Counter(PurePosixPath(name).suffix.lower() or "no suffix" for name in names)
    counted = ", ".join(f"{count:,} {kind}" for kind, count in kinds.most_common(_LISTED + 2))
    more = ", …" if len(names) > _LISTED else ""
    word = "file" if len(names) == 1 else "files"
    return f"{len(names):,} other {word}, {counted} ({', '.join(names[:_LISTED])}{more})"
