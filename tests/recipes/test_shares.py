"""Stages as shares of the run: which epochs they come to, and which of two ways to say it counts."""

from fractions import Fraction

import pytest
import yaml

from toe_train.errors import UserError
from toe_train.recipes import dump_config, load_config
from toe_train.recipes.shares import first_epochs, share_of

THIRDS = [0, "1/3", "2/3"]
FIFTHS = [0, "1/5", "2/5", "3/5", "4/5"]
STAGES = {"keep_rates": [0.5, 0.75, 1.0], "initial_keep_rate": 0.25}


@pytest.fixture
def load(tmp_path):
    """load({...}, *overrides): the run of a file with these values."""

    def loader(values, *overrides):
        path = tmp_path / "run.yaml"
        path.write_text(values if isinstance(values, str) else yaml.safe_dump(values))
        return load_config(path, overrides)

    return loader


@pytest.mark.parametrize(
    ("shares", "epochs", "starts"),
    [
        (THIRDS, 300, (0, 100, 200)),
        (THIRDS, 1000, (0, 333, 666)),
        (THIRDS, 100, (0, 33, 66)),
        (THIRDS, 20, (0, 6, 13)),
        (THIRDS, 3, (0, 1, 2)),
        ([0, "13/30", "26/30"], 300, (0, 130, 260)),
        (FIFTHS, 300, (0, 60, 120, 180, 240)),
        ([0, 0.29], 100, (0, 29)),  # 0.29 * 100 is 28.999999999999996
        (["1/4"], 8, (2,)),
    ],
)
def test_a_stage_begins_where_its_share_is_reached_in_exact_fractions(shares, epochs, starts):
    assert first_epochs(shares, epochs) == starts


def test_thirds_are_the_floor_of_the_exact_share():
    for epochs in range(3, 400):
        assert first_epochs(THIRDS, epochs) == (0, epochs // 3, 2 * epochs // 3)


def test_a_share_is_what_was_typed():
    assert [share_of(value) for value in ("1/3", " 2 / 6", 0.1, "0.25", 0)] == [
        Fraction(1, 3),
        Fraction(1, 3),
        Fraction(1, 10),
        Fraction(1, 4),
        0,
    ]


def test_shares_follow_the_number_of_epochs(configs):
    for epochs, starts in ((300, (0, 100, 200)), (20, (0, 6, 13))):
        config = load_config(configs / "deit_tiny_toe_r05.yaml", [f"epochs={epochs}"])
        assert config.expansion.stage_epochs == starts
    assert load_config(configs / "deit_tiny_et.yaml", ["epochs=100"]).curriculum.stage_epochs == (0, 20, 40, 60, 80)


# What the shipped files came to before they gave shares.
@pytest.mark.parametrize(
    ("name", "stages", "curriculum"),
    [
        ("cifar10_deit_tiny_toe_r05", (0, 33, 66), None),
        ("deit_base_toe_hyper_r04", (0, 130, 260), None),
        ("deit_small_toe_r05", (0, 100, 200), None),
        ("deit_tiny_et_toe_r06", (0, 100, 200), (0, 60, 120, 180, 240)),
        ("deit_tiny_etpp_toe_r06", (0, 270, 392), None),
        ("finetune_deit_tiny_toe", (0, 333, 666), None),
        ("lvvit_s_toe_r04", (0, 100, 200), None),
        ("proxy_et_toe_r06", (0, 20, 40), (0, 12, 24, 36, 48)),
        ("proxy_toe_r05", (0, 20, 40), None),
    ],
)
def test_the_shipped_stages(configs, name, stages, curriculum):
    config = load_config(configs / f"{name}.yaml")
    assert config.expansion.stage_epochs == stages
    assert (config.curriculum and config.curriculum.stage_epochs) == curriculum


def test_the_later_of_two_ways_to_say_it_counts(configs, load):
    parent = {"extends": str(configs / "deit_tiny_toe_r05.yaml")}  # shares
    child = load({**parent, "expansion": {"stage_epochs": [0, 7, 90]}})
    assert (child.expansion.stage_epochs, child.expansion.stage_shares) == ((0, 7, 90), None)
    typed = load(parent, "expansion.stage_epochs=[0, 7, 90]", "expansion.stage_shares=[0, 1/4, 1/2]")
    assert (typed.expansion.stage_epochs, typed.expansion.stage_shares) == ((0, 75, 150), ("0", "1/4", "1/2"))


def test_a_parents_shares_give_way_to_a_budget(configs, load):
    parent = {"extends": str(configs / "deit_tiny_et.yaml"), "epochs": 412, "schedule": {"warmup_epochs": 20}}
    sizes = {"budget_epochs": 250, "stage_epochs": None}
    assert load({**parent, "curriculum": sizes}).curriculum.stage_shares is None


def test_a_dumped_run_keeps_its_shares(configs, tmp_path):
    path = tmp_path / "run.yaml"
    config = load_config(configs / "deit_tiny_et_toe_r06.yaml")
    path.write_text(dump_config(config))
    assert load_config(path) == config
    longer = load_config(path, ["epochs=600"])
    assert (longer.expansion.stage_epochs, longer.curriculum.stage_epochs[1]) == ((0, 200, 400), 120)


@pytest.mark.parametrize(
    ("section", "message"),
    [
        (
            {"stage_shares": [0, "1/3", 1]},
            "expansion.stage_shares.2 = 1: must be a share of the run from 0 up and below",
        ),
        ({"stage_shares": [0, 100]}, "if epoch 100 is meant, use stage_epochs"),
        ({"stage_shares": [0, "a third", "2/3"]}, "'a third': must be a share of the run, such as 1/3 or 0.25"),
        ({"stage_shares": [0, "1/0", "2/3"]}, "'1/0': must be a share of the run"),
        ({"stage_shares": [0, True, "2/3"]}, "= True: must be a share of the run"),
        ({"stage_shares": [0, "2/3", "1/3"]}, "must rise from stage to stage; for instance [0, 1/3, 2/3]"),
        ({"stage_shares": 0.3}, "expansion.stage_shares = 0.3: must be a list"),
        ({"stage_shares": []}, "must be a list with one entry for each stage"),
        ({"stage_shares": THIRDS, "stage_epochs": [0, 100, 201]}, "give one of stage_epochs and stage_shares"),
        ({"stage_shares": [0, "1/2"]}, "every stage needs one of each"),
        ({}, "expansion.stage_epochs: is required; give it or stage_shares, or set expansion=null"),
    ],
)
def test_shares_that_cannot_be(load, section, message):
    with pytest.raises(UserError) as fault:
        load({"expansion": {**STAGES, **section}})
    assert message in str(fault.value)
    assert str(fault.value).startswith("1 fault in ")


def test_stages_of_less_than_an_epoch_are_refused_with_the_number_that_serves(load):
    with pytest.raises(UserError, match=r"begin at \[0, 0, 1\], .* use epochs=3 or more, or fewer stages"):
        load({"expansion": {**STAGES, "stage_shares": THIRDS}, "epochs": 2, "schedule": {"warmup_epochs": 0}})
