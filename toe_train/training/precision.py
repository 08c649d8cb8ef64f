"""The number formats of the forward pass."""

from __future__ import annotations

from typing import Any, Literal

import torch

Precision = Literal["fp16", "bf16", "fp32"]


def precision_on(device: torch.device, asked: Precision) -> Precision:
    """The precision that a run has on `device`: the one asked for, but fp32 for fp16 on a CPU."""
    return "fp32" if asked == "fp16" and device.type == "cpu" else asked


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
        return f"train.precision is {asked}, which needs a GPU: running in {precision} on this CPU"
    return f"precision {precision} on {device}"
