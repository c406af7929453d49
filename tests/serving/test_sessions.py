"""Devices by name: those that are missing are refused with exit code 8 and the next step."""

import sys
from pathlib import Path
from types import ModuleType

import onnxruntime
import pytest

from serving import sessions
from serving.bundle import Bundle, open_bundle
from serving.engine import Engine
from serving.errors import DeviceUnavailable, UsageRefused
from serving.sessions import device_of, has_float64, name_of, require_device
from tests.serving.conftest import SCHEMA_1


@pytest.mark.parametrize(
    ("provider", "device"),
    [
        ("CPUExecutionProvider", "cpu"),
        ("CUDAExecutionProvider", "cuda"),
        ("OpenVINOExecutionProvider", "openvino"),
        ("WebGpuExecutionProvider", "webgpu"),
    ],
)
def test_a_device_has_the_name_of_its_provider(provider: str, device: str) -> None:
    assert device_of(provider) == device
    assert has_float64(device) is (device in ("cpu", "cuda"))


@pytest.mark.parametrize("device", ["", "=lib.so", "Web GPU", "../x", "os.path", "1a"])
def test_what_is_no_name_is_refused(device: str) -> None:
    with pytest.raises(UsageRefused, match="device must be cpu, cuda, NAME or NAME=LIBRARY"):
        require_device(device)


def test_the_name_of_a_device_leaves_its_library_out() -> None:
    assert name_of("webgpu=/opt/lib=1.so") == "webgpu"
    assert name_of("cpu") == "cpu"


def test_a_plugin_that_is_not_installed_is_named(bundle: Bundle) -> None:
    with pytest.raises(DeviceUnavailable) as caught:
        Engine(bundle, device="abacus")
    assert caught.value.exit_code == 8
    assert str(caught.value) == (
        "device abacus is not available: the package onnxruntime-ep-abacus is not installed; "
        "install it, or name the plugin's library with --device abacus=LIBRARY"
    )


def test_a_library_that_does_not_load_is_named(bundle: Bundle, tmp_path: Path) -> None:
    library = tmp_path / "libabacus.so"
    library.write_bytes(b"nothing")
    with pytest.raises(DeviceUnavailable, match=r"device abacus is not available: .*libabacus"):
        Engine(bundle, device=f"abacus={library}")


def test_a_package_without_its_library_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    package = ModuleType("onnxruntime_ep_abacus")

    def get_library_path() -> str:
        raise FileNotFoundError("the library is not in the package")

    package.__dict__["get_library_path"] = get_library_path
    monkeypatch.setitem(sys.modules, "onnxruntime_ep_abacus", package)
    with pytest.raises(DeviceUnavailable, match="the library is not in the package"):
        require_device("abacus")


def test_a_plugin_without_hardware_is_unloaded_and_named(monkeypatch: pytest.MonkeyPatch) -> None:
    loaded: list[str] = []
    monkeypatch.setattr(
        onnxruntime, "register_execution_provider_library", lambda name, _: loaded.append(name)
    )
    monkeypatch.setattr(onnxruntime, "unregister_execution_provider_library", loaded.remove)
    with pytest.raises(DeviceUnavailable, match=r"its plugin lib\.so finds no hardware here"):
        require_device("abacus=lib.so")
    assert loaded == []


def test_without_float64_the_portable_form_is_run(bundle: Bundle) -> None:
    graphs = {name: form.graph for name, form in bundle.operations_for(float64=False).items()}
    assert graphs == {
        "encode": "encoder.onnx",
        "decode": "decoder.onnx",
        "reconstruct": "reconstruct.onnx",
        "sample": "decoder.onnx",
        "score": "score_portable.onnx",
        "draw": "draw_portable.onnx",
    }
    engine = Engine(bundle, operations=bundle.operations_for(float64=False))
    engine.self_check()
    x = bundle.golden()["score.x"]
    exact, portable = Engine(bundle).score(x, 4, seed=5), engine.score(x, 4, seed=5)
    for name, value in exact.items():
        difference = abs(value - portable[name]).max()
        assert difference <= 2 * bundle.golden()[f"score_portable.{name}.budget"], name


def test_a_bundle_of_schema_1_has_no_form_without_float64() -> None:
    with pytest.raises(DeviceUnavailable, match=r"score\.onnx needs float64, .* run vae migrate"):
        open_bundle(SCHEMA_1).operations_for(float64=False)


def test_a_session_does_not_run_elsewhere_when_its_provider_fails(bundle: Bundle) -> None:
    """onnxruntime's own session would go to the CPU, after a line on stdout."""
    session = sessions.open_session(bundle.path / "decoder.onnx", "cpu")
    assert session._enable_fallback is False
    assert onnxruntime.InferenceSession(bundle.path / "decoder.onnx")._enable_fallback is True
