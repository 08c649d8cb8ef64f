"""Which configurations are of one experiment, across versions of the program and machines."""

import copy

import pytest

from toe_train.recipes import completed, differences, essential, experiment, load_config

INCIDENTAL = [
    "data.root=/elsewhere",
    "data.workers=1",
    "data.check_sample=2",
    "data.on_error=skip",
    "train.compile=false",
    "train.log_every=3",
    "train.max_skipped_steps=2",
    "train.max_rollbacks=0",
    "evaluate.every_epochs=7",
    "evaluate.batch=8",
    "checkpoint.every_epochs=2",
    "checkpoint.every_steps=9",
    "checkpoint.every_minutes=null",
    "checkpoint.best_metric=ema_top1",
    "log.trackers=[wandb]",
    "log.on_end='echo'",
    "allow=[peak_not_reached]",
]
DECISIVE = [
    "seed=1",
    "optim.lr=1e-4",
    "augment.mixup=0.1",
    "model.kwargs={depth: 3}",
    "epochs=200",
    "evaluate.crop_pct=1",
]


@pytest.fixture
def dumped(configs):
    def dump(*overrides, name="deit_tiny_toe_r05"):
        return load_config(configs / f"{name}.yaml", overrides).model_dump(mode="json")

    return dump


@pytest.mark.parametrize("override", INCIDENTAL)
def test_what_may_change_from_start_to_start(dumped, override):
    before, now = dumped(), dumped(override)
    assert before != now
    assert essential(before) == essential(now)
    assert experiment(before) == experiment(now)


@pytest.mark.parametrize("override", DECISIVE)
def test_what_makes_another_experiment(dumped, override):
    assert essential(dumped()) != essential(dumped(override))
    assert experiment(dumped()) != experiment(dumped(override))


def test_shares_and_the_epochs_that_they_come_to_are_the_same(dumped):
    shares, epochs = dumped(), dumped("expansion.stage_epochs=[0, 100, 200]")
    assert essential(shares) == essential(epochs)
    assert experiment(shares) == experiment(epochs)


def without(config, *paths):
    """As a version of the program wrote it that had not these keys."""
    older = copy.deepcopy(config)
    for path in paths:
        *sections, key = path.split(".")
        section = older
        for name in sections:
            section = section[name]
        del section[key]
    return older


@pytest.mark.parametrize("path", ["augment.order", "expansion.restore", "allow", "checkpoint", "token_labels", "seed"])
def test_a_key_of_a_later_version_makes_no_other_experiment(dumped, path):
    now = dumped("seed=0")
    older = without(now, path)
    assert differences(older, now) != [] or now[path] is None
    assert completed(older) == now
    assert differences(completed(older), now) == []
    assert experiment(older) == experiment(now)


@pytest.mark.parametrize(
    ("name", "path"),
    [
        ("deit_tiny_tome_r8", "method.inflection"),
        ("deit_tiny_s2vite", "method.revive"),
        ("deit_base_networkexpansion_6_12", "method.copy"),
        ("deit_tiny_tome_r8", "evaluate"),
    ],
)
def test_a_later_key_of_a_method_makes_none_either(dumped, name, path):
    now = dumped(name=name)
    older = without(now, path)
    assert completed(older) == now
    assert experiment(older) == experiment(now)


def test_another_value_of_such_a_key_makes_one(dumped):
    older = without(dumped(), "schedule.stepping")
    assert differences(completed(older), dumped("schedule.stepping=plain")) == [
        "schedule.stepping: 'released' in the checkpoint, 'plain' now"
    ]


def test_a_section_that_was_left_out_stays_so(dumped):
    plain = dumped(name="deit_tiny")
    assert plain["expansion"] is None
    assert completed(plain) == plain


def test_of_another_method_its_kind_is_told_alone(dumped):
    tome, sparse = (dumped(name=f"deit_tiny_{name}") for name in ("tome_r8", "s2vite"))
    told = [line for line in differences(tome, sparse) if line.startswith("method")]
    assert told == ["method.kind: 'token_merging' in the checkpoint, 'structured_sparsity' now"]


def test_a_key_that_is_gone_is_still_seen(dumped):
    assert differences(completed({**dumped(), "former": 3}), dumped()) == ["former: 3 in the checkpoint, None now"]


def test_a_path_that_was_written_relative_is_the_same(dumped):
    now = dumped("model.initial_weights=/here/runs/deit/last.pt")
    older = copy.deepcopy(now)
    older["model"]["initial_weights"] = "runs/deit/last.pt"
    assert differences(older, now) == []
    older["model"]["initial_weights"] = "runs/other/last.pt"
    assert len(differences(older, now)) == 1
    older["model"]["initial_weights"] = "/elsewhere/runs/deit/last.pt"
    assert len(differences(older, now)) == 1
