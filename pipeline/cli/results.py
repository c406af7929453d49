"""The end of a command: metrics for the JSON line, a summary, and the exit code of a verdict.

In: the results of the stages. Out: a part of the JSON line, a summary on stderr, or an error.
"""

import os
import shlex
import shutil
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.errors import GateRefused, ParityFailed, Stale
from serving.console import say, warn

if TYPE_CHECKING:
    from pipeline.evaluation.evaluate import Metrics
    from pipeline.parity.report import ParityReport
    from pipeline.registry.audit_log import Decision


def metrics_summary(run_id: str | None, metrics: "Metrics", started: float) -> dict[str, Any]:
    """Return the part of the JSON line that `run`, `train` and `evaluate` have in common."""
    return {
        "run_id": run_id,
        "rows": metrics.rows,
        "elbo": metrics.elbo,
        "nll": metrics.nll,
        "nll_se": metrics.nll_se,
        "log_likelihood": metrics.log_likelihood,
        "kl": metrics.kl,
        "active_units": metrics.active_units,
        "informative_units": metrics.informative_units,
        "reconstruction_error": metrics.reconstruction_error,
        "bits_per_dim": metrics.bits_per_dim,
        "warnings": list(metrics.warnings),
        "seconds": round(time.perf_counter() - started, 1),
    }


def say_summary(
    name: str,
    version: str,
    x_shape: Sequence[int],
    metrics: "Metrics",
    decision: "Decision | None",
    pictures: str,
    page: str | None = None,
) -> None:
    """Print the summary of the main job: the champion, how good it is, and what to do next."""
    from serving.io.images import is_picture

    promoted = decision is not None and decision.decision == "promoted"
    model = f"models:/{name}@{'champion' if promoted else 'candidate'}"
    name_option = "" if name == "vae" else f" --name {name}"
    out = "grid.png" if is_picture(x_shape) else "samples.parquet"
    next_command = f"vae history{name_option}"
    if promoted:
        status = f"is now champion of {name}"
    elif decision is None:
        status = f"of {name} is registered as candidate"
        next_command = f"vae promote @candidate{name_option}"
    else:
        champion = f"champion is version {decision.previous}"
        status = f"of {name} was {decision.decision}; "
        status += champion if decision.previous else "there is no champion"
    place = os.path.relpath(sys.prefix)
    script = f"{sys.prefix if place.startswith(os.pardir) else place}/bin/activate"
    activate = "" if _is_active() else f"  . {shlex.quote(script)}\n"
    say(
        f"""
version {version} {status}
  held-out ELBO {metrics.elbo:.2f} nats, NLL {metrics.nll:.2f} nats
  parity        passed
  pictures      {pictures}
{f"  MLflow        {page}{chr(10)}" if page else ""}
try next:
{activate}  vae sample --model {model} --count 64 --seed 7 --out {out}
  {next_command}
  vae doctor
"""
    )
    for text in metrics.warnings:
        warn(text)


def _is_active() -> bool:
    """Whether the shell finds the commands of the virtual environment that this runs in, if any.

    `make` puts the environment on the path of its own commands, not of the shell.
    """
    if sys.prefix == sys.base_prefix:
        return True
    if os.environ.get("VIRTUAL_ENV"):
        return Path(os.environ["VIRTUAL_ENV"]).resolve() == Path(sys.prefix).resolve()
    found = shutil.which("vae")
    return (
        found is not None
        and Path(found).parent.parent == Path(sys.prefix)
        and ("MAKELEVEL" not in os.environ)
    )


def raise_unless_parity_passed(report: "ParityReport") -> None:
    """Raise the error of exit code 4 if parity failed."""
    if not report.passed:
        raise ParityFailed(f"parity failed: {report.faults()[0]}")


def raise_unless_promoted(decision: "Decision | None") -> None:
    """Raise the error of exit code 5 or 6 if the gate refused or the decision was stale."""
    if decision is None or decision.decision not in ("refused", "stale"):
        return
    subject, reasons = f"version {decision.version} of {decision.name}", "; ".join(decision.reasons)
    if decision.decision == "stale":
        raise Stale(f"{subject} came too late: {reasons}")
    raise GateRefused(f"{subject} was refused: {reasons}")
