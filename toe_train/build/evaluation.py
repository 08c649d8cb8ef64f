"""Scores of a trained model, outside a run."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from toe_train import data
from toe_train.build.inputs import build_eval_transform, build_skipped, check_data, open_images
from toe_train.build.model import build_model
from toe_train.build.prediction import ready_model
from toe_train.build.task import build_task
from toe_train.build.weights.trained import Trained
from toe_train.errors import RunFailed
from toe_train.recipes import RunConfig
from toe_train.runs.processes import Processes
from toe_train.tasks.outcomes import OutcomeRecorder, Outcomes
from toe_train.tasks.scoring import Scores, evaluate
from toe_train.training.precision import autocast_on


@dataclass(frozen=True)
class Evaluated:
    """What an evaluation found.

    Attributes:
        scores: over all images.
        outcomes: of each image.
        images: those that were looked at.
        told: what was done to the weights, a line each.
    """

    scores: Scores
    outcomes: Outcomes
    images: data.ImageSource
    told: list[str]


def evaluate_boxes(trained: Trained, processes: Processes) -> tuple[dict[str, float], list[str]]:
    """Scores by the names of its task of a model that finds boxes, and what was done to the weights, a line each."""
    config, images = trained.built_as, _open_images(trained, processes)
    built = build_model(config, len(images.classes))
    model = built.model.to(processes.device)
    told = [*trained.put_in(model), *trained.notes()]
    layout = data.BatchLayout(processes.world_size, 1, processes.world_size, mixed=False)
    task = build_task(config, built, len(images.classes), layout)
    autocast = autocast_on(processes.device, config.train.precision)
    with _passing_over(config) as skipped:
        eval_set = task.eval_set(images, build_eval_transform(config), skipped)
        indices = data.evaluation_indices(len(eval_set), processes.rank, processes.world_size)
        cut = task.eval_batches(eval_set, indices, config.evaluate.batch)
        with _loading(config, eval_set, indices, processes, task.eval_collate, cut) as batches:
            found = task.score({"val": model}, batches, processes, autocast, lambda: None)
    left_out = len(images) - int(found["val_images"])
    _require_within(config.data.max_skipped, left_out)
    if left_out:
        told.append(f"note: {left_out} images cannot be read and are left out")
    return {name: found[f"val_{name}"] for name in task.scores}, told


def evaluate_trained(trained: Trained, processes: Processes) -> Evaluated:
    """Evaluates a trained model on the val images of its configuration.

    Raises:
        UserError: it is another model's than the configuration's, or of other classes than the images.
    """
    config, images = trained.built_as, _open_images(trained, processes)
    model, told = ready_model(trained, len(images.classes), processes.device)
    autocast, recorder = autocast_on(processes.device, config.train.precision), OutcomeRecorder()
    with _passing_over(config) as skipped:
        eval_set = data.EvalSet(images, build_eval_transform(config), skipped)
        indices = data.evaluation_indices(len(eval_set), processes.rank, processes.world_size)
        with _loading(config, eval_set, indices, processes) as batches:
            scores = evaluate([model], batches, processes, autocast, watch=recorder.see)[0]
    _require_within(config.data.max_skipped, scores.left_out)
    outcomes = recorder.outcomes(len(images), processes)
    return Evaluated(scores, outcomes, images, [*told, *trained.notes()])


def _open_images(trained: Trained, processes: Processes) -> data.ImageSource:
    """The val images, checked and of the model's classes."""
    config = trained.built_as
    # Label files are for training alone.
    processes.main_only(lambda: check_data(config.model_copy(update={"token_labels": None})))
    _, images = open_images(config, processes)
    trained.require_same_model(images.classes)
    return images


@contextmanager
def _passing_over(config: RunConfig) -> Iterator[data.SkippedImages | None]:
    """Where unreadable images are noted, if they may be passed over; the list of a run that is over stays as it is."""
    with TemporaryDirectory() as place:
        yield build_skipped(config, Path(place) / "skipped_images.jsonl")


@contextmanager
def _loading(
    config: RunConfig, eval_set: data.EvalSet, indices: Sequence[int], processes: Processes, *by_task: Any
) -> Iterator[data.CleanErrors]:
    """Batches of this process's images; `by_task`: how its task collates and cuts them, see `data.eval_loader`."""
    pin = processes.device.type == "cuda"
    batches = data.eval_loader(eval_set, indices, config.evaluate.batch, config.data.workers, pin, *by_task)
    with batches.watching():
        yield batches
    batches.close()


def _require_within(limit: int, left_out: int) -> None:
    """Refuses an evaluation of which all processes together left out more images than the limit."""
    if left_out > limit:
        failure = RunFailed(
            f"{left_out} images could not be read, and data.max_skipped allows {limit}. Repair or remove them "
            "(`toe-tools doctor` finds all), or raise the limit"
        )
        failure.shared = True  # the number is that of all processes
        raise failure
