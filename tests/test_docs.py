"""The documents point at what is there: links, files, folders, make targets."""

import re
from pathlib import Path

import pytest
import yaml  # type: ignore[import-untyped]

ROOT = Path(__file__).parent.parent
PAGES = sorted([ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(ROOT / "docs").glob("*.md")])
ARCHITECTURE = (ROOT / "docs" / "architecture.md").read_text()
TARGETS = re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)


def links(page: Path) -> list[str]:
    """Return the relative targets of a page's links and images."""
    found = re.findall(r"\]\(([^)#\s]+)\)", page.read_text())
    return [link for link in found if "://" not in link]


def test_every_manual_is_linked_from_the_readme() -> None:
    linked = {(ROOT / link).resolve() for link in links(ROOT / "README.md")}
    assert {page.resolve() for page in PAGES if page.name != "README.md"} <= linked


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_to_files(page: Path) -> None:
    missing = [link for link in links(page) if not (page.parent / link).exists()]
    assert missing == []


def anchors(page: Path) -> set[str]:
    """Return the anchors of a page's headings, as GitHub makes them."""
    headings = re.findall(r"^#+ (.*)$", page.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_into_pages_lead_to_headings(page: Path) -> None:
    found = re.findall(r"\]\(([^):\s]*)#([^)\s]+)\)", page.read_text())
    targets = {(page.parent / link if link else page, anchor) for link, anchor in found}
    assert [anchor for target, anchor in targets if anchor not in anchors(target)] == []


def test_the_architecture_names_files_that_exist() -> None:
    table = ARCHITECTURE.partition("## Where do I change what")[2]
    named = re.findall(r"`((?:pipeline|serving|tests)/[\w./]*)`", table)
    assert len(named) > 30
    assert [name for name in named if not (ROOT / name).exists()] == []


def test_the_architecture_has_every_package_of_the_pipeline() -> None:
    for package in (ROOT / "pipeline").glob("*/__init__.py"):
        assert f"`pipeline/{package.parent.name}`" in ARCHITECTURE or (
            f"`{package.parent.name}`" in ARCHITECTURE
        )


def test_hooks_and_contributing_call_targets_that_exist() -> None:
    (repository,) = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())["repos"]
    entries = [hook["entry"].split() for hook in repository["hooks"]]
    assert entries
    for make, target in entries:
        assert make == "make"
        assert target in TARGETS
    text = (ROOT / "CONTRIBUTING.md").read_text()
    named = {word for found in re.findall(r"`make ([a-z -]+)`", text) for word in found.split()}
    assert {"test-fast", "test", "lint", "types", "bench"} <= named
    assert named <= set(TARGETS)
