"""Show the shared counters as Prometheus metrics, and as Triton's model statistics."""

from collections.abc import Iterator, Mapping
from typing import Any

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    Metric,
)

from serving.live_status import LiveStatus
from serving.server.shared_counters import (
    HISTOGRAMS,
    LOST,
    LOST_REASONS,
    OPERATIONS,
    STATUSES,
    TRANSPORTS,
    SharedCounters,
)

CONTENT_TYPE = "text/plain; version=1.0.0; charset=utf-8"
_HELP = {
    "request": "Seconds from the end of a request's body to its answer",
    "queue": "Seconds from the arrival of a request to its run",
    "compute": "Seconds of a run of a graph",
    "encode": "Seconds to write an answer",
    "batch_rows": "Rows in a run of a graph",
}


class CountersCollector:
    """Makes metric families from the counters of all processes."""

    def __init__(
        self, counters: SharedCounters, versions: Mapping[str, str], live: LiveStatus | None
    ) -> None:
        self._counters = counters
        self._versions = versions
        self._live = live

    def collect(self) -> Iterator[Metric]:
        """Yield every family; counts of answers that are 0 are left out."""
        counters = self._counters
        requests = CounterMetricFamily(
            "vae_requests", "Answers, by HTTP status", labels=["operation", "transport", "status"]
        )
        for operation in OPERATIONS:
            for transport in TRANSPORTS:
                for status in STATUSES:
                    if count := counters.total("requests", operation, transport, status):
                        requests.add_metric([operation, transport, str(status)], count)
        yield requests
        rows = CounterMetricFamily("vae_rows", "Rows computed", labels=["operation"])
        for operation in OPERATIONS:
            rows.add_metric([operation], counters.total("rows", operation))
        yield rows
        for name, text in (
            ("unseen_words", "Cells with a word that training had not, which counts as other"),
            ("new_gaps", "Gaps in columns that had none in training"),
        ):
            cells = CounterMetricFamily(f"vae_{name}", text, labels=["operation"])
            for operation in OPERATIONS:
                if count := counters.total(name, operation):
                    cells.add_metric([operation], count)
            yield cells
        for name, bounds in HISTOGRAMS.items():
            yield _histogram(counters, name, bounds)
        for name, text in (
            ("reloads", "Switches to a new version, counted by each worker"),
            ("reload_failures", "Versions refused"),
            ("registry_failures", "Polls of the registry that failed"),
            ("watched_rows", "Rows handed to the observer, which scores them"),
            ("captured_rows", "Rows handed to the observer with their answers, to be kept"),
        ):
            yield CounterMetricFamily(f"vae_{name}", text, value=counters.total(name))
        for name, what in zip(LOST, ("scored", "kept"), strict=True):
            lost = CounterMetricFamily(
                f"vae_{name}",
                f"Rows chosen to be {what} that the observer did not get",
                labels=["reason"],
            )
            for reason in LOST_REASONS:
                lost.add_metric([reason], counters.total(name, reason))
            yield lost
        for name, text in (
            ("ready", "Workers that are ready"),
            ("queued_rows", "Rows times draws in the queues"),
            ("queued_bytes", "Bytes of request bodies in memory"),
        ):
            yield GaugeMetricFamily(f"vae_{name}", text, value=counters.total(name))
        refused = counters.maximum("version_refused")
        text = "1 while a version is refused; readiness says which one, and why"
        yield GaugeMetricFamily("vae_version_refused", text, value=refused)
        info = GaugeMetricFamily("vae_model_info", "The version served", labels=[*self._versions])
        info.add_metric([*self._versions.values()], 1)
        yield info
        if self._live is not None:
            yield from _live_metrics(self._live)


def render(
    counters: SharedCounters, versions: Mapping[str, str], live: LiveStatus | None = None
) -> bytes:
    """Return the text that Prometheus scrapes, summed over all workers."""
    registry = CollectorRegistry(auto_describe=False)
    registry.register(CountersCollector(counters, versions, live))
    return generate_latest(registry)


