"""The commands that offer a model to others: `vae serve` and `vae deploy`."""

import os
from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from serving.cli.command import CONTEXT, Command
from serving.cli.config_file import config_option
from serving.cli.help_page import group
from serving.cli.live_options import check_live_options, live_options, observing, open_live
from serving.cli.options import (
    engine_device,
    engine_device_option,
    model_option,
    option,
    verify_key,
    version_of,
)
from serving.cli.paths import Origin, target
from serving.console import finish, say
from serving.errors import UsageRefused

if TYPE_CHECKING:
    from serving.deploy import DeployTarget
    from serving.server.auth import Access
    from serving.server.cors import Cors
    from serving.server.settings import Settings
    from serving.source import Source

_MIB = 2**20
_PASSED_ON = (
    *("workers", "threads", "cuda_graph", "max_requests", "max_queue", "max_connections"),
    *("timeout_s", "drain_s", "log_format", "access_log"),
)
"""Options that are passed to the workers unchanged."""


@click.command(cls=Command, context_settings=CONTEXT)
@group("Model")
@config_option()
@model_option
@option(
    "--poll",
    "poll_s",
    type=click.FloatRange(min=0.1),
    default=5.0,
    help="Seconds between two checks of which version the registry names",
)
@click.option(
    "--follow",
    type=click.Choice(["ledger", "alias"]),
    help="What names the version: the ledger of vae promote, or the alias alone, as for promotions "
    "in MLflow's page  [default: ledger for @champion, alias for others]",
)
@group("Address and access")
@option("--host", default="127.0.0.1", help="Address to listen at")
@option(
    "--port", type=click.IntRange(0, 65535), default=8080, help="Port of REST; 0 picks a free one"
)
@option(
    "--grpc-port",
    type=click.IntRange(0, 65535),
    default=8081,
    help="Port of gRPC; 0 picks a free one",
)
@click.option(
    "--api-key-file",
    type=Origin(path_type=Path),
    help="File with the API key; the variable VAE_API_KEY does the same",
)
@click.option("--tls-cert", type=Origin(path_type=Path), help="Certificate chain, PEM")
@click.option("--tls-key", type=Origin(path_type=Path), help="Its private key, PEM")
@click.option(
    "--cors-origin",
    "cors_origins",
    multiple=True,
    metavar="ORIGIN",
    help="Origin whose pages may use REST, for example https://example.org; repeat it for several; "
    "* stands for any",
)
@group("Limits of a worker")
@option(
    "--timeout",
    "timeout_s",
    type=click.FloatRange(min=0.001),
    default=30.0,
    help="Seconds that a request may wait in the queue, and that its body may take to arrive",
)
@option(
    "--drain",
    "drain_s",
    type=click.FloatRange(min=0),
    default=30.0,
    help="Seconds that requests in progress have to finish after SIGTERM",
)
@option(
    "--max-requests",
    type=click.IntRange(min=1),
    default=256,
    help="Requests in progress in a worker; more are refused (429)",
)
@option(
    "--max-queue",
    type=click.IntRange(min=1),
    default=8192,
    help="Rows times draws that may wait in a worker; more are refused (429)",
)
@option(
    "--max-connections",
    type=click.IntRange(min=1),
    default=1024,
    help="Connections that a worker keeps open",
)
@option(
    "--max-body-mb",
    type=click.IntRange(min=1, max=1024),
    default=16,
    help="Largest request, in MiB",
)
@group("Computing")
@engine_device_option
@option(
    "--workers",
    type=click.IntRange(min=1),
    default=1,
    help="Processes that share the ports; choose up to one per core",
)
@option(
    "--threads",
    type=click.IntRange(min=1),
    default=1,
    help="Threads inside one run of a graph, on the CPU",
)
@click.option(
    "--cuda-graph",
    is_flag=True,
    help="Run by CUDA graphs with bound memory, for which --device must be cuda; not measured yet",
)
@live_options
@group("Logs")
@option(
    "--log-format",
    type=click.Choice(["plain", "json"]),
    default="plain",
    help="Log lines for a person, or for a log collector",
)
@click.option("--access-log", is_flag=True, help="Log every request")
def serve(**options: Any) -> None:
    """Serve a model over the Open Inference Protocol: REST and gRPC.

    With models:/NAME@champion, the server follows the promotions of vae promote, and with another
    alias the alias: it fetches and verifies a new version and switches to it without dropping a
    request. A bad version never replaces a good one, nor one that passed no gate the champion. With
    --verify-key, a version that is not signed with that key is a bad one. The page at / shows what
    the server does, and /docs how to send requests.

    Example: vae serve --model models:/vae@champion --port 8080
    """
    from serving.server.auth import Access
    from serving.server.cors import parse_origins
    from serving.server.runtime_folder import runtime_folder
    from serving.server.supervisor import resolve_host, run_server
    from serving.server.tracing import open_tracer

    host = resolve_host(options["host"])
    if options["port"] and options["port"] == options["grpc_port"]:
        raise UsageRefused(f"--port and --grpc-port must differ, got {options['port']} twice")
    tls = _tls(options["tls_cert"], options["tls_key"])
    cors = parse_origins(options["cors_origins"])
    access = Access(
        api_key=_secret("VAE_API_KEY", options["api_key_file"]),
        webhook_secret=os.environ.get("VAE_WEBHOOK_SECRET", "").strip(),
    )
    if host not in ("127.0.0.1", "::1") and not access.api_key:
        say(
            f"anyone who reaches {host} may use and unload this model: "
            "set VAE_API_KEY to ask for a key"
        )
    check_live_options(options)
    open_tracer().close()  # refuse here, not in each worker, if a package is missing
    with runtime_folder() as folder, open_live(options) as (live, rows):
        settings = replace(_settings(folder, host, access, cors, tls, options), live=live)
        run_server(
            options["reference"],
            settings,
            poll_s=options["poll_s"],
            follow=options["follow"],
            started=partial(_say_started, settings),
            observing=observing(settings, rows, options),
        )


