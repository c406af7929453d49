"""Print the graph of imports: which floor each module of each package stands on.

A module stands one floor above the highest module that it imports. Run by `make graph`; a circle
ends it with an error.
"""

from collections.abc import Iterator, Mapping
from graphlib import TopologicalSorter

import grimp

ROOTS = ("pipeline", "serving")


def find_floors(graph: grimp.ImportGraph, package: str) -> dict[str, int]:
    """Return the floor, from 1, of every child of a package; raise `CycleError` for a circle."""
    children = graph.find_children(package)
    below = {
        child: {
            other
            for other in children - {child}
            if graph.direct_import_exists(importer=child, imported=other, as_packages=True)
        }
        for child in children
    }
    floors: dict[str, int] = {}
    for child in TopologicalSorter(below).static_order():
        floors[child] = 1 + max((floors[other] for other in below[child]), default=0)
    return floors


def find_packages(graph: grimp.ImportGraph, root: str) -> Iterator[str]:
    """Yield a root package and every package below it."""
    if graph.find_children(root):
        yield root
        for child in sorted(graph.find_children(root)):
            yield from find_packages(graph, child)


def measure() -> Mapping[str, Mapping[str, int]]:
    """Return the floors of every package of this project."""
    graph = grimp.build_graph(*ROOTS, cache_dir=None)
    # the clients are imported on demand, for `from serving import Client`
    graph.remove_import(importer="serving", imported="serving.client")
    packages = [package for root in ROOTS for package in find_packages(graph, root)]
    return {package: find_floors(graph, package) for package in packages}


def main() -> None:
    """Print the floors of every package, the highest first."""
    for package, floors in measure().items():
        print(f"{package}: {max(floors.values())} floors, no circle")
        for floor in range(max(floors.values()), 0, -1):
            names = [name for name, at in floors.items() if at == floor]
            print(f"  {floor}  {', '.join(sorted(n.removeprefix(package + '.') for n in names))}")


if __name__ == "__main__":
    main()
