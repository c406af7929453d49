"""The command `vae sample`: a picture or a file of some samples, or a folder of any number.

Slow imports are inside the command.
"""

import math
import os
import time
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

import click

from serving.cli.command import CONTEXT, Command
from serving.cli.help_page import group
from serving.cli.options import (
    as_picture,
    engine_device_option,
    fill_folder,
    finish_file,
    model_option,
    open_engine,
    option,
    require_pyarrow,
    seed_option,
    threads_option,
    version_of,
)
from serving.cli.paths import Target
from serving.console import finish
from serving.errors import UsageRefused

if TYPE_CHECKING:
    from serving.bundle import Manifest
    from serving.schema import Schema

_SUFFIXES = {"png": ".png", "npy": ".npy", "parquet": ".parquet", "csv": ".csv"}


@click.command(cls=Command, context_settings=CONTEXT)
@group("Samples")
@model_option
@option("--count", type=click.IntRange(min=1), default=64, help="Samples to draw")
@seed_option
@click.option(
    "--draw/--mean",
    "drawn",
    default=None,
    help="Draw the rows themselves, or give the mean of each  [default: draw for a table of words, "
    "dates or counts, else the mean]",
)
@group("Output")
@click.option(
    "--out",
    type=Target(),
    required=True,
    help="File to write; a path or URI without a suffix, or ending in /, is a folder of parts",
)
@click.option(
    "--format",
    "kind",
    type=click.Choice(list(_SUFFIXES)),
    help="Format  [default: the suffix of --out; a folder takes parquet]",
)
@click.option("--overwrite", is_flag=True, help="Replace a folder of other samples")
@group("Computing")
@engine_device_option
@threads_option
def sample(
    reference: str,
    count: int,
    seed: int,
    drawn: bool | None,
    out: str,
    kind: str | None,
    threads: int,
    **settings: Any,
) -> None:
    """Draw samples from the prior and decode them.

    A file is a grid (.png) or the rows themselves (.npy, .parquet, .csv), which must fit in memory.
    A folder is filled with Parquet parts, in bounded memory; the same command again resumes where
    an earlier one was interrupted. Row i of a seed is the same in all of them. A table has the
    columns that the model learned from, with their own types and words if rows are drawn, or a
    column of lists: x of what is drawn, x_loc of means.

    Example: vae sample --count 64 --seed 7 --out grid.png
    """
    choice = _Choice(reference, count, seed, drawn, threads)
    if out.endswith("/") or not PurePosixPath(out).suffix:
        if kind not in (None, "parquet"):
            raise UsageRefused(f"a folder takes --format parquet, got {kind!r}; name a file")
        finish(_sample_into_folder(choice, out, **settings))
        return
    if kind is not None and not out.lower().endswith(_SUFFIXES[kind]):
        raise UsageRefused(
            f"--out {out!r} is not a {kind} file: end it in {_SUFFIXES[kind]}, or in / for a folder"
        )
    _write_file(choice, Path(out), settings["device"])


@dataclass(frozen=True, slots=True)
class _Choice:
    """What to sample."""

    reference: str
    count: int
    seed: int
    drawn: bool | None
    threads: int

    def draws(self, manifest: "Manifest") -> bool:
        """Whether rows are drawn, not their means."""
        return manifest.schema is not None if self.drawn is None else self.drawn


def _write_file(choice: _Choice, out: Path, device: str) -> None:
    from serving.files import check_output_file
    from serving.io.array_files import check_table_file, write_array

    check_output_file(out, tuple(_SUFFIXES.values()))
    source, engine = open_engine(choice.reference, device, choice.threads)
    manifest = source.bundle.manifest
    check_table_file(out, manifest.columns)
    _refuse_too_many(choice.count, manifest.x_shape)
    started = time.perf_counter()
    drawn = choice.draws(manifest)
    x = (engine.draw if drawn else engine.sample)(choice.count, choice.seed)
    seconds = time.perf_counter() - started
    if out.suffix.lower() == ".png":
        write_array(out, as_picture(source, x), manifest.columns)
    elif drawn and manifest.schema is not None and out.suffix.lower() != ".npy":
        _write_cells(out, manifest.schema, x)
    else:
        write_array(out, x, manifest.columns, unnamed="x" if drawn else "x_loc")
    finish_file(out, choice.count, seconds, source)


def _write_cells(out: Path, schema: "Schema", x: Any) -> None:
    require_pyarrow("a table")
    from serving.io.array_files import write_table
    from serving.io.arrow_cells import decode_batch

    write_table(out, decode_batch(schema, x))


def _refuse_too_many(count: int, x_shape: Sequence[int]) -> None:
    """Refuse samples that memory cannot hold: the process would be killed after minutes of work."""
    needed = 2 * count * math.prod(x_shape) * 4  # float32: the parts, and the whole made of them
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    if needed > memory:
        raise UsageRefused(
            f"{count:,} samples in a file take {needed / 1e9:.3g} GB of memory, but this machine "
            f"has {memory / 1e9:.3g}: name a folder by --out, which is filled part by part"
        )


def _sample_into_folder(choice: _Choice, out: str, device: str, overwrite: bool) -> dict[str, Any]:
    """Draw samples in threads over one set of sessions, part by part."""
    require_pyarrow("Parquet")
    from serving.batch.output import open_output
    from serving.batch.sampler import RowNumbers, Sampler, describe_samples
    from serving.batch.scorer import provenance_of

    source, engine = open_engine(choice.reference, device)
    made_by = provenance_of(source, choice.seed, num_samples=1)
    sampler = Sampler(engine, made_by, drawn=choice.draws(source.bundle.manifest))
    job = describe_samples(sampler, choice.count)
    with open_output(out, job, overwrite=overwrite) as folder:
        numbers = RowNumbers(choice.count)
        summary = fill_folder(out, folder, sampler, numbers, nullcontext(), workers=choice.threads)
    written = {name: summary[name] for name in ("rows", "rows_per_s")}
    return {"out": out, **written, **version_of(source)}
