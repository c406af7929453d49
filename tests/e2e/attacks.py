"""Twenty ways to change what a server serves by writing to its registry, and none by the gate.

Each is done by who may move aliases, set tags, and make versions and runs, but does not forge the
record of a decision as a whole. The store is sqlite, so that it can be put back after each.
"""

import contextlib
import sqlite3
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from mlflow import MlflowClient

from serving.ledger import audit_experiment, iso_time, ledger_name, list_moves
from serving.mlflow_store import DIGEST_TAG

NAME = "vae"
OLD, SERVED, WANTED = "1", "2", "3"
"""An earlier champion; the champion; a version that the gate refused, and the attacker wants."""


@dataclass(frozen=True, slots=True)
class Registry:
    """A store with these three versions of `vae`."""

    client: MlflowClient
    database: Path

    def digest(self, version: str) -> str:
        """Return the digest that a version's tag names."""
        return str(self.client.get_model_version(NAME, version).tags[DIGEST_TAG])

    def record(self, version: str, decision: str) -> str:
        """Return the id of the run that records a decision on a version."""
        experiment = self.client.get_experiment_by_name(audit_experiment(NAME))
        query = f"tags.version = '{version}' and tags.decision = '{decision}'"
        return str(self.client.search_runs([experiment.experiment_id], query)[0].info.run_id)

    def point(self, version: str) -> None:
        """Move the alias."""
        self.client.set_registered_model_alias(NAME, "champion", version)

    def enter(self, run_id: str, **changes: str | None) -> None:
        """Make an entry of the ledger that moves the champion to `WANTED`; None drops a tag."""
        after = str(list_moves(self.client, NAME)[-1].number)
        tags = {"action": "promote", "version": WANTED, "base": SERVED, "after": after}
        tags |= {"digest": self.digest(WANTED), "done": "true"}
        kept = {key: value for key, value in {**tags, **changes}.items() if value is not None}
        source = f"runs:/{run_id}/decision.json"
        self.client.create_model_version(
            ledger_name(NAME), source, run_id=run_id, tags=kept, await_creation_for=0
        )

    def retag_entry(self, tag: str, value: str) -> None:
        """Rewrite a tag of the ledger's last entry."""
        number = str(list_moves(self.client, NAME)[-1].number)
        self.client.set_model_version_tag(ledger_name(NAME), number, tag, value)

    def swap(self) -> None:
        """Let the version served name the digest and the files of the one that is wanted."""
        self.client.set_model_version_tag(NAME, SERVED, DIGEST_TAG, self.digest(WANTED))
        self.run(
            "update model_versions set source = (select source from model_versions where "
            f"name = '{NAME}' and version = {WANTED}) where name = '{NAME}' and version = {SERVED}"
        )

    def run(self, query: str) -> None:
        """Run SQL, for what MLflow's client refuses to change."""
        with contextlib.closing(sqlite3.connect(self.database, timeout=30)) as database, database:
            database.execute(query)

    @contextmanager
    def kept(self) -> Iterator[None]:
        """Put the store back at the end of the block."""
        memory = sqlite3.connect(":memory:")
        with contextlib.closing(memory):
            _copy(self.database, memory)
            try:
                yield
            finally:
                with contextlib.closing(sqlite3.connect(self.database, timeout=30)) as database:
                    memory.backup(database)


def _copy(path: Path, target: sqlite3.Connection) -> None:
    with contextlib.closing(sqlite3.connect(path, timeout=30)) as database:
        database.backup(target)


def move_alias(registry: Registry) -> None:
    registry.point(WANTED)


def move_alias_back(registry: Registry) -> None:
    registry.point(OLD)


def say_promoted(registry: Registry) -> None:
    for tag, value in (("gate.status", "promoted"), ("promoted.at", "2026-01-01T00:00:00.000")):
        registry.client.set_model_version_tag(NAME, WANTED, tag, value)
    registry.point(WANTED)


def lend_digest(registry: Registry) -> None:
    """The wanted version claims to be the bundle that was promoted."""
    digest = registry.digest(SERVED)
    registry.client.set_model_version_tag(NAME, WANTED, DIGEST_TAG, digest)
    registry.point(WANTED)


