"""Plans that are legal and mean nothing: a stage, a peak or a minimum that the run never comes to."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from toe_train.recipes.methods import DepthGrowthConfig
from toe_train.recipes.schema import Allowed, RunConfig
from toe_train.recipes.shares import even_shares


@dataclass(frozen=True)
class Oddity:
    """Something that makes a plan meaningless.

    Attributes:
        name: under which a run asks for it in `allow`.
        what: in words.
        remedy: the value to type instead.
    """

    name: Allowed
    what: str
    remedy: str


def oddities(config: RunConfig) -> list[Oddity]:
    """All that a plan has of them; those in `config.allow` too."""
    return [found for rule in (_stages, _growth, _images, _warmup, _minimum, _warmup_start) if (found := rule(config))]


def refusals(config: RunConfig) -> list[str]:
    """A line for each that the run does not ask for."""
    return [
        f"{odd.what}; write {odd.remedy}, or allow=[{odd.name}] where it is meant"
        for odd in oddities(config)
        if odd.name not in config.allow
    ]


def notes(config: RunConfig) -> list[str]:
    """A line for each that the run asks for, to be said at its start."""
    return [f"note: {odd.what}" for odd in oddities(config) if odd.name in config.allow]


def _stages(config: RunConfig) -> Oddity | None:
    section = config.expansion
    if section is None or section.stage_epochs[-1] < config.epochs:
        return None
    rate = section.keep_rates[-1]
    missed = "all tokens" if rate == 1 else f"{rate:g} of the tokens"
    return _never_reached(config, "expansion", section.stage_epochs, missed)


def _growth(config: RunConfig) -> Oddity | None:
    section = config.method
    if not isinstance(section, DepthGrowthConfig) or section.from_epochs[-1] < config.epochs:
        return None
    starts = section.from_epochs
    near = [config.epochs * index // len(starts) for index in range(len(starts))]  # equal parts
    return Oddity(
        "last_stage_not_reached",
        f"method.from_epochs={list(starts)}: the last growth is at epoch {starts[-1] + 1}, after the end of the run, "
        f"which has epochs={config.epochs}: training never sees the {section.depths[-1]} blocks",
        f'"method.from_epochs={near}"' if len(set(near)) == len(near) else f"epochs={starts[-1] + 1} or more",
    )


def _images(config: RunConfig) -> Oddity | None:
    section = config.curriculum
    if section is None or section.stage_epochs is None or section.stage_epochs[-1] < config.epochs:
        return None
    missed = f"images of {config.model.image_size} pixels"
    return _never_reached(config, "curriculum", section.stage_epochs, missed)


def _never_reached(config: RunConfig, name: str, starts: tuple[int, ...], missed: str) -> Oddity:
    even = f'"{name}.stage_shares={even_shares(len(starts))}"'
    return Oddity(
        "last_stage_not_reached",
        f"{name}.stage_epochs={list(starts)}: the last stage begins at epoch {starts[-1] + 1}, after the end of the "
        f"run, which has epochs={config.epochs}: training never sees {missed}",
        even if len(starts) <= config.epochs else f"{even} and epochs={len(starts)} or more",
    )


def _warmup(config: RunConfig) -> Oddity | None:
    """The highest rate is that of the first epoch after the warm-up, which has to come before the cool-down."""
    schedule = config.schedule
    if config.curriculum is not None and config.curriculum.budget_epochs is not None:
        return None  # its stages have schedules of their own, and a rule in the schema
    by_epoch = schedule.unit == "epoch"
    lag = 1 if by_epoch and schedule.stepping == "released" else 0  # see `EpochSchedule`
    most = max(0, config.epochs - schedule.cooldown_epochs - 1 - lag)
    if schedule.warmup_epochs <= most:
        return None
    cooldown = f" and schedule.cooldown_epochs={schedule.cooldown_epochs}" if schedule.cooldown_epochs else ""
    late = " (schedule.stepping=released is an epoch late)" if lag else ""
    return Oddity(
        "peak_not_reached",
        f"schedule.warmup_epochs={schedule.warmup_epochs} with epochs={config.epochs}{cooldown}: no epoch is left "
        f"after the warm-up{late}, so that training never reaches the peak learning rate {config.peak_lr:g}",
        f"schedule.warmup_epochs={most}" + (" or less" if most else ""),
    )


def _minimum(config: RunConfig) -> Oddity | None:
    schedule, peak = config.schedule, config.peak_lr
    if schedule.min_lr <= peak:
        return None
    return Oddity(
        "min_lr_above_peak",
        f"schedule.min_lr={schedule.min_lr:g} is above the peak learning rate {_peak(config)}, so that the rate rises "
        "after the warm-up, to min_lr; DeiT's commands for fine-tuning do so",
        f"schedule.min_lr={peak / 100:g}, a hundredth of the peak as in DeiT's recipe",
    )


def _warmup_start(config: RunConfig) -> Oddity | None:
    schedule, peak = config.schedule, config.peak_lr
    if schedule.warmup_lr <= peak or not schedule.warmup_epochs:
        return None
    return Oddity(
        "warmup_lr_above_peak",
        f"schedule.warmup_lr={schedule.warmup_lr:g} is above the peak learning rate {_peak(config)}, so that the rate "
        "falls in the warm-up",
        f"schedule.warmup_lr={peak / 1000:g}, a thousandth of the peak as in DeiT's recipe",
    )


def _peak(config: RunConfig) -> str:
    optim: Any = config.optim
    if optim.lr_base_batch is None:
        return f"{config.peak_lr:g}"
    return f"{config.peak_lr:g} (optim.lr={optim.lr:g} x {config.global_batch} / {optim.lr_base_batch})"
