"""Open graphs on a device: the CPU, CUDA, or what a plugin of onnxruntime computes on.

A device has the name of its provider, in small letters: `cpu`, `cuda`, `openvino`, `webgpu`. A
plugin is a library that onnxruntime loads at run time: that of the package onnxruntime-ep-NAME or,
for the device `NAME=LIBRARY`, any other. A session runs on its device alone or not at all: every
node's assignment is read back.
"""

import contextlib
import ctypes
import io
import re
from collections.abc import Mapping
from importlib import import_module
from pathlib import Path
from typing import Literal

import onnxruntime as ort

from serving.errors import DeviceUnavailable, UsageRefused, VerificationFailed

Level = Literal["off", "basic", "extended", "all"]

PROVIDERS: Mapping[str, str] = {"cpu": "CPUExecutionProvider", "cuda": "CUDAExecutionProvider"}
"""The providers of onnxruntime itself, by device. These two compute in float64 as well; a plugin is
not asked to, since few can."""
_LEVELS: Mapping[Level, ort.GraphOptimizationLevel] = {
    "off": ort.GraphOptimizationLevel.ORT_DISABLE_ALL,
    "basic": ort.GraphOptimizationLevel.ORT_ENABLE_BASIC,
    "extended": ort.GraphOptimizationLevel.ORT_ENABLE_EXTENDED,
    "all": ort.GraphOptimizationLevel.ORT_ENABLE_ALL,
}
_SHAPE_OPS = {"Shape", "Concat", "Gather", "Slice", "Squeeze", "Unsqueeze"}
"""Operators that compute sizes, which onnxruntime keeps on the CPU on purpose."""


def name_of(device: str) -> str:
    """Return the name of a device, without the library that a user named.

    Raises:
        UsageRefused: it is not a name.
    """
    name = device.partition("=")[0]
    if re.fullmatch("[a-z][a-z0-9_]*", name) is None:
        raise UsageRefused(
            f"device must be cpu, cuda, NAME or NAME=LIBRARY of a plugin, got {device!r}"
        )
    return name


def device_of(provider: str) -> str:
    """Return the name of the device that a provider computes on."""
    return provider.removesuffix("ExecutionProvider").lower()


def has_float64(device: str) -> bool:
    """Whether graphs that need float64 are run on a device."""
    return device in PROVIDERS


def require_device(device: str) -> str:
    """Load what a device needs, and return the name of its provider.

    Raises:
        DeviceUnavailable: something is missing; the message says what to do.
    """
    if device == "cuda":
        require_cuda()
    return provider_of(device)


def provider_of(device: str) -> str:
    """Return the name of a device's provider; a plugin is loaded to know it."""
    return PROVIDERS[device] if device in PROVIDERS else _plugin_device(device).ep_name


def require_cuda() -> None:
    """Load the driver and the CUDA libraries; raise `DeviceUnavailable` naming what is missing."""
    if PROVIDERS["cuda"] not in ort.get_available_providers():
        raise DeviceUnavailable(
            "device cuda is not available: this onnxruntime has no CUDA provider; "
            "install onnxruntime-gpu"
        )
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):  # preload_dlls prints what it cannot load
        ort.preload_dlls()
    try:
        ctypes.CDLL("libcuda.so.1")
    except OSError as err:
        raise DeviceUnavailable(
            f"device cuda is not available: no NVIDIA driver ({err}); "
            "use --device cpu, or a machine with a GPU"
        ) from err
    if missing := [line for line in printed.getvalue().splitlines() if "Failed to load" in line]:
        raise DeviceUnavailable(f"device cuda is not available: {missing[0]}")


def _plugin_device(device: str) -> ort.OrtEpDevice:
    """Return the first device of a plugin, whose library is loaded once in a process."""
    name = name_of(device)
    if (found := _offered_device(name)) is not None:
        return found
    library = device.partition("=")[2] or _packaged_library(name)
    try:
        ort.register_execution_provider_library(name, library)
    except Exception as err:
        # onnxruntime's exceptions share no base class below Exception
        raise DeviceUnavailable(f"device {name} is not available: {err}") from err
    if (found := _offered_device(name)) is not None:
        return found
    ort.unregister_execution_provider_library(name)
    others = {device_of(other.ep_name) for other in ort.get_ep_devices()}
    raise DeviceUnavailable(
        f"device {name} is not available: its plugin {library} finds no hardware here that it can "
        f"use; use --device {' or '.join(sorted(others))}, or a machine that has it"
    )


