"""The commands that use a model: sample, reconstruct, score, impute, serve and deploy."""
