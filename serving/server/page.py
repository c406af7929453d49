"""The page at `/docs`: what the model takes and gives, samples to look at, all addresses."""

from pathlib import Path

PAGE = (Path(__file__).parent / "page.html").read_bytes()
