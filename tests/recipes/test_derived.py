"""Runs made of another one."""

import pytest

from toe_train.recipes import load_config, plain_run, plan_epochs, randomly_dropping_run, run_on_smaller_images


def test_a_shorter_plain_run_keeps_the_shares_of_its_schedule(configs):
    config = load_config(configs / "lvvit_t_toe_r04.yaml")
    made = plain_run(config, 155)
    assert (made.epochs, made.expansion, made.method, made.curriculum) == (155, None, None, None)
    assert (made.schedule.warmup_epochs, made.schedule.cooldown_epochs) == (2, 5)  # of 5 and 10 of 310
    assert made.train.ema_decay == pytest.approx(config.train.ema_decay**2, abs=1e-8)
    kept = {"epochs", "expansion", "schedule", "train"}
    assert made.model_dump(exclude=kept) == config.model_dump(exclude=kept)


def test_its_warm_up_leaves_a_peak(configs):
    config = load_config(configs / "deit_tiny_toe_r05.yaml", ["schedule.warmup_epochs=290"])
    assert plain_run(config, 10).schedule.warmup_epochs == 8  # and epoch 9, one late, at the peak
    assert plain_run(config, 1).schedule.warmup_epochs == 0


def test_epochs_of_a_budget_are_counted_at_full_size(configs):
    made = plain_run(load_config(configs / "deit_tiny_etpp.yaml"), 100)
    assert made.schedule.warmup_epochs == 20  # of 40 of 200
    assert plan_epochs(made)[-1].clock.total == 100


def test_growing_images_keep_the_mixing_and_the_number_that_speed_ups_compare_with(configs):
    config = load_config(configs / "deit_tiny_toe_r05.yaml")
    made = run_on_smaller_images(config, 310, [(0, 160, None), (100, 224, "rand-m9")])
    plans = plan_epochs(made)
    assert [plans[epoch].rand_augment for epoch in (99, 100)] == [None, "rand-m9"]
    assert [(plans[epoch].image_size, plans[epoch].mix_group) for epoch in (99, 100)] == [(160, 256), (224, 256)]
    assert made.curriculum.baseline_epochs == 300
    assert made.curriculum.downsampling == "lanczos"  # as any data set's images are made smaller
    of_et = load_config(configs / "deit_tiny_et_toe_r06.yaml")
    assert (
        run_on_smaller_images(of_et, 300, [(0, 160, None), (9, 224, None)]).curriculum.downsampling == "low_frequency"
    )
    with pytest.raises(ValueError, match=r"the last one, 160, must be model.image_size"):
        run_on_smaller_images(config, 300, [(0, 128, None), (100, 160, None)])


def test_random_dropping_is_the_shipped_one(configs):
    made = randomly_dropping_run(load_config(configs / "proxy_toe_r05.yaml"))
    assert made == load_config(configs / "proxy_random.yaml")
    other = randomly_dropping_run(load_config(configs / "proxy_tome.yaml"), [0, 30], [0.25, 0.5, 0.8]).expansion
    assert (other.stage_epochs, other.keep_rates, other.initial_keep_rate) == ((0, 30), (0.5, 0.8), 0.25)
    assert (other.initialization, other.expansion, other.merging) == ("random", "uniform", False)


def test_a_plain_run_is_augmented_as_the_last_stage_of_a_curriculum(configs):
    """`augment.rand_augment` is read by no run that has one, and may be anything."""
    levels = "[rand-m1, rand-m2, rand-m3, rand-m4, null]"
    config = load_config(configs / "deit_tiny_et_toe_r06.yaml", [f"curriculum.rand_augments={levels}"])
    assert config.augment.rand_augment is not None
    assert plain_run(config, 100).augment.rand_augment is None
