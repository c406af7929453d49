"""Write files and folders whole or not at all, refuse a bad output early, name unreadable files."""

import contextlib
import os
import shutil
import tempfile
import tokenize
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path

from serving.bundle import MANIFEST
from serving.errors import DataRefused, UsageRefused, VaeError

FILE_READ_ERRORS: tuple[type[Exception], ...] = (
    OSError,
    EOFError,
    ValueError,
    MemoryError,
    RuntimeError,  # from zipfile: the archive is encrypted or compressed in an unknown way
    SyntaxError,
    tokenize.TokenError,  # from numpy, like SyntaxError: the header is no Python literal
    zlib.error,
    zipfile.BadZipFile,
)
"""Whatever reading a damaged file of one of our formats may raise."""


@contextlib.contextmanager
def reading(name: object, *more: type[Exception]) -> Iterator[None]:
    """Turn what goes wrong with a file, `more` errors too, into one line that names the file.

    Raises:
        DataRefused: the file is missing, is a folder, or cannot be read.
    """
    try:
        yield
    except FileNotFoundError:
        raise DataRefused(f"no file {name}") from None
    except IsADirectoryError:
        raise DataRefused(f"{name} is a folder: give a file") from None
    except (*FILE_READ_ERRORS, *more) as err:
        first_line = (str(err) or type(err).__name__).splitlines()[0]
        raise DataRefused(f"cannot read {name}: {first_line}") from err


def check_output_file(path: Path, suffixes: tuple[str, ...], option: str = "--out") -> None:
    """Refuse a file of another suffix, in a bundle or in a folder that cannot be written to."""
    if path.suffix not in suffixes:
        raise UsageRefused(f"{option} must end in {', '.join(suffixes)}, got {str(path)!r}")
    _try_to_write(path.parent, f"cannot write {path}")
    if (path.parent / MANIFEST).exists():
        raise UsageRefused(
            f"{option} must lie outside the bundle {path.parent}, which may hold nothing more, "
            f"got {str(path)!r}"
        )


def check_output_folder(path: Path) -> None:
    """Refuse an output folder that exists or cannot be made."""
    if path.exists():
        raise UsageRefused(f"--out {path} exists: name a new folder")
    parent = next(parent for parent in path.absolute().parents if parent.exists())
    _try_to_write(parent, f"cannot write to {parent}")


@contextlib.contextmanager
def staged_file(path: Path) -> Iterator[Path]:
    """Give a temporary file beside `path`; rename it to `path` if the block succeeds.

    Raises:
        VaeError: the file cannot be written.
    """
    with _reporting(path):
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
        os.close(handle)
        temporary = Path(name)
        try:
            yield temporary
            temporary.chmod(0o666 & ~_umask())
            temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)


@contextlib.contextmanager
def staged_folder(path: Path) -> Iterator[Path]:
    """Give a temporary folder beside `path`; rename it to `path` if the block succeeds.

    `path` must be missing or an empty folder. Missing folders above it are made.

    Raises:
        VaeError: the folder cannot be written.
    """
    with _reporting(path):
        target = path.resolve()
        target.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(dir=target.parent, prefix=f".{target.name}."))
        try:
            yield temporary
            temporary.chmod(0o777 & ~_umask())
            temporary.replace(target)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)


@contextlib.contextmanager
def _reporting(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as err:
        raise VaeError(f"cannot write {path}: {err.strerror or err}") from err


def _try_to_write(folder: Path, complaint: str) -> None:
    try:
        tempfile.TemporaryFile(dir=folder).close()
    except OSError as err:
        raise UsageRefused(f"{complaint}: {err.strerror}") from err


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
