"""Keep decoded rows in a file that is mapped, so that each is decoded once and read in any order.

In: rows that are decoded in order, and a folder. Out: the mapped rows. A file is written whole or
not at all, and is used again while the files that it was made of are the same; if their file system
does not tell that, it is deleted at the end of the process. Files are for their user alone. Raises
`VaeError`, with the name of the file, if it cannot be written.
"""

import atexit
import contextlib
import fcntl
import hashlib
import json
import os
import secrets
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import IO, Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from pyarrow import parquet

from pipeline.data.plan import format_bytes
from pipeline.data.selection import EVERYTHING
from pipeline.data.streaming.chunks import describe_rows
from pipeline.data.streaming.decoding import Decodable
from pipeline.data.streaming.mapped import MappedSource, map_array
from serving.console import progress, say
from serving.errors import DataRefused, VaeError
from serving.files import reading, staged_file
from serving.user_folders import cache_folder

Array = NDArray[Any]

_VERSION = 1
"""Of what is decoded: another number makes all earlier files unused."""
_FACTS, _LABELS, _LABEL = ".json", ".labels", "label"


def find_cached(rows: Decodable, folder: Path | None) -> MappedSource | None:
    """Return the rows if they were decoded before."""
    path, once = _place(rows, folder)
    return _open(rows, path) if not once and _is_kept(path) else None


def cache_rows(rows: Decodable, folder: Path | None) -> MappedSource:
    """Return the rows; decode them first if they were not decoded before.

    Of several processes, one decodes and the others wait.

    Raises:
        DataRefused: the rows cannot be used.
        VaeError: the file cannot be written.
    """
    path, once = _place(rows, folder)
    with locked(path):
        if _is_kept(path):
            return _open(rows, path)
        _require_space(rows, path)
        say(f"{rows.kind.name}: decoding the rows once, to {path}")
        if once:
            atexit.register(_delete, path)
        _write(rows, path)
        return replace(_open(rows, path), sha256="", once=once)


def _place(rows: Decodable, folder: Path | None) -> tuple[Path, bool]:
    """Return the path of the file, and whether it is for this process alone.

    The name tells all that the rows depend on, or is used once if that cannot be told.
    """
    facts = describe_rows(rows.kind, rows.files, rows.options)
    key = facts or {"once": secrets.token_hex()}
    return cache_place(folder, {"version": _VERSION, **key}, ".npy"), not facts


def _is_kept(path: Path) -> bool:
    return is_own(path) and is_own(path.with_suffix(_FACTS))


def _delete(path: Path) -> None:
    for suffix in (path.suffix, _FACTS, _LABELS):
        with contextlib.suppress(OSError):
            path.with_suffix(suffix).unlink()


def cache_place(folder: Path | None, facts: Mapping[str, Any], suffix: str) -> Path:
    """Return the path of this user's file that depends on `facts`, which its name stands for."""
    told = json.dumps({"user": os.geteuid(), **facts}, sort_keys=True)
    key = hashlib.sha256(told.encode()).hexdigest()[:32]
    return (folder or cache_folder() / "rows").absolute() / f"{key}{suffix}"


def is_own(path: Path) -> bool:
    """Whether there is a file that this user has written; that of another is not trusted."""
    try:
        owner = path.lstat().st_uid
        return owner == os.geteuid() or owner == _owner_of_new_files(path.parent)
    except OSError:
        return False


def _owner_of_new_files(folder: Path) -> int:
    """Return who owns what this process writes: shared disks may give it to another user."""
    with tempfile.TemporaryFile(dir=folder) as file:
        return os.fstat(file.fileno()).st_uid


def open_private(path: Path) -> IO[bytes]:
    """Open a file to write and read, which is made for this user alone."""
    return open(path, "w+b", opener=lambda name, flags: os.open(name, flags, 0o600))


