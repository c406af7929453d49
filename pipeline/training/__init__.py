"""Train a model, and resume a training that was interrupted."""
