"""The folder that benchmarks keep between runs: data, graphs and the environments of peers."""

import os
from pathlib import Path

CACHE = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "vae-pipeline" / "bench"
