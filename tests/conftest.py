"""The tiers of tests; fixtures of trained models where torch is installed, unlike for `serving`."""

import importlib.util

pytest_plugins = ["pytester", "tests.tiers"]
if importlib.util.find_spec("torch") is not None:
    pytest_plugins.append("tests.trained_models")
