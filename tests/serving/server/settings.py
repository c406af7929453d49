"""Settings of servers that run in the process of a test."""

import os
from pathlib import Path

from serving.server.auth import Access
from serving.server.cors import Cors
from serving.server.rest_messages import Limits
from serving.server.settings import Settings


def make_settings(folder: Path, *, port: int = 0, workers: int = 1) -> Settings:
    return Settings(
        folder=folder,
        parent=os.getpid(),
        host="127.0.0.1",
        port=port,
        grpc_port=0,
        workers=workers,
        device="cpu",
        threads=1,
        max_requests=8,
        max_queue=8,
        max_connections=8,
        timeout_s=1,
        drain_s=1,
        limits=Limits(),
        access=Access(),
        cors=Cors(),
        tls=None,
        log_format="plain",
        access_log=False,
    )
