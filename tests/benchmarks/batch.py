"""`vae score` beside the same sessions in a loop, beside its own other ways, and beside a server.

`python -m tests.benchmarks.batch 60000` takes fewer rows than the million of `make bench`, and
`python -m tests.benchmarks.batch 1000000 memory kills` some of it: names of `measure`'s steps.
"""

import json
import logging
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
import warnings
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from pyarrow import dataset, parquet

from serving.batch import scorer as scorers
from serving.batch.job import describe_job, run_job
from serving.batch.output import open_output
from serving.batch.scorer import Scorer, provenance_of
from serving.bundle import Bundle
from serving.engine import Engine
from serving.io.rows import Rows
from serving.noise import draw_rows
from serving.source import Source
from tests.benchmarks.engine import export_untrained
from tests.benchmarks.measure import Row

Array = NDArray[Any]
ROOT = Path(__file__).parents[2]
ROWS = 1_000_000
WORKERS = 2
AND_SAY_PEAK = """
import atexit, re, sys
from pathlib import Path

def say_peak():
    print(re.search(r"VmHWM:\\s+(\\d+)", Path("/proc/self/status").read_text())[1], file=sys.stderr)

atexit.register(say_peak)
from pipeline.cli.main import main
main()
"""
"""`vae` that tells its peak memory in kB: of a child, the system counts its parent's too."""
SERVED_BATCH, SERVED_BATCHES = 256, 12


@dataclass(frozen=True, slots=True)
class Figure:
    """A figure that is no time, and what it should be."""

    what: str
    shown: str
    goal: str

    def __str__(self) -> str:
        """A line of the table."""
        return f"{self.what:<58} {self.shown:>32}  {self.goal}"


def measure(rows: int = ROWS, *names: str) -> Iterator[Row | Figure]:
    """MNIST's held-out images by the untrained default model, repeated to `rows`."""
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        bundle, _, x = export_untrained(folder / "bundle")
        for layout in ("bytes", "list"):
            write_input(folder / f"{layout}.parquet", x, rows, layout)
        steps: dict[str, Callable[[], Iterator[Row | Figure]]] = {
            "rate": partial(measure_rate, folder, bundle, x, rows),
            "split": partial(measure_split, folder, bundle, rows),
            "process": partial(measure_process, folder, rows),
            "memory": partial(measure_memory, folder, rows),
            "kills": partial(measure_kills, folder),
        }
        if unknown := set(names) - set(steps):
            raise SystemExit(f"steps are {', '.join(steps)}, got {', '.join(unknown)}")
        for name in names or steps:
            yield from steps[name]()


