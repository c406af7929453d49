"""The command line `vae`. Only this package wires the stages together."""
