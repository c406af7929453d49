"""Sums of two versions over live rows."""

import json

import numpy as np
import pytest

from serving.live_sums import LiveSums, merge_sums

EMPTY = LiveSums(champion="a" * 64, challenger="b" * 64)


def test_sums_of_parts_are_those_of_the_whole() -> None:
    generator = np.random.default_rng(0)
    champion = generator.normal(-100, 20, 500).astype(np.float32)
    challenger = champion + generator.normal(0.5, 1, 500).astype(np.float32)
    parts = EMPTY
    for start in range(0, 500, 125):
        chosen = slice(start, start + 125)
        parts = parts.merge(EMPTY.add_rows(champion[chosen], challenger[chosen], float(start + 1)))
    difference = challenger.astype(float) - champion.astype(float)
    assert parts.rows == 500
    assert parts.mean == pytest.approx(difference.mean())
    assert parts.variance == pytest.approx(difference.var(ddof=1))
    assert (parts.since, parts.until) == (1.0, 376.0)


def test_a_challenger_that_fails_where_the_champion_does_not_is_counted() -> None:
    champion = np.array([1, np.nan, 3, -np.inf], np.float32)
    sums = EMPTY.add_rows(champion, np.array([np.nan, 1, 4, -np.inf], np.float32), 1.0)
    assert (sums.rows, sums.not_finite, sums.total) == (2, 1, 1.0)


def test_tags_of_servers_are_added_and_others_are_not() -> None:
    one = EMPTY.add_rows(np.array([1, 2], np.float32), np.array([2, 4], np.float32), 5.0)
    other = LiveSums(champion="c" * 64, challenger="b" * 64, rows=9)
    tags = {
        one.tag("server1"): one.to_json(),
        one.tag("server2"): one.to_json(),
        other.tag("server1"): other.to_json(),
        "live.broken": "{",
        "live.list": "[]",
        "live.infinite": json.dumps({**json.loads(one.to_json()), "total": float("nan")}),
        "live.text": json.dumps({**json.loads(one.to_json()), "rows": "12"}),
        "elbo": "3",
        "live.nested": "[" * 4900,
        **{
            f"live.{name}.{value}": json.dumps({**json.loads(one.to_json()), name: value})
            for name in ("rows", "total", "squares")
            for value in (10**400, -(10**400), True)
        },
        "live.beyond": json.dumps({**json.loads(one.to_json()), "total": 1e300}),
        "live.less": json.dumps({**json.loads(one.to_json()), "rows": -7}),
        "live.negative": json.dumps({**json.loads(one.to_json()), "squares": -1.0}),
        "live.more": json.dumps({**json.loads(one.to_json()), "not_finite": 3}),
    }
    merged = merge_sums(EMPTY.champion, EMPTY.challenger, tags)
    assert (merged.rows, merged.total, merged.squares) == (4, 6.0, 10.0)
    assert len({*tags} & {one.tag("server1"), other.tag("server1")}) == 2
