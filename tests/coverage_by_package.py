"""Print branch coverage by package, of the data that `pytest --cov` left in this folder.

Run `python -m tests.coverage_by_package`. It ends with exit code 1 if a package has fewer of its
branches covered than `LEAST_PERCENT`.
"""

import json
import sys
import tempfile
from collections import Counter
from pathlib import Path
from typing import Any

from coverage import Coverage

PRODUCT = ("pipeline", "serving")
LEAST_PERCENT = 10.0
"""Low, for much of `pipeline.registry` needs an MLflow store, which the fast tier may not open."""
COUNTS = ("num_statements", "covered_lines", "num_branches", "covered_branches")


def read_files() -> dict[str, Any]:
    """Return what coverage reports of each file of the product."""
    coverage = Coverage()
    coverage.load()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "coverage.json")
        coverage.json_report(outfile=str(path), include=[f"{name}/*" for name in PRODUCT])
        files: dict[str, Any] = json.loads(path.read_bytes())["files"]
    return files


def count_by_package(files: dict[str, Any]) -> dict[str, Counter[str]]:
    """Add up lines and branches of the files in each package."""
    packages: dict[str, Counter[str]] = {}
    for name, content in sorted(files.items()):
        package = ".".join(Path(name).parent.parts)
        counts = {key: content["summary"][key] for key in COUNTS}
        packages.setdefault(package, Counter()).update(counts)
    return packages


def percent(counts: Counter[str], covered: str, total: str) -> float:
    """Return the covered share; all of nothing is covered."""
    return 100 * counts[covered] / counts[total] if counts[total] else 100.0


def main() -> int:
    """Print a row a package and the total; return the exit code."""
    packages = count_by_package(read_files())
    total: Counter[str] = sum(packages.values(), Counter())
    print(f"{'package':<22}{'branches':>9}{'covered':>9}{'lines':>9}{'covered':>9}")
    low = []
    for name, counts in [*packages.items(), ("total", total)]:
        branches = percent(counts, "covered_branches", "num_branches")
        lines = percent(counts, "covered_lines", "num_statements")
        print(
            f"{name:<22}{counts['num_branches']:>9}{branches:>8.0f}%"
            f"{counts['num_statements']:>9}{lines:>8.0f}%"
        )
        if branches < LEAST_PERCENT:
            low.append(name)
    if low:
        message = f"less than {LEAST_PERCENT:.0f} % of the branches are covered in {', '.join(low)}"
        print(message, file=sys.stderr)
    return len(low) > 0


if __name__ == "__main__":
    sys.exit(main())
