"""The environment of a result: the system, its processors, and the versions of packages.

Packages are imported when they are asked for: naming one does not load the others.
"""

import os
import platform
from importlib import import_module
from pathlib import Path
from typing import Any

from serving.cpu import available_cores

SWITCHES = ("NVIDIA_TF32_OVERRIDE", "MKL_CBWR", "ONEDNN_MAX_CPU_ISA")
"""Environment variables that change how numbers are computed."""


def describe_versions(*packages: str) -> dict[str, str]:
    """Return the versions of Python and of these packages, by name."""
    versions = {name: str(import_module(name).__version__) for name in packages}
    return {"python": platform.python_version(), **versions}


def describe_environment() -> dict[str, str]:
    """Return what float32 results can depend on, apart from the bundle."""
    import onnxruntime
    import torch

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


def describe_system(device: str, threads: int) -> dict[str, Any]:
    """Return what the speed of a training depends on, as tags of its run."""
    return {
        "system.platform": platform.platform(),
        **{f"system.{name}": version for name, version in describe_versions("torch").items()},
        "system.cores": available_cores(),
        "system.threads": threads,
        "system.device": device,
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
