"""Evaluate a trained model on held-out rows, and draw figures of it."""
