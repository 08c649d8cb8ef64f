"""Scores of a checkpoint, outside a run."""

from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from toe_train import data
from toe_train.build.inputs import build_eval_transform, check_data, open_images
from toe_train.build.model import build_model
from toe_train.build.resume import does_not_fit, require_same
from toe_train.errors import UserError
from toe_train.recipes import RunConfig
from toe_train.runs.checkpoints import weights_of
from toe_train.runs.processes import Processes
from toe_train.tasks.scoring import Scores, evaluate
from toe_train.training.precision import autocast_on
from toe_train.training.resolution import fit_positions


def evaluate_checkpoint(
    config: RunConfig, path: Path, state: dict[str, Any], weights: str, processes: Processes
) -> Scores:
    """Scores of a checkpoint's raw (`weights="model"`) or averaged (`"ema"`) model on the run's val images.

    Raises:
        UserError: the checkpoint has no such weights, or belongs to another model or other classes.
    """
    # Label files are for training alone.
    processes.main_only(lambda: check_data(config.model_copy(update={"token_labels": None})))
    _, val_images = open_images(config, processes)
    require_same(path, state, config.model_dump(mode="json"), val_images.classes)
    chosen = weights_of(state, weights)
    model = build_model(config, len(val_images.classes)).model.to(processes.device)
    try:
        model.load_state_dict(fit_positions(chosen, model))
    except RuntimeError as error:
        raise UserError(does_not_fit(path, state, error)) from None
    autocast = autocast_on(processes.device, config.train.precision)
    with TemporaryDirectory() as place:  # the list of a run that is over stays as it is
        skipped = data.SkippedImages(Path(place) / "skipped_images.jsonl", config.data.max_skipped)
        noted = skipped if config.data.on_error == "skip" else None
        eval_set = data.EvalSet(val_images, build_eval_transform(config), noted)
        indices = data.evaluation_indices(len(eval_set), processes.rank, processes.world_size)
        pin = processes.device.type == "cuda"
        batches = data.eval_loader(eval_set, indices, config.evaluate.batch, config.data.workers, pin)
        with batches.watching():
            scores = evaluate([model], batches, processes, autocast)[0]
        batches.close()
        processes.together(skipped.require_within_limit)  # each for its own share
    return scores
