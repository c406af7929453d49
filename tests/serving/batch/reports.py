"""Score with a report on a bundle that carries a held-out distribution, and read the page."""

import base64
import io
import json
import re
import shutil
from dataclasses import asdict
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
from click.testing import CliRunner, Result
from numpy.typing import NDArray
from PIL import Image

from serving.bundle import (
    HELD_OUT,
    MANIFEST,
    METRICS,
    Bundle,
    file_entry,
    manifest_digest,
    open_bundle,
)
from serving.cli.score import score
from serving.drift import HeldOut
from serving.p_values import HeldOutScores


def carry(source: Path, target: Path, held_out: HeldOut) -> Bundle:
    """A copy of a bundle with a held-out distribution, sealed again."""
    metrics = json.loads((source / METRICS).read_text()) | {"held_out": asdict(held_out)}
    return _copy(source, target, METRICS, json.dumps(metrics).encode())


def hold(source: Path, target: Path, scores: HeldOutScores) -> Bundle:
    """A copy of a bundle with the scores of held-out rows, sealed again."""
    content = io.BytesIO()
    np.savez(content, **scores.arrays())  # type: ignore[arg-type]
    return _copy(source, target, HELD_OUT, content.getvalue())


def _copy(source: Path, target: Path, name: str, file: bytes) -> Bundle:
    shutil.copytree(source, target)
    (target / name).write_bytes(file)
    content = json.loads((target / MANIFEST).read_text())
    content["files"][name] = file_entry(target / name)
    content["digest"] = manifest_digest(content)
    (target / MANIFEST).write_text(json.dumps(content))
    return open_bundle(target)


def vae_score(*arguments: object) -> Result:
    return CliRunner().invoke(score, [str(argument) for argument in arguments])


class Page(HTMLParser):
    """The words, pictures and tags of a page; a tag that is closed out of order raises."""

    VOID = ("meta", "img", "br")

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.text = path.read_text(encoding="utf-8")
        self.words = ""
        self.pictures: list[NDArray[np.uint8]] = []
        self.tags: list[str] = []
        self._open: list[str] = []
        self.feed(self.text)
        assert self._open == []
        self.words = re.sub(r"\s+", " ", self.words)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        if tag not in self.VOID:
            self._open.append(tag)
        source = dict(attrs).get("src")
        if source is not None:
            kind, content = source.split(",")
            assert kind == "data:image/png;base64"
            with Image.open(io.BytesIO(base64.b64decode(content))) as image:
                self.pictures.append(np.asarray(image))

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag, tag

    def handle_data(self, data: str) -> None:
        if "style" not in self._open:
            self.words += data

    def section(self, title: str) -> str:
        """The words between a heading and the next."""
        found = re.search(rf"<h2>{title}</h2>(.*?)(<h2>|</body>)", self.text, re.DOTALL)
        assert found, title
        return re.sub(r"\s+", " ", re.sub("<[^>]*>", " ", found[1]))
