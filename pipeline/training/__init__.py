"""Train a model, and go on with a training that was interrupted."""
