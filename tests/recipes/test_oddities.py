"""Plans that mean nothing are refused with the value to type, or asked for by name."""

import pytest
import yaml

from toe_train.errors import UserError
from toe_train.recipes import load_config, load_saved, notes

TOE = {"stage_epochs": [0, 100, 200], "keep_rates": [0.5, 0.75, 1.0], "initial_keep_rate": 0.25}
IMAGES = {"image_sizes": [160, 224], "rand_augments": [None, None], "micro_batches": [256, 256]}

# Values, the fault's name, the message, and what to type.
CASES = {
    "a long warm-up": (
        {"epochs": 2, "schedule": {"stepping": "plain"}},
        "peak_not_reached",
        "training never reaches the peak learning rate 0.001; write schedule.warmup_epochs=1 or less",
        {"schedule": {"stepping": "plain", "warmup_epochs": 1}},
    ),
    "a warm-up that is an epoch late": (
        {"epochs": 6},
        "peak_not_reached",
        "(schedule.stepping=released is an epoch late)",
        {"schedule": {"warmup_epochs": 4}},
    ),
    "a warm-up by step": (
        {"epochs": 5, "schedule": {"unit": "step"}},
        "peak_not_reached",
        "schedule.warmup_epochs=5 with epochs=5",
        {"schedule": {"unit": "step", "warmup_epochs": 4}},
    ),
    "a cool-down after the warm-up": (
        {"epochs": 12, "schedule": {"cooldown_epochs": 7, "stepping": "plain"}},
        "peak_not_reached",
        "epochs=12 and schedule.cooldown_epochs=7: no epoch is left",
        {"schedule": {"cooldown_epochs": 7, "stepping": "plain", "warmup_epochs": 4}},
    ),
    "an epoch alone": (
        {"epochs": 1},
        "peak_not_reached",
        "write schedule.warmup_epochs=0, or allow=[peak_not_reached] where it is meant",
        {"schedule": {"warmup_epochs": 0}},
    ),
    "stages after the end": (
        {"epochs": 20, "expansion": TOE},
        "last_stage_not_reached",
        'training never sees all tokens; write "expansion.stage_shares=[0, 1/3, 2/3]"',
        {"expansion": {**TOE, "stage_epochs": None, "stage_shares": ["0", "1/3", "2/3"]}},
    ),
    "images after the end": (
        {"epochs": 20, "curriculum": {**IMAGES, "stage_epochs": [0, 20]}},
        "last_stage_not_reached",
        "the last stage begins at epoch 21, after the end of the run, which has epochs=20: training never sees images",
        {"curriculum": {**IMAGES, "stage_shares": ["0", "1/2"]}},
    ),
    "a growth after the end": (
        {"epochs": 20, "method": {"kind": "depth_growth", "depths": [3, 6, 12], "from_epochs": [0, 38, 90]}},
        "last_stage_not_reached",
        'training never sees the 12 blocks; write "method.from_epochs=[0, 6, 13]"',
        {"method": {"kind": "depth_growth", "depths": [3, 6, 12], "from_epochs": [0, 6, 13]}},
    ),
    "more stages than epochs": (
        {"epochs": 2, "expansion": TOE, "schedule": {"warmup_epochs": 0}},
        "last_stage_not_reached",
        '"expansion.stage_shares=[0, 1/3, 2/3]" and epochs=3 or more',
        {"expansion": {**TOE, "stage_epochs": [0, 1, 2]}, "epochs": 3},
    ),
    "a minimum above the peak": (
        {"train": {"global_batch": 8}, "augment": {"mix_group": 8}},
        "min_lr_above_peak",
        "above the peak learning rate 7.8125e-06 (optim.lr=0.0005 x 8 / 512), so that the rate rises",
        {"schedule": {"min_lr": 7.8125e-08}},
    ),
    "a warm-up from above": (
        {"schedule": {"warmup_lr": 0.1}},
        "warmup_lr_above_peak",
        "the rate falls in the warm-up; write schedule.warmup_lr=1e-06",
        {"schedule": {"warmup_lr": 1e-6}},
    ),
}


@pytest.fixture
def write(tmp_path):
    def writer(values):
        path = tmp_path / "run.yaml"
        path.write_text(yaml.safe_dump(values))
        return path

    return writer


@pytest.mark.parametrize("case", CASES)
def test_it_is_refused_or_asked_for_and_the_remedy_serves(write, case):
    values, name, message, mended = CASES[case]
    with pytest.raises(UserError) as fault:
        load_config(write(values))
    assert message in str(fault.value)
    assert f"allow=[{name}] where it is meant" in str(fault.value)
    asked_for = load_config(write({**values, "allow": [name]}))
    assert len(notes(asked_for)) == 1
    assert notes(load_config(write({**values, **mended}))) == []


def test_a_remedy_that_was_typed_is_what_the_message_says(write):
    path = write({"epochs": 20, "expansion": TOE})
    assert load_config(path, ["expansion.stage_shares=[0, 1/3, 2/3]"]).expansion.stage_epochs == (0, 6, 13)


def test_all_that_is_odd_is_said_at_once(write):
    with pytest.raises(UserError, match="3 faults") as fault:
        load_config(write({"epochs": 4, "expansion": TOE, "optim": {"lr": 1e-6}}))
    assert [name in str(fault.value) for name in ("last_stage", "peak_not", "min_lr_above")] == [True] * 3


def test_an_unknown_name_is_refused_with_the_nearest(write):
    with pytest.raises(UserError, match=r"allow\.0 = 'peak_not_reach': .* did you mean peak_not_reached\?"):
        load_config(write({"allow": ["peak_not_reach"]}))


def test_no_shipped_file_is_odd_but_the_fine_tuning_that_says_so(configs):
    odd = {file.stem for file in configs.glob("*.yaml") if notes(load_config(file))}
    assert odd == {file.stem for file in configs.glob("finetune_deit_*.yaml")}


def test_a_run_that_is_done_is_read_as_it_was(write):
    assert load_saved(write({"epochs": 2, "optim": {"momentum": 0.5}})).schedule.warmup_epochs == 5
