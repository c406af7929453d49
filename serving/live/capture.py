"""Keep live rows and their answers as Parquet files, which `vae score` reads back.

In: requests with their answers. Out: whole files in a folder that several servers may share, never
one that is half written, and no more of them than the bounds allow. What hinders it, such as a full
disk, is a fault that is shown; it stops nothing else, and ends when there is room again.
"""

import contextlib
import logging
import os
import re
import secrets
import time
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from serving.bundle import Bundle
from serving.errors import UsageRefused, VaeError
from serving.files import staged_file
from serving.live.options import CaptureOptions
from serving.live_rows import LiveRows
from serving.live_status import CaptureStatus

if TYPE_CHECKING:
    from serving.live.captured_rows import CapturedRows

LOG = logging.getLogger(__name__)
RETRY_S = 5.0
"""Time between two attempts to write after one has failed."""
LOOK_S = 10.0
"""Time between two looks at what is in the folder."""
STALE_S = 3600.0
"""Age of a temporary file from which its process must have died."""
_NAME = re.compile(r"captured-\d{8}T\d{12}-[0-9a-f]{6}-(\d+)\.parquet")
_TEMPORARY = re.compile(r"\.captured-\d{8}T\d{12}-[0-9a-f]{6}-\d+\.parquet\.[0-9a-f]{8}")


@dataclass(slots=True)
class Capture:
    """Gathers rows, and writes them as parts."""

    options: CaptureOptions
    dropped_rows: int = 0
    """Rows that found no room while nothing could be written, or that cannot be written."""
    _rows: "CapturedRows | None" = field(default=None, init=False)
    _due: float = field(default=0.0, init=False)
    _retry_at: float = field(default=0.0, init=False)
    _look_at: float = field(default=0.0, init=False)
    _fault: str | None = field(default=None, init=False)
    _found: tuple[int, int, int] = field(default=(0, 0, 0), init=False)
    _server: str = field(default_factory=lambda: secrets.token_hex(3), init=False)

    def begin(self, bundle: Bundle) -> None:
        """Write what was gathered of another version, and gather rows of this one."""
        from serving.live.captured_rows import CapturedRows  # and pyarrow, if they are needed

        self.flush()
        self._rows = None
        try:
            self._rows = CapturedRows(bundle, self.options.left_out, self.options.hashed)
            self._fault = None
        except UsageRefused as err:  # a column that must not be kept may have another name now
            self._fault = str(err)
            LOG.error("no rows are captured: %s", err)

    def add(self, rows: LiveRows) -> None:
        """Take up a request and its answer."""
        if self._rows is None:
            self.dropped_rows += rows.rows
            return
        if self._rows.bytes + rows.held_bytes > self.options.part_bytes:
            self.flush()
            if self._rows.bytes + rows.held_bytes > self.options.part_bytes and self._rows.rows:
                self.dropped_rows += rows.rows
                return
        if not self._rows.rows:
            self._due = time.monotonic() + self.options.part_s
        self._rows.add(rows)

    def tick(self) -> None:
        """Write a part that is due, and remove old ones."""
        now = time.monotonic()
        if self._rows is not None and self._rows.rows and now >= self._due:
            self.flush()
        if now >= self._look_at:
            self._tidy()

    def flush(self) -> None:
        """Write what was gathered; if that fails, keep it, and try again a while later."""
        rows = self._rows
        if rows is None or not rows.rows or time.monotonic() < self._retry_at:
            return
        try:
            self._write(rows)
        except (VaeError, OSError) as err:
            if self._fault is None:
                LOG.error("no rows are captured: %s", err)
            self._fault, self._retry_at = str(err), time.monotonic() + RETRY_S
        except Exception:  # rows that cannot be written must not hinder those after them
            LOG.exception("%d rows could not be captured", rows.rows)
            self.dropped_rows += rows.rows
            rows.clear()
        else:
            if self._fault is not None:
                LOG.info("rows are captured again")
            self._fault, self._due = None, 0.0
            rows.clear()
            self._tidy()

    def finish(self) -> None:
        """Write the last rows, since the server stops."""
        self._retry_at = 0.0
        self.flush()

    def status(self) -> CaptureStatus:
        """Describe what is in the folder."""
        parts, rows, size = self._found
        folder = str(self.options.folder)
        return CaptureStatus(folder=folder, parts=parts, rows=rows, bytes=size, fault=self._fault)

    def _write(self, rows: "CapturedRows") -> None:
        from pyarrow import parquet

        table = rows.table()
        if not table.num_rows:
            return
        folder = self.options.folder
        folder.mkdir(parents=True, exist_ok=True)
        stamp = datetime.now(UTC).strftime("%Y%m%dT%H%M%S%f")
        path = folder / f"captured-{stamp}-{self._server}-{table.num_rows}.parquet"
        with staged_file(path) as temporary:  # its name starts with a dot: no reader takes it
            with temporary.open("wb") as file:
                parquet.write_table(table, file)
                file.flush()
                os.fsync(file.fileno())

    def _tidy(self) -> None:
        """Count the parts; remove those that are too old or too many, and what the dead left."""
        self._look_at = time.monotonic() + LOOK_S
        with contextlib.suppress(OSError):
            self._found = self._remove_old()

    def _remove_old(self) -> tuple[int, int, int]:
        now, parts, total, size = time.time(), 0, 0, 0
        kept: list[tuple[str, int, int]] = []
        for entry in os.scandir(self.options.folder):
            with contextlib.suppress(OSError):  # another server removed it, or it is not ours
                stat = entry.stat(follow_symlinks=False)
                if match := _NAME.fullmatch(entry.name):
                    if now - stat.st_mtime > self.options.keep_s:
                        os.unlink(entry.path)
                    else:
                        kept.append((entry.name, int(match[1]), stat.st_size))
                elif _TEMPORARY.fullmatch(entry.name) and now - stat.st_mtime > STALE_S:
                    os.unlink(entry.path)
        for name, rows, content in sorted(kept, reverse=True):  # the newest first
            if size + content > self.options.keep_bytes and parts:
                with contextlib.suppress(OSError):
                    (self.options.folder / name).unlink()
            else:
                parts, total, size = parts + 1, total + rows, size + content
        return parts, total, size