def _offered_device(name: str) -> ort.OrtEpDevice | None:
    offered = (d for d in ort.get_ep_devices() if device_of(d.ep_name) == name)
    return next(offered, None)


def _packaged_library(name: str) -> str:
    """Return the library in the package onnxruntime-ep-NAME."""
    try:
        return str(import_module(f"onnxruntime_ep_{name}").get_library_path())
    except ImportError as err:
        raise DeviceUnavailable(
            f"device {name} is not available: the package onnxruntime-ep-{name} is not installed; "
            f"install it, or name the plugin's library with --device {name}=LIBRARY"
        ) from err
    except Exception as err:
        raise DeviceUnavailable(f"device {name} is not available: {err}") from err


def session_options(threads: int, level: Level) -> ort.SessionOptions:
    """Return a session's options: threads sleep while they wait, and placement is recorded."""
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.graph_optimization_level = _LEVELS[level]
    options.log_severity_level = 3  # errors only, and they are raised too
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    options.add_session_config_entry("session.x64quantprecision", str(int(_may_overflow())))
    options.add_session_config_entry("session.record_ep_graph_assignment_info", "1")
    return options


def _may_overflow() -> bool:
    """Whether int8 products could overflow, so that the exact kernels, half as fast, are needed.

    x86-64 without VNNI sums pairs of products in 16 bits. An unknown one is assumed to lack it.
    """
    try:
        return "vnni" not in Path("/proc/cpuinfo").read_text()
    except OSError:
        return True


def provider(device: str, *, tf32: bool) -> tuple[str, dict[str, str]]:
    """Return the provider of a session and its options; onnxruntime would use TF32 by default."""
    return PROVIDERS[device], {"use_tf32": str(int(tf32))} if device == "cuda" else {}


def open_session(
    graph: Path | bytes,
    device: str,
    *,
    threads: int = 1,
    level: Level = "all",
    tf32: bool = False,
    cuda_graph: bool = False,
) -> ort.InferenceSession:
    """Open a graph on a device and prove that every node that computes was placed there.

    With `cuda_graph`, onnxruntime records its runs, see `serving.cuda_graphs`.

    Raises:
        DeviceUnavailable: the device cannot run every node, or has no CUDA graphs.
        VerificationFailed: the graph does not open.
    """
    name = graph.name if isinstance(graph, Path) else "a graph"
    options, providers = session_options(threads, level), None
    wanted = provider_of(device)
    if cuda_graph and device != "cuda":
        raise DeviceUnavailable(f"device {device} has no CUDA graphs: use --device cuda")
    if device in PROVIDERS:
        chosen, settings = provider(device, tf32=tf32)
        providers = [(chosen, settings | ({"enable_cuda_graph": "1"} if cuda_graph else {}))]
    else:
        options.add_provider_for_devices([_plugin_device(device)], {})
    try:
        session = ort.InferenceSession(graph, options, providers, enable_fallback=False)
    except Exception as err:
        # onnxruntime's exceptions share no base class below Exception
        if device != "cpu":
            raise DeviceUnavailable(f"device {device} cannot run {name}: {err}") from err
        place = graph if isinstance(graph, Path) else name
        raise VerificationFailed(f"onnxruntime cannot open {place}: {err}") from err
    # if a provider does not load or lacks a kernel, onnxruntime uses the CPU without an error
    for part in session.get_provider_graph_assignment_info():
        strays = {node.op_type for node in part.get_nodes()} - _SHAPE_OPS
        if part.ep_name != wanted and strays:
            raise DeviceUnavailable(
                f"device {device} was asked for, but {name} runs {', '.join(sorted(strays))} "
                f"on {part.ep_name}"
            )
    return session
