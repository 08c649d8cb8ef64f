"""The number formats of the forward pass."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any, Literal

import torch

Precision = Literal["fp16", "bf16", "fp32"]


def precision_on(device: torch.device, asked: Precision) -> Precision:
    """The precision that a run has on `device`: the one asked for, but fp32 in place of what the device is slower in.

    On a CPU that is fp16, and everywhere bf16 without instructions for it: it was 6 times slower than fp32 on a CPU.
    """
    if device.type == "cpu":
        return "fp32" if asked == "fp16" or (asked == "bf16" and not cpu_has_bf16()) else asked
    return "fp32" if asked == "bf16" and not gpu_has_bf16() else asked


@cache
def gpu_has_bf16() -> bool:
    """Whether the GPU multiplies bfloat16 numbers by instructions of its own (NVIDIA's since Ampere)."""
    return not torch.cuda.is_available() or torch.cuda.is_bf16_supported(including_emulation=False)


@cache
def cpu_has_bf16(cpuinfo: Path = Path("/proc/cpuinfo")) -> bool:
    """Whether the CPU multiplies bfloat16 numbers by instructions of its own; taken for so where it is not known."""
    try:
        lines = cpuinfo.read_text(encoding="utf-8").splitlines()
    except OSError:  # not Linux
        return True
    flags = {flag for line in lines if line.lower().startswith(("flags", "features")) for flag in line.split()}
    return bool(flags & {"avx512_bf16", "amx_bf16", "bf16"}) or not flags


def autocast_on(device: torch.device, asked: Precision) -> torch.autocast:
    """Autocast to the precision that a run has on `device`."""
    precision = precision_on(device, asked)
    dtype = torch.float16 if precision == "fp16" else torch.bfloat16
    return torch.autocast(device.type, dtype=dtype, enabled=precision != "fp32")


class _Unscaled(torch.amp.GradScaler):
    """Scales nothing, keeps no state, and leaves out a step whose gradients are not finite, as it does in fp16."""

    def __init__(self, device: str) -> None:
        super().__init__(device, init_scale=1.0)

    def update(self, new_scale: float | torch.Tensor | None = None) -> None:
        super().update(1.0)

    def state_dict(self) -> dict[str, Any]:
        return {}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        pass


def scaler_on(device: torch.device, asked: Precision) -> torch.amp.GradScaler:
    """Loss scaling for fp16; in every precision a step whose gradients are not finite is left out."""
    return torch.amp.GradScaler(device.type) if precision_on(device, asked) == "fp16" else _Unscaled(device.type)


def describe_precision(device: torch.device, asked: Precision) -> str:
    """What the forward pass runs in, in words."""
    precision = precision_on(device, asked)
    if precision != asked:
        name = "CPU" if device.type == "cpu" else "GPU"
        needed = "needs a GPU" if asked == "fp16" else f"this {name} has no instructions for"
        return f"train.precision is {asked}, which {needed}: running in {precision}"
    return f"precision {precision} on {device}"
