"""Coverage is added up by package, and a package that no test reaches is named."""

from typing import Any

import pytest

from tests import coverage_by_package
from tests.coverage_by_package import COUNTS, count_by_package, main


def file(*counts: int) -> dict[str, Any]:
    return {"summary": dict(zip(COUNTS, counts, strict=True))}


FILES = {
    "pipeline/config.py": file(10, 10, 0, 0),
    "pipeline/data/readers.py": file(20, 10, 8, 6),
    "pipeline/data/tables.py": file(20, 20, 2, 2),
}


def test_files_are_added_up_in_their_package() -> None:
    counts = count_by_package(FILES)
    assert list(counts) == ["pipeline", "pipeline.data"]
    assert [counts["pipeline.data"][key] for key in COUNTS] == [40, 30, 10, 8]


@pytest.mark.parametrize(("covered", "exit_code"), [(0, 1), (6, 0)])
def test_a_package_without_coverage_ends_with_1(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    covered: int,
    exit_code: int,
) -> None:
    files = {**FILES, "serving/io/rows.py": file(10, 5, 8, covered)}
    monkeypatch.setattr(coverage_by_package, "read_files", lambda: files)
    assert main() == exit_code
    printed = capsys.readouterr()
    rows = [line.split() for line in printed.out.splitlines()]
    assert ["pipeline.data", "10", "80%", "40", "75%"] in rows
    assert printed.err == (
        "less than 10 % of the branches are covered in serving.io\n" if exit_code else ""
    )