def retag_version(registry: Registry) -> None:
    registry.client.set_model_version_tag(NAME, SERVED, DIGEST_TAG, registry.digest(WANTED))


def swap_version(registry: Registry) -> None:
    registry.swap()


def swap_version_and_entry(registry: Registry) -> None:
    registry.swap()
    registry.retag_entry("digest", registry.digest(WANTED))


def swap_version_and_record(registry: Registry) -> None:
    registry.swap()
    record = registry.record(SERVED, "promoted")
    registry.client.set_tag(record, "digest", registry.digest(WANTED))


def swap_version_and_forget_digests(registry: Registry) -> None:
    """The record looks like one from before digests were recorded."""
    registry.swap()
    registry.client.delete_tag(registry.record(SERVED, "promoted"), "digest")
    number = str(list_moves(registry.client, NAME)[-1].number)
    registry.client.delete_model_version_tag(ledger_name(NAME), number, "digest")


def enter_without_record(registry: Registry) -> None:
    registry.enter("0" * 32)
    registry.point(WANTED)


def enter_and_leave_the_alias(registry: Registry) -> None:
    registry.enter("0" * 32)


def enter_unfinished(registry: Registry) -> None:
    registry.enter("0" * 32, done=None)
    registry.point(WANTED)


def enter_with_refused_record(registry: Registry) -> None:
    registry.enter(registry.record(WANTED, "refused"))
    registry.point(WANTED)


def enter_with_record_of_champion(registry: Registry) -> None:
    registry.enter(registry.record(SERVED, "promoted"))
    registry.point(WANTED)


def enter_with_earlier_record(registry: Registry) -> None:
    """A move back to the earlier champion, by the record that once promoted it."""
    registry.enter(registry.record(OLD, "promoted"), version=OLD, digest=registry.digest(OLD))
    registry.point(OLD)


def enter_with_record_elsewhere(registry: Registry) -> None:
    """The record says all that it should, among other runs than the decisions."""
    client = registry.client
    number = str(int(list_moves(client, NAME)[-1].number) + 1)
    tags = {"action": "promote", "version": WANTED, "decision": "promoted"}
    tags["digest"] = registry.digest(WANTED)
    run_id = client.create_run(client.create_experiment("elsewhere"), tags=tags).info.run_id
    registry.enter(run_id)
    made = client.get_model_version(ledger_name(NAME), number)
    client.set_tag(run_id, "moved_at", iso_time(made.creation_timestamp))
    registry.point(WANTED)


def enter_what_cannot_be_read(registry: Registry) -> None:
    for changes in ({"after": "last"}, {"action": None}, {"version": "../3"}, {"base": None}):
        registry.enter("0" * 32, **changes)
    registry.point(WANTED)


def rename_entry(registry: Registry) -> None:
    """The move that made the champion now names the wanted version."""
    registry.retag_entry("version", WANTED)
    registry.retag_entry("digest", registry.digest(WANTED))
    registry.point(WANTED)


def cut_ledger(registry: Registry) -> None:
    """The last move hangs on nothing, so that the ledger ends with the earlier champion."""
    registry.retag_entry("after", "999")
    registry.point(OLD)


def undo_entry(registry: Registry) -> None:
    """The last move looks as if it was never carried out."""
    registry.retag_entry("done", "stale")
    registry.point(OLD)


ATTACKS: Mapping[str, Callable[[Registry], None]] = {
    attack.__name__.replace("_", " "): attack
    for attack in (
        *(move_alias, move_alias_back, say_promoted, lend_digest, retag_version, swap_version),
        *(swap_version_and_entry, swap_version_and_record, swap_version_and_forget_digests),
        *(enter_without_record, enter_and_leave_the_alias, enter_unfinished),
        *(enter_with_refused_record, enter_with_record_of_champion, enter_with_earlier_record),
        *(enter_with_record_elsewhere, enter_what_cannot_be_read, rename_entry, cut_ledger),
        undo_entry,
    )
}
