"""Whoever writes to the registry, and passes no gate, changes no byte that a server serves.

A server of tiny models follows the ledger. Each attack of `tests.e2e.attacks` is made on its
registry while requests are sent; their answers must stay those of the version that was promoted,
and readiness must say what is refused. After all of them, a version is really promoted, and must be
served.
"""

import contextlib
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

from pipeline.config import PromoteConfig
from pipeline.data.dataset import Split
from pipeline.registry.promotion import promote
from pipeline.registry.versions import register_bundle
from pipeline.tracking import tracked_run
from serving.bundle import Bundle, Manifest
from serving.engine import Engine
from serving.mlflow_store import connect
from tests.e2e.attacks import ATTACKS, NAME, OLD, SERVED, WANTED, Registry
from tests.serving.running import Running, serve
from tests.serving.server.asking import AnswerCounts, asking, ready, wait_for
from tests.trained_models import draw_images, load, make_bundle, tiny_config, train_checkpoint

POLL_S = 0.2
ANSWERS = 50
"""So many answers are compared after readiness has told of an attack."""


def measure() -> Iterator[str]:
    """Make every attack; yield a line for each, and one for the sum."""
    with tempfile.TemporaryDirectory() as temporary, _environment(Path(temporary)) as folder:
        registry, bundles, test = prepare(folder)
        uri = os.environ["MLFLOW_TRACKING_URI"]
        model, options = f"models:/{NAME}@champion", ("--poll", str(POLL_S), "--drain", "0.5")
        with serve(folder, model, *options, MLFLOW_TRACKING_URI=uri) as server:
            harmless, answers = 0, 0
            for name, attack in ATTACKS.items():
                engines = {SERVED: Engine(bundles[SERVED])}
                with registry.kept(), asking(server, engines, ["binary", "grpc"]) as counts:
                    attack(registry)
                    wait_for(f"{name} is told", lambda: "refused" in ready(server), server)
                    reason = ready(server)["refused"]["reason"]
                    _answer_more(counts, server)
                changed = len(counts.wrong) + len(counts.failed)
                answers += counts.answers.total()
                harmless += not changed and ready(server)["version"] == SERVED
                yield f"{name:<36} {changed} of {counts.answers.total()} answers changed: {reason}"
                wait_for("it is over", lambda: "refused" not in ready(server), server)
            yield f"{harmless} of {len(ATTACKS)} attacks changed none of {answers} answers"
            yield _promote(server, bundles[WANTED], test)


def prepare(folder: Path) -> tuple[Registry, dict[str, Bundle], Split]:
    """Make a store with three versions, of which two are promoted and one is refused."""
    dataset = load(folder, draw_images(400))
    weak = {"epochs": 1, "learning_rate": 1e-5}
    bundles = {}
    for version, settings in ((OLD, weak), (SERVED, {}), (WANTED, {"seed": 1})):
        trained = train_checkpoint(dataset, tiny_config(dataset, **settings)), dataset
        bundles[version] = make_bundle(folder / version, trained)
    client = connect(create=True)
    for version, bundle in bundles.items():
        with tracked_run("attacks") as run:
            assert register_bundle(run, bundle, NAME) == version
        gate = PromoteConfig(min_active_units=0, min_elbo=0 if version == WANTED else None)
        decision = _decide(version, gate, dataset.test)
        assert decision == ("refused" if version == WANTED else "promoted"), decision
    return Registry(client, folder / "mlflow.db"), bundles, dataset.test


def _decide(version: str, gate: PromoteConfig, test: Split) -> str:
    def load_test(manifest: Manifest) -> Split:
        return test

    return promote(NAME, version, load_test, gate, threads=1).decision


def _promote(server: Running, bundle: Bundle, test: Split) -> str:
    decision = _decide(WANTED, PromoteConfig(min_active_units=0, margin=100), test)
    wait_for("it is served", lambda: ready(server)["version"] == WANTED, server)
    with asking(server, {WANTED: Engine(bundle)}, ["binary", "grpc"]) as counts:
        _answer_more(counts, server)
    right = counts.answers.total()
    return f"{decision} by the gate: then served, {right} of {right + len(counts.wrong)} answers"


def _answer_more(counts: AnswerCounts, server: Running) -> None:
    asked = counts.answers.total()
    wait_for("it is asked on", lambda: counts.answers.total() > asked + ANSWERS, server)


@contextlib.contextmanager
def _environment(folder: Path) -> Iterator[Path]:
    """Use a store and a cache of our own."""
    changes = {
        "MLFLOW_TRACKING_URI": f"sqlite:///{folder / 'mlflow.db'}",
        "XDG_CACHE_HOME": str(folder / "cache"),
    }
    before = {name: os.environ.get(name) for name in changes}
    os.environ.update(changes)
    try:
        yield folder
    finally:
        for name, value in before.items():
            os.environ.pop(name, None)
            if value is not None:
                os.environ[name] = value


if __name__ == "__main__":
    for line in measure():
        print(line, flush=True)
