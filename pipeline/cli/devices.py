"""The device on which torch computes for a command, and the reason when there is no CUDA."""

from serving.errors import DeviceUnavailable


def torch_device(device: str, threads: int, number: int = 0) -> str:
    """Set torch's threads and return `cpu` or `cuda`; either computes in float32.

    `auto` becomes `cuda` if there is a GPU. It is the GPU of this `number`.

    Raises:
        DeviceUnavailable: `device` is `cuda` and there is none, or none of this number.
    """
    import torch

    torch.set_num_threads(threads)
    missing = missing_cuda()
    if device == "cpu" or (device == "auto" and missing):
        return "cpu"
    if missing:
        raise DeviceUnavailable(f"device cuda is not available: {missing}; use --device cpu")
    if number >= (count := torch.cuda.device_count()):
        raise DeviceUnavailable(
            f"process {number} of this machine needs a GPU of its own, and there are {count}: "
            f"start {count} with torchrun --nproc-per-node {count}"
        )
    torch.cuda.set_device(number)
    # by default torch uses TF32 for convolutions, but not for matrix products
    torch.backends.cudnn.allow_tf32 = False
    return "cuda"


def missing_cuda() -> str:
    """Return why torch cannot use CUDA here, or an empty string if it can."""
    import torch

    if torch.cuda.is_available():
        return ""
    missing = "is built without CUDA" if torch.version.cuda is None else "finds no GPU"
    return f"torch {torch.__version__} {missing}"
