"""Write files whole or not at all, and refuse an output before the work is done."""

import contextlib
import os
import tempfile
import tokenize
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path

from serving.bundle import MANIFEST
from serving.errors import UsageRefused, VaeError

READ_ERRORS = (
    OSError,
    EOFError,
    ValueError,
    MemoryError,
    RuntimeError,  # zipfile: encrypted, or packed in a way that it does not know
    SyntaxError,
    tokenize.TokenError,  # numpy, as SyntaxError: a header that is no Python literal
    zlib.error,
    zipfile.BadZipFile,
)
"""What reading a file of any of the formats may raise."""


def check_target(path: Path, suffixes: tuple[str, ...], option: str = "--out") -> None:
    """Refuse a target of another kind, in a bundle or in no writable folder, before the work."""
    if path.suffix not in suffixes:
        raise UsageRefused(f"{option} must end in {', '.join(suffixes)}, got {str(path)!r}")
    try:
        tempfile.TemporaryFile(dir=path.parent).close()
    except OSError as err:
        raise UsageRefused(f"cannot write {path}: {err.strerror}") from err
    if (path.parent / MANIFEST).exists():
        raise UsageRefused(
            f"{option} must lie outside the bundle {path.parent}, which may hold nothing more, "
            f"got {str(path)!r}"
        )


@contextlib.contextmanager
def writing(path: Path) -> Iterator[Path]:
    """Give a temporary path beside `path`; rename it to `path` when the block ends well."""
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    os.close(handle)
    temporary = Path(name)
    try:
        yield temporary
        temporary.chmod(0o666 & ~_umask())
        temporary.replace(path)
    except OSError as err:
        raise VaeError(f"cannot write {path}: {err.strerror or err}") from err
    finally:
        temporary.unlink(missing_ok=True)


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
