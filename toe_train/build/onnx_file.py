"""A model as an ONNX file, checked against what torch computes."""

from __future__ import annotations

import contextlib
import importlib.util
import io
import logging
import warnings
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import nn

from toe_train.errors import RunFailed, UserError

NEEDED = ("onnx", "onnxscript", "onnxruntime")
INPUT, OUTPUT = "images", "logits"
TOLERANCE = 1e-4  # of the largest output, in float32


def require_onnx() -> None:
    """Refuses where a package is missing that writing or checking needs.

    Raises:
        UserError: naming what is to be installed.
    """
    if missing := [name for name in NEEDED if importlib.util.find_spec(name) is None]:
        verb = "is" if len(missing) == 1 else "are"
        raise UserError(f"--format onnx: {', '.join(missing)} {verb} not installed; pip install 'toe-train[onnx]'")


def write_onnx(model: nn.Module, image_size: int, path: Path) -> float:
    """Writes a model for batches of any size, and runs it with onnxruntime beside torch.

    Args:
        model: on the CPU, in eval mode, float32; images (B, 3, S, S) -> logits (B, K).
        image_size: S.
        path: of the new file; its input is called `images`, its output `logits`.

    Returns:
        The largest difference of an output, as a share of the largest output.

    Raises:
        UserError: torch cannot export the model, or not for batches of any size.
        RunFailed: the file computes something else.
    """
    import onnxruntime  # an extra

    source = torch.Generator().manual_seed(0)
    images = torch.randn(2, 3, image_size, image_size, generator=source)
    with _quiet():
        try:
            torch.onnx.export(
                model,
                (images,),
                str(path),
                input_names=[INPUT],
                output_names=[OUTPUT],
                dynamic_shapes=({0: torch.export.Dim("batch")},),
                dynamo=True,
                external_data=False,
                verbose=False,
            )
        except torch.onnx.OnnxExporterError as error:
            reason = str(error).strip().splitlines()[0]
            raise UserError(f"--format onnx: torch cannot export this model ({reason}); leave it out") from error
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    if isinstance(session.get_inputs()[0].shape[0], int):  # otherwise it has a name
        raise UserError("--format onnx: torch cannot export this model for batches of any size; leave it out")
    worst = 0.0
    for batch in (1, 2, 3):
        given = torch.randn(batch, 3, image_size, image_size, generator=source)
        with torch.no_grad():
            expected = model(given)
        found = torch.from_numpy(session.run([OUTPUT], {INPUT: given.numpy()})[0])
        worst = max(worst, float((found - expected).abs().max() / expected.abs().max().clamp(min=1e-12)))
    if not worst <= TOLERANCE:
        raise RunFailed(
            f"the ONNX file differs from torch by {worst:.1e} of the largest output, and {TOLERANCE:.0e} is allowed",
            then="another version of torch or onnxscript may do better",
        )
    return worst


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keeps what the exporter prints and warns of from the console; its errors are raised."""
    level = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(level)
