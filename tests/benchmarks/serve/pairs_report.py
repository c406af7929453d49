"""Write what was found about our server and another one in turns, as text."""

from collections.abc import Iterator, Mapping, Sequence
from statistics import median

from tests.benchmarks.serve.catalog import OURS
from tests.benchmarks.serve.pairs import Comparison, Pair
from tests.benchmarks.serve.report import goal_line

AT_LEAST: Mapping[tuple[str, int, int], float] = {
    ("binary", 1, 32): 2,
    ("binary", 64, 32): 1.3,
    ("gRPC", 1, 32): 1.2,
    ("gRPC", 64, 32): 1.2,
    ("binary", 1, 1): 1,
    ("binary", 64, 1): 1,
    ("gRPC", 1, 1): 1,
    ("gRPC", 64, 1): 1,
}
"""The ratio of requests a second that must be reached, by wire, rows and connections."""


def comparison(found: Comparison) -> Iterator[str]:
    """Return the tables of the peak and of half of it."""
    theirs = found.peer.name
    yield "medians of the turns, and the ratios' least and largest turn in brackets"
    yield "CPU: microseconds of a core for a request, which other programs disturb less than req/s"
    yield (
        f"{'wire':<6} {'rows':>4} {'conns':>5}"
        f" {f'{OURS.name} req/s':>11} {'p99 ms':>7} {'CPU':>5}"
        f" {f'{theirs} req/s':>13} {'p99 ms':>7} {'CPU':>5} {'echo req/s':>11} {'CPU':>5}"
        f" {'others':>7}  {f'{OURS.name} / {theirs}':<24} {'CPU':<24} {OURS.name} / echo"
    )
    for pair in found.at_peak:
        if pair.turns:
            yield (
                f"{_start(pair)} {pair.middle('ours', 'requests_s'):>11,.0f}"
                f" {pair.middle('ours', 'p99_ms'):>7.2f} {pair.middle('ours', 'cpu_us'):>5.0f}"
                f" {pair.middle('theirs', 'requests_s'):>13,.0f}"
                f" {pair.middle('theirs', 'p99_ms'):>7.2f} {pair.middle('theirs', 'cpu_us'):>5.0f}"
                f" {pair.middle('echo', 'requests_s'):>11,.0f}"
                f" {pair.middle('echo', 'cpu_us'):>5.0f} {_others(pair):>7.2f}"
                f"  {spread(pair.ratios):<24} {spread(pair.cpu_ratios):<24} {spread(pair.of_echo)}"
            )
        yield from _failures(pair)
    if not found.at_half:
        return
    yield "each at half of its own peak at 32 connections, random arrivals, open loop"
    yield (
        f"{'wire':<6} {'rows':>4} {'conns':>5} {f'{OURS.name} req/s':>11} {'p50 ms':>7}"
        f" {'p99 ms':>7} {f'{theirs} req/s':>13} {'p50 ms':>7} {'p99 ms':>7} {'others':>7}"
        f"  p99, {OURS.name} / {theirs}"
    )
    for pair in found.at_half:
        if pair.turns:
            yield (
                f"{_start(pair)} {pair.middle('ours', 'requests_s'):>11,.0f}"
                f" {pair.middle('ours', 'p50_ms'):>7.2f} {pair.middle('ours', 'p99_ms'):>7.2f}"
                f" {pair.middle('theirs', 'requests_s'):>13,.0f}"
                f" {pair.middle('theirs', 'p50_ms'):>7.2f}"
                f" {pair.middle('theirs', 'p99_ms'):>7.2f} {_others(pair):>7.2f}"
                f"  {spread(pair.p99_ratios)}"
            )
        yield from _failures(pair)


def summary(pair: Pair) -> Iterator[str]:
    """Say in a line what one pair came to, and why turns failed."""
    if pair.turns:
        yield (
            f"{_start(pair)} req/s {spread(pair.ratios)}, p99 {spread(pair.p99_ratios)}"
            f" of {pair.cell.server}"
        )
    yield from _failures(pair)


def goals(found: Comparison) -> Iterator[str]:
    """Return the goals beside the other server, and the figures that were reached."""
    for pair in found.at_peak:
        cell = pair.cell
        goal = AT_LEAST[cell.wire, cell.rows, cell.connections]
        reached = _median(pair.ratios)
        what = f"{_name(pair)}, {count(cell.connections, 'connection')} / {found.peer.name}"
        yield goal_line(what, reached, f"at least {goal}x", reached >= goal)
    for pair in found.at_half:
        reached = _median(pair.p99_ratios)
        what = f"{_name(pair)}, p99 at half of the peak / {found.peer.name}"
        yield goal_line(what, reached, "at most 1x", reached <= 1)


def spread(ratios: Sequence[float]) -> str:
    """Return the median, with the least and the largest."""
    if not ratios:
        return "-"
    return f"{_median(ratios):#.3g}x ({min(ratios):#.3g} to {max(ratios):#.3g})"


def count(number: int, noun: str) -> str:
    """Return `1 row` or `64 rows`."""
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def _median(ratios: Sequence[float]) -> float:
    return median(ratios or [float("nan")])


def _others(pair: Pair) -> float:
    """Return the most that other programs took in a turn."""
    return max(max(turn.ours.others, turn.theirs.others) for turn in pair.turns)


def _start(pair: Pair) -> str:
    return f"{pair.cell.wire:<6} {pair.cell.rows:>4} {pair.cell.connections:>5}"


def _name(pair: Pair) -> str:
    return f"{pair.cell.wire}, {count(pair.cell.rows, 'row')}"


def _failures(pair: Pair) -> Iterator[str]:
    for reason in pair.failed:
        yield f"{_start(pair)} a turn failed: {reason}"
