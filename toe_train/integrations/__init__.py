"""Callbacks for other people's trainers: each imports its library when it is first asked for."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from toe_train.integrations.huggingface import HuggingFaceCallback
    from toe_train.integrations.pytorch_lightning import LightningCallback

__all__ = ["HuggingFaceCallback", "LightningCallback"]

_FILES = {"HuggingFaceCallback": "huggingface", "LightningCallback": "pytorch_lightning"}


def __getattr__(name: str) -> Any:
    if name in _FILES:
        return getattr(import_module(f"{__name__}.{_FILES[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
