"""What an observer could know of a server's live rows, for tests and pictures of the page."""

import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from serving.live_status import CaptureStatus, DriftStatus, LiveStatus, ShadowStatus, Window

BINS = 20
SPANS = {300: 640, 3600: 7_300, 86400: 96_000}
"""Rows of each span in seconds."""


def make_live_status(
    digest: str,
    *,
    shift: float = 0.0,
    alarm: bool = False,
    columns: Sequence[str] = (),
    shadow_fault: str | None = None,
    capture_fault: str | None = None,
) -> LiveStatus:
    """Return a status whose live rows are `shift` standard deviations less likely."""
    generator = np.random.default_rng(3)
    held_out = generator.normal(-100, 12, 4000)
    edges = np.quantile(held_out, np.arange(1, BINS) / BINS)
    windows = []
    for seconds, rows in SPANS.items():
        elbo = generator.normal(-100 - 12 * shift, 12, rows)
        counts = np.bincount(np.searchsorted(edges, elbo), minlength=BINS)
        windows.append(
            Window(
                seconds=seconds, rows=rows, mean=float(elbo.mean()), counts=tuple(counts.tolist())
            )
        )
    now = time.time()
    drift = DriftStatus(
        rows=131_072,
        log_e_value=41.5 if alarm else 0.87,
        level=0.01,
        alarm_time=now - 5400 if alarm else None,
        alarm_rows=4_210 if alarm else None,
        columns={
            name: float(v) for name, v in zip(columns, generator.gamma(1, 2, 99), strict=False)
        },
        edges=tuple(edges.tolist()),
        held_out=(1 / BINS,) * BINS,
        windows=tuple(windows),
    )
    return LiveStatus(
        time=now,
        digest=digest,
        rows=131_310,
        dropped_rows=238,
        drift=drift,
        shadow=ShadowStatus(
            name="vae",
            version="8",
            digest="5f2c" * 16,
            rows=51_200,
            mean_difference=0.418,
            difference_se=0.037,
            fault=shadow_fault,
        ),
        capture=CaptureStatus(
            folder="captured", parts=41, rows=131_072, bytes=58_400_000, fault=capture_fault
        ),
    )


def live_file_of(folder: Path) -> Path:
    """Return where the workers of a server look, whose TMPDIR was `folder`."""
    (shared,) = folder.glob("vae-server-*")
    return shared / "live.json"
