"""What a server knows of its live rows, measured: `python -m tests.benchmarks live [NAME ...]`."""
