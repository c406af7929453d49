"""Write files and folders whole or not at all, refuse bad outputs early, name unreadable files.

Raises `VaeError` if an output cannot be written, `UsageRefused` if that is known before the work
or if there is no such file, and `DataRefused` if a file cannot be read.
"""

import contextlib
import secrets
import shutil
import tempfile
import tokenize
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path

from serving.bundle import GRAPHS, MANIFEST
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
"""The exceptions that reading a damaged file of a supported format may raise."""


@contextlib.contextmanager
def reading(name: object, *more: type[Exception]) -> Iterator[None]:
    """Turn errors of reading a file, and those of `more` types, into one line that names it."""
    try:
        yield
    except FileNotFoundError:
        raise UsageRefused(f"no file {name}") from None
    except IsADirectoryError:
        raise DataRefused(f"{name} is a folder: give a file") from None
    except (*FILE_READ_ERRORS, *more) as err:
        first_line = (str(err) or type(err).__name__).splitlines()[0]
        raise DataRefused(f"cannot read {name}: {first_line}") from err


def check_output_file(path: Path, suffixes: tuple[str, ...], option: str = "--out") -> None:
    """Refuse a file with another suffix, in a bundle, or in a folder that cannot be written to."""
    if path.suffix.lower() not in suffixes:
        raise UsageRefused(f"{option} must end in {', '.join(suffixes)}, got {str(path)!r}")
    refuse_in_bundle(path, option)
    _try_to_write(path.parent, f"cannot write {path}")


def refuse_in_bundle(path: Path, option: str) -> None:
    """Refuse an output at any depth below a bundle, which would no longer be intact."""
    folder = path.parent.resolve()
    for parent in (folder, *folder.parents):
        # other projects, too, have files of the manifest's name
        if (parent / MANIFEST).exists() and any((parent / graph).exists() for graph in GRAPHS):
            raise UsageRefused(
                f"{option} must lie outside the bundle {parent}, which may hold nothing more, "
                f"got {str(path)!r}"
            )


def check_output_folder(path: Path) -> None:
    """Refuse an output folder that exists or cannot be made."""
    if path.exists():
        raise UsageRefused(f"--out {path} exists: name a new folder")
    refuse_in_bundle(path, "--out")
    parent = next(parent for parent in path.absolute().parents if parent.exists())
    _try_to_write(parent, f"cannot write to {parent}")


@contextlib.contextmanager
def staged_file(path: Path) -> Iterator[Path]:
    """Yield a temporary path beside `path` to write to; rename it if the block succeeds."""
    temporary = _temporary_beside(path)
    try:
        yield temporary
        temporary.replace(path)
    except OSError as err:
        raise VaeError(f"cannot write {path}: {err.strerror or err}") from err
    finally:
        temporary.unlink(missing_ok=True)


@contextlib.contextmanager
def staged_folder(path: Path) -> Iterator[Path]:
    """Yield a temporary folder beside `path`; rename it to `path` if the block succeeds.

    `path` must be missing or an empty folder. Missing folders above it are made.
    """
    target = path.resolve()
    temporary = _temporary_beside(target)
    try:
        temporary.mkdir(parents=True)
        yield temporary
        temporary.replace(target)
    except OSError as err:
        raise VaeError(f"cannot write {path}: {err.strerror or err}") from err
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _temporary_beside(path: Path) -> Path:
    return path.with_name(f".{path.name}.{secrets.token_hex(4)}")


def _try_to_write(folder: Path, complaint: str) -> None:
    try:
        tempfile.TemporaryFile(dir=folder).close()
    except OSError as err:
        raise UsageRefused(f"{complaint}: {err.strerror}") from err
