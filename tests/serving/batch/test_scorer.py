from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from numpy.typing import NDArray

from serving import Client
from serving.batch.scorer import Provenance, Scorer, provenance_of
from serving.engine import Engine
from serving.errors import DataRefused, UsageRefused
from serving.source import Source
from tests.serving.running import Running

Array = NDArray[Any]
MADE_BY = Provenance("vae", "3", "0" * 64, seed=7, num_samples=4)


def table(x: Array) -> pa.RecordBatch:
    rows = len(x)
    column = pa.array([row.tobytes() for row in x], pa.binary(30))
    return pa.record_batch({"x": column, "id": pa.array(np.arange(rows)[::-1].copy())})


def score_all(scorer: Scorer, batch: pa.RecordBatch, size: int) -> pa.Table:
    pieces = [scorer(batch.slice(start, size))[0] for start in range(0, batch.num_rows, size)]
    return pa.Table.from_batches(pieces, scorer.schema).combine_chunks()


def values(table: pa.Table, name: str, shape: tuple[int, ...]) -> Array:
    column = table.column(name).combine_chunks()
    flat = column.flatten() if pa.types.is_fixed_size_list(column.type) else column
    return np.asarray(flat.to_numpy()).reshape(shape)


@pytest.mark.parametrize("operation", ["score", "encode", "reconstruct"])
def test_results_are_the_engines_in_batches_of_any_size(
    engine: Engine, x: Array, operation: str
) -> None:
    """Bit for bit, whatever the batch; the engine was checked against torch."""
    batch = table(x)
    scorer = Scorer(engine, MADE_BY, operation, batch.schema, ids=["id"])
    expected = engine.score(x, 4, 7) if operation == "score" else engine.run(operation, {"x": x})
    for size in (1, 7, 4096):
        rows = min(len(x), 300 * size)
        found = score_all(scorer, batch.slice(0, rows), size)
        assert found.column("id").to_pylist() == list(range(len(x) - 1, len(x) - 1 - rows, -1))
        for name, value in expected.items():
            got = values(found, name, (rows, *value.shape[1:]))
            assert got.tobytes() == value[:rows].tobytes()


def test_a_row_scores_the_same_wherever_it_stands(engine: Engine, x: Array) -> None:
    scorer = Scorer(engine, MADE_BY, "score", table(x).schema, ids=["id"])
    order = np.random.default_rng(0).permutation(len(x))
    straight = scorer(table(x))[0].column("elbo").to_numpy()
    mixed = scorer(table(x[order]))[0].column("elbo").to_numpy()
    assert mixed.tobytes() == straight[order].tobytes()


def test_the_server_gives_the_same_bytes(server: Running, engine: Engine, x: Array) -> None:
    scorer = Scorer(engine, MADE_BY, "score", table(x).schema)
    with Client(server.rest) as client:
        online = client.score(x[:50], num_samples=4, seed=7)
    batch = scorer(table(x[:50]))[0]
    for name in ("elbo", "log_likelihood", "kl", "iw_elbo"):
        assert batch.column(name).to_numpy().tobytes() == online[name].tobytes()


def test_every_row_says_what_made_it(engine: Engine, x: Array) -> None:
    results, _ = Scorer(engine, MADE_BY, "score", table(x).schema)(table(x[:2]))
    made_by = {"model": "vae", "version": "3", "digest": "0" * 64, "seed": 7, "num_samples": 4}
    for row in results.select(list(made_by)).to_pylist():
        assert row == made_by
    assert not any(pa.types.is_null(item.type) for item in results.schema)


def test_a_folder_is_named_by_its_name_and_its_digest(engine: Engine) -> None:
    digest = engine.bundle.manifest.digest
    assert provenance_of(Source(engine.bundle), 1, 2) == Provenance(
        "bundle", digest[:12], digest, 1, 2
    )
    registered = Source(engine.bundle, "vae", "9")
    assert provenance_of(registered, 1, 2) == Provenance("vae", "9", digest, 1, 2)


