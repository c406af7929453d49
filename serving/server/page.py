"""The pages of the server: `/` to watch and to play with, `/docs` to read, and their files.

The page at `/` is plain HTML, CSS and JavaScript of the folder `web`, without a build step. It
loads nothing from elsewhere, and uses the same routes as any client.
"""

import base64
import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

_HERE = Path(__file__).parent
_TYPES = {
    ".css": "text/css; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
}
DOCS = (_HERE / "page.html").read_bytes()
"""The page at `/docs`: it lists operations and routes, and draws samples."""


@dataclass(frozen=True, slots=True)
class WebFile:
    """A file that a browser gets as it is."""

    content: bytes
    content_type: str
    etag: str

    @classmethod
    def read(cls, path: Path) -> "WebFile":
        """Read a file; its tag is made of its content."""
        content = path.read_bytes()
        tag = hashlib.sha256(content).hexdigest()[:16]
        return cls(content, _TYPES[path.suffix], f'"{tag}"')


INDEX = (_HERE / "web" / "index.html").read_bytes()
"""The page at `/`."""
FILES: Mapping[str, WebFile] = {
    path.name: WebFile.read(path)
    for path in sorted((_HERE / "web").iterdir())
    if path.suffix in _TYPES
}
"""The files of `/web/`, by name: no other path is ever read."""


def _policy(page: bytes) -> str:
    """Allow what the page has itself: files of this server, and the inline scripts it came with."""
    scripts = re.findall(rb"<script>(.*?)</script>", page, re.DOTALL)
    digests = [base64.b64encode(hashlib.sha256(script).digest()).decode() for script in scripts]
    own = " ".join(f"'sha256-{digest}'" for digest in digests)
    return (
        f"default-src 'none'; script-src 'self' {own}; "
        "style-src 'self'; img-src 'self' blob: data:; connect-src 'self'; base-uri 'none'; "
        "form-action 'none'; frame-ancestors 'none'"
    )


PAGE_HEADERS = (
    ("content-security-policy", _policy(INDEX)),
    ("cache-control", "no-cache"),
    ("referrer-policy", "no-referrer"),
    ("x-content-type-options", "nosniff"),
)
"""Headers of the page at `/`, whose policy forbids every other script and every other host."""
FILE_HEADERS = (("cache-control", "no-cache"), ("x-content-type-options", "nosniff"))
"""Headers of its files: a browser keeps them, and asks by their tags whether they are the same."""
