"""Keep what a first pass over many rows has found, for the next command and for other processes.

A file stands for the files that were read, their sizes and times of change, and for what was chosen
of them: if any of these differs, the rows are read again.
"""

import contextlib
import zipfile
from dataclasses import asdict
from pathlib import Path

import numpy as np

from pipeline.data.plan import HELD_OUT_BYTES, SAMPLE_BYTES
from pipeline.data.splits import StreamedSplit
from pipeline.data.streaming.chunks import RowSource
from pipeline.data.streaming.first_pass import FirstPass, Shares, take_first_pass
from pipeline.data.streaming.row_cache import cache_place, is_own, locked, open_private
from serving.console import say
from serving.errors import VaeError
from serving.files import reading, staged_file

LEAST_BYTES = 1 << 30
"""Bytes of decoded rows from which on a pass is remembered: it takes many seconds."""
_VERSION = 1
"""Of what a pass finds: another number makes all earlier files unused."""


def remember_first_pass(source: RowSource, shares: Shares, folder: Path | None) -> FirstPass:
    """Return what an earlier pass over the same rows found, else make one.

    Of several processes, one reads the rows and the others wait.

    Raises:
        DataRefused: rows cannot be used, or the file is damaged.
    """
    known = source.facts
    if source.total * source.kind.row_bytes < LEAST_BYTES or not known:
        return take_first_pass(source, shares)
    facts = {
        "version": _VERSION,
        "most": [HELD_OUT_BYTES, SAMPLE_BYTES],
        "shares": asdict(shares),
        "name": source.kind.name,
        **known,
    }
    path = cache_place(folder, facts, ".npz")
    with contextlib.ExitStack() as stack:
        try:
            stack.enter_context(locked(path))
        except VaeError:
            return take_first_pass(source, shares)  # nothing can be kept
        if is_own(path):
            say(f"{source.kind.name}: {source.total:,} rows, which were read before: {path}")
            return _load(source, path)
        found = take_first_pass(source, shares)
        with contextlib.suppress(VaeError):  # a full disk costs the next command a pass
            _save(found, path)
        return found


def _save(found: FirstPass, path: Path) -> None:
    arrays = {
        "sample": found.train.sample,
        "extremes": found.train.extremes,
        "valid": found.valid,
        "test": found.test,
        "left_out": found.left_out,
        "sha256": np.array(found.train.sha256),
        "capped": np.array(found.capped),
        **({} if found.labels is None else {"labels": found.labels}),
    }
    with staged_file(path) as temporary, open_private(temporary) as file:
        np.savez(file, allow_pickle=False, **arrays)


def _load(source: RowSource, path: Path) -> FirstPass:
    with (
        reading(f"{path}, which can be deleted", zipfile.BadZipFile, KeyError),
        np.load(path, allow_pickle=False) as file,
    ):
        arrays = {name: file[name] for name in file.files}
    train = StreamedSplit(
        source.without(arrays["left_out"]),
        str(arrays["sha256"]),
        arrays["sample"],
        arrays["extremes"],
    )
    return FirstPass(
        train=train,
        valid=arrays["valid"],
        test=arrays["test"],
        labels=arrays.get("labels"),
        left_out=arrays["left_out"],
        capped=bool(arrays["capped"]),
    )
