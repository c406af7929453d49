"""The Open Inference Protocol: its messages, and how they are written to the wire."""
