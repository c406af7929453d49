"""The commands that look into latents: `vae decode`, `vae interpolate` and `vae traverse`.

Slow imports are inside the commands.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from serving.cli.command import CONTEXT, Command
from serving.cli.help_page import group
from serving.cli.options import (
    as_picture,
    engine_device_option,
    finish_file,
    model_option,
    open_engine,
    open_rows,
    option,
    out_option,
    read_options,
    refuse_inside,
    require_pyarrow,
    threads_option,
    x_option,
)
from serving.cli.paths import Origin
from serving.console import say
from serving.errors import UsageRefused

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from serving.engine import Engine
    from serving.io.rows import Rows
    from serving.source import Source

_CODES = ("z", "z_loc")
_SUFFIXES = (".png", ".npy", ".parquet", ".csv")


def _common(command: Callable[..., None]) -> Callable[..., None]:
    for add in reversed((model_option, out_option, engine_device_option, threads_option)):
        command = add(command)
    return command


@click.command(cls=Command, context_settings=CONTEXT)
@click.argument("input", type=Origin())
@read_options
@_common
def decode(
    input: str, reference: str, out: Path, device: str, threads: int, **reading: Any
) -> None:
    """Decode the latents of INPUT, rows of z.

    INPUT is an array of them, or a table with a column z or z_loc of lists, such as the folder that
    vae score --operation encode writes.

    Example: vae decode codes/ --out decoded.npy
    """
    require_pyarrow("vae decode")
    import numpy as np

    from serving.batch.scorer import read_all
    from serving.io.column_choice import RowLayout

    source, engine = _open(reference, out, device, threads)
    refuse_inside(out, "--out", "INPUT", input)
    rows = open_rows(input, **reading, model=None)
    found = [name for name in _CODES if name in rows.schema.names][:1]
    shape, dtype = (source.bundle.manifest.latent_dim,), np.dtype(np.float32)
    latents = RowLayout(shape, dtype, False, name="z")
    _write(source, engine, out, read_all(rows, found, latents))


@click.command(cls=Command, context_settings=CONTEXT)
@click.argument("input", type=Origin())
@group("Rows and way")
@x_option
@read_options
@click.option(
    "--row",
    "rows",
    type=click.IntRange(0),
    multiple=True,
    help="A row to pass; repeat it  [default: 0 and 1]",
)
@option("--steps", type=click.IntRange(2), default=11, help="Points from one row to the next")
@group("Model and output")
@_common
def interpolate(
    input: str,
    x: tuple[str, ...],
    rows: tuple[int, ...],
    steps: int,
    reference: str,
    out: Path,
    device: str,
    threads: int,
    **reading: Any,
) -> None:
    """Decode the points on the lines between rows of INPUT.

    The lines are straight, between the posterior means of the rows. A picture has a line for each
    pair of rows; a table has the columns start, stop and step.

    Example: vae interpolate images.npy --row 3 --row 8 --out path.png
    """
    require_pyarrow("vae interpolate")
    import numpy as np

    rows = rows or (0, 1)
    if len(rows) < 2:
        raise UsageRefused(f"--row must be given at least twice, got {rows[0]} alone")
    source, engine = _open(reference, out, device, threads)
    refuse_inside(out, "--out", "INPUT", input)
    z_loc = _encode_rows(engine, open_rows(input, **reading, model=source), x, rows)
    shares = np.linspace(0, 1, steps, dtype=np.float32)[:, None]
    z = np.concatenate([(1 - shares) * a + shares * b for a, b in pairwise(z_loc)])
    pairs = np.repeat(np.column_stack([rows[:-1], rows[1:]]), steps, axis=0)
    step = np.tile(np.arange(steps), len(rows) - 1)
    lines = ", ".join(f"row {a} to row {b}" for a, b in pairwise(rows))
    place = {"start": pairs[:, 0], "stop": pairs[:, 1], "step": step}
    _write(source, engine, out, z, place, lines, steps)


@click.command(cls=Command, context_settings=CONTEXT)
@click.argument("input", default="", type=click.Path())
@group("Start and way")
@x_option
@read_options
@option("--row", type=click.IntRange(0), default=0, help="Row of INPUT to start from")
@click.option(
    "--latent",
    "latents",
    type=click.IntRange(0),
    multiple=True,
    help="A latent to change; repeat it  [default: all]",
)
@option(
    "--limit",
    type=click.FloatRange(0, min_open=True),
    default=3.0,
    help="Each latent goes from minus this to this",
)
@option("--steps", type=click.IntRange(2), default=11, help="Points on the way")
@group("Model and output")
@_common
def traverse(
    input: str,
    x: tuple[str, ...],
    row: int,
    latents: tuple[int, ...],
    limit: float,
    steps: int,
    reference: str,
    out: Path,
    device: str,
    threads: int,
    **reading: Any,
) -> None:
    """Change one latent at a time, and decode.

    The others stay at the posterior mean of a row of INPUT, or without INPUT at 0, the mean of the
    prior. A picture has a line for each latent; a table has the columns latent and z.

    Example: vae traverse images.npy --row 3 --latent 5 --out latent.png
    """
    require_pyarrow("vae traverse")
    import numpy as np

    source, engine = _open(reference, out, device, threads)
    size = source.bundle.manifest.latent_dim
    if latents and max(latents) >= size:
        raise UsageRefused(f"--latent must be from 0 to {size - 1}, got {max(latents)}")
    chosen = np.array(latents or range(size))
    start = np.zeros((1, size), np.float32)
    if input:
        refuse_inside(out, "--out", "INPUT", input)
        start = _encode_rows(engine, open_rows(input, **reading, model=source), x, (row,))
    latent = np.repeat(chosen, steps)
    value = np.tile(np.linspace(-limit, limit, steps, dtype=np.float32), len(chosen))
    names = ", ".join(f"z[{index}]" for index in latents) or f"z[0] to z[{size - 1}]"
    lines = f"{names}, each from {-limit:g} to {limit:g}"
    z = np.repeat(start, len(latent), axis=0)
    z[np.arange(len(z)), latent] = value
    _write(source, engine, out, z, {"latent": latent, "z": value}, lines, steps)


def _open(reference: str, out: Path, device: str, threads: int) -> "tuple[Source, Engine]":
    from serving.files import check_output_file
    from serving.io.array_files import check_table_file

    check_output_file(out, _SUFFIXES)
    source, engine = open_engine(reference, device, threads)
    check_table_file(out, source.bundle.manifest.columns)
    return source, engine


def _encode_rows(
    engine: "Engine", rows: "Rows", x: Sequence[str], numbers: Sequence[int]
) -> "NDArray[Any]":
    """Return the posterior means of some rows of an input, (rows, latent_dim)."""
    import numpy as np

    from serving.batch.scorer import layout_of, read_all

    if max(numbers) >= rows.total:
        raise UsageRefused(
            f"--row must be below {rows.total}, the rows of {rows.input_path}, got {max(numbers)}"
        )
    wanted, places = np.unique(numbers, return_inverse=True)
    layout = layout_of(engine)
    found = [read_all(rows, x, layout, int(number), int(number) + 1) for number in wanted]
    return engine.encode(np.concatenate(found))["z_loc"][places]


def _write(
    source: "Source",
    engine: "Engine",
    out: Path,
    z: "NDArray[Any]",
    place: "Mapping[str, NDArray[Any]] | None" = None,
    lines: str = "",
    columns: int | None = None,
) -> None:
    """Decode `z` into a file.

    `place` are more columns of a table; `lines` says what the lines of a picture are, and `columns`
    is the number of images in each.
    """
    from serving.io.array_files import free_name, named_columns, write_array, write_table
    from serving.io.images import write_grid

    started = time.perf_counter()
    x_loc = engine.decode(z)
    seconds = time.perf_counter() - started
    suffix = out.suffix.lower()
    if suffix == ".png":
        write_grid(out, as_picture(source, x_loc), columns)
        if lines:
            say(f"lines of the picture, from above: {lines}")
    elif suffix == ".npy":
        write_array(out, x_loc)
    else:
        features = named_columns(x_loc, source.bundle.manifest.columns)
        first = {free_name(name, features): values for name, values in (place or {}).items()}
        write_table(out, {**first, **features})
    finish_file(out, len(x_loc), seconds, source)
