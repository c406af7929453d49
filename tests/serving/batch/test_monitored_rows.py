"""Times in any form that files have them."""

import datetime
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from serving.batch.monitored_rows import to_unix
from serving.errors import DataRefused

NOON = 1767268800.0
"""Noon of the first of January 2026, in UTC."""
MOMENT = datetime.datetime(2026, 1, 1, 12)


@pytest.mark.parametrize(
    "column",
    [
        pa.array([MOMENT, None], pa.timestamp("us")),
        pa.array([MOMENT, None], pa.timestamp("ns", "Europe/Berlin")),
        pa.array([MOMENT, None], pa.timestamp("s", "UTC")),
        pa.array(["2026-01-01T12:00:00Z", None]),
        pa.array(["2026-01-01T13:00:00+01:00", None]),
        pa.array(["2026-01-01 12:00:00", None]),
        pa.array(["2026-01-01 12:00", None], pa.large_string()),
        pa.array(["2026-01-01T12:00:00", None]).dictionary_encode(),
        pa.array([NOON, None]),
        pa.array([int(NOON), None]),
    ],
    ids=lambda column: f"{column.type} {column[0]}",
)
def test_times_are_read_as_unix_times_and_gaps_as_no_number(column: Any) -> None:
    found = to_unix(column, "time")
    assert found[0] == NOON
    assert np.isnan(found[1])


def test_a_date_is_its_midnight_in_utc() -> None:
    dates = pa.array([datetime.date(2026, 1, 1)])
    assert to_unix(dates, "day").tolist() == [NOON - 43200]


@pytest.mark.parametrize(
    ("column", "words"),
    [
        (pa.array([NOON * 1000]), "Unix seconds, got 1767268800000"),
        (pa.array(["yesterday"]), "column 'time' must hold times"),
    ],
    ids=["milliseconds", "words"],
)
def test_what_is_no_time_is_refused(column: Any, words: str) -> None:
    with pytest.raises(DataRefused, match=words):
        to_unix(column, "time")
