"""Fixtures of trained models, where torch is installed: the tests of `serving` run without it."""

import importlib.util

if importlib.util.find_spec("torch") is not None:
    pytest_plugins = ["tests.trained_models"]
