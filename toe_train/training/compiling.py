"""torch.compile for the training step: a graph for each kind of block, all of them made before the first step.

Each block is compiled by itself, and so is a method's hook on it; what is between the blocks is not (torchtitan
`distributed/compile.py`). So the gradients of a block are there as soon as its backward graph is done, and DDP sends
them while those before it are computed; and blocks that are alike share a graph.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch

from toe_train.models import blocks_of
from toe_train.training.device_batches import Batch
from toe_train.training.step import TrainStep

MOST_GRAPHS = 256  # torch keeps 8 of a function by default, which kinds of blocks, stages and sizes together may exceed


def compile_stages(step: TrainStep, stages: Sequence[int], example: Batch, whole: bool = False) -> str | None:
    """Lets the step's model run compiled, in every process or in none; else all stays as it was.

    Forward and backward of each stage run once, on `example` and with the step's draws and autocast, so that no step
    compiles anything. Shapes are constants: a graph for any number of tokens would be slower. Weights, buffers and the
    stage are left as they were.

    Args:
        step: not joined to the other processes' yet; the graphs are of the model alone, and DDP goes around them.
        stages: of its method that the model will train at.
        example: a micro-batch as the steps get it.
        whole: makes one graph of the whole model in place of its blocks. A model without plain blocks has it so.

    Returns:
        None, or why the model cannot be compiled in some process.

    Raises:
        torch.OutOfMemoryError: the device does not hold a compiled step.
    """
    config = torch._dynamo.config
    config.recompile_limit = max(MOST_GRAPHS, config.recompile_limit)
    config.accumulated_recompile_limit = max(4 * MOST_GRAPHS, config.accumulated_recompile_limit)
    blocks = [] if whole else blocks_of(step.model)
    parts = blocks or [step.model]
    reason = None
    for part in parts:
        part.compile(dynamic=False, fullgraph=True)
    try:
        with _left_as_it_was(step):
            for stage in stages:
                step.method.stage = stage
                for _ in step.method.forms():
                    _run(step, example)
    except torch.OutOfMemoryError:
        raise
    except Exception as error:  # a compiler, its tools and its caches can fail in any way
        reason = f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
    reason = next((found for found in step.processes.gather(reason) if found), None)
    if reason is not None:
        for part in parts:
            part._compiled_call_impl = None  # there is no public way back from Module.compile
    return reason


@contextmanager
def uncompiled() -> Iterator[None]:
    """Runs what is compiled as it is written: evaluations and pictures, whose shapes would make graphs of their own."""
    with torch.compiler.set_stance("force_eager"):
        yield


@contextmanager
def _left_as_it_was(step: TrainStep) -> Iterator[None]:
    """Puts back what forward and backward passes in training mode change."""
    model, stage = step.model, step.method.stage
    was_training, buffers = model.training, [buffer.clone() for buffer in model.buffers()]
    step.train()
    try:
        yield
    finally:
        model.zero_grad(set_to_none=True)
        model.train(was_training)
        with torch.no_grad():
            for buffer, before in zip(model.buffers(), buffers, strict=True):
                buffer.copy_(before)
        step.method.stage = stage


def _run(step: TrainStep, example: Batch) -> None:
    images, targets = step.task.mix(example[0].clone(), example[1], 0, 0, step.processes.rank, 0)
    step.draws.give(0, 0, 0)
    with step.autocast:
        output = step.model(images)
    step.task.loss(output, targets).backward()