def _live_metrics(live: LiveStatus) -> Iterator[Metric]:
    """Yield what the observer knows; all are gauges, since a new version begins at 0 again."""
    values: list[tuple[str, str, float | None]] = [
        ("live_rows", "Rows of answered requests that the observer has got", live.rows),
        ("live_dropped_rows", "Rows that it got and could not use", live.dropped_rows),
    ]
    if (drift := live.drift) is not None:
        values += [
            ("drift_rows", "Live rows compared with the held-out rows", drift.rows),
            ("drift_log_e_value", "Natural logarithm of the largest e-value", drift.log_e_value),
            ("drift_alarm", "1 since the e-value exceeded 1 / level", drift.alarm_time is not None),
        ]
    if (shadow := live.shadow) is not None:
        error = shadow.difference_se
        values += [
            ("shadow_rows", "Rows that the challenger has scored, too", shadow.rows),
            ("shadow_difference_nats", "Its ELBO minus the server's", shadow.mean_difference),
            ("shadow_difference_nats_se", "Standard error of this difference", error),
            ("shadow_fault", "1 while it does not score", live.shadow_fault is not None),
        ]
    if (capture := live.capture) is not None:
        values += [
            ("capture_parts", "Parts in the folder of captured rows", capture.parts),
            ("capture_rows", "Rows in that folder", capture.rows),
            ("capture_bytes", "Bytes in that folder", capture.bytes),
            ("capture_fault", "1 while no rows are kept", capture.fault is not None),
        ]
    for name, text, value in values:
        if value is not None:
            yield GaugeMetricFamily(f"vae_{name}", text, value=value)
    if drift is not None and drift.columns:
        columns = GaugeMetricFamily(
            "vae_drift_column_log_e_value", "Largest log e-value of a column", labels=["column"]
        )
        for column, value in drift.columns.items():
            columns.add_metric([column], value)
        yield columns


def statistics(counters: SharedCounters, operation: str, version: str) -> dict[str, Any]:
    """Return counts and nanoseconds since the start, as Triton's perf_analyzer reads them.

    Like Triton's, each duration but that of the cache counts every answered request once, with all
    of the run that it shared; perf_analyzer gives up where their counts differ.
    """
    answered = int(sum(counters.total("requests", operation, t, 200) for t in TRANSPORTS))
    asked = sum(counters.total("requests", operation, t, s) for t in TRANSPORTS for s in STATUSES)

    def duration(*field: object) -> dict[str, int]:
        seconds = counters.total(*field) if field else 0.0
        return {"count": answered, "ns": round(seconds * 1e9)}

    none = {"count": 0, "ns": 0}
    return {
        "name": operation,
        "version": version,
        "last_inference": int(counters.maximum("last_inference", operation) * 1000),
        "inference_count": int(counters.total("rows", operation)),
        "execution_count": int(_count(counters, "compute", operation)),
        "inference_stats": {
            "success": duration("request", operation, "sum"),
            "fail": {"count": int(asked) - answered, "ns": 0},
            "queue": duration("queue", operation, "sum"),
            "compute_input": duration(),
            "compute_infer": duration("request_compute", operation),
            "compute_output": duration("encode", operation, "sum"),
            "cache_hit": none,
            "cache_miss": none,
        },
        "batch_stats": [],
    }


def _count(counters: SharedCounters, name: str, operation: str) -> float:
    places = range(len(HISTOGRAMS[name]) + 1)
    return sum(counters.total(name, operation, place) for place in places)


def _histogram(
    counters: SharedCounters, name: str, bounds: tuple[float, ...]
) -> HistogramMetricFamily:
    unit = "" if name == "batch_rows" else "_seconds"
    family = HistogramMetricFamily(f"vae_{name}{unit}", _HELP[name], labels=["operation"])
    labels = [*map(str, bounds), "+Inf"]
    for operation in OPERATIONS:
        count, buckets = 0.0, []
        for place, label in enumerate(labels):
            count += counters.total(name, operation, place)
            buckets.append((label, count))
        family.add_metric([operation], buckets, counters.total(name, operation, "sum"))
    return family
