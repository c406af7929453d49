"""What the processes of a server are told at their start."""

from dataclasses import dataclass
from pathlib import Path

from serving.engine import Device
from serving.server import logging_config
from serving.server.auth import Access
from serving.server.rest_messages import Limits
from serving.server.shared_counters import Board


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """What the parent tells its workers."""

    folder: Path
    """Where the board and the target are."""
    parent: int
    """Process id: workers end with it."""
    host: str
    port: int
    grpc_port: int
    workers: int
    device: Device
    threads: int
    max_requests: int
    max_queue: int
    max_connections: int
    timeout_s: float
    drain_s: float
    limits: Limits
    access: Access
    tls: tuple[Path, Path] | None
    """Certificate chain and key."""
    log_format: logging_config.LogFormat
    access_log: bool

    @property
    def board(self) -> Path:
        """The shared counters."""
        return self.folder / "board"

    @property
    def target(self) -> Path:
        """The version to serve."""
        return self.folder / "target.json"

    def open_board(self, row: int) -> Board:
        """The board with one row a worker, and the parent's."""
        return Board(self.board, self.workers + 1, row)
