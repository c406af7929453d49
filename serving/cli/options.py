"""What the commands that use a model share: options, opening a model, results.

Slow imports are inside the commands.
"""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from serving.cli.device_name import DeviceName
from serving.cli.paths import Origin, target
from serving.console import finish, progress, say
from serving.cpu import available_cores
from serving.errors import DeviceUnavailable, UsageRefused

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from serving.batch.job import Input, Mapper, PartExecutor
    from serving.batch.output import Output
    from serving.engine import Engine
    from serving.io.rows import Rows
    from serving.source import Source

option = partial(click.option, show_default=True)

_VERIFY_KEY = f"{__name__}.verify_key"
"""Where a click context keeps the key that a model must be signed with."""


def _keep_verify_key(ctx: click.Context, option: click.Parameter, key: Path | None) -> None:
    if key is None or ctx.resilient_parsing:
        return
    from serving.signatures import fingerprint

    fingerprint(key)  # refuse it now, and not when the model is fetched
    ctx.meta[_VERIFY_KEY] = key.absolute()


def verify_key() -> Path | None:
    """Return the public key that `--verify-key` named, None if no signature is asked for."""
    key: Path | None = click.get_current_context().meta.get(_VERIFY_KEY)
    return key


verify_key_option = click.option(
    "--verify-key",
    type=Origin(path_type=Path),
    envvar="VAE_VERIFY_KEY",
    show_envvar=True,
    expose_value=False,
    callback=_keep_verify_key,
    help="Public key, PEM: use only what is signed with its private key, by vae register --sign",
)


def model_option(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add the options that name a model and the key that it must be signed with.

    `open_engine` heeds both.
    """
    add = option(
        "--model",
        "reference",
        type=Origin(),
        default="models:/vae@champion",
        help="A bundle folder, models:/NAME@ALIAS or models:/NAME/VERSION",
    )
    return add(verify_key_option(command))


device_option = option(
    "--device",
    type=click.Choice(["cpu", "cuda", "auto"]),
    default="cpu",
    help="Where to compute; cuda never falls back to the CPU",
)
engine_device_option = option(
    "--device",
    type=DeviceName("auto"),
    default="cpu",
    help="Where to compute, without falling back to the CPU: cpu, cuda, auto, or NAME of a plugin, "
    "which onnxruntime-ep-NAME brings or NAME=LIBRARY says",
)
threads_option = click.option(
    "--threads",
    type=click.IntRange(min=1),
    default=available_cores,
    show_default="available cores",
    help="Threads to compute with on the CPU",
)
x_option = click.option(
    "--x", multiple=True, help="Column of x; repeat it if each column holds one number"
)
out_option = click.option("--out", type=target(), required=True, help="File to write")
seed_option = option(
    "--seed",
    type=click.IntRange(0, 2**63 - 1),
    default=0,
    help="Seed of the noise: the same seed gives the same bytes",
)
workers_option = option(
    "--workers",
    type=click.IntRange(min=1),
    default=available_cores,
    show_default="available cores",
    help="Threads that compute, each on rows of its own",
)


def read_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add the options that say how an input is read; `open_rows` takes them."""
    for name, help in (
        ("--delimiter", "Between the fields of a CSV file, a character or tab  [default: found]"),
        ("--array", "Array of an .npz file to read  [default: its usual names]"),
    ):
        command = click.option(name, default="", help=help)(command)
    return command


def output_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add the options on bad rows, and on a folder that has the output of another job."""
    for add in (
        click.option("--overwrite", is_flag=True, help="Replace the output of another job"),
        option(
            "--max-bad",
            default="10%",
            help="With quarantine, the most bad rows before the job fails: a number, or a share",
        ),
        option(
            "--on-error",
            type=click.Choice(["fail", "quarantine"]),
            default="fail",
            help="What to do with a bad row: fail the job, or move it to OUTPUT/_quarantine",
        ),
    ):
        command = add(command)
    return command


def refuse_inside(path: Path, option: str, name: str, location: str) -> None:
    """Refuse an output that is the input or lies in it, since every file there is read as rows."""
    from serving.io.filesystems import locate

    place = locate(location)
    if place.is_local and path.resolve().is_relative_to(Path(place.path).resolve()):
        raise UsageRefused(f"{option} must lie outside {name} {location}, got {str(path)!r}")


def require_pyarrow(what: str) -> None:
    """Refuse at once, before a model is fetched, if pyarrow is missing."""
    try:
        import pyarrow  # noqa: F401
    except ImportError as err:
        raise UsageRefused(f"{what} needs pyarrow: pip install 'vae-pipeline[files]'") from err


def open_rows(
    location: str,
    ids: Sequence[str] | None = None,
    where: str = "",
    array: str = "",
    delimiter: str = "",
    model: "Source | None" = None,
    *,
    others_as_text: bool = False,
) -> "Rows":
    """Open the rows of an input, and print what a person should know about how they are read.

    If the model has a schema, columns of CSV files have its types; `others_as_text` reads all
    others as they are written.
    """
    from serving.io.arrow_cells import csv_types
    from serving.io.rows import Rows

    schema = model.bundle.manifest.schema if model else None
    types = csv_types(schema) if schema else None
    rows = Rows(location, ids, where, array, delimiter, types, others_as_text)
    for note in rows.notes:
        say(note)
    return rows


def open_engine(reference: str, device: str, threads: int = 1) -> "tuple[Source, Engine]":
    """Open the model that a reference names, on a device."""
    from serving.engine import Engine
    from serving.source import open_source

    source = open_source(reference, verify_key())
    return source, Engine(source.bundle, device=engine_device(device), threads=threads)


def engine_device(device: str) -> str:
    """Load a device; `auto` is CUDA if it loads, else the CPU, and then it prints why."""
    if device == "cpu":
        return device  # nothing to load, and the parent of a server has no use for onnxruntime
    from serving.sessions import require_device

    try:
        require_device("cuda" if device == "auto" else device)
    except DeviceUnavailable as err:
        if device != "auto":
            raise
        say(f"using the CPU: {err}")
        return "cpu"
    return "cuda" if device == "auto" else device


def as_picture(source: "Source", x: "NDArray[Any]") -> "NDArray[Any]":
    """Convert the values of images to brightness, from 0 to 255."""
    from serving.value_range import to_brightness

    return to_brightness(x, source.bundle.picture_range())


def finish_file(out: Path, rows: int, seconds: float, source: "Source") -> None:
    """Print what was written to a file, and which version made it."""
    finish({"out": str(out), **rate_of(rows, seconds), **version_of(source)})


def rate_of(rows: int, seconds: float) -> dict[str, Any]:
    """Return the number of rows and their rate, for the JSON line."""
    return {"rows": rows, "rows_per_s": round(rows / max(seconds, 1e-9), 1)}


def version_of(source: "Source") -> dict[str, Any]:
    """Return the version and the digest of a model, for the JSON line."""
    return {"version": source.version, "digest": source.bundle.manifest.digest}


def fill_folder(
    name: str,
    folder: "Output",
    mapper: "Mapper",
    rows: "Input",
    executor: "AbstractContextManager[PartExecutor | None]",
    **settings: Any,
) -> dict[str, Any]:
    """Run the job of an output folder, unless it is finished; return its summary."""
    from serving.batch.job import run_job

    if (summary := folder.summary()) is not None:
        say(f"{name} is finished already: nothing to do")
        return dict(summary)
    with progress(rows.total, "rows") as bar, executor as execute:
        settings |= {"advance": bar.advance, "skip": bar.skip, "execute": execute}
        done = run_job(mapper, rows, folder, **settings)
    return done.to_json()
