"""The commands that use a model: sample, reconstruct, score, serve and deploy."""
