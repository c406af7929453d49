"""The command `vae reconstruct`: encode rows and decode their posterior means."""

import math
import time
from pathlib import Path
from typing import Any

import click

from serving.cli.command import CONTEXT, Command
from serving.cli.options import (
    as_picture,
    engine_device_option,
    finish_file,
    model_option,
    open_engine,
    open_rows,
    out_option,
    read_options,
    refuse_inside,
    require_pyarrow,
    threads_option,
    x_option,
)
from serving.cli.paths import Origin

_ADVICE = "; to set them aside: vae score --operation reconstruct --on-error quarantine"


@click.command(cls=Command, context_settings=CONTEXT)
@click.argument("input", type=Origin())
@model_option
@x_option
@read_options
@out_option
@engine_device_option
@threads_option
def reconstruct(
    input: str,
    reference: str,
    x: tuple[str, ...],
    out: Path,
    device: str,
    threads: int,
    **reading: Any,
) -> None:
    """Encode the rows of INPUT and decode their posterior means.

    INPUT is what vae score takes, and must fit in memory. The file holds the rows (.npy, .parquet,
    .csv), or a picture in which originals and reconstructions alternate (.png).

    Example: vae reconstruct images.npy --out reconstructions.npy
    """
    import numpy as np

    require_pyarrow("vae reconstruct")
    from serving.batch.scorer import layout_of, read_all
    from serving.files import check_output_file
    from serving.io.array_files import check_table_file, write_array
    from serving.io.images import write_grid

    check_output_file(out, (".png", ".npy", ".parquet", ".csv"))
    refuse_inside(out, "--out", "INPUT", input)
    source, engine = open_engine(reference, device, threads)
    rows = open_rows(input, **reading, model=source)
    names = source.bundle.manifest.columns
    check_table_file(out, names)
    originals = read_all(rows, x, layout_of(engine), advice=_ADVICE)
    started = time.perf_counter()
    x_loc = engine.reconstruct(originals)
    seconds = time.perf_counter() - started
    if out.suffix.lower() == ".png":
        pairs = np.stack([originals.astype(np.float32), x_loc], axis=1)
        images = as_picture(source, pairs.reshape(-1, *x_loc.shape[1:]))
        write_grid(out, images, 2 * math.ceil(math.sqrt(len(x_loc) / 2)))
    else:
        write_array(out, x_loc, names)
    finish_file(out, len(x_loc), seconds, source)
