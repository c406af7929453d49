import pytest
import torch

from pipeline.environment import describe_environment, describe_system, describe_versions


def test_machine_names_its_processor_and_its_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    machine = describe_environment()
    assert machine["torch"] == torch.__version__
    assert all(isinstance(value, str) and value for value in machine.values())
    monkeypatch.setenv("NVIDIA_TF32_OVERRIDE", "0")
    assert describe_environment() == {**machine, "NVIDIA_TF32_OVERRIDE": "0"}


def test_versions_are_those_of_the_packages_that_are_named() -> None:
    assert describe_versions("torch")["torch"] == torch.__version__
    assert describe_versions().keys() == {"python"}
    assert list(describe_versions("numpy", "onnx")) == ["python", "numpy", "onnx"]


def test_a_run_is_tagged_with_what_its_speed_depends_on() -> None:
    tags = describe_system("cpu", 2)
    assert (tags["system.device"], tags["system.threads"]) == ("cpu", 2)
    assert tags["system.torch"] == torch.__version__
    assert tags.keys() >= {"system.platform", "system.python", "system.cores"}
