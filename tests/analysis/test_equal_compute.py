"""Simpler runs of equal compute."""

import pytest
import torch

from toe_train.analysis.equal_compute import EqualRun, equal_runs
from toe_train.analysis.nearest_cost import Part, fitted_epochs, keep_rates
from toe_train.build.step import build_schedule
from toe_train.errors import UserError
from toe_train.expansion import ExpansionSchedule
from toe_train.recipes import load_config, plan_epochs

WIDTH, DEPTH = 32, 4
SMALL = [f"model.kwargs={{patch_size: 4, embed_dim: {WIDTH}, depth: {DEPTH}, num_heads: 2}}", "data.kind=cifar10"]


def macs(full, after):
    """Of a forward pass by hand: patches, a block on all tokens, the others on `after`, ten classes."""

    def block(tokens):
        return 12 * tokens * WIDTH**2 + 2 * tokens**2 * WIDTH

    return full * 48 * WIDTH + block(full + 1) + (DEPTH - 1) * block(after + 1) + 10 * WIDTH


def found(configs, name, *overrides):
    return {run.kind: run for run in equal_runs(load_config(configs / f"{name}.yaml", [*SMALL, *overrides]), 10)}


def test_all_three_equal_a_run_with_token_expansion(configs):
    runs = found(configs, "proxy_toe_r05", "epochs=90", "schedule.stepping=released")
    whole = sum(30 * (macs(64, kept) + (64 * kept * WIDTH if kept < 64 else 0)) for kept in (32, 48, 64))
    shorter, smaller, random = (runs[kind] for kind in ("shorter", "smaller", "random"))
    assert shorter.share == pytest.approx(shorter.config.epochs * macs(64, 64) / whole)
    parts = [(macs(plan.image_size**2 // 16, plan.image_size**2 // 16)) for plan in plan_epochs(smaller.config)]
    assert smaller.share == pytest.approx(sum(parts) / whole)
    assert random.share == pytest.approx(30 * sum(macs(64, kept) for kept in (32, 48, 64)) / whole)
    assert all(abs(run.share - 1) <= 0.01 for run in (shorter, smaller))
    assert smaller.config.curriculum.image_sizes == (24, 28, 32)
    firsts = [first + 1 for first in smaller.config.curriculum.stage_epochs]
    begun = f"from epochs {firsts[0]}, {firsts[1]} and {firsts[2]} on, made smaller by lanczos"
    assert smaller.words == f"plain, {smaller.config.epochs} epochs, 24, 28 and 32 pixels {begun}"
    rates = build_schedule(shorter.config, torch.optim.SGD([torch.zeros(1)], lr=shorter.config.peak_lr), 10)
    taken = [rates.mean(epoch) for epoch in range(shorter.config.epochs)]
    assert min(taken[5:]) == taken[-1] < shorter.config.schedule.min_lr + 0.01 * shorter.config.peak_lr
    assert max(taken) > 0.98 * shorter.config.peak_lr


@pytest.mark.parametrize(
    ("name", "given", "kept"),
    [
        ("proxy_networkexpansion", ("method.depths=[2,4]",), (25, 64)),
        ("proxy_tome", ("method.r=5",), (52,)),
    ],
)
def test_other_methods_are_equalled_too(configs, name, given, kept):
    runs = found(configs, name, *given)
    assert all(abs(run.share - 1) < 0.011 for run in runs.values())
    section = runs["random"].config.expansion
    schedule = section.schedule()
    assert tuple(schedule.num_kept(stage, 64) for stage in range(1, schedule.num_stages + 1)) == kept
    assert section.stage_epochs == ((0, 30) if len(kept) == 2 else (0,))
    if len(kept) == 1:  # it evaluates by merged tokens; the plain run by its smaller images
        assert runs["smaller"].config.model.image_size == 28
        assert runs["smaller"].words.endswith(" epochs, 28 pixels, evaluated at 28 pixels and not 32")


def test_what_has_no_counterpart_is_said(configs):
    with pytest.raises(UserError, match="this run trains plainly"):
        found(configs, "proxy")
    runs = found(configs, "proxy_random")
    assert runs["random"].line == "random dropping of tokens: none, it is the run itself"
    labelled = {run.kind: run for run in equal_runs(load_config(configs / "proxy_lvvit_toe_r04.yaml"), 10)}
    assert "token labels are of full-size images' patches" in labelled["smaller"].line
    assert isinstance(labelled["shorter"], EqualRun)


def test_too_few_epochs_for_one_percent_are_said(configs):
    line = found(configs, "proxy_toe_r05", "epochs=6", "schedule.warmup_epochs=1")["shorter"].line
    assert line == "plain, 5 epochs, 32 pixels, 1.035 of the FLOPs; none nearer found in whole epochs"


def test_what_is_too_far_off_for_the_report_is_said(configs):
    given = ("epochs=4", "schedule.warmup_epochs=1", "expansion.stage_epochs=[0,1,2]")
    line = found(configs, "proxy_toe_r05", *given)["shorter"].line
    assert line.startswith("plain, 3 epochs, 32 pixels, 0.")
    assert line.endswith("; none nearer found in whole epochs, and toe-tools report compares them with --against alone")


def test_a_run_that_saves_nothing_has_no_counterpart(configs):
    given = ("expansion.stage_epochs=[0]", "expansion.stage_shares=null", "expansion.keep_rates=[1.0]", "epochs=9")
    runs = found(configs, "proxy_toe_r05", *given)
    assert runs["shorter"].line.endswith("none, its FLOPs come nearer to all 9 epochs than to 8")
    assert runs["random"].line.endswith("none, it would keep all tokens")


def test_sizes_of_a_curriculum_are_told_with_their_epochs(configs):
    runs = found(configs, "proxy_et_toe_r06")
    firsts = dict.fromkeys(plan.image_size for plan in plan_epochs(runs["random"].config))
    assert len(firsts) == 3
    assert "24, 28 and 32 pixels from epochs 1, 37 and 49 on, made smaller by low_frequency" in runs["random"].words


def test_stages_keep_their_shares_and_move_where_they_must():
    parts = [Part(0, 100, 50, None), Part(100, 100, 75, None), Part(200, 100, 100, None)]
    assert fitted_epochs(parts, 300, 22_500) == (300, (0, 100, 200))
    assert fitted_epochs(parts, 300, 24_000) == (320, (0, 107, 213))
    few = [Part(0, 5, 50, None), Part(5, 5, 75, None), Part(10, 5, 100, None)]
    count, starts = fitted_epochs(few, 15, 1150)
    assert 50 * starts[1] + 75 * (starts[2] - starts[1]) + 100 * (count - starts[2]) == 1150
    with pytest.raises(ValueError, match="too few for 3 stages"):
        fitted_epochs(few, 15, 10)


@pytest.mark.parametrize("tokens", [64, 196])
def test_rates_keep_the_counts_that_they_are_made_for(tokens):
    for counts in ([2], [tokens // 3, tokens // 2, tokens - 1], [7, 8, 9, 10, tokens]):
        first, *rates = keep_rates(counts, tokens)
        schedule = ExpansionSchedule(range(len(counts)), rates, first)
        assert [schedule.num_kept(stage + 1, tokens) for stage in range(len(counts))] == counts
        assert schedule.num_seeds(tokens) == counts[0] // 2
