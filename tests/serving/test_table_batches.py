"""A row of a mixed table has the same bytes alone as in a batch of any size."""

import numpy as np
import pytest

from serving.bundle import open_bundle
from serving.engine import Engine
from serving.table_cells import TableEncoder
from tests.mixed_rows import draw_table, with_oddities
from tests.serving.conftest import MIXED


@pytest.fixture(scope="module")
def mixed() -> Engine:
    return Engine(open_bundle(MIXED))


@pytest.mark.parametrize("step", [1, 3, 7, 64])
@pytest.mark.parametrize("operation", ["encode", "reconstruct", "score"])
def test_a_row_has_the_same_bytes_in_every_batch(mixed: Engine, operation: str, step: int) -> None:
    schema = mixed.bundle.manifest.schema
    assert schema is not None
    table = with_oddities(draw_table(200, seed=6))
    arrays = {name: np.array(table.column(name).to_pylist(), object) for name in schema.sources}
    x = TableEncoder(schema).encode_arrays(arrays).x
    starts = range(0, len(x), step)
    if operation == "score":
        whole = mixed.score(x, 3, 7)
        parts = [mixed.score(x[start : start + step], 3, 7) for start in starts]
    else:
        whole = mixed.run(operation, {"x": x})
        parts = [mixed.run(operation, {"x": x[start : start + step]}) for start in starts]
    for name, values in whole.items():
        assert np.concatenate([part[name] for part in parts]).tobytes() == values.tobytes(), name


def test_a_fraction_in_a_column_of_counts_is_as_likely_as_the_nearest_count(mixed: Engine) -> None:
    schema = mixed.bundle.manifest.schema
    assert schema is not None
    places = [place for place, column in enumerate(schema.columns) if column.kind == "count"]
    assert places
    x = mixed.bundle.golden()["score.x"][:4]
    whole, fraction = x.copy(), x.copy()
    whole[:, places], fraction[:, places] = 3, 2.75
    eps = mixed.bundle.golden()["score.eps"][:4]
    expected = mixed.run("score", {"x": whole, "eps": eps})
    for name, values in mixed.run("score", {"x": fraction, "eps": eps}).items():
        assert values.tobytes() == expected[name].tobytes(), name
    whole[:, places] = 2
    other = mixed.run("score", {"x": whole, "eps": eps})["column_log_likelihood"]
    assert (other[:, places] != expected["column_log_likelihood"][:, places]).all()
