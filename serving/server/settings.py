"""What the processes of a server are told at their start."""

from dataclasses import dataclass
from pathlib import Path

from serving.engine import Device
from serving.server import logging_config
from serving.server.auth import Access
from serving.server.rest_messages import Limits
from serving.server.shared_counters import SharedCounters


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """What the parent tells its workers."""

    folder: Path
    """Where the counters and the version to serve are kept."""
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
    def counters(self) -> Path:
        """The shared counters."""
        return self.folder / "counters"

    @property
    def target(self) -> Path:
        """The version to serve."""
        return self.folder / "target.json"

    def open_counters(self, row: int) -> SharedCounters:
        """Open the counters, which have a row for each worker and one for the parent."""
        return SharedCounters(self.counters, self.workers + 1, row)