def test_bad_rows_come_beside_the_results_with_their_ids(engine: Engine, x: Array) -> None:
    lists: list[Any] = x[:5].reshape(5, 30).tolist()
    lists[1], lists[3] = None, lists[3][:-1]
    batch = pa.record_batch(
        {"x": pa.array(lists, pa.list_(pa.uint8())), "id": pa.array(list("abcde"))}
    )
    scorer = Scorer(engine, MADE_BY, "score", batch.schema, ids=["id"])
    results, bad = scorer(batch)
    assert bad.to_pylist() == [
        {"id": "b", "reason": "x is null, or holds a null"},
        {"id": "d", "reason": "x has the wrong size"},
    ]
    assert results.column("id").to_pylist() == ["a", "c", "e"]
    expected = engine.score(x[[0, 2, 4]], 4, 7)["elbo"]
    assert results.column("elbo").to_numpy().tobytes() == expected.tobytes()


def test_a_result_that_is_not_finite_is_a_bad_row(engine: Engine, x: Array) -> None:
    class Broken(Engine):
        def compute(self, name: str, inputs: Any) -> dict[str, Array]:
            outputs = super().compute(name, inputs)
            outputs["kl"][1] = np.nan
            return outputs

    broken = Broken(engine.bundle)
    scorer = Scorer(broken, MADE_BY, "score", table(x).schema, ids=["id"])
    results, bad = scorer(table(x[:3]))
    assert results.column("id").to_pylist() == [2, 0]
    assert bad.to_pylist() == [{"id": 1, "reason": "the result is not finite"}]


@pytest.mark.parametrize("rows", [0, 3], ids=["no rows", "none good"])
def test_a_batch_without_good_rows_gives_empty_results(engine: Engine, x: Array, rows: int) -> None:
    batch = pa.record_batch({"x": pa.nulls(rows, pa.binary(30))})
    for operation in ("score", "encode", "reconstruct"):
        scorer = Scorer(engine, MADE_BY, operation, batch.schema)
        results, bad = scorer(batch)
        assert (results.num_rows, bad.num_rows) == (0, rows)
        assert results.schema == scorer.schema
        assert bad.schema == scorer.bad_schema


@pytest.mark.parametrize(
    ("operation", "num_samples", "seed", "ids", "message"),
    [
        ("decode", 1, 0, [], "operation must be one of encode, reconstruct, score, got 'decode'"),
        ("score", 0, 0, [], "num_samples must be from 1 to 4096, got 0"),
        ("score", 4097, 0, [], "num_samples must be from 1 to 4096, got 4097"),
        ("score", 1, -1, [], "seed must be from 0 to"),
        ("score", 1, 0, ["elbo"], "must have names of their own"),
        ("score", 1, 0, ["none"], "the input has no column 'none'"),
    ],
    ids=["operation", "no draws", "draws", "seed", "name taken", "no column"],
)
def test_what_cannot_be_done_is_refused(
    engine: Engine, operation: str, num_samples: int, seed: int, ids: list[str], message: str
) -> None:
    schema = pa.schema({"x": pa.binary(30), "elbo": pa.float32()})
    made_by = Provenance("vae", "1", "", seed, num_samples)
    with pytest.raises(UsageRefused) as caught:
        Scorer(engine, made_by, operation, schema, ids=ids)
    assert message in str(caught.value)


def test_ids_of_another_kind_are_cast_or_refused(engine: Engine, x: Array) -> None:
    first = table(x[:2])
    scorer = Scorer(engine, MADE_BY, "score", first.schema, ids=["id"])
    small = first.set_column(1, "id", pa.array([1, 2], pa.int8()))
    assert scorer(small)[0].column("id").type == pa.int64()
    with pytest.raises(DataRefused, match="column 'id' is string here, but was int64 before"):
        scorer(first.set_column(1, "id", pa.array(["a", "b"])))