def _settings(
    folder: Path,
    host: str,
    access: "Access",
    cors: "Cors",
    tls: tuple[Path, Path] | None,
    options: Mapping[str, Any],
) -> "Settings":
    from serving.server.rest_messages import Limits
    from serving.server.settings import Settings
    from serving.server.supervisor import free_port

    body_bytes = options["max_body_mb"] * _MIB
    limits = Limits(body_bytes=body_bytes, total_bytes=16 * body_bytes, body_s=options["timeout_s"])
    return Settings(
        folder=folder,
        parent=os.getpid(),
        host=host,
        port=free_port(host, options["port"], "--port"),
        grpc_port=free_port(host, options["grpc_port"], "--grpc-port"),
        device=engine_device(options["device"]),
        limits=limits,
        access=access,
        cors=cors,
        tls=tls,
        verify_key=verify_key(),
        **{name: options[name] for name in _PASSED_ON},
    )


def _say_started(settings: "Settings", source: "Source") -> None:
    scheme = "https" if settings.tls else "http"
    name = f"[{settings.host}]" if ":" in settings.host else settings.host
    finish(
        {
            "rest": f"{scheme}://{name}:{settings.port}",
            "grpc": f"{name}:{settings.grpc_port}",
            "version": source.version or source.bundle.manifest.digest[:12],
            "digest": source.bundle.manifest.digest,
        }
    )


@click.command(cls=Command, context_settings=CONTEXT)
@model_option
@click.option(
    "--target",
    type=click.Choice(["triton", "kserve", "docker"]),
    required=True,
    help="Triton's model repository, KServe's InferenceService, or a Dockerfile",
)
@click.option("--out", type=target(), required=True, help="Folder to write")
def deploy(reference: str, target: "DeployTarget", out: Path) -> None:
    """Write the files to deploy a model on other servers.

    With models:/NAME@ALIAS, KServe and Docker serve later versions of it, too; Triton gets the one
    that it names now. With --verify-key, a Docker image has the key, and serves what is signed.

    Example: vae deploy --target triton --out repository
    """
    from serving.deploy import next_steps, write_deployment
    from serving.mlflow_store import tracking_uri
    from serving.source import open_source, parse_reference

    registered = parse_reference(reference)
    source = open_source(reference, verify_key())
    alias = registered.alias if registered else None
    files = write_deployment(source, target, out, alias=alias, verify_key=verify_key())
    store = tracking_uri() if registered else ""
    for step in next_steps(source, target, out, store):
        say(f"next: {step}")
    finish({"out": str(out), "target": target, "files": list(files), **version_of(source)})


def _tls(chain: Path | None, key: Path | None) -> tuple[Path, Path] | None:
    if (chain is None) != (key is None):
        raise UsageRefused("--tls-cert and --tls-key go together")
    if chain is None or key is None:
        return None
    import ssl

    try:
        ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(chain, key)
    except ssl.SSLError as err:
        why = "they must be a certificate chain and its private key, both PEM"
        if err.reason == "KEY_VALUES_MISMATCH":
            why = "the key is not that of the certificate"
        raise UsageRefused(f"cannot use {chain} with {key}: {why}") from err
    except OSError as err:
        raise UsageRefused(f"cannot use {chain} with {key}: {err.strerror or err}") from err
    return chain.absolute(), key.absolute()


def _secret(variable: str, file: Path | None) -> str:
    if file is None:
        return os.environ.get(variable, "").strip()
    try:
        secret = file.read_text().strip()
    except (OSError, UnicodeDecodeError) as err:
        raise UsageRefused(f"cannot read {file}: {err}") from err
    if not secret:
        raise UsageRefused(f"{file} is empty: write the key into it")
    return secret
