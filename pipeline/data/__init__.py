"""Read the data to train on, and split it."""
