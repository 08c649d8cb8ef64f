"""Scores of a trained model, outside a run."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

from toe_train import data
from toe_train.build.inputs import build_eval_transform, check_data, open_images
from toe_train.build.model import build_model
from toe_train.build.prediction import ready_model
from toe_train.build.task import build_task
from toe_train.build.weights.trained import Trained
from toe_train.errors import RunFailed
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
    config = trained.built_as
    processes.main_only(lambda: check_data(config))
    _, val_images = open_images(config, processes)
    trained.require_same_model(val_images.classes)
    built = build_model(config, len(val_images.classes))
    model = built.model.to(processes.device)
    told = [*trained.put_in(model), *trained.notes()]
    layout = data.BatchLayout(processes.world_size, 1, processes.world_size, mixed=False)
    task = build_task(config, built, len(val_images.classes), layout)
    with TemporaryDirectory() as place:
        skipped = data.SkippedImages(Path(place) / "skipped_images.jsonl", config.data.max_skipped, processes.rank)
        noted = skipped if config.data.on_error == "skip" else None
        eval_set = task.eval_set(val_images, build_eval_transform(config), noted)
        indices = data.evaluation_indices(len(eval_set), processes.rank, processes.world_size)
        batches = data.eval_loader(
            eval_set,
            indices,
            config.evaluate.batch,
            config.data.workers,
            processes.device.type == "cuda",
            task.eval_collate,
            task.eval_batches(eval_set, indices, config.evaluate.batch),
        )
        autocast = autocast_on(processes.device, config.train.precision)
        with batches.watching():
            found = task.score({"val": model}, batches, processes, autocast, lambda: None)
        batches.close()
    left_out = len(val_images) - int(found["val_images"])
    _require_within(config.data.max_skipped, left_out)
    if left_out:
        told.append(f"note: {left_out} images cannot be read and are left out")
    return {name: found[f"val_{name}"] for name in task.scores}, told


def evaluate_trained(trained: Trained, processes: Processes) -> Evaluated:
    """Evaluates a trained model on the val images of its configuration.

    Raises:
        UserError: it is another model's than the configuration's, or of other classes than the images.
    """
    config = trained.built_as
    # Label files are for training alone.
    processes.main_only(lambda: check_data(config.model_copy(update={"token_labels": None})))
    _, val_images = open_images(config, processes)
    trained.require_same_model(val_images.classes)
    model, told = ready_model(trained, len(val_images.classes), processes.device)
    autocast, recorder = autocast_on(processes.device, config.train.precision), OutcomeRecorder()
    with TemporaryDirectory() as place:  # the list of a run that is over stays as it is
        skipped = data.SkippedImages(Path(place) / "skipped_images.jsonl", config.data.max_skipped)
        noted = skipped if config.data.on_error == "skip" else None
        eval_set = data.EvalSet(val_images, build_eval_transform(config), noted)
        indices = data.evaluation_indices(len(eval_set), processes.rank, processes.world_size)
        pin = processes.device.type == "cuda"
        batches = data.eval_loader(eval_set, indices, config.evaluate.batch, config.data.workers, pin)
        with batches.watching():
            scores = evaluate([model], batches, processes, autocast, watch=recorder.see)[0]
        batches.close()
    if noted is not None:
        _require_within(config.data.max_skipped, scores.left_out)
    outcomes = recorder.outcomes(len(val_images), processes)
    return Evaluated(scores, outcomes, val_images, [*told, *trained.notes()])


def _require_within(limit: int, left_out: int) -> None:
    """Refuses an evaluation of which all processes together left out more images than the limit."""
    if left_out > limit:
        failure = RunFailed(
            f"{left_out} images could not be read, and data.max_skipped allows {limit}. Repair or remove them "
            "(`toe-tools doctor` finds all), or raise the limit"
        )
        failure.shared = True  # the number is that of all processes
        raise failure
