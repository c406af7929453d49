"""The observer, in the process of the test: what it takes up, and what it says."""

import json
import multiprocessing
import shutil
import socket
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from serving.bundle import MANIFEST, Bundle, manifest_digest, open_bundle
from serving.engine import Engine
from serving.live.observer import Observer
from serving.live.options import ObserverOptions
from serving.live.shared_files import Challenger, read_sums_file
from serving.live_rows import LiveRows
from serving.live_status import DriftStatus, LiveStatus
from serving.noise import draw_eps
from serving.p_values import default_samples
from serving.table_cells import TableEncoder
from tests.mixed_rows import draw_table
from tests.serving.conftest import MIXED
from tests.serving.live.requests import answered, capture_options, version_content


@dataclass
class Recorded:
    """What a test of drift was given."""

    scores: list[Mapping[str, np.ndarray]] = field(default_factory=list)

    def add(self, scores: Mapping[str, np.ndarray], now: float) -> None:
        self.scores.append(scores)

    def status(self, now: float) -> DriftStatus:
        rows = sum(len(each["elbo"]) for each in self.scores)
        return DriftStatus(rows=rows, log_e_value=0.5, level=0.01)


@dataclass
class Place:
    """The files and the socket of an observer."""

    folder: Path
    ours: socket.socket
    theirs: socket.socket
    drift: Recorded = field(default_factory=Recorded)

    def options(self, **more: Any) -> ObserverOptions:
        return ObserverOptions(
            version_file=self.folder / "served_version.json",
            status_file=self.folder / "live.json",
            open_drift=lambda bundle: self.drift,
            **more,
        )

    def name(self, bundle: Bundle) -> None:
        file = self.folder / "served_version.json"
        file.write_text(json.dumps(version_content(bundle)))

    def challenge(self, bundle: Bundle) -> ObserverOptions:
        """Name a challenger; return the options to compare with it."""
        file = self.folder / "challenger.json"
        digest = bundle.manifest.digest
        Challenger(path=str(bundle.path), name="vae", version="9", digest=digest).write(file)
        return self.options(challenger_file=file, sums_file=self.folder / "sums.json")

    def observe(self, *requests: LiveRows, options: ObserverOptions | None = None) -> LiveStatus:
        """Run an observer over requests until the end, as one does when the server stops."""
        for each in requests:
            self.ours.sendmsg(each.pack())
        receiver, sender = multiprocessing.Pipe(duplex=False)
        sender.close()
        Observer(self.theirs, options or self.options()).run(receiver)
        receiver.close()
        status = LiveStatus.read(self.folder / "live.json")
        assert status is not None
        return status


@pytest.fixture
def place(tmp_path: Path, engine: Engine) -> Iterator[Place]:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
    with ours, theirs:
        place = Place(tmp_path, ours, theirs)
        place.name(engine.bundle)
        yield place


def resealed(bundle: Bundle, folder: Path, **data: Any) -> Bundle:
    """A copy of a bundle with another digest, and other facts of its data."""
    shutil.copytree(bundle.path, folder)
    path = folder / MANIFEST
    content = json.loads(path.read_text())
    content["seed"] += 1
    content["data"] |= data
    path.write_text(json.dumps({**content, "digest": manifest_digest(content)}))
    return open_bundle(folder)


def test_all_that_waits_is_scored_whatever_it_was_sent_to(
    place: Place, engine: Engine, x: np.ndarray
) -> None:
    operations = ("score", "encode", "reconstruct")
    requests = [
        answered(engine, operation, x[10 * n : 10 * n + 10], seed=8)
        for n, operation in enumerate(operations * 20)
    ]
    status = place.observe(*requests)
    assert (status.rows, status.dropped_rows) == (600, 0)
    assert status.digest == engine.bundle.manifest.digest
    assert status.drift is not None
    assert status.drift.rows == 600
    assert (status.shadow, status.capture) == (None, None)
    found = np.concatenate([each["elbo"] for each in place.drift.scores])
    draws = default_samples(engine.bundle, "score")
    assert found.tobytes() == engine.score(x[:600], draws, 0)["elbo"].tobytes()
    assert max(len(each["elbo"]) for each in place.drift.scores) <= 256


def test_rows_of_another_version_and_rows_only_to_keep_are_not_scored(
    place: Place, engine: Engine, x: np.ndarray
) -> None:
    rows = answered(engine, "encode", x[:4])
    status = place.observe(
        replace(rows, digest="of an earlier version"),
        replace(rows, watched=False),
        replace(rows, x=np.zeros((3, 2), np.uint8)),
        options=place.options(capture=capture_options(place.folder / "captured")),
    )
    assert (status.rows, status.dropped_rows) == (11, 7)
    assert place.drift.scores == []
    assert status.capture is not None
    assert (status.capture.rows, status.capture.fault) == (4, None)


def test_a_message_that_cannot_be_read_does_not_end_the_observer(
    place: Place, engine: Engine, x: np.ndarray, caplog: pytest.LogCaptureFixture
) -> None:
    whole = answered(engine, "encode", x[:4])
    for message in (b"", b"\xff\xff\xff\xff{}", b"".join(whole.pack())[:-1]):
        place.ours.send(message)
    status = place.observe(whole)
    assert (status.rows, status.dropped_rows) == (4, 0)
    assert caplog.text.count("a message could not be read") == 3


