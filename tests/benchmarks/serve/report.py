"""Write the tables, and the lines with goals, as text."""

import platform
import re
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

from tests.benchmarks.serve.catalog import MLSERVER, MLSERVER_TUNED, ONNXRUNTIME, OURS, Peer
from tests.benchmarks.serve.cells import Results, cells_of
from tests.benchmarks.serve.load import Load
from tests.benchmarks.serve.rates import Rate, ideal_spread


@dataclass(frozen=True, slots=True)
class Footprint:
    """The time until a server was ready, and its memory."""

    ready_s: float
    announced_s: float | None
    before_mib: float
    after_mib: float


def header(peers: Sequence[Peer], server_core: int, load_core: int, what: str) -> Iterator[str]:
    """Describe what was measured, on which machine, and by which programs."""
    pins = [pin.replace("==", " ") for peer in peers for pin in peer.requirements[:1]]
    wrk = _first_line("wrk", "-v").split(" [")[0]
    load_average = " ".join(Path("/proc/loadavg").read_text().split()[:3])
    yield f"machine   {_cpu()}; servers on core {server_core}, load and client on core {load_core}"
    yield f"          load average before: {load_average}"
    yield f"payload   {what}"
    yield f"client    {wrk} (REST), {_first_line('h2load', '--version')} (gRPC), closed loop"
    yield f"versions  python {platform.python_version()}, vae-pipeline {version('vae-pipeline')}"
    yield f"          {', '.join(pins) or 'no peers'}; theirs with {ONNXRUNTIME.replace('==', ' ')}"
    for peer in peers:
        yield f"setting   {peer.name}: {peer.setting}"


def loads(
    peers: Sequence[Peer], results: Results, absent: Mapping[str, str], floor: Mapping[int, Load]
) -> Iterator[str]:
    """Return every cell, beside MLServer's JSON at the same rows and connections."""
    yield "others: cores that other programs took meanwhile; what was disturbed was tried again"
    yield (
        f"{'server':<20} {'wire':<6} {'rows':>4} {'conns':>5} {'req/s':>8} {'rows/s':>9}"
        f" {'p50 ms':>8} {'p99 ms':>8} {'others':>7}  / mlserver JSON"
    )
    for rows, load in floor.items():
        line = f"{'floor (one thread)':<20} {'-':<6} {rows:>4} {'-':>5} {load.requests_s:>8,.0f}"
        yield f"{line} {load.requests_s * rows:>9,.0f} {'-':>8} {'-':>8} {load.others:>7.2f}"
    for peer in peers:
        if peer.name in absent:
            yield f"{peer.name:<20} not measured: {absent[peer.name]}"
            continue
        for wire, cell in cells_of(peer):
            start = f"{peer.name:<20} {wire.name:<6} {cell.rows:>4} {cell.connections:>5}"
            if cell not in results.best:
                yield f"{start} not measured: {results.failed.get(cell, 'unknown')}"
                continue
            load = results.best[cell]
            beside = results.rate(MLSERVER.name, "JSON", cell.rows, cell.connections)
            yield (
                f"{start} {load.requests_s:>8,.0f} {load.requests_s * cell.rows:>9,.0f}"
                f" {load.p50_ms:>8.2f} {load.p99_ms:>8.2f} {load.others:>7.2f}"
                f"  {ratio(load.requests_s, beside)}"
            )
            if cell in results.failed:
                yield f"{'':<20} failed in another turn: {results.failed[cell]}"


def footprints(found: Mapping[str, Footprint]) -> Iterator[str]:
    """Return the table of readiness and memory."""
    yield f"{'server':<20} {'ready s':>8} {'JSON line s':>12} {'RSS MiB':>8} {'after':>6}"
    for name, one in found.items():
        line = f"{one.announced_s:>12.2f}" if one.announced_s is not None else f"{'-':>12}"
        memory = f"{one.before_mib:>8.0f} {one.after_mib:>6.0f}"
        yield f"{name:<20} {one.ready_s:>8.2f} {line} {memory}"


def rates(found: Sequence[Rate]) -> Iterator[str]:
    """Return the table of latency at half of the peak."""
    yield (
        f"{'wire':<6} {'arrivals':<8} {'req/s':>7} {'p50 ms':>8} {'p99 ms':>8} {'p99/p50':>8}"
        f" {'of an echo':>11} {'failed':>7} {'others':>7} {'client late, p99 ms':>20}"
    )
    for one in found:
        yield (
            f"{one.wire:<6} {one.arrivals:<8} {one.rate:>7,.0f} {one.p50_ms:>8.3f}"
            f" {one.p99_ms:>8.3f} {one.spread:>8.3g} {one.echo_spread:>11.3g} {one.failed:>7}"
            f" {one.others:>7.2f} {one.late_ms:>20.3f}"
        )


def goals(results: Results, floor: Mapping[int, Load], found: Sequence[Rate]) -> Iterator[str]:
    """Return the goals, and the figures that were reached."""
    rate = results.rate
    theirs = rate(MLSERVER.name, "JSON", 1, 32)
    their_grpc = rate(MLSERVER.name, "gRPC", 1, 32)
    runs_s = floor[64].requests_s
    lines = [
        ("JSON, 1 row, 32 connections / MLServer JSON", rate(OURS.name, "JSON", 1, 32) / theirs, 6),
        ("binary, the same / MLServer JSON", rate(OURS.name, "binary", 1, 32) / theirs, 15),
        ("gRPC, the same / MLServer gRPC", rate(OURS.name, "gRPC", 1, 32) / their_grpc, 3),
        (
            "binary, 64 rows, 32 connections / floor",
            rate(OURS.name, "binary", 64, 32) / runs_s,
            0.5,
        ),
    ]
    for what, reached, goal in lines:
        yield goal_line(what, reached, f"at least {goal}x", reached >= goal)
    for ours, wire in (("JSON", "JSON"), ("binary", "JSON"), ("gRPC", "gRPC")):
        reached = rate(OURS.name, ours, 1, 32) / rate(MLSERVER_TUNED.name, wire, 1, 32)
        yield f"{f'{ours}, 1 row, 32 connections / tuned MLServer {wire}':<58} {reached:>#11.3g}x"
    for one in found:
        what = f"{one.wire}, {one.arrivals} arrivals at half peak: p99 / p50"
        if one.arrivals == "even":
            line = goal_line(what, one.spread, "at most 3x", one.spread <= 3)
            yield f"{line}, an echo has {one.echo_spread:.3g}x"
        else:
            yield f"{what:<58} {one.spread:>#11.3g}x  an ideal queue: {ideal_spread():.3g}x"


def ratio(one: float, beside: float) -> str:
    """Return a number with three digits."""
    return f"{one / beside:#.3g}x" if one == one and beside == beside else "-"


def goal_line(what: str, reached: float, goal: str, holds: bool) -> str:
    """Return what was reached of one goal, and whether it holds."""
    if reached != reached:
        return f"{what:<58} not measured  {goal}"
    return f"{what:<58} {reached:>#11.3g}x  {goal:<14} {'holds' if holds else 'does not hold'}"


def _cpu() -> str:
    found = re.search(r"model name\s*: (.*)", Path("/proc/cpuinfo").read_text())
    return found[1] if found else platform.machine()


def _first_line(*command: str) -> str:
    done = subprocess.run(command, capture_output=True, text=True)
    return (done.stdout + done.stderr).splitlines()[0]
