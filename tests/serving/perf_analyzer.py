"""Triton's perf_analyzer, which measures servers, and the libraries that it is linked with."""

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import pytest

PROGRAM = Path(sys.prefix, "perf_analyzer", "bin", "perf_analyzer")
"""`make` puts it there, from the wheel of tritonclient."""
MISSING = not PROGRAM.exists() or shutil.which("cc") is None
REASON = f"no {PROGRAM} (make setup-dev fetches it), or no cc to link it"
LIBRARIES: Mapping[str, tuple[str, ...]] = {
    "libcudart.so.12": (
        *("cudaFree", "cudaGetErrorName", "cudaGetErrorString", "cudaIpcGetMemHandle"),
        *("cudaMalloc", "cudaMemcpy", "cudaSetDevice"),
    ),
    "libb64.so.0d": (
        *("base64_init_decodestate", "base64_decode_block", "base64_init_encodestate"),
        *("base64_encode_block", "base64_encode_blockend"),
    ),
}
"""It is linked with these, for shared memory of a GPU and tensors in base64; no test uses them."""
TIMES = re.compile(
    r"Avg request latency: (\d+) usec \(overhead (\d+) usec \+ queue (\d+) usec \+ "
    r"compute input (\d+) usec \+ compute infer (\d+) usec \+ compute output (\d+) usec\)"
)


@dataclass(frozen=True, slots=True)
class Report:
    """What perf_analyzer read from a server's statistics, as it printed it."""

    requests: int
    rows: int
    runs: int
    latency_us: int
    parts_us: tuple[int, ...]
    """Overhead, queue, compute input, infer and output."""


def make_libraries(folder: Path) -> Path:
    """Make libraries whose functions all end the program, for where the real ones are missing."""
    source = folder / "none.c"
    for name, functions in LIBRARIES.items():
        source.write_text(
            "".join(f"void {each}(void) {{ __builtin_trap(); }}\n" for each in functions)
        )
        versioned = ["-Wl,--default-symver", f"-Wl,-soname,{name}"]
        command = ["cc", "-shared", "-fPIC", *versioned, "-o", str(folder / name), str(source)]
        subprocess.run(command, check=True, capture_output=True)
    return folder


def measure(libraries: Path, model: str, *arguments: str) -> Report:
    """Run it for a moment; fail if it fails, or if it found nothing in the server's statistics."""
    options = ["--measurement-interval", "200", "--stability-percentage", "999"]
    done = subprocess.run(
        [str(PROGRAM), "-m", model, *arguments, *options],
        env={**os.environ, "LD_LIBRARY_PATH": str(libraries)},
        capture_output=True,
        text=True,
        timeout=120,
    )
    said = done.stdout + done.stderr
    if done.returncode:
        pytest.fail(said)
    times = TIMES.search(said)
    assert times, said

    def count(what: str) -> int:
        found = re.search(rf"{what} count: (\d+)\n", said[said.index("Server:") :])
        assert found, said
        return int(found[1])

    return Report(
        count("Successful request"),
        count("Inference"),
        count("Execution"),
        int(times[1]),
        tuple(map(int, times.groups()[1:])),
    )
