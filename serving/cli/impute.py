"""The command `vae impute`: fill the gaps of a table, into a folder of Parquet parts.

Slow imports are inside the command.
"""

from contextlib import nullcontext
from typing import Any

import click

from serving.cli.command import CONTEXT, Command
from serving.cli.help_page import group
from serving.cli.options import (
    engine_device_option,
    fill_folder,
    model_option,
    open_engine,
    open_rows,
    option,
    output_options,
    read_options,
    require_pyarrow,
    seed_option,
    version_of,
    workers_option,
)
from serving.cli.paths import Origin, Target
from serving.console import finish, warn


@click.command(cls=Command, context_settings=CONTEXT)
@click.argument("input", type=Origin())
@click.argument("output", type=Target())
@group("Model and rows")
@model_option
@read_options
@group("Filling")
@option(
    "--draws",
    type=click.IntRange(0, 1000),
    default=0,
    help="Completed copies of each row, drawn at random and numbered by a column draw; 0 for one "
    "row with the mean of numbers and the likeliest word",
)
@option(
    "--num-samples",
    type=click.IntRange(1, 4096),
    default=64,
    help="Latents per row, which are weighted by how well they explain what is seen",
)
@seed_option
@group("Bad rows and output")
@output_options
@group("Computing")
@engine_device_option
@workers_option
def impute(**settings: Any) -> None:
    """Fill the gaps of a table.

    INPUT is a table that vae score takes, of a model with --likelihood mixed. OUTPUT becomes a
    folder of Parquet files with the same columns: cells that are there stay as they are, and gaps
    get values of the column's own type and words. Columns that the model does not know pass
    through, those of CSV as text, as they are written. The same command again resumes where an
    earlier one was interrupted.

    Example: vae impute new.parquet filled/ --model models:/claims@champion
    """
    require_pyarrow("vae impute")
    finish(_impute(**settings))


def _impute(
    input: str,
    output: str,
    reference: str,
    device: str,
    delimiter: str,
    array: str,
    draws: int,
    num_samples: int,
    seed: int,
    overwrite: bool,
    max_bad: str,
    **running: Any,
) -> dict[str, Any]:
    from serving.batch.imputer import Imputer
    from serving.batch.job import BATCH_ROWS, describe_job, parse_limit
    from serving.batch.output import open_output
    from serving.batch.scorer import provenance_of

    limit = parse_limit(max_bad)
    source, engine = open_engine(reference, device)
    engine.require("impute")
    rows = open_rows(input, None, "", array, delimiter, source, others_as_text=True)
    made_by = provenance_of(source, seed, num_samples)
    imputer = Imputer(engine, made_by, rows.schema, draws=draws)
    job = describe_job(imputer, rows)
    with open_output(output, job, overwrite=overwrite) as folder:
        summary = fill_folder(
            output,
            folder,
            imputer,
            rows,
            nullcontext(),
            batch_rows=max(1, BATCH_ROWS // imputer.copies),
            limit=limit,
            **running,
        )
    for text in imputer.unknown.describe():
        warn(text)
    written = {name: summary[name] for name in ("rows", "rows_per_s", "bad")}
    return {"out": output, **written, **version_of(source)}
