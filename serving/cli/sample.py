"""The command `vae sample`: a picture or a file of some samples, or a folder of any number.

Slow imports are inside the command.
"""

import math
import os
import time
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path, PurePosixPath
from typing import Any

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

_SUFFIXES = {"png": ".png", "npy": ".npy", "parquet": ".parquet", "csv": ".csv"}


@click.command(cls=Command, context_settings=CONTEXT)
@group("Samples")
@model_option
@option("--count", type=click.IntRange(min=1), default=64, help="Samples to draw")
@seed_option
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
    reference: str, count: int, seed: int, out: str, kind: str | None, threads: int, **settings: Any
) -> None:
    """Draw samples from the prior and decode them.

    A file is a grid (.png) or the rows themselves (.npy, .parquet, .csv), which must fit in memory.
    A folder is filled with Parquet parts, in bounded memory; the same command again resumes where
    an earlier one was interrupted. Row i of a seed is the same in all of them. A table has the
    columns that the model learned from, or a column x_loc of lists.

    Example: vae sample --count 64 --seed 7 --out grid.png
    """
    if out.endswith("/") or not PurePosixPath(out).suffix:
        if kind not in (None, "parquet"):
            raise UsageRefused(f"a folder takes --format parquet, got {kind!r}; name a file")
        finish(_sample_into_folder(reference, count, seed, out, threads, **settings))
        return
    if kind is not None and not out.lower().endswith(_SUFFIXES[kind]):
        raise UsageRefused(
            f"--out {out!r} is not a {kind} file: end it in {_SUFFIXES[kind]}, or in / for a folder"
        )
    _write_file(reference, count, seed, Path(out), threads, settings["device"])


def _write_file(
    reference: str, count: int, seed: int, out: Path, threads: int, device: str
) -> None:
    from serving.files import check_output_file
    from serving.io.array_files import check_table_file, write_array

    check_output_file(out, tuple(_SUFFIXES.values()))
    source, engine = open_engine(reference, device, threads)
    manifest = source.bundle.manifest
    check_table_file(out, manifest.columns)
    _refuse_too_many(count, manifest.x_shape)
    started = time.perf_counter()
    x_loc = engine.sample(count, seed)
    seconds = time.perf_counter() - started
    shown = as_picture(source, x_loc) if out.suffix.lower() == ".png" else x_loc
    write_array(out, shown, manifest.columns)
    finish_file(out, count, seconds, source)


def _refuse_too_many(count: int, x_shape: Sequence[int]) -> None:
    """Refuse samples that memory cannot hold: the process would be killed after minutes of work."""
    needed = 2 * count * math.prod(x_shape) * 4  # float32: the parts, and the whole made of them
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    if needed > memory:
        raise UsageRefused(
            f"{count:,} samples in a file take {needed / 1e9:.3g} GB of memory, but this machine "
            f"has {memory / 1e9:.3g}: name a folder by --out, which is filled part by part"
        )


def _sample_into_folder(
    reference: str, count: int, seed: int, out: str, workers: int, device: str, overwrite: bool
) -> dict[str, Any]:
    """Draw samples in threads over one set of sessions, part by part."""
    require_pyarrow("Parquet")
    from serving.batch.output import open_output
    from serving.batch.sampler import RowNumbers, Sampler, describe_samples
    from serving.batch.scorer import provenance_of

    source, engine = open_engine(reference, device)
    sampler = Sampler(engine, provenance_of(source, seed, num_samples=1))
    with open_output(out, describe_samples(sampler, count), overwrite=overwrite) as folder:
        summary = fill_folder(
            out, folder, sampler, RowNumbers(count), nullcontext(), workers=workers
        )
    written = {name: summary[name] for name in ("rows", "rows_per_s")}
    return {"out": out, **written, **version_of(source)}
