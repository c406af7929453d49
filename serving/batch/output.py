"""The output folder of a batch job: Parquet parts that are whole or absent, and what made them.

`_job.json` describes the job. The footer of each part says which job made it and how many rows it
holds. `_summary.json` and then `_SUCCESS` mark the end. Readers of Parquet folders ignore names
that start with `_`. Raises `UsageRefused` if the folder belongs to another job.
"""

import contextlib
import fcntl
import hashlib
import json
import os
import posixpath
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
from pyarrow import fs, parquet

from serving.errors import UsageRefused, VaeError
from serving.files import refuse_in_bundle
from serving.io.filesystems import Location, locate, remove_leftovers, staged_stream

JOB, SUMMARY, SUCCESS, QUARANTINE = "_job.json", "_summary.json", "_SUCCESS", "_quarantine"
_KEY, _BAD = b"vae.job", b"vae.bad"
_GROUP_BYTES = 32 << 20


@dataclass(frozen=True, slots=True)
class Counts:
    """Rows written, and rows set aside."""

    rows: int = 0
    bad: int = 0

    def __add__(self, other: "Counts") -> "Counts":
        return Counts(self.rows + other.rows, self.bad + other.bad)


class Output:
    """The folder of one job."""

    def __init__(self, place: Location, job: Mapping[str, Any]) -> None:
        self.place = place
        self.job = job
        self.key = job_key(job)

    def part(self, index: int) -> Location:
        """Return the location of a part."""
        return self.place / _part_name(index)

    def summary(self) -> dict[str, Any] | None:
        """Return the summary of a finished job; None if it is not finished."""
        if not (self.place / SUCCESS).exists():
            return None
        content: dict[str, Any] = json.loads((self.place / SUMMARY).read())
        return content

    def start(self) -> None:
        """Write the description of the job if it is missing."""
        if not (self.place / JOB).exists():
            self._write(JOB, json.dumps(self.job, indent=1).encode())

    def counts(self, index: int) -> Counts | None:
        """Return the counts of a finished part of this job; None if it must be made."""
        footer = self._read_footer(index)
        return None if footer is None else Counts(footer.num_rows, int(footer.metadata[_BAD]))

    def says(self, index: int, content: Mapping[str, str]) -> bool:
        """Whether the footer of a finished part of this job has all of `content`."""
        footer = self._read_footer(index)
        found = {} if footer is None else footer.metadata
        return all(found.get(key.encode()) == value.encode() for key, value in content.items())

    def _read_footer(self, index: int) -> parquet.FileMetaData | None:
        place = self.part(index)
        if not place.exists():
            return None
        try:
            with place.open() as stream:
                footer = parquet.read_metadata(stream)
        except (OSError, pa.ArrowInvalid):
            return None  # damaged, so it is made again
        return footer if (footer.metadata or {}).get(_KEY) == self.key.encode() else None

    def read_groups(self, index: int, columns: Sequence[str]) -> Iterator[pa.Table]:
        """Yield the row groups of a part, each of bounded size."""
        with self.part(index).open() as stream, parquet.ParquetFile(stream) as file:
            for group in range(file.num_row_groups):
                yield file.read_row_group(group, columns=list(columns))

    def rewrite(
        self,
        index: int,
        schema: pa.Schema,
        groups: Iterable[pa.Table],
        content: Mapping[str, str],
    ) -> None:
        """Replace a finished part by `groups` of its rows, with `content` in its footer."""
        counts = self.counts(index)
        if counts is None:
            raise VaeError(f"{self.part(index)} was changed meanwhile: run the command again")
        with staged_stream(self.part(index)) as stream, _open_writer(stream, schema) as writer:
            for group in groups:
                writer.write_table(group)
            writer.add_key_value_metadata({_KEY: self.key.encode(), _BAD: str(counts.bad)})
            writer.add_key_value_metadata(dict(content))

    @contextlib.contextmanager
    def writing(self, index: int, schema: pa.Schema) -> Iterator["PartWriter"]:
        """Yield a writer; the part appears, after its bad rows, if the block succeeds."""
        with staged_stream(self.part(index)) as stream:
            with PartWriter(stream, schema) as writer:
                yield writer
                writer.seal(self.key)
            if writer.bad:
                table = pa.Table.from_batches(writer.bad)
                with staged_stream(self.place / QUARANTINE / _part_name(index)) as aside:
                    parquet.write_table(table, aside)

    def finish(self, parts: int, summary: Mapping[str, Any]) -> None:
        """Check every part once more, then mark the folder as finished.

        Raises:
            VaeError: a part is missing, or another job has written to the folder.
        """
        for index in range(parts):
            if self.counts(index) is None:
                raise VaeError(f"{self.part(index)} was changed meanwhile: run the command again")
        remove_leftovers(self.place)
        self._write(SUMMARY, json.dumps(summary, indent=1).encode())
        self._write(SUCCESS, b"")

    def _write(self, name: str, content: bytes) -> None:
        with staged_stream(self.place / name) as stream:
            stream.write(content)


