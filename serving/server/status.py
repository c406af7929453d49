"""The answer of `/status`: what a worker knows of the server, its version and its live rows.

Counts and sums are totals since the start, over all workers. Whoever reads them twice gets rates
and quantiles of the time between from their differences, as the page at `/` does.
"""

import time
from typing import Any

from serving.live_status import LiveStatus
from serving.server.live_file import warnings_of
from serving.server.service import Service
from serving.server.shared_counters import (
    COUNTERS,
    HISTOGRAMS,
    LOST,
    LOST_REASONS,
    OPERATIONS,
    STATUSES,
    TRANSPORTS,
    UNKNOWN_CELLS,
    SharedCounters,
)


def describe_status(service: Service, live: LiveStatus | None) -> dict[str, Any]:
    """Return all of it in types of JSON; `live` is what the observer knows, if there is one."""
    counters, labels = service.counters, service.labels()
    is_served = bool(labels["digest"])
    operations = service.served.engine.operations if is_served else OPERATIONS
    started = counters.get("started")
    workers = counters.rows - 1
    return {
        "time": time.time(),
        "started": started or None,
        "ready": service.ready,
        "workers": workers,
        "ready_workers": int(counters.total("ready")),
        "model": labels if is_served else None,
        "decision": service.decision,
        "refused": service.refused,
        "warnings": warnings_of(live),
        "queue": {
            "rows": int(counters.total("queued_rows")),
            "bytes": int(counters.total("queued_bytes")),
            "max_rows": service.max_rows * workers,
        },
        **{name: int(counters.total(name)) for name in COUNTERS},
        **{name: {why: int(counters.total(name, why)) for why in LOST_REASONS} for name in LOST},
        "bounds": HISTOGRAMS,
        "operations": {name: _describe_operation(counters, name) for name in operations},
        "live": live,
    }


def _describe_operation(counters: SharedCounters, operation: str) -> dict[str, Any]:
    answers = {
        str(status): int(count)
        for status in STATUSES
        if (count := sum(counters.total("requests", operation, t, status) for t in TRANSPORTS))
    }
    return {
        "answers": answers,
        "rows": int(counters.total("rows", operation)),
        **{name: int(counters.total(name, operation)) for name in UNKNOWN_CELLS},
        "histograms": {
            name: {
                "counts": [
                    int(counters.total(name, operation, place)) for place in range(len(bounds) + 1)
                ],
                "sum": counters.total(name, operation, "sum"),
            }
            for name, bounds in HISTOGRAMS.items()
        },
    }
