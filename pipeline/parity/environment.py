"""The environment of a numerical result: processors, and the libraries that compute."""

import os
import platform
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import torch

SWITCHES = ("NVIDIA_TF32_OVERRIDE", "MKL_CBWR", "ONEDNN_MAX_CPU_ISA")
"""Environment variables that change how numbers are computed."""


def describe_environment() -> dict[str, str]:
    """Return what float32 results can depend on, apart from the bundle."""
    return {
        "system": f"{platform.system()} {platform.machine()}",
        "processor": _processor(),
        "cores": str(os.cpu_count()),
        "vector_unit": torch.backends.cpu.get_cpu_capability(),
        "gpu": _gpu(),
        "onnxruntime": onnxruntime.__version__,
        "torch": torch.__version__,
        **{name: os.environ[name] for name in SWITCHES if name in os.environ},
    }


def describe_versions() -> dict[str, str]:
    """Return the versions of the libraries that prepare and judge the numbers."""
    return {
        "python": platform.python_version(),
        "numpy": np.__version__,
        "onnx": onnx.__version__,
    }


def _processor() -> str:
    return _value("model name", Path("/proc/cpuinfo")) or platform.processor()


def _gpu() -> str:
    """Name the first GPU as the driver does, since torch may be built without CUDA."""
    folders = sorted(Path("/proc/driver/nvidia/gpus").glob("*/information"))
    return _value("Model", *folders) or "none"


def _value(key: str, *files: Path) -> str:
    """Return the value of the first line `key: value` in the files, or an empty string."""
    for file in files:
        try:
            lines = file.read_text().splitlines()
        except OSError:
            continue
        for line in lines:
            name, _, value = line.partition(":")
            if name.strip() == key:
                return value.strip()
    return ""