def test_a_version_that_cannot_be_opened_is_said_and_stops_nothing(
    place: Place, engine: Engine, x: np.ndarray, caplog: pytest.LogCaptureFixture
) -> None:
    content = {**version_content(engine.bundle), "digest": "0" * 64}
    (place.folder / "served_version.json").write_text(json.dumps(content))
    status = place.observe(answered(engine, "encode", x[:4]))
    assert (status.digest, status.rows, status.dropped_rows) == ("", 4, 4)
    assert "holds another bundle" in caplog.text


def test_each_of_several_faults_is_said_once(
    place: Place, engine: Engine, caplog: pytest.LogCaptureFixture
) -> None:
    content = {**version_content(engine.bundle), "digest": "0" * 64}
    (place.folder / "served_version.json").write_text(json.dumps(content))
    status_file = place.folder / "nowhere" / "live.json"
    observer = Observer(place.theirs, replace(place.options(), status_file=status_file))
    for _ in range(3):
        observer._tell()
    assert len(caplog.records) == 2


def test_both_versions_have_the_same_noise(
    place: Place, engine: Engine, x: np.ndarray, tmp_path: Path
) -> None:
    same = resealed(engine.bundle, tmp_path / "same")
    options = place.challenge(same)
    status = place.observe(answered(engine, "encode", x[:300]), options=options)
    shadow = status.shadow
    assert shadow is not None
    assert (shadow.name, shadow.version, shadow.fault) == ("vae", "9", None)
    assert (shadow.rows, shadow.mean_difference, shadow.difference_se) == (300, 0.0, 0.0)


def test_an_observer_that_was_killed_is_continued(
    place: Place, engine: Engine, x: np.ndarray, tmp_path: Path
) -> None:
    options = place.challenge(resealed(engine.bundle, tmp_path / "same"))
    place.observe(answered(engine, "encode", x[:30]), options=options)
    status = place.observe(answered(engine, "encode", x[30:50]), options=options)
    assert status.shadow is not None
    assert (status.rows, status.shadow.rows) == (20, 50)
    (sums,) = read_sums_file(tmp_path / "sums.json")
    assert (sums.rows, sums.champion) == (50, engine.bundle.manifest.digest)


@pytest.mark.parametrize(
    ("challenger", "fault"),
    [
        pytest.param(Challenger(fault="vae has no candidate"), "vae has no candidate", id="none"),
        pytest.param(
            Challenger(path="/nowhere", digest="ab"), "no folder /nowhere", id="no such folder"
        ),
        pytest.param(None, "it is being fetched", id="not yet"),
    ],
)
def test_a_challenger_that_cannot_be_used_is_a_fault(
    place: Place, engine: Engine, x: np.ndarray, challenger: Challenger | None, fault: str
) -> None:
    options = place.challenge(engine.bundle)
    assert options.challenger_file is not None
    options.challenger_file.unlink()
    if challenger is not None:
        challenger.write(options.challenger_file)
    status = place.observe(answered(engine, "encode", x[:30]), options=options)
    assert status.shadow is not None
    assert (status.shadow.rows, status.shadow.fault) == (0, fault)
    assert status.drift is not None
    assert status.drift.rows == 30


def test_the_version_served_and_one_of_another_kind_are_no_challengers(
    place: Place, engine: Engine, x: np.ndarray
) -> None:
    rows = answered(engine, "encode", x[:30])
    status = place.observe(rows, options=place.challenge(engine.bundle))
    assert status.shadow is not None
    assert status.shadow.fault == "it is the version served"
    status = place.observe(rows, options=place.challenge(open_bundle(MIXED)))
    assert status.shadow is not None
    expected = "x_shape is (9,), but that of the version served is (6, 5)"
    assert status.shadow.fault == expected


def test_a_challenger_with_another_vocabulary_reads_the_words(tmp_path: Path, place: Place) -> None:
    """Codes of words differ between the two, and the rows are the same."""
    mixed = open_bundle(MIXED)
    content = json.loads((MIXED / MANIFEST).read_text())["data"]["schema"]
    column = next(each for each in content["columns"] if each["name"] == "colour")
    column["words"] = column["words"][::-1]
    other = resealed(mixed, tmp_path / "other", schema=content)
    assert other.manifest.schema is not None
    assert mixed.manifest.schema is not None
    table = draw_table(200, 5)
    names = mixed.manifest.schema.sources
    arrays = {name: np.array(table[name].to_pylist(), object) for name in names}
    x = TableEncoder(mixed.manifest.schema).encode_arrays(arrays).x
    theirs = TableEncoder(other.manifest.schema).encode_arrays(arrays).x
    assert x.tobytes() != theirs.tobytes()

    place.name(mixed)
    engine = Engine(mixed)
    requests = [answered(engine, "encode", x[start : start + 50]) for start in range(0, 200, 50)]
    status = place.observe(*requests, options=place.challenge(other))
    assert status.shadow is not None
    assert status.shadow.fault is None
    # the same graph, given other codes for the same noise

    draws, latent_dim = default_samples(mixed, "score"), mixed.manifest.latent_dim
    eps = draw_eps(x, 0, draws, latent_dim)
    ours = engine.run("score", {"x": x, "eps": eps})["elbo"].astype(float)
    others = engine.run("score", {"x": theirs, "eps": eps})["elbo"].astype(float)
    assert status.shadow.rows == 200
    assert status.shadow.mean_difference == pytest.approx((others - ours).mean(), rel=1e-6)
