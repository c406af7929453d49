"""The files by which the parent process and the observer tell each other of the challenger."""

import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from serving.files import staged_file
from serving.live_sums import LiveSums


@dataclass(frozen=True, slots=True, kw_only=True)
class Challenger:
    """The version that the parent process found, or why there is none."""

    path: str = ""
    name: str | None = None
    version: str | None = None
    digest: str = ""
    fault: str | None = None

    def write(self, file: Path) -> None:
        """Replace the file in one step."""
        with staged_file(file) as temporary:
            temporary.write_text(json.dumps(asdict(self)))

    @classmethod
    def read(cls, file: Path) -> "Challenger":
        """Read what the parent wrote last."""
        try:
            return cls(**json.loads(file.read_bytes()))
        except FileNotFoundError:
            return cls(fault="it is being fetched")


def write_sums_file(file: Path, sums: Iterable[LiveSums]) -> None:
    """Replace the sums of all pairs of versions in one step."""
    with staged_file(file) as temporary:
        temporary.write_text(json.dumps([asdict(each) for each in sums]))


def read_sums_file(file: Path) -> list[LiveSums]:
    """Read what the observer wrote last; nothing before it has written."""
    try:
        content: list[dict[str, Any]] = json.loads(file.read_bytes())
    except FileNotFoundError:
        return []
    return [LiveSums(**each) for each in content]
