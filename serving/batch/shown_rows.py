"""Describe single rows for the page of a job: pictures, features, or the cells of a mixed table.

In: rows at an end of the distribution, and the input that holds them. Out: what the template shows
of them. Raises `DataRefused` if the input cannot be read again.
"""

import base64
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from serving.batch.result_columns import P_VALUE
from serving.batch.row_cells import ExplainedCell, explain_cells
from serving.batch.score_summary import Extreme, fetch_x
from serving.batch.scorer import Scorer
from serving.bundle import Bundle
from serving.io.images import encode_png, is_picture
from serving.io.rows import Rows
from serving.value_range import Range, to_brightness

Array = NDArray[Any]

FEATURES = 24
"""Features of a row that are shown."""


@dataclass(frozen=True, slots=True)
class ShownRow:
    """A row at an end of the distribution; without values if the input no longer holds it."""

    row: Extreme
    x: Array | None
    x_loc: Array | None
    cells: Sequence[ExplainedCell] = ()
    """Of a row of a mixed table."""


def show_rows(
    extremes: Sequence[Extreme], scorer: Scorer, rows: Rows, part_rows: int
) -> list[ShownRow]:
    """Read rows from the input again, with their reconstructions."""
    found = fetch_x(extremes, scorer, rows, part_rows)
    return [_show_row(row, x, scorer) for row, x in zip(extremes, found, strict=True)]


def _show_row(row: Extreme, x: Array | None, scorer: Scorer) -> ShownRow:
    if x is None:
        return ShownRow(row, None, None)
    x_loc, schema = scorer.engine.reconstruct(x[None])[0], scorer.engine.bundle.manifest.schema
    if schema is None or not {"explain", "impute"} <= scorer.engine.operations.keys():
        return ShownRow(row, x, x_loc)
    return ShownRow(row, x, x_loc, explain_cells(scorer, schema, x))


def describe_rows(
    rows: Sequence[ShownRow], job: Mapping[str, Any], bundle: Bundle
) -> dict[str, Any]:
    """Return what the template shows of rows."""
    values = [row.x for row in rows if row.x is not None]
    shown: dict[str, Any] = {"rows": len(rows), "changed": len(values) < len(rows)}
    shown |= {"pictures": [], "cards": []}
    if values and is_picture(values[0].shape):
        bright = bundle.picture_range()
        return {**shown, "pictures": [_describe_picture(row, bright) for row in rows]}
    if bundle.manifest.schema is not None:
        return {**shown, "cards": [_describe_card(row) for row in rows]}
    size, columns = values[0].size if values else 0, job["x"]
    names = columns if len(columns) == size else [f"x[{index}]" for index in range(size)]
    ids, others = (list(rows[0].row.ids), list(rows[0].row.more)) if rows else ([], [])
    head = [*ids, "elbo", "log_likelihood", "kl", *others, *names[:FEATURES]]
    lines = [line for row in rows for line in _describe_features(row)]
    more = size - FEATURES
    return {**shown, "words": len(ids), "head": head, "lines": lines, "more": more}


def _describe_card(shown: ShownRow) -> dict[str, Any]:
    row = shown.row
    seen = 0 if shown.x is None else int(np.count_nonzero(~np.isnan(shown.x)))
    return {
        "ids": _list_ids(row),
        "scores": [*_list_more(row), ("elbo", nats(row.elbo))],
        "cells": [(cell, nats(cell.nats)) for cell in shown.cells],
        "more": seen - len(shown.cells),
    }


def _list_ids(row: Extreme) -> str:
    return ", ".join(f"{name} {value}" for name, value in row.ids.items())


def _list_more(row: Extreme) -> list[tuple[str, str]]:
    """Return the score that rows are compared by, if it is another one, and the p-value."""
    return [
        (name, f"{value:.2g}" if name == P_VALUE else nats(value))
        for name, value in row.more.items()
    ]


def _describe_picture(shown: ShownRow, bright: Range) -> dict[str, Any]:
    row, images = shown.row, []
    if shown.x is not None and shown.x_loc is not None:
        for words, values in (("row", shown.x), ("reconstruction", shown.x_loc)):
            picture = encode_png(to_brightness(values, bright))
            images.append((words, base64.b64encode(picture).decode()))
    return {
        "images": images,
        "ids": _list_ids(row),
        "more": _list_more(row),
        **{name: nats(getattr(row, name)) for name in ("elbo", "log_likelihood", "kl")},
    }


def _describe_features(shown: ShownRow) -> list[tuple[str, list[str]]]:
    row = shown.row
    scores = [nats(value) for value in (row.elbo, row.log_likelihood, row.kl)]
    scores += [value for _, value in _list_more(row)]
    lines = [("", [*map(str, row.ids.values()), *scores, *_cells(shown.x)])]
    if shown.x_loc is not None:
        blank = [""] * (len(row.ids) + len(scores) - 1)
        lines.append(("mild", ["reconstruction", *blank, *_cells(shown.x_loc)]))
    return lines


def _cells(values: Array | None) -> list[str]:
    return [] if values is None else [_number(value) for value in values.reshape(-1)[:FEATURES]]


def _number(value: float) -> str:
    return f"{value:,.0f}" if 1e4 <= abs(value) < 1e6 else f"{value:.4g}"


def nats(value: float, sign: str = "") -> str:
    """Return a score as text."""
    return f"{value:{sign},.2f}"
