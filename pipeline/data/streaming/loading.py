"""Load data of any size: what does not fit in memory is streamed.

In: what `pipeline.data.readers` reads. Out: a `Dataset` whose rows to train on stay outside memory,
and are those that `load_dataset` would train on; the others are in memory. Raises `DataRefused`,
with the reason, for data that cannot be used.
"""

from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.config import Binarize
from pipeline.data.binarization import binarize_once
from pipeline.data.labelled_rows import LabelledRows
from pipeline.data.plan import DataPlan, Resources
from pipeline.data.selection import Selection
from pipeline.data.source_checks import check_like
from pipeline.data.splits import Dataset, Split, digest
from pipeline.data.streaming.chunks import RowSource
from pipeline.data.streaming.first_pass import FirstPass, Shares
from pipeline.data.streaming.first_pass_cache import remember_first_pass
from pipeline.data.streaming.opening import run_on_rows
from pipeline.data.streaming.parts import Parts, find_parts
from serving.errors import UsageRefused
from serving.value_range import find_range, max_byte_of

Array = NDArray[Any]


def load_streamed(
    source: str,
    resources: Resources,
    needed: int = 0,
    *,
    valid_fraction: float,
    test_fraction: float,
    binarize: Binarize = "none",
    **chosen: Any,
) -> Dataset:
    """Load and split the data at `source`, whose rows to train on are streamed.

    Args:
        source: a path or a URI.
        resources: memory and cache.
        needed: the bytes that all rows would take in memory.
        valid_fraction: as of `load_dataset`.
        test_fraction: as of `load_dataset`.
        binarize: as of `load_dataset`, but never once for all.
        chosen: settings of `Selection`.

    Raises:
        UsageRefused: rows are to be binarized once, which would need a copy of all of them.
    """
    if binarize == "static":
        raise UsageRefused(
            "--binarize static needs the rows in memory: use --binarize dynamic, or more --memory"
        )
    if binarize != "none":
        chosen = {**chosen, "likelihood": ""}  # it needs bytes, or numbers from 0 to 1
    selection = Selection(**chosen)
    parts = find_parts(source, selection)
    shares = Shares(
        valid=0 if "valid" in parts.own else valid_fraction,
        test=0 if "test" in parts.own else test_fraction,
        drop_missing=selection.drop_missing,
    )

    def take(rows: RowSource) -> tuple[RowSource, FirstPass]:
        return rows, remember_first_pass(rows, shares, resources.cache)

    rows, found = run_on_rows(parts, source, selection, resources, take)
    test = LabelledRows(found.test, found.labels)
    valid = LabelledRows(found.valid)
    test = _read_own(parts, rows, source, "test", selection) or test
    valid = _read_own(parts, rows, source, "valid", selection) or valid
    if binarize != "none":
        shown = np.concatenate([found.train.sample, found.train.extremes])
        max_byte = max_byte_of(find_range(shown, test.x, valid.x)[1])
        valid = replace(valid, x=binarize_once(valid.x, max_byte, key=2))
        test = replace(test, x=binarize_once(test.x, max_byte, key=3))
    return Dataset(
        source,
        train=found.train,
        valid=Split(valid.x, digest(valid.x)),
        test=Split(test.x, digest(test.x), test.labels),
        columns=rows.kind.columns,
        schema=rows.kind.schema,
        plan=DataPlan(
            rows=found.train.x.shape[0],
            row_bytes=rows.kind.row_bytes,
            valid_rows=len(valid.x),
            test_rows=len(test.x),
            memory=resources.memory,
            needed=needed,
            streamed=True,
            shuffle=rows.shuffle,
            capped=found.capped,
            statistics_rows=len(found.train.sample),
            cache=rows.cache,
        ),
    )


def _read_own(
    parts: Parts, rows: RowSource, source: str, split: Any, selection: Selection
) -> LabelledRows | None:
    """Read a set of the source's own, if it has it; it must be like the training rows."""
    if split not in parts.own:
        return None
    kind = rows.kind
    train = LabelledRows(np.empty((0, *kind.shape), kind.dtype))
    name = "validation" if split == "valid" else split
    return check_like(train, source, name, parts.own[split](kind), selection)
