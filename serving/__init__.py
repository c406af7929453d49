"""Use a bundle: run its graphs with onnxruntime, from the command line or from Python.

This package imports neither `pipeline` nor torch, and mlflow in `source` alone.
"""
