"""`vae score` that counts the calls it makes while it works, and may end itself at one of them.

Run as `python -m tests.serving.batch.killed CALL ARGUMENTS...`: at call number `CALL` the process
gets SIGKILL; 0 for never. stderr ends with the number of calls and the heavy modules that were
loaded.
"""

import os
import signal
import sys
from typing import Any

from serving.batch import job, output
from serving.cli.score import score
from tests.serving.batch.jobs import PART_ROWS

calls = 0


def main() -> None:
    """Count calls of Python and of C, on the thread that reads and writes."""
    job.PART_ROWS = PART_ROWS
    last = int(sys.argv.pop(1))
    open_output = output.open_output

    def count(frame: Any, event: str, argument: object) -> None:
        global calls
        calls += event in ("call", "c_call")
        if calls == last:
            os.kill(os.getpid(), signal.SIGKILL)

    def open_and_count(*arguments: Any, **settings: Any) -> Any:
        sys.setprofile(count)
        return open_output(*arguments, **settings)

    output.open_output = open_and_count
    score.main(standalone_mode=False)
    sys.setprofile(None)
    heavy = sorted({"torch", "mlflow", "onnx", "pipeline"} & {*sys.modules})
    print(f"{calls} {' '.join(heavy)}", file=sys.stderr)


if __name__ == "__main__":
    main()
