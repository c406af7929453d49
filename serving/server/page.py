"""The page at `/docs`: it lists operations and routes, and draws samples."""

from pathlib import Path

PAGE = (Path(__file__).parent / "page.html").read_bytes()
