"""What a command says and returns at its end: figures, next steps, and the exit code of a verdict.

In: what the stages gave. Out: a part of the JSON line, words on stderr, or an error.
"""

import os
import sys
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from pipeline.errors import GateRefused, ParityFailed, Stale
from serving.console import say
from serving.io.images import is_picture

if TYPE_CHECKING:
    from pipeline.evaluation.evaluate import Metrics
    from pipeline.parity.report import ParityReport
    from pipeline.registry.audit_log import Decision


def figures(run_id: str | None, metrics: "Metrics", started: float) -> dict[str, Any]:
    """What `run`, `train` and `evaluate` print."""
    return {
        "run_id": run_id,
        "rows": metrics.rows,
        "elbo": metrics.elbo,
        "nll": metrics.nll,
        "nll_se": metrics.nll_se,
        "log_likelihood": metrics.log_likelihood,
        "kl": metrics.kl,
        "active_units": metrics.active_units,
        "reconstruction_error": metrics.reconstruction_error,
        "bits_per_dim": metrics.bits_per_dim,
        "seconds": round(time.perf_counter() - started, 1),
    }


def say_summary(
    name: str,
    version: str,
    x_shape: Sequence[int],
    metrics: "Metrics",
    decision: "Decision | None",
    pictures: str,
) -> None:
    """The end of the main job: what is live now, how good it is, what to do next."""
    promoted = decision is not None and decision.decision == "promoted"
    model = f"models:/{name}@{'champion' if promoted else 'candidate'}"
    of_name = "" if name == "vae" else f" --name {name}"
    out = "grid.png" if is_picture(x_shape) else "samples.parquet"
    following = f"vae history{of_name}"
    if promoted:
        live = f"is now champion of {name}"
    elif decision is None:
        live = f"of {name} is registered as candidate"
        following = f"vae promote @candidate{of_name}"
    else:
        champion = f"champion is version {decision.previous}"
        live = f"of {name} was {decision.decision}; "
        live += champion if decision.previous else "there is no champion"
    # a virtual environment that started this without being activated
    hidden = sys.prefix != sys.base_prefix and "VIRTUAL_ENV" not in os.environ
    activate = f"  . {os.path.relpath(sys.prefix)}/bin/activate\n" if hidden else ""
    say(
        f"""
version {version} {live}
  held-out ELBO {metrics.elbo:.2f} nats, NLL {metrics.nll:.2f} nats
  parity        passed
  pictures      {pictures}

try next:
{activate}  vae sample --model {model} --count 64 --seed 7 --out {out}
  {following}
  vae doctor
"""
    )


def raise_unless_equal(report: "ParityReport") -> None:
    """End with exit code 4 where parity failed."""
    if not report.passed:
        raise ParityFailed(f"parity failed: {report.faults()[0]}")


def raise_unless_promoted(decision: "Decision | None") -> None:
    """End with exit code 5 or 6 where the champion did not move."""
    if decision is None or decision.decision not in ("refused", "stale"):
        return
    said, reasons = f"version {decision.version} of {decision.name}", "; ".join(decision.reasons)
    if decision.decision == "stale":
        raise Stale(f"{said} came too late: {reasons}")
    raise GateRefused(f"{said} was refused: {reasons}")
