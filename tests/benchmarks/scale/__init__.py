"""What must hold of data larger than memory, measured: `python -m tests.benchmarks scale`."""