def write_input(path: Path, x: Array, rows: int, layout: str) -> None:
    """One row group of everything, which is the hardest to stream."""
    flat = x.reshape(len(x), -1)
    width = flat.shape[1]
    if layout == "bytes":
        column = pa.FixedSizeBinaryArray.from_buffers(
            pa.binary(width), len(x), [None, pa.py_buffer(np.ascontiguousarray(flat))]
        )
    else:
        offsets = np.arange(0, flat.size + 1, width, dtype=np.int32)
        column = pa.ListArray.from_arrays(offsets, pa.array(flat.reshape(-1)))
    once = pa.table({"x": column})
    table = pa.concat_tables([once] * -(-rows // len(x))).slice(0, rows)
    table = table.append_column("id", pa.array(np.arange(rows)))
    parquet.write_table(table, path, row_group_size=rows)


def open_job(path: Path, bundle: Bundle, threads: int = 1) -> tuple[Scorer, Rows]:
    """A scorer over a session of its own."""
    rows = Rows(str(path), ["id"])
    made_by = provenance_of(Source(bundle), 0, 1)
    engine = Engine(bundle, threads=threads)
    return Scorer(engine, made_by, "score", rows.schema, ids=rows.ids), rows


def measure_rate(folder: Path, bundle: Bundle, x: Array, rows: int) -> Iterator[Row]:
    """Parquet to Parquet beside the floor, in turns; wall time, and CPU time for noisy machines."""
    scorer, _ = open_job(folder / "bytes.parquet", bundle)
    jobs = {
        "fixed bytes": (partial(run_once, folder / "bytes.parquet", bundle), "at most 1.25x"),
        "list of uint8": (partial(run_once, folder / "list.parquet", bundle), "at most 1.54x"),
    }
    floor, *measured = in_turns(
        partial(run_floor, scorer, x, rows), *(job for job, _ in jobs.values()), rounds=3
    )
    for (name, (_, goal)), taken in zip(jobs.items(), measured, strict=True):
        yield Row(f"vae score, {name} / sessions in a loop", taken[0], floor[0], goal)
        yield Row(f"vae score, {name} / the loop, CPU time", taken[1], floor[1], goal)


def in_turns(*functions: Callable[[], object], rounds: int) -> list[tuple[float, float]]:
    """The least wall time and the least CPU time of each, in seconds."""
    best = [(float("inf"), float("inf")) for _ in functions]
    for _ in range(rounds):
        for index, function in enumerate(functions):
            wall, cpu = time.perf_counter(), time.process_time()
            function()
            taken = time.perf_counter() - wall, time.process_time() - cpu
            best[index] = min(best[index][0], taken[0]), min(best[index][1], taken[1])
    return best


def run_floor(scorer: Scorer, x: Array, rows: int) -> None:
    """The same graph over arrays in memory, in as many threads; nothing is read or written."""
    run_rows, latent_dim = scorers.RUN_ROWS, scorer.engine.bundle.manifest.latent_dim
    feeds = [
        {"x": x[start : start + run_rows], "eps": draw_rows(0, 0, run_rows, latent_dim)[:, None]}
        for start in range(0, len(x) - run_rows, run_rows)
    ]

    def loop(worker: int) -> None:
        for index in range(worker, rows // run_rows, WORKERS):
            scorer.engine.compute("score", feeds[index % len(feeds)])

    with ThreadPoolExecutor(WORKERS) as executor:
        list(executor.map(loop, range(WORKERS)))


def run_once(path: Path, bundle: Bundle) -> None:
    """A whole job into a folder of its own."""
    scorer, rows = open_job(path, bundle)
    output = path.parent / "out"
    with open_output(str(output), describe_job(scorer, rows), overwrite=False) as folder:
        run_job(scorer, rows, folder, workers=WORKERS)
    shutil.rmtree(output)


def measure_split(folder: Path, bundle: Bundle, rows: int) -> Iterator[Row]:
    """Threads over one engine of one thread, beside one engine of two threads, and processes."""
    path, some = folder / "bytes.parquet", min(rows, 60_000)

    def threads() -> None:
        scorer, source = open_job(path, bundle)
        with ThreadPoolExecutor(WORKERS) as executor:
            list(executor.map(scorer, source.read(0, some, scorer.x, 4096)))

    def one_pool() -> None:
        scorer, source = open_job(path, bundle, threads=WORKERS)
        for batch in source.read(0, some, scorer.x, 4096):
            scorer(batch)

    def processes() -> None:
        code = "from tests.benchmarks.batch import score_range as f; import sys; f(sys.argv[1:])"
        share = some // WORKERS
        started = [
            subprocess.Popen(
                [sys.executable, "-c", code, str(path), str(bundle.path)]
                + [str(worker * share), str((worker + 1) * share)],
                cwd=ROOT,
            )
            for worker in range(WORKERS)
        ]
        if any(process.wait() for process in started):
            raise RuntimeError("a process failed")

    ours, pool, apart = in_turns(threads, one_pool, processes, rounds=3)
    yield Row("two threads / one onnxruntime pool of two", ours[0], pool[0], "below 1x")
    yield Row("two threads / the pool, CPU time", ours[1], pool[1], "below 1x")
    yield Row("two threads / two processes and their start", ours[0], apart[0], "below 1x")


def score_range(arguments: list[str]) -> None:
    """What one of several processes does."""
    from serving.bundle import open_bundle

    path, folder, start, stop = arguments
    scorer, rows = open_job(Path(path), open_bundle(Path(folder)))
    for batch in rows.read(int(start), int(stop), scorer.x, 4096):
        scorer(batch)


def measure_process(folder: Path, rows: int) -> Iterator[Row]:
    """The command from its start to its end, over one row; and a server, over more."""
    parquet.write_table(parquet.read_table(folder / "bytes.parquet").slice(0, 1), folder / "1.pq")
    seconds = min(run_command(folder, folder / "1.pq")[0] for _ in range(3))
    yield Row("vae score of one row, from start to end / 3 s", seconds, 3, "below 1x")
    job = run_command(folder, folder / "bytes.parquet")[0]
    served = rows / served_rate(folder)
    yield Row(f"vae score, {rows} rows / mlflow models serve", job, served, "at most 0.05x")


def run_command(
    folder: Path, source: Path, *, ids: Sequence[str] = ("id",), workers: int = WORKERS
) -> tuple[float, int]:
    """Seconds and peak memory in bytes of one `vae score`."""
    output = folder / "out"
    command = [sys.executable, "-c", AND_SAY_PEAK, "score", str(source), str(output)]
    command += ["--model", str(folder / "bundle"), "--workers", str(workers)]
    command += [word for name in ids for word in ("--id", name)]
    started = time.perf_counter()
    said = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True).stderr
    seconds = time.perf_counter() - started
    shutil.rmtree(output)
    return seconds, int(said.splitlines()[-1]) * 1024


def served_rate(folder: Path) -> float:
    """Rows a second of a loop over batches through `mlflow models serve`, as JSON."""
    import mlflow

    from pipeline.registry.versions import PYFUNC_MODEL, predict_signature
    from serving.bundle import open_bundle

    bundle = open_bundle(folder / "bundle")
    logging.getLogger("mlflow").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", module="mlflow")  # of an example that is not needed
    mlflow.pyfunc.save_model(
        str(folder / "model"),
        python_model=str(PYFUNC_MODEL),
        artifacts={"bundle": str(bundle.path)},
        signature=predict_signature(),
        pip_requirements=[],
    )
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", "mlflow", "models", "serve", "-m", str(folder / "model")]
    command += ["--env-manager", "local", "--port", str(port), "--workers", "1"]
    environment = {**os.environ, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    x = np.load(bundle.path / "golden.npz")["score.x"]
    rows = x[np.arange(SERVED_BATCH) % len(x)].tolist()
    url = f"http://127.0.0.1:{port}"
    with subprocess.Popen(
        command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=environment
    ) as process:
        try:
            wait_for(f"{url}/ping")
            started = 0.0
            for turn in range(SERVED_BATCHES + 1):
                if turn == 1:
                    started = time.perf_counter()
                body = json.dumps({"inputs": rows, "params": {"operation": "score"}}).encode()
                kind = {"content-type": "application/json"}
                request = urllib.request.Request(f"{url}/invocations", body, kind)
                with urllib.request.urlopen(request) as answer:
                    json.load(answer)
            return SERVED_BATCH * SERVED_BATCHES / (time.perf_counter() - started)
        finally:
            process.terminate()


def wait_for(url: str) -> None:
    """Until a server answers, a minute at most."""
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        try:
            with urllib.request.urlopen(url):
                return
        except OSError:
            time.sleep(0.2)
    raise RuntimeError(f"no answer from {url}")


def measure_memory(folder: Path, rows: int) -> Iterator[Figure]:
    """Peak memory of the command over the input, and over five times the input."""
    (folder / "five").mkdir()
    for index in range(5):
        os.link(folder / "bytes.parquet", folder / "five" / f"{index}.parquet")
    once, five = (run_command(folder, folder / name)[1] for name in ("bytes.parquet", "five"))
    listed = run_command(folder, folder / "list.parquet")[1]
    yield Figure(f"peak memory, {rows:,} rows", f"{once / 1e6:.0f} MB", "below 1000 MB")
    yield Figure(f"peak memory, {rows:,} rows as lists", f"{listed / 1e6:.0f} MB", "below 1000 MB")
    yield Figure(f"peak memory, {5 * rows:,} rows", f"{five / 1e6:.0f} MB", "below 1000 MB")
    yield Figure("peak memory, five times the rows", f"{five / once:.3f}x", "at most 1.05x")


def measure_kills(folder: Path, points: int = 20) -> Iterator[Figure]:
    """`kill -9` at random points of a small job, which is then run again."""
    sealed = ROOT / "tests" / "serving" / "bundle"
    x = np.random.default_rng(0).integers(0, 256, (20_000, 6, 5), dtype=np.uint8)
    write_input(folder / "small.parquet", x, len(x), "bytes")

    def run(last: int, output: Path) -> "subprocess.CompletedProcess[str]":
        command = [sys.executable, "-m", "tests.serving.batch.killed", str(last)]
        command += [str(folder / "small.parquet"), str(output)]
        command += ["--id", "id", "--model", str(sealed)]
        return subprocess.run(command, capture_output=True, text=True, cwd=ROOT)

    calls = int(run(0, folder / "whole").stderr.split()[0])
    whole = dataset.dataset(folder / "whole").to_table()
    generator = np.random.default_rng()
    equal = killed = 0
    for point in generator.integers(1, max(2, int(0.95 * calls)), points):
        output = folder / "killed"
        killed += run(int(point), output).returncode == -9
        again = run(0, output).returncode == 0
        equal += again and dataset.dataset(output).to_table().equals(whole)
        shutil.rmtree(output)
    yield Figure("kill -9 at random points, then run again", f"{killed} killed", f"{points}")
    yield Figure("the output equals the undisturbed, row for row", f"{equal}", f"{points}")


if __name__ == "__main__":
    for line in measure(int(next(iter(sys.argv[1:]), ROWS)), *sys.argv[2:]):
        print(line, flush=True)
