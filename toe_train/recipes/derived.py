"""Runs made of another one: plain training, smaller images or random dropping in place of what makes it cheaper."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from pydantic import ValidationError

from toe_train.recipes.schema import RunConfig


def plain_run(config: RunConfig, epochs: int, **model: Any) -> RunConfig:
    """Plain training for `epochs`, without method and curriculum, by the recipe of `config`.

    Warm-up, cool-down and the average of the weights take the shares of the run that they have there, so that the
    learning rate falls to its minimum as there. RandAugment is that of the last stage where `config` has a curriculum.

    Args:
        config: any run.
        epochs: of the new one.
        model: keys of its model that are others.

    Raises:
        ValueError: there is no such run; the message says why.
    """
    values = _of_length(config, epochs)
    values["model"] |= model
    if config.curriculum is not None:
        values["augment"]["rand_augment"] = config.curriculum.rand_augments[-1]
    return _made(values)


def run_on_smaller_images(config: RunConfig, epochs: int, stages: Sequence[tuple[int, int, str | None]]) -> RunConfig:
    """Plain training on images that grow, by the recipe of `config`.

    Images are made smaller by resizing, or as the curriculum of `config` does.

    Args:
        config: any run.
        epochs: of the new one.
        stages: first epoch, side in pixels and RandAugment of each; the last side is the model's own.

    Raises:
        ValueError: there is no such run; the message says why.
    """
    firsts, sizes, augments = zip(*stages, strict=True)
    former = config.curriculum
    curriculum: dict[str, Any] = {
        "stage_epochs": list(firsts),
        "image_sizes": list(sizes),
        "rand_augments": list(augments),
        "micro_batches": [former.micro_batches[-1] if former else config.augment.mix_group] * len(stages),
        "baseline_epochs": (former and former.baseline_epochs) or (config.epochs if epochs != config.epochs else None),
        "downsampling": former.downsampling if former else "lanczos",  # plain resizing, not EfficientTrain's crop
    }
    return _made(_of_length(config, epochs) | {"curriculum": curriculum})


def randomly_dropping_run(config: RunConfig, starts: Sequence[int] = (), rates: Sequence[float] = ()) -> RunConfig:
    """Random dropping, with nothing merged, at the schedule of `config`'s Token Expansion or at another one.

    Args:
        config: a run with Token Expansion, whose schedule is kept, or any other.
        starts: of the other: first epoch of each stage.
        rates: share of the tokens that are seeds, and the one that each stage keeps.

    Raises:
        ValueError: there is no such run; the message says why.
    """
    random = {"initialization": "random", "expansion": "uniform", "merging": False}
    if config.expansion is not None:
        values = config.model_dump(mode="json")
        return _made(values | {"expansion": values["expansion"] | random})
    schedule = {"stage_epochs": list(starts), "keep_rates": list(rates[1:]), "initial_keep_rate": rates[0]}
    return _made(_of_length(config, config.epochs) | {"expansion": {**schedule, **random}})


def _of_length(config: RunConfig, epochs: int) -> dict[str, Any]:
    """The values of a plain run of `epochs`."""
    section, budget = config.schedule, config.curriculum and config.curriculum.budget_epochs
    whole = budget or config.epochs  # in whose epochs the warm-up is counted
    late = 1 if section.unit == "epoch" and section.stepping == "released" else 0  # see `oddities`
    cooldown = min(_share(section.cooldown_epochs, epochs, whole), epochs - 1)
    warmup = min(_share(section.warmup_epochs, epochs, whole), max(0, epochs - cooldown - 1 - late))
    values = config.model_dump(mode="json") | {"epochs": epochs, "expansion": None, "method": None, "curriculum": None}
    values["schedule"] |= {"warmup_epochs": warmup, "cooldown_epochs": cooldown}
    values["evaluate"]["every_epochs"] = min(config.evaluate.every_epochs, epochs)
    if config.train.ema_decay is not None:
        # What a weight counts after the same share of the run's steps stays.
        values["train"]["ema_decay"] = round(config.train.ema_decay ** (config.epochs / epochs), 8)
    return values


def _share(part: int, epochs: int, whole: int) -> int:
    """What `part` of `whole` epochs come to in another run; at least one, where there are any."""
    return max(1, round(part * epochs / whole)) if part else 0


def _made(values: dict[str, Any]) -> RunConfig:
    try:
        return RunConfig.model_validate(values)
    except ValidationError as error:
        raise ValueError(error.errors()[0]["msg"].removeprefix("Value error, ")) from None
