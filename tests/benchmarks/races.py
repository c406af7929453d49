"""Let eight promotions race, round after round (`make soak`; it takes minutes).

In each round, eight processes each decide on a version against the same champion, and move it at
the same time. It ends with an error at the first round that does not have exactly one winner, or
whose alias, ledger and audit do not agree.
"""

import os
import sys
import tempfile
import time
from pathlib import Path

from serving.cpu import limit_spinning

limit_spinning()

from pipeline.data.dataset import Split  # noqa: E402  after the spin limit
from tests.pipeline.registry.processes import register_racers, run_rounds  # noqa: E402
from tests.tracking_server import tracking_server  # noqa: E402
from tests.trained_models import (  # noqa: E402
    draw_images,
    load,
    make_bundle,
    tiny_config,
    train_checkpoint,
)

RACERS = 8
ROUNDS = {"sqlite": 50, "server": 10}


def main(names: list[str]) -> None:
    """Race on the named stores, or on all of them; `sqlite=3` sets the number of rounds."""
    chosen = dict(name.split("=") for name in names) if names else ROUNDS
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        dataset = load(folder, draw_images(400))
        trained = train_checkpoint(dataset, tiny_config(dataset)), dataset
        bundle = make_bundle(folder / "bundle", trained).path
        for store, rounds in chosen.items():
            (folder / store).mkdir()
            soak(store, int(rounds), folder / store, bundle, dataset.test)


def soak(store: str, rounds: int, folder: Path, bundle: Path, test: Split) -> None:
    """Race on one store and print the result."""
    os.environ["XDG_CACHE_HOME"] = str(folder / "cache")
    if store == "sqlite":
        race_on(f"sqlite:///{folder / 'mlflow.db'}", store, rounds, folder, bundle, test)
        return
    with tracking_server(folder, os.environ) as url:
        race_on(url, store, rounds, folder, bundle, test)


def race_on(uri: str, store: str, rounds: int, folder: Path, bundle: Path, test: Split) -> None:
    """Register the versions and run all rounds."""
    os.environ["MLFLOW_TRACKING_URI"] = uri
    versions = register_racers(bundle, folder, RACERS)
    started = time.perf_counter()
    run_rounds(rounds, uri, folder, test, versions)
    seconds = time.perf_counter() - started
    print(
        f"{store}: {rounds} rounds of {RACERS} promotions at once, each with one winner and "
        f"{RACERS - 1} stale; alias, ledger and audit agree; {seconds:.0f} s",
        flush=True,
    )


if __name__ == "__main__":
    main(sys.argv[1:])
