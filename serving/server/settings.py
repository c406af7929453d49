"""The settings of a server, which the parent process hands to its workers."""

from dataclasses import dataclass
from pathlib import Path

from serving.server.auth import Access
from serving.server.cors import Cors
from serving.server.logging_config import LogFormat
from serving.server.rest_messages import Limits
from serving.server.sampling import LiveShares
from serving.server.shared_counters import SharedCounters


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """The settings that the parent process passes to its workers."""

    folder: Path
    """Folder of the files that the processes share."""
    parent: int
    """Process id of the parent; workers end when it has ended."""
    host: str
    port: int
    grpc_port: int
    workers: int
    device: str
    cuda_graph: bool = False
    """Whether engines run by CUDA graphs."""
    threads: int
    max_requests: int
    max_queue: int
    max_connections: int
    timeout_s: float
    drain_s: float
    limits: Limits
    access: Access
    cors: Cors
    tls: tuple[Path, Path] | None
    """Files of the certificate chain and the key."""
    log_format: LogFormat
    access_log: bool
    verify_key: Path | None = None
    """File of the public key that a version must be signed with. Only the parent uses it: workers
    open just the bundle of the digest that the parent verified."""
    live: LiveShares | None = None
    """Which rows the observer gets; None if there is no observer."""

    @property
    def version_file(self) -> Path:
        """The file that names the version to serve."""
        return self.folder / "served_version.json"

    @property
    def live_file(self) -> Path:
        """The file in which the observer says what it has seen."""
        return self.folder / "live.json"

    def open_counters(self, row: int) -> SharedCounters:
        """Open the shared counters, to write this row: 0 for the parent, from 1 for workers."""
        return SharedCounters(self.folder / "counters", self.workers + 1, row)
