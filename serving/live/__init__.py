"""What watches live rows: the observer of a server, which captures, shadows and tests for drift."""
