"""The schemas of the answer of `/status`, as `serving.server.status` writes it."""

from dataclasses import fields
from typing import Any

from serving.live_status import CaptureStatus, DriftStatus, LiveStatus, ShadowStatus, Window
from serving.server.openapi_schemas import BOOLEAN, COUNT, TEXT, Schema, or_null, record, reference
from serving.server.shared_counters import (
    COUNTERS,
    HISTOGRAMS,
    LOST,
    LOST_REASONS,
    UNKNOWN_CELLS,
)

NUMBER: Schema = {"type": "number"}
_NUMBERS: Schema = {"type": "array", "items": NUMBER}
_COUNTS: Schema = {"type": "array", "items": COUNT}
_NOTE: Schema = {"type": ["object", "null"], "additionalProperties": TEXT}


def status_schemas() -> dict[str, Schema]:
    """Return the schemas by their names."""
    names = dict.fromkeys(HISTOGRAMS, reference("Histogram"))
    return {
        "Status": record(
            time={**NUMBER, "description": "Unix time"},
            started=or_null(NUMBER),
            ready=BOOLEAN,
            workers=COUNT,
            ready_workers=COUNT,
            model=or_null(record(model=TEXT, version=TEXT, digest=TEXT)),
            decision={**_NOTE, "description": "Why this version is served"},
            refused={**_NOTE, "description": "The version that was refused, and the reason"},
            warnings={"type": "array", "items": TEXT},
            queue=record(rows=COUNT, bytes=COUNT, max_rows=COUNT),
            **dict.fromkeys(COUNTERS, COUNT),
            **dict.fromkeys(LOST, reference("LostRows")),
            bounds=record(**dict.fromkeys(HISTOGRAMS, _NUMBERS)),
            operations=_map_of(reference("OperationStatus")),
            live=or_null(reference("LiveStatus")),
        ),
        "LostRows": {
            **record(**dict.fromkeys(LOST_REASONS, COUNT)),
            "description": "Rows that were chosen and did not reach the observer, by reason",
        },
        "OperationStatus": record(
            answers={**_map_of(COUNT), "description": "Answers by HTTP status"},
            rows=COUNT,
            **dict.fromkeys(UNKNOWN_CELLS, COUNT),
            histograms=record(**names),
        ),
        "Histogram": record(counts=_COUNTS, sum=NUMBER),
        "LiveStatus": _of(
            LiveStatus,
            drift=or_null(reference("DriftStatus")),
            shadow=or_null(reference("ShadowStatus")),
            capture=or_null(reference("CaptureStatus")),
        ),
        "DriftStatus": _of(
            DriftStatus,
            drifted={"type": "array", "items": TEXT},
            columns=_map_of(NUMBER),
            edges=_NUMBERS,
            held_out=_NUMBERS,
            windows={"type": "array", "items": reference("Window")},
        ),
        "Window": _of(Window, counts=_COUNTS),
        "ShadowStatus": _of(ShadowStatus),
        "CaptureStatus": _of(CaptureStatus),
    }


_PLAIN: dict[Any, Schema] = {
    int: COUNT,
    float: NUMBER,
    str: TEXT,
    int | None: or_null(COUNT),
    float | None: or_null(NUMBER),
    str | None: or_null(TEXT),
    tuple[str, ...]: {"type": "array", "items": TEXT},
}
"""The schema of each plain type of a field."""


def _of(kind: type[Any], **others: Schema) -> Schema:
    """Return the schema of a dataclass; `others` are those of fields of no plain type."""
    plain = {item.name: _PLAIN[item.type] for item in fields(kind) if item.name not in others}
    return record(**plain, **others)


def _map_of(schema: Schema) -> Schema:
    return {"type": "object", "additionalProperties": schema}