class PartWriter:
    """Writes results in row groups of bounded size; holds the bad rows of the part."""

    def __init__(self, stream: pa.NativeFile, schema: pa.Schema) -> None:
        self._writer = _open_writer(stream, schema)
        self._schema = schema
        self._group: list[pa.RecordBatch] = []
        self._bytes = 0
        self.counts = Counts()
        self.bad: list[pa.RecordBatch] = []

    def __enter__(self) -> "PartWriter":
        return self

    def __exit__(self, *exception: object) -> None:
        self._writer.close()

    def write(self, results: pa.RecordBatch, bad: pa.RecordBatch) -> None:
        """Add the rows of a batch."""
        self.counts += Counts(results.num_rows, bad.num_rows)
        if bad.num_rows:
            self.bad.append(bad)
        self._group.append(results)
        self._bytes += results.nbytes
        if self._bytes >= _GROUP_BYTES:
            self._flush()

    def seal(self, key: str) -> None:
        """Write the remaining rows, and this project's data into the footer."""
        self._flush()
        self._writer.add_key_value_metadata({_KEY: key.encode(), _BAD: str(self.counts.bad)})

    def _flush(self) -> None:
        if self._group:
            self._writer.write_table(pa.Table.from_batches(self._group, self._schema))
        self._group, self._bytes = [], 0


def _open_writer(stream: pa.NativeFile, schema: pa.Schema) -> parquet.ParquetWriter:
    texts = [item.name for item in schema if pa.types.is_dictionary(item.type)]
    repeated = [name for name in ("seed", "num_samples", "p_value") if name in schema.names]
    return parquet.ParquetWriter(stream, schema, use_dictionary=texts + repeated)


@contextlib.contextmanager
def open_output(location: str, job: Mapping[str, Any], *, overwrite: bool) -> Iterator[Output]:
    """Yield the folder of a job, new or begun; no other process of this machine may write to it.

    With `overwrite` the parts are written to a folder beside it, which replaces it at the end.
    If folders cannot be renamed, the old content is deleted first.

    Raises:
        UsageRefused: the folder belongs to another job, lies in a bundle, holds other files, or is
            being written to.
    """
    place = locate(location)
    if place.is_local:
        refuse_in_bundle(Path(place.path), "the output")
    found = _found(place, job)
    if not overwrite or found == "nothing":
        if found == "another job":
            raise UsageRefused(_difference(place, job))
        with _alone(place):
            yield Output(place, job)
        return
    if not place.is_local:
        place.system.delete_dir_contents(place.path)
        yield Output(place, job)
        return
    folder, name = posixpath.split(place.path)
    following = Location(place.system, posixpath.join(folder, f".{name}.next"))
    with _alone(following):
        if _found(following, job) == "another job":
            following.system.delete_dir_contents(following.path)
        yield Output(following, job)
        _swap(place, following)


def job_key(job: Mapping[str, Any]) -> str:
    """Return a digest of all that the results of a job depend on."""
    return hashlib.sha256(json.dumps(job, sort_keys=True).encode()).hexdigest()


def _found(place: Location, job: Mapping[str, Any]) -> str:
    kind = place.info().type
    if kind == fs.FileType.NotFound:
        return "nothing"
    if kind == fs.FileType.File:
        raise UsageRefused(f"{place} is a file: name a folder for the parts")
    content = _read_job(place)
    if content is not None:
        return "this job" if job_key(content) == job_key(job) else "another job"
    entries = place.system.get_file_info(fs.FileSelector(place.path))
    if names := sorted(entry.base_name for entry in entries if entry.base_name[0] not in "_."):
        raise UsageRefused(
            f"{place} holds {names[0]!r}, but no {JOB}: name a new folder, or one of vae score"
        )
    return "nothing"


def _read_job(place: Location) -> dict[str, Any] | None:
    if not (place / JOB).exists():
        return None
    try:
        content: dict[str, Any] = json.loads((place / JOB).read())
    except ValueError as err:
        raise UsageRefused(f"{place / JOB} cannot be read: {err}; remove the folder") from err
    return content


def _difference(place: Location, job: Mapping[str, Any]) -> str:
    found = _read_job(place) or {}
    names = [name for name in {**job, **found} if found.get(name) != job.get(name)]
    return (
        f"{place} is the output of another job, which differs in {', '.join(names)}: "
        "name another folder, or replace it by --overwrite"
    )


@contextlib.contextmanager
def _alone(place: Location) -> Iterator[None]:
    """Lock a local folder while the block runs; after a crash the system unlocks it."""
    if not place.is_local:
        yield
        return
    try:
        place.system.create_dir(place.path, recursive=True)
        handle = os.open(place.path, os.O_RDONLY)
    except OSError as err:
        raise UsageRefused(f"cannot write to {place}: {err}") from err
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    except BlockingIOError as err:
        raise UsageRefused(f"another process is writing to {place}") from err
    finally:
        os.close(handle)


def _swap(place: Location, following: Location) -> None:
    """Replace a folder by another; the old one is deleted once the new one is in place."""
    old = Location(place.system, f"{following.path.removesuffix('.next')}.old")
    with contextlib.suppress(FileNotFoundError):
        place.system.delete_dir(old.path)
    if place.exists():
        os.rename(place.path, old.path)
    os.rename(following.path, place.path)
    with contextlib.suppress(FileNotFoundError):
        place.system.delete_dir(old.path)


def _part_name(index: int) -> str:
    return f"part-{index:05d}.parquet"