@contextlib.contextmanager
def locked(path: Path) -> Iterator[None]:
    """Let one process at a time write the file."""
    lock = path.with_suffix(".lock")
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        file = _lock(lock)
    except OSError as err:
        raise VaeError(f"cannot write {lock}: {err.strerror}: name a folder by --cache") from err
    with file:
        for left in path.parent.glob(f".{path.name}.*"):
            with contextlib.suppress(OSError):
                left.unlink()  # by a process that was killed
        try:
            yield
        finally:
            lock.unlink(missing_ok=True)


def _lock(path: Path) -> IO[bytes]:
    """Open a file and lock it, again if the process that held it has deleted it meanwhile."""
    while True:
        file = open_private(path)
        fcntl.flock(file, fcntl.LOCK_EX)
        with contextlib.suppress(FileNotFoundError):
            if path.stat().st_ino == os.fstat(file.fileno()).st_ino:
                return file
        file.close()


def _require_space(rows: Decodable, path: Path) -> None:
    needed, free = rows.most_rows * rows.kind.row_bytes, shutil.disk_usage(path.parent).free
    if rows.exact and needed > free:
        raise VaeError(
            f"cannot write {path}: the decoded rows of {rows.kind.name} take "
            f"{format_bytes(needed)}, and {format_bytes(free)} are free: name another folder by "
            "--cache"
        )


def _write(rows: Decodable, path: Path) -> None:
    """Write an `.npy` file, whose header is completed when the number of rows is known.

    What belongs to it is written before it is there.
    """
    kind, sha, done = rows.kind, hashlib.sha256(), 0
    labels: list[pa.Array] = []
    with (
        staged_file(path) as temporary,
        open_private(temporary) as file,
        progress(rows.most_rows, "rows") as bar,
    ):
        start = _write_header(file, kind.dtype, (rows.most_rows, *kind.shape))
        for chunk in rows.chunks():
            content = np.ascontiguousarray(chunk.x).reshape(-1).view(np.uint8).data
            try:
                file.write(content)
            except OSError as err:
                raise VaeError(
                    f"cannot write {path}: {err.strerror}: name another folder by --cache"
                ) from err
            sha.update(content)
            done += len(chunk.x)
            if rows.exact:
                bar.advance(len(chunk.x))
            if chunk.labels is not None:
                labels.append(pa.array(chunk.labels).dictionary_encode())
        file.seek(0)
        if _write_header(file, kind.dtype, (done, *kind.shape)) != start:
            raise VaeError(f"cannot write {path}: its header does not fit {done} rows")
        file.flush()
        if labels:
            table = pa.table({_LABEL: pa.chunked_array(labels).unify_dictionaries()})
            with staged_file(path.with_suffix(_LABELS)) as beside, open_private(beside) as written:
                parquet.write_table(table, written)
        told = json.dumps({"rows": done, "sha256": sha.hexdigest()}).encode()
        with staged_file(path.with_suffix(_FACTS)) as beside, open_private(beside) as written:
            written.write(told)


def _write_header(file: IO[bytes], dtype: np.dtype[Any], shape: tuple[int, ...]) -> int:
    """Write the header of an `.npy` file, which leaves room for more rows; return its length."""
    header = {"descr": dtype.str, "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(file, header)
    return file.tell()


def _open(rows: Decodable, path: Path) -> MappedSource:
    """Map the file, and check that it holds what was written.

    Raises:
        DataRefused: it is damaged.
    """
    kind = rows.kind
    with reading(path, KeyError):
        facts = json.loads(path.with_suffix(_FACTS).read_text())
        mapped = map_array(path, kind.name, EVERYTHING)
        if mapped is None or (len(mapped.values), *mapped.kind.shape, mapped.kind.dtype) != (
            facts["rows"],
            *kind.shape,
            kind.dtype,
        ):
            raise DataRefused(f"{path} is damaged: delete it, and its rows are decoded again")
        beside, labels = path.with_suffix(_LABELS), None
        if is_own(beside):
            table = parquet.read_table(beside, read_dictionary=[_LABEL])
            labels = table.column(0).combine_chunks()
    return replace(
        mapped, kind=kind, labels=labels, checked=True, sha256=facts["sha256"], cache=path
    )
