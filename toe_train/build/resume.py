"""Whether a checkpoint may continue a run, what of the run differs from it, and what is kept of an older one."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from toe_train.build.inputs import Images
from toe_train.data import shorten
from toe_train.errors import UserError
from toe_train.recipes import RunConfig, completed, differences, essential
from toe_train.runs.checkpoints import Checkpoints, keep, read
from toe_train.runs.folder import RunFolder, versions
from toe_train.runs.jobs import jobs

ANEW = "use what it was written with, or start anew with --resume never"
ANOTHER_RUN = "Give the same model; for a new run another --output, or --resume never"

Found = tuple[Path, dict[str, Any]]  # a checkpoint's path and content


def belonging(config: RunConfig, images: Images) -> dict[str, Any]:
    """What a run's checkpoints belong to: its configuration, classes and images, the program's versions, the jobs."""
    return {
        "config": config.model_dump(mode="json"),
        "classes": images[0].classes,
        "images": {"count": len(images[0]), "digest": images[0].digest()},
        "versions": versions(),
        "jobs": jobs(),
    }


def resume_point(checkpoints: Checkpoints, resume: str, belongs_to: dict[str, Any]) -> Found | None:
    """The checkpoint that a run continues from, or None to start anew.

    Args:
        checkpoints: those of the run.
        resume: auto, never or a path.
        belongs_to: the run's dumped `config`, its `classes`, and count and digest of its training `images`.

    Raises:
        UserError: the checkpoint is unusable, or belongs to something else.
    """
    found = checkpoints.find(resume)
    if found is None:
        return None
    path, state = found
    state = {**state, "config": completed(state["config"])}
    require_same(path, state, belongs_to["config"], belongs_to["classes"])
    require_same_order(path, state, belongs_to["config"], belongs_to["images"])
    before, now = (source["config"]["optim"]["name"] for source in (state, belongs_to))
    if before != now:
        raise UserError(
            f"optim.name: {before!r} in the checkpoint, {now!r} now: the state of one optimiser is of no use to "
            f"another; give {before}, or start anew with --resume never"
        )
    other_score = best_metric_before((path, state)) != belongs_to["config"]["checkpoint"]["best_metric"]
    if other_score or (resume != "auto" and not _holds_best(checkpoints, path, state)):
        state["progress"] = {**state["progress"], "best": -math.inf}
    return path, state


def _holds_best(checkpoints: Checkpoints, path: Path, state: dict[str, Any]) -> bool:
    """Whether best.pt is of the epochs up to a checkpoint: not of another run, nor of later ones, which are dropped."""
    if path.resolve().parent != checkpoints.folder.resolve():
        return False
    try:
        best = read(checkpoints.best)["progress"]
    except UserError:  # none, or damaged
        return False
    here = state["progress"]
    return bool((best["epoch"], best["step"]) <= (here["epoch"], here["step"]))


def changes(state: dict[str, Any], belongs_to: dict[str, Any]) -> list[str]:
    """What the run has otherwise than its checkpoint, in words; nothing where all is the same."""
    found = differences(state["config"], belongs_to["config"])
    found += differences(state["versions"], belongs_to["versions"], "version of ")
    before, now = state["images"], belongs_to["images"]
    if before["digest"] != now["digest"]:
        found.append(f"training images: {before['count']} in the checkpoint, {now['count']} now, not the same ones")
    if not found:
        return []
    return [
        "resuming with other values than the checkpoint's, which count from now on (--resume never begins anew, and "
        "sets this run aside):",
        "\n".join(f"  {line}" for line in found),
    ]


def kept_aside(folder: RunFolder, found: Found, belongs_to: dict[str, Any]) -> list[str]:
    """Gives second names to what a run that goes on from elsewhere or otherwise will write over; a line for each."""
    checkpoints = Checkpoints(folder.checkpoints)
    is_older = checkpoints.last.exists() and not found[0].samefile(checkpoints.last)
    before, now = best_metric_before(found), belongs_to["config"]["checkpoint"]["best_metric"]
    anew = [] if before == now else [f"best.pt is chosen anew, by {now}: the best by {before} is no longer counted"]
    if not anew and is_older and found[1]["progress"]["best"] == -math.inf and checkpoints.best.exists():
        anew = ["best.pt is chosen anew: the one here is not of the epochs up to that checkpoint"]
    if anew or is_older or differences(essential(found[1]["config"]), essential(belongs_to["config"])):
        return [*keep(checkpoints, folder.metrics), *anew]
    return []


def best_metric_before(found: Found) -> str:
    """What the best checkpoint was chosen by when this one was written."""
    return str(found[1]["config"]["checkpoint"]["best_metric"])


def does_not_fit(path: Path, state: dict[str, Any], error: Exception, remedy: str = ANEW) -> str:
    """What to say of a checkpoint that the model does not take, with a remedy of the command that was given."""
    others = "; ".join(differences(state["versions"], versions(), "version of ")) or "it was changed"
    return f"checkpoint {path} does not fit this model and program ({str(error).strip()[:300]}); {others}: {remedy}"


def require_same(
    path: Path, state: dict[str, Any], config: dict[str, Any], classes: list[str], remedy: str = ANOTHER_RUN
) -> None:
    """Refuses a checkpoint of another model or of other classes.

    Args:
        path: named in the message.
        state: the checkpoint.
        config: the dumped configuration that is asked for.
        classes: class names of the data set, in order.
        remedy: of the command that was given.

    Raises:
        UserError: naming each difference.
    """
    saved, now = (_architecture(completed(source)) for source in (state["config"], config))
    if differing := differences({"model": saved}, {"model": now}):
        raise UserError(f"checkpoint {path} belongs to another model:\n  " + "\n  ".join(differing) + f"\n{remedy}")
    if state["classes"] != classes:
        raise UserError(
            f"checkpoint {path} was trained on other classes: {_class_difference(state['classes'], classes)}"
        )


def require_same_order(path: Path, state: dict[str, Any], config: dict[str, Any], images: dict[str, Any]) -> None:
    """Refuses to go on within an epoch whose order of images would be another one.

    Args:
        path: named in the message.
        state: the checkpoint.
        config: the dumped configuration that is asked for.
        images: count and digest of the training set.

    Raises:
        UserError: naming what the order depends on and what differs.
    """
    step = state["progress"]["step"]
    saved = completed(state["config"])
    before, now = (
        {
            "seed": source["seed"],
            "train.global_batch": source["train"]["global_batch"],
            "augment.repeats": source["augment"]["repeats"],
            "data.sampling": source["data"]["sampling"],
            "detection.same_size": source["detection"]["same_size"],
            "detection.padding": source["detection"]["padding"],
            "training images": listed,
        }
        for source, listed in ((saved, state["images"]), (config, images))
    )
    if step and (differing := differences(before, now)):
        raise UserError(
            f"checkpoint {path} stands within an epoch, after {step} of its steps, and these decide what they were:\n  "
            + "\n  ".join(differing)
            + "\nGive the same values, or resume from a checkpoint at the end of an epoch"
        )


def require_same_experiment(root: Path, epochs: int, saved: dict[str, Any], now: dict[str, Any]) -> None:
    """Refuses to pass a finished run off as another one.

    Args:
        root: its folder, named in the message.
        epochs: that are asked for, and done.
        saved: the checkpoint's dumped configuration.
        now: the one that is asked for.

    Raises:
        UserError: naming each value that decides what is learned and differs.
    """
    if differing := differences(essential(saved), essential(now)):
        raise UserError(
            f"all {epochs} epochs in {root} are done, with other values:\n  " + "\n  ".join(differing) + "\n"
            "Give another --output for the new run, or --resume never, which sets the old one aside"
        )


def _architecture(config: dict[str, Any]) -> dict[str, Any]:
    """What of the `model` section the weights depend on; a detector's tables have sizes of their own (`kwargs`)."""
    keys = ("name", "kwargs") if config["task"]["kind"] == "detection" else ("name", "image_size", "kwargs")
    return {key: config["model"][key] for key in keys}


def _class_difference(saved: list[str], now: list[str]) -> str:
    gone, new = [c for c in saved if c not in set(now)], [c for c in now if c not in set(saved)]
    parts = [f"{len(saved)} in the checkpoint, {len(now)} in the data set"]
    if gone:
        parts.append(f"missing now: {shorten(gone)}")
    if new:
        parts.append(f"unknown to it: {shorten(new)}")
    if not gone and not new:
        parts.append("the same names in another order")
    return "; ".join(parts) + ". Point data.root at the data set that it was trained on"
