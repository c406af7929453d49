"""A sequential test of whether new rows are still like the held-out ones, which may run for years.

In: the held-out scores, then the scores of new rows as they come. Out: an e-value at every moment,
and an alarm when it is large. If all rows are exchangeable, the chance of *any* alarm, however long
the test runs and however often it is looked at, is at most its level. The proof has four steps.

1. The p-values of `serving.conformal` are then independent and uniform on [0, 1].
2. A gambler who starts at row j with 1 bets on the bin that the next p-value falls in. The bet is a
   Dirichlet-multinomial prediction from the bins since j: a bin with prior mass c w and n of the N
   p-values since j gets the probability (c w + n) / (c + N), and w is its probability if p is
   uniform. The capital is multiplied by the ratio of the two, whose mean is 1. So it is a
   martingale, a conformal test martingale (Vovk, Gammerman & Shafer 2005, chapter 7; Vovk 2021,
   "Testing randomness online", Statistical Science 36). Several c are mixed with equal weights.
3. A change after long calm would be found late by the gambler of row 0, who has learnt the calm. So
   one starts with every block of `BLOCK` rows, with the share of block J in a mixture: 1/2 for
   J = 0, else 1/2 (1 / ln(J + e - 1) - 1 / ln(J + e)). These sum to 1 over all J, as the terms
   telescope. The mixture is a martingale that starts at 1, if those who have yet to start count
   with their share. Here they do not, and a gambler is dropped, for good, when its age reaches
   `LIVES` 2^v blocks, 2^v being the largest power of two that divides J. Both make the value
   smaller and never larger. About `LIVES` / 2 gamblers are left for each doubling of the rows. This
   is the pruning of Hazan & Seshadhri (2009) and Daniely et al. (2015, arXiv 1502.07073): for a
   change that needs D rows to be seen, one starts within 2 D / `LIVES` rows and lives long enough.
   A change at block J costs ln(2 J) + 2 ln ln J nats beside one at a time that was known before: 12
   nats after 50,000 rows, 24 after 10^9. Mixtures over the time of change are the e-detectors of
   Shin, Ramdas & Rinaldo (2022, arXiv 2203.03532); weights that sum to 1 bound the chance of a
   false alarm over all time, theirs bound how often one comes.
4. By Ville's inequality (1939) the mixture ever reaches 1 / a with probability a at most; see
   Ramdas et al. (2023, arXiv 2210.01948). Each score has a test of its own, and a share of the
   level. Their mean would be no valid e-value, since each is a martingale only among what it knows
   itself (Choe & Ramdas 2024, arXiv 2402.09698), but the union bound holds.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from serving.conformal import ConformalStream

Array = NDArray[Any]

LEVEL = 0.01
"""Chance of a false alarm over all time."""
BLOCK = 32
"""Rows from one start to the next; the e-value is looked at as often."""
LIVES = 8
CONCENTRATIONS = (16.0, 256.0, 4096.0)
"""Prior rows c: few learn a large change fast, many lose little while they look for a small one."""
_TAIL = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.35)
BOUNDS = np.array([*_TAIL, 0.5, *(1 - share for share in reversed(_TAIL))])
"""Inner bounds of the bins of p-values, narrow where unusual rows are."""
WIDTHS = np.diff(np.concatenate([[0.0], BOUNDS, [1.0]]))
FIRST = "elbo"
"""The score of whole rows, which gets half of the level if there are others."""
COLUMNS = "column_log_likelihood"
_NONE = -1


@dataclass(frozen=True, slots=True)
class Alarm:
    """The moment when a test reached its level."""

    rows: int
    """New rows up to then."""
    time: float
    """Time of the last of them."""
    since_rows: int
    """New rows before those that the alarm is about, as far as can be told."""
    since_time: float
    """Time of the first of those."""


class DriftTest:
    """Tests several scores of a stream of rows; the result does not depend on how it is cut.

    Args:
        held_out: held-out scores (rows,) by name, `FIRST` among them.
        level: chance of a false alarm over all time, of all scores together.
    """

    def __init__(self, held_out: Mapping[str, Array], level: float = LEVEL) -> None:
        self.names = tuple(held_out)
        self.level = level
        tests = len(self.names)
        others = 0.5 / max(1, tests - 1)
        shares = [0.5 if name == FIRST else others for name in held_out] if tests > 1 else [1.0]
        self._log_shares = np.log(shares)
        self._stream = ConformalStream(held_out)
        self._prior = np.outer(CONCENTRATIONS, WIDTHS)
        self._starts = np.full(0, _NONE, np.int64)
        """The block that each gambler started with, (gamblers,); `_NONE` if the place is free."""
        self._times = np.zeros(0)
        self._counts = np.zeros((tests, 0, len(WIDTHS)), np.int64)
        self._log_capital = np.zeros((tests, 0, len(CONCENTRATIONS)))
        self._largest = np.zeros(tests)
        self._alarms: dict[str, Alarm] = {}

    @property
    def rows(self) -> int:
        """New rows so far."""
        return self._stream.rows

    @property
    def alarms(self) -> Mapping[str, Alarm]:
        """The first alarm of each score that has one, by name, the earliest first."""
        return self._alarms

    def add(self, scores: Mapping[str, Array], times: Array | float) -> None:
        """Test the next rows; `scores` has an array (rows,) for each name, `times` one or each."""
        values = np.stack([np.asarray(scores[name], np.float64) for name in self.names])
        moments = np.broadcast_to(times, values.shape[1:])
        start = 0
        while start < values.shape[1]:
            if self.rows % BLOCK == 0:
                self._start_block(float(moments[start]))
            stop = min(values.shape[1], start + BLOCK - self.rows % BLOCK)
            self._bet(values[:, start:stop])
            if self.rows % BLOCK == 0:
                self._look(float(moments[stop - 1]))
            start = stop

    def break_ties_by(self, generator: np.random.Generator) -> None:
        """Take other random numbers than the usual ones, before the first row.

        A server always takes the same, by which its result can be repeated. Who compares many
        streams wants them to be independent.
        """
        self._stream.break_ties_by(generator)

    def log_e_values(self) -> dict[str, float]:
        """Return the logarithm of each score's e-value now, times its share of the level."""
        return self._by_name(np.logaddexp.reduce(self._mix(), 1))

    def largest(self) -> dict[str, float]:
        """Return the largest so far, at the ends of blocks; an alarm is from ln(1 / level) on."""
        return self._by_name(self._largest)

    def _by_name(self, values: Array) -> dict[str, float]:
        return dict(zip(self.names, values.tolist(), strict=True))

    def state(self) -> dict[str, Array]:
        """Return all that `restore` needs to go on, as arrays."""
        alarms = [
            (self.names.index(name), each.rows, each.time, each.since_rows, each.since_time)
            for name, each in self._alarms.items()
        ]
        kept = {name: getattr(self, f"_{name}") for name in _KEPT}
        return {
            **kept,
            "rows": np.array(self.rows),
            "cells": self._stream.counts,
            "alarms": np.array(alarms).reshape(-1, 5),
        }

    def restore(self, state: Mapping[str, Array]) -> None:
        """Go on with the state of a test of the same held-out scores."""
        self._stream.restore(int(state["rows"]), state["cells"])
        for name in _KEPT:
            setattr(self, f"_{name}", state[name].copy())
        self._alarms = {
            self.names[int(test)]: Alarm(int(rows), time, int(since), since_time)
            for test, rows, time, since, since_time in state["alarms"].tolist()
        }

    def _start_block(self, time: float) -> None:
        """Drop gamblers that are too old, and start one."""
        block = self.rows // BLOCK
        self._starts[block - self._starts >= _lives(self._starts)] = _NONE
        free = np.flatnonzero(self._starts == _NONE)
        if not len(free):
            free = np.arange(len(self._starts), 2 * len(self._starts) + 8)
            more = ((0, len(free)),)
            self._starts = np.pad(self._starts, more, constant_values=_NONE)
            self._times = np.pad(self._times, more)
            self._counts = np.pad(self._counts, ((0, 0), *more, (0, 0)))
            self._log_capital = np.pad(self._log_capital, ((0, 0), *more, (0, 0)))
        place = free[0]
        self._starts[place], self._times[place] = block, time
        self._counts[:, place] = 0
        self._log_capital[:, place] = 0

    def _bet(self, scores: Array) -> None:
        """Let all gamblers bet on rows of one block, (scores, rows)."""
        bins = np.searchsorted(BOUNDS, self._stream.rank(scores), "right")
        order = np.arange(bins.shape[1])
        earlier = order[:, None] > order
        repeats = np.sum((bins[:, :, None] == bins[:, None]) & earlier, 2)
        # of each bet (scores, gamblers, rows): p-values in its bin, and all, since the start
        hits = np.take_along_axis(self._counts, bins[:, None], 2) + repeats[:, None]
        seen = self._counts[:1].sum(2)[:, :, None] + order
        for index, (c, prior) in enumerate(zip(CONCENTRATIONS, self._prior, strict=True)):
            ratios = (prior[bins][:, None] + hits) / (c + seen) / WIDTHS[bins][:, None]
            self._log_capital[:, :, index] += np.log(ratios).sum(2)
        for counts, row in zip(self._counts, bins, strict=True):
            counts += np.bincount(row, minlength=len(WIDTHS))

    def _mix(self) -> Array:
        """Return the log of each gambler's share of the e-value, (scores, gamblers)."""
        with np.errstate(divide="ignore"):  # free places have no share
            shares = np.log(_shares(self._starts) / len(CONCENTRATIONS))
        capital = np.logaddexp.reduce(self._log_capital, 2)
        mixed: Array = capital + shares + self._log_shares[:, None]
        return mixed

    def _look(self, time: float) -> None:
        """Look at the e-values, and keep what an alarm says."""
        mixed = self._mix()
        values = np.logaddexp.reduce(mixed, 1)
        self._largest = np.maximum(self._largest, values)
        for index in np.flatnonzero(values >= -math.log(self.level)).tolist():
            if (name := self.names[index]) not in self._alarms:
                best = mixed[index].argmax()
                since = int(self._starts[best]) * BLOCK, float(self._times[best])
                self._alarms[name] = Alarm(self.rows, time, *since)


def split_scores(scores: Mapping[str, Array], columns: Sequence[str]) -> dict[str, Array]:
    """Return the scores that are tested, each (rows,): the ELBO, and those of `columns`."""
    if not columns:
        return {FIRST: scores[FIRST]}
    names = [f"column {name}" if name == FIRST else name for name in columns]
    return {FIRST: scores[FIRST], **dict(zip(names, scores[COLUMNS].T, strict=True))}


_KEPT = ("starts", "times", "counts", "log_capital", "largest")


def _lives(blocks: Array) -> Array:
    """Return how many blocks the gambler of each block lives: that of block 0 for ever."""
    lives: Array = np.where(blocks == 0, np.iinfo(np.int64).max, LIVES * (blocks & -blocks))
    return lives


def _shares(blocks: Array) -> Array:
    """Return the share of each block's gambler in the mixture; 0 of a free place."""
    later = np.maximum(blocks, 1) + math.e
    # the difference of the docstring, without its cancellation
    differences = -np.log1p(-1 / later) / (np.log(later) * np.log(later - 1))
    shares: Array = np.select([blocks == 0, blocks > 0], [0.5, 0.5 * differences], 0)
    return shares
