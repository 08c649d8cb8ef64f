"""torch.compile for the training step: one graph for each stage of the method, all made before the first step."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from toe_train.training.device_batches import Batch
from toe_train.training.step import TrainStep

MOST_GRAPHS = 64  # torch keeps 8 of a model class by default, which stages and sizes together may exceed


def compile_stages(step: TrainStep, stages: Sequence[int], example: Batch) -> str | None:
    """Lets the step's model run compiled, in every process or in none; else all stays as it was.

    Forward and backward of each stage run once, on `example` and with the step's draws and autocast, so that no step
    compiles anything. Shapes are constants: a graph for any number of tokens would be slower. Weights, buffers and the
    stage are left as they were.

    Args:
        step: not joined to the other processes' yet; the graph is of the model alone, and DDP goes around it.
        stages: of its method that the model will train at.
        example: a micro-batch as the steps get it.

    Returns:
        None, or why the model cannot be compiled in some process.

    Raises:
        torch.OutOfMemoryError: the device does not hold a compiled step.
    """
    torch._dynamo.config.recompile_limit = max(MOST_GRAPHS, torch._dynamo.config.recompile_limit)
    compiled: Any = torch.compile(step.model, dynamic=False, fullgraph=True)
    former, buffers = step.method.stage, [buffer.clone() for buffer in step.model.buffers()]
    was_training, reason = step.model.training, None
    step.model.train()
    try:
        for stage in stages:
            step.method.stage = stage
            _run(step, compiled, example)
    except torch.OutOfMemoryError:
        raise
    except Exception as error:  # a compiler, its tools and its caches can fail in any way
        reason = f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
    finally:
        step.model.zero_grad(set_to_none=True)
        step.model.train(was_training)
        with torch.no_grad():
            for buffer, before in zip(step.model.buffers(), buffers, strict=True):
                buffer.copy_(before)
        step.method.stage = former
    reason = next((found for found in step.processes.gather(reason) if found), None)
    if reason is None:
        step.trained = compiled
    return reason


def _run(step: TrainStep, compiled: Any, example: Batch) -> None:
    images, targets = step.task.mix(example[0].clone(), example[1], 0, 0, step.processes.rank, 0)
    step.draws.give(0, 0, 0)
    with step.autocast:
        output = compiled(images)
    step.task.loss(output, targets).backward()
