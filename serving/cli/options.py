"""The command `vae reconstruct`, and what the commands that use a model share.

Imports that take time stand inside the commands.
"""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from serving.console import finish, say
from serving.cpu import available_cores
from serving.errors import DeviceUnavailable, UsageRefused

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from serving.engine import Device, Engine
    from serving.source import Source

model_option = click.option(
    "--model",
    "reference",
    default="models:/vae@champion",
    show_default=True,
    help="A bundle folder, models:/NAME@ALIAS or models:/NAME/VERSION",
)
device_option = click.option(
    "--device",
    type=click.Choice(["cpu", "cuda", "auto"]),
    default="cpu",
    show_default=True,
    help="Where to compute; cuda never falls back to the CPU",
)
threads_option = click.option(
    "--threads",
    type=click.IntRange(min=1),
    default=available_cores,
    show_default="available cores",
    help="Threads to compute with on the CPU",
)
x_option = click.option(
    "--x", multiple=True, help="Column of x; several where each holds one number"
)
out_option = click.option(
    "--out", type=click.Path(path_type=Path), required=True, help="File to write"
)
seed_option = click.option(
    "--seed",
    type=click.IntRange(0, 2**63 - 1),
    default=0,
    show_default=True,
    help="Seed of the noise: the same seed gives the same bytes",
)


def refuse_inside(path: Path, option: str, name: str, location: str) -> None:
    """Refuse a target that is what is read, or in it: all files of a folder are taken for rows."""
    from serving.io.filesystems import locate

    place = locate(location)
    if place.is_local and path.resolve().is_relative_to(Path(place.path).resolve()):
        raise UsageRefused(f"{option} must lie outside {name} {location}, got {str(path)!r}")


def require_pyarrow(what: str) -> None:
    """Say what is missing at once, before a model is fetched."""
    try:
        import pyarrow  # noqa: F401
    except ImportError as err:
        raise UsageRefused(f"{what} needs pyarrow: pip install 'vae-pipeline[files]'") from err


def open_engine(reference: str, device: str, threads: int) -> "tuple[Source, Engine]":
    """Open a model on a device."""
    from serving.engine import Engine
    from serving.source import open_source

    source = open_source(reference)
    return source, Engine(source.bundle, device=engine_device(device), threads=threads)


def engine_device(device: str) -> "Device":
    """`cpu` or `cuda`; `auto` takes CUDA where it loads, and says why where it does not."""
    from serving.engine import require_cuda

    if device == "cpu":
        return "cpu"
    try:
        require_cuda()
    except DeviceUnavailable as err:
        if device == "cuda":
            raise
        say(f"using the CPU: {err}")
        return "cpu"
    return "cuda"


def as_picture(source: "Source", x: "NDArray[Any]") -> "NDArray[Any]":
    """Values of images in units of bytes, as the model's own rows say."""
    from serving.io.images import byte_unit

    return x * byte_unit(source.bundle.golden()["encode.x"])


def finish_rows(out: Path, rows: int, seconds: float, source: "Source") -> None:
    """Print what was written, and which version made it."""
    manifest = source.bundle.manifest
    finish(
        {
            "out": str(out),
            "rows": rows,
            "rows_per_s": round(rows / max(seconds, 1e-9), 1),
            "version": source.version,
            "digest": manifest.digest,
        }
    )
