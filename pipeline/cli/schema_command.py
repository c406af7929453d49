"""The command `vae schema`: what the columns of a table are, as a table and as a file to change."""

from collections import Counter
from pathlib import Path
from typing import Any

import click

from pipeline.cli.config_options import chosen, settings_options
from pipeline.config import DataConfig
from serving.cli.command import CONTEXT, Command
from serving.cli.help_page import group
from serving.cli.paths import Origin, target
from serving.console import finish, say

_SETTINGS = ("columns", "label", "delimiter", "schema")


@click.command(cls=Command, context_settings=CONTEXT)
@click.argument("data", type=Origin())
@group("Settings")
@settings_options(DataConfig, only=_SETTINGS)
@group("Output")
@click.option("--out", type=target(), help="File for --schema of run and train, .toml")
def schema(data: str, out: Path | None, **settings: Any) -> None:
    """Show what the columns of a table are, and why.

    DATA is a file or a folder of Parquet, Arrow or CSV. The file of --out says it for each column;
    change it, and pass it on by --schema.

    Example: vae schema claims.parquet --out schema.toml
    """
    from pipeline.data.mixed_tables import find_table_schema
    from pipeline.data.readers import locate_table
    from pipeline.data.schema_file import write_schema
    from pipeline.data.schema_summary import summarize
    from pipeline.data.selection import Selection
    from serving.files import check_output_file, staged_file

    if out is not None:
        check_output_file(out, (".toml",))
    path = locate_table(data)
    found = find_table_schema(path, Selection(likelihood="auto", **chosen(settings)))
    say(summarize(data, found), wrap=False)
    if found.is_plain:
        say("numbers of one kind without gaps: run and train learn them without a schema")
    if out is not None:
        with staged_file(out) as temporary:
            temporary.write_text(write_schema(data, found.columns), encoding="utf-8")
        say(f"next: vae run --data {data} --schema {out}")
    kinds = Counter(column.kind for column in found.columns)
    finish({"data": data, "out": str(out) if out else None, "kinds": kinds})
