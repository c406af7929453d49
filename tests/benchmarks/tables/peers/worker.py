# mypy: ignore-errors
"""Answer requests, one line of JSON each, in the environment of the peers."""

import json
import os
import sys
import traceback
import warnings
from importlib.metadata import version

PACKAGES = ("pyod", "sdv", "ctgan", "copulas", "scikit-learn", "torch", "pandas", "numpy")


def answer(request):
    if request["do"] == "versions":
        return {name: version(name) for name in PACKAGES}
    if request["do"] == "score":
        from tests.benchmarks.tables.peers.on_pyod import score

        return score(**request["with"])
    from tests.benchmarks.tables.peers.on_sdv import sample

    return sample(**request["with"])


def main():
    # What peers print must not come between the answers.
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    warnings.simplefilter("ignore")
    for line in sys.stdin:
        try:
            reply = {"ok": answer(json.loads(line))}
        except Exception as err:  # noqa: BLE001  a peer's failure is a result
            traceback.print_exc()
            reply = {"error": f"{type(err).__name__}: {err}"}
        print(json.dumps(reply), file=answers, flush=True)


if __name__ == "__main__":
    main()
