"""From YAML to a RunConfig: parents, overrides, and faults that tell the user what to do."""

import os

import pytest
import yaml

from toe_train.errors import UserError
from toe_train.recipes import RunConfig, curriculum_stages, dump_config, load_config, plan_epochs, stretches


@pytest.fixture
def write(tmp_path):
    def writer(text, name="run.yaml"):
        path = tmp_path / name
        path.write_text(text)
        return path

    return writer


def faults(path, *overrides):
    with pytest.raises(UserError) as caught:
        load_config(path, overrides)
    return str(caught.value)


def test_defaults_are_those_of_the_deit_tiny_file(configs):
    assert load_config(configs / "deit_tiny.yaml") == RunConfig()


def test_the_deit_tiny_file_spells_out_every_field(configs):
    def keys(value):
        return {k: keys(v) for k, v in value.items()} if isinstance(value, dict) else None

    given = yaml.safe_load((configs / "deit_tiny.yaml").read_text())
    assert keys(given) == keys(RunConfig().model_dump())


def test_every_shipped_file_loads_and_plans(configs):
    files = sorted(configs.glob("*.yaml"))
    assert len(files) >= 12
    for file in files:
        config = load_config(file)
        plans = plan_epochs(config)
        assert [plan.epoch for plan in plans] == list(range(config.epochs)), file
        if config.expansion:
            assert plans[-1].stage == len(config.expansion.keep_rates), file


# Table 2's rows: model, r_1, r_0, boundaries (paper, section 4.1 and A.2; released scripts).
@pytest.mark.parametrize(
    ("name", "model", "rates", "initial", "boundaries"),
    [
        ("deit_tiny_toe_r05", "deit_tiny_patch16_224", (0.5, 0.75, 1.0), 0.25, (0, 100, 200)),
        ("deit_small_toe_r05", "deit_small_patch16_224", (0.5, 0.75, 1.0), 0.25, (0, 100, 200)),
        ("deit_base_toe_r05", "deit_base_patch16_224", (0.5, 0.75, 1.0), 0.25, (0, 100, 200)),
        ("deit_base_toe_r04", "deit_base_patch16_224", (0.4, 0.7, 1.0), 0.2, (0, 100, 200)),
        ("deit_base_toe_hyper_r05", "deit_base_patch16_224", (0.5, 0.75, 1.0), 0.25, (0, 130, 260)),
        ("deit_base_toe_hyper_r04", "deit_base_patch16_224", (0.4, 0.7, 1.0), 0.2, (0, 130, 260)),
    ],
)
def test_rows_of_table_2(configs, name, model, rates, initial, boundaries):
    config = load_config(configs / f"{name}.yaml")
    assert config.model.name == model
    assert config.expansion.keep_rates == rates
    assert config.expansion.initial_keep_rate == initial
    assert config.expansion.stage_epochs == boundaries
    assert (config.epochs, config.train.global_batch, config.peak_lr, config.seed) == (300, 1024, 1e-3, 3407)


def test_a_plan_is_cut_where_the_stage_changes(configs):
    cut = stretches(plan_epochs(load_config(configs / "deit_base_toe_hyper_r04.yaml")))
    assert [(part.first, part.last, part.stage, part.epochs) for part in cut] == [
        (0, 129, 1, 130),
        (130, 259, 2, 130),
        (260, 299, 3, 40),
    ]


@pytest.mark.parametrize("size", ["tiny", "small"])
def test_efficienttrain_plus_plus(configs, size):
    """Ten stages of a tenth of the compute; ToE's boundaries at thirds of it (docs/fidelity.md, "EfficientTrain++")."""
    config = load_config(configs / f"deit_{size}_etpp_toe_r06.yaml")
    plans = plan_epochs(config)
    stages = curriculum_stages(plans)
    ends = [*(stage.epoch for stage in stages[1:]), config.epochs]
    worth = [(end - s.epoch) * s.image_size**2 / 224**2 for s, end in zip(stages, ends, strict=True)]
    assert worth == pytest.approx([20] * 10, abs=1.0)
    assert [stage.image_size for stage in stages] == [96] * 2 + [160] * 4 + [192] * 2 + [224] * 2
    assert [stage.rand_augment for stage in stages] == [f"rand-m{level}-mstd0.5-inc1" for level in range(10)]
    assert [stage.micro_batch for stage in stages] == [512] * 6 + [256] * 4
    done = [plan.clock.done / plan.clock.total for plan in plans]
    assert [done[first] for first in config.expansion.stage_epochs] == pytest.approx([0, 1 / 3, 2 / 3], abs=2e-3)
    assert (config.model.drop_path, config.optim.clip_grad, config.peak_lr) == (0.1, 5.0, 4e-3)


@pytest.mark.parametrize("size", ["tiny", "small"])
def test_efficienttrain(configs, size):
    """The recipe of docs/fidelity.md, "EfficientTrain", baseline and curriculum."""
    plain = load_config(configs / f"deit_{size}_et_baseline.yaml")
    config = load_config(configs / f"deit_{size}_et_toe_r06.yaml")
    stages = curriculum_stages(plan_epochs(config))
    assert [(stage.epoch, stage.image_size) for stage in stages] == [
        (0, 160),
        (60, 160),
        (120, 160),
        (180, 192),
        (240, 224),
    ]
    assert [stage.rand_augment for stage in stages] == [f"rand-m{level}-mstd0.5-inc1" for level in (1, 3, 5, 7, 9)]
    assert [(stage.micro_batch, stage.mix_group) for stage in stages] == [(512, 512)] * 4 + [(256, 256)]
    for one in (plain, config):
        assert (one.train.global_batch, one.epochs, one.train.ema_decay) == (4096, 300, None)
        assert (one.augment.repeats, one.augment.erasing_prob, one.augment.erasing_mode) == (1, 0.25, "pixel")
        assert (one.optim.clip_grad, one.optim.weight_decay, one.peak_lr, one.model.drop_path) == (5.0, 0.05, 4e-3, 0.1)
        schedule = one.schedule
        assert (schedule.unit, schedule.warmup_epochs, schedule.warmup_lr, schedule.min_lr) == ("step", 20, 0.0, 1e-6)
    smaller = load_config(configs / f"deit_{size}_et.yaml", ["train.max_micro_batch=128"])
    plans = curriculum_stages(plan_epochs(smaller))
    assert [(stage.micro_batch, stage.mix_group) for stage in plans] == [(128, 512)] * 4 + [(128, 256)]


def test_s2vite(configs):
    """Of its released script for DeiT-T: 8 processes of 64 images, 80 updates of the masks in 600 epochs."""
    config = load_config(configs / "deit_tiny_s2vite.yaml")
    assert (config.epochs, config.train.global_batch, config.augment.mix_group, config.peak_lr) == (600, 512, 64, 5e-4)
    steps = config.method.update_until * config.epochs * (1_281_167 // config.train.global_batch)
    assert steps // config.method.update_every == 80


def test_a_dumped_config_reads_back_equal(configs, write):
    config = load_config(configs / "deit_base_toe_hyper_r04.yaml", ["model.kwargs={patch_size: 32}"])
    assert load_config(write(dump_config(config))) == config


def test_parents_are_merged_key_by_key_and_kwargs_replaced_whole(write):
    write("model: {drop_path: 0.3, kwargs: {depth: 3, embed_dim: 64}}\nepochs: 7", "parent.yaml")
    config = load_config(write("extends: parent.yaml\nmodel: {kwargs: {depth: 4}}"))
    assert (config.epochs, config.model.drop_path, config.model.kwargs) == (7, 0.3, {"depth": 4})


def test_overrides_are_yaml_and_apply_in_order(write):
    given = ["optim.lr=1e-3", "optim.lr=5e-4", "model.kwargs.depth=3", "augment.rand_augment=null", "epochs=20"]
    config = load_config(write("seed: 0"), given)
    assert (config.optim.lr, config.model.kwargs, config.augment.rand_augment, config.epochs) == (
        5e-4,
        {"depth": 3},
        None,
        20,
    )


def test_learning_rate_scales_with_the_batch_unless_told_not_to(write):
    assert load_config(write("train: {global_batch: 512}")).peak_lr == 5e-4
    assert load_config(write("train: {global_batch: 256}\noptim: {lr_base_batch: null}")).peak_lr == 5e-4


def test_token_labels(write):
    text = "token_labels: {root: /labels}\naugment: {mixup: 0, cutmix: 0, order: lvvit}"
    section = load_config(write(text)).token_labels
    assert section.model_dump() == {
        "root": "/labels",
        "geometry": "full",
        "alignment": "correct",
        "dense_weight": 1.0,
        "cls_weight": 1.0,
    }
    assert load_config(write(text), ["token_labels=null"]).token_labels is None


def test_all_faults_are_reported_at_once_each_with_path_value_rule_and_remedy(write):
    text = faults(
        write(
            """
            epocs: 300
            modle: {name: x}
            optim: {learning_rate: 1, lr: fast, betas: [0.9]}
            expansion: {stage_epochs: [0], keep_rates: [0.5], initial_keep_rate: 0.7, metrc: cosine}
            train: {precision: fp17, global_batch: 0, ema_decay: 1.5, compile: maybe}
            """
        )
    )
    assert "epocs = 300: there is no such key; did you mean epochs?" in text
    assert "modle: there is no such key; did you mean model?" in text
    assert "optim.learning_rate = 1: there is no such key" in text
    assert "optim.lr = 'fast': should be a valid number" in text
    assert "optim.betas" in text
    assert "expansion.metrc = 'cosine': there is no such key; did you mean metric?" in text
    assert "train.precision = 'fp17': should be 'fp16', 'bf16' or 'fp32'; did you mean fp16?" in text
    assert "train.global_batch = 0: should be greater than 0" in text
    assert "train.ema_decay = 1.5: should be less than 1" in text
    assert "train.compile = 'maybe'" in text
    assert text.startswith("10 faults in ")


def test_a_key_that_stands_in_another_section_is_pointed_to(write):
    assert "did you mean schedule.warmup_epochs?" in faults(write("optim: {warmup_epochs: 3}"))
    assert "did you mean augment.mixup?" in faults(write("mixup: 0.8"))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("expansion: {stage_epochs: [0, 100], keep_rates: [0.5], initial_keep_rate: 0.2}", "same length"),
        ("expansion: {stage_epochs: [0, 10], keep_rates: [0.8, 0.5], initial_keep_rate: 0.2}", "not increasing"),
        ("expansion: {stage_epochs: [0], keep_rates: [1.5], initial_keep_rate: 0.2}", "not in (0, 1]"),
        ("expansion: {stage_epochs: [0], keep_rates: [0.5], initial_keep_rate: 0.6}", "not below the first keep rate"),
        ("expansion: {stage_epochs: [0], keep_rates: [0.5]}", "expansion.initial_keep_rate: is required"),
        ("epochs: true", "epochs = True: must be a number, not true or false"),
        ("epochs: 1.5", "epochs = 1.5"),
        ("optim: {lr: .nan}", "optim.lr = nan: should be a finite number"),
        ("augment: {crop_scale: [1.0, 0.08]}", "[0.08, 1.0] would be in order"),
        ("augment: {mix_group: 5}", "use 4 or 6"),
        ("checkpoint: {best_metric: ema_top1}\ntrain: {ema_decay: null}", "set train.ema_decay, or use val_top1"),
        ("schedule: {unit: step, cooldown_epochs: 3}", "needs schedule.unit=epoch"),
        ("token_labels: {geometry: full}", "token_labels.root: is required; give it, or set token_labels=null"),
        ("token_labels: {root: x, alignement: released}", "did you mean alignment?"),
        ("token_labels: {root: x}", "set augment.mixup=0 and augment.cutmix=0"),
        (
            "token_labels: {root: x}\ndata: {kind: cifar10}",
            "cifar10 has no files that label files could be named after",
        ),
        ("[1, 2]", "must hold `key: value` lines at the top, not a list"),
        ("epochs: 3\nepochs: 4", "key 'epochs' stands twice"),
        ("epochs: [", "is not valid YAML"),
        ("method: {kind: structured_sparsity, heads_kept: 1, units_kept: 1}", "nothing is off where both are 1"),
        ("method: {kind: depth_growth, depths: [4, 2], from_epochs: [0, 2]}", "depths: [4, 2] must rise"),
        ("a: " + "[" * 3000 + "]" * 3000, "is nested too deeply"),
        ("1: 2", "the key 1 is no word"),
        ("null: 3", "the key None is no word"),
        ("allow: yes", "must be a list"),
        (
            "expansion: {stage_epochs: [0], keep_rates: [0.5], initial_keep_rate:0.2}",
            "write a space after the colon: initial_keep_rate: 0.2",
        ),
        ("seed: 2020-13-45", "is not valid YAML"),
        ("extends: nothing.yaml", "nothing.yaml does not exist (extended by"),
        ("extends: [a.yaml, b.yaml]", "must be the path of one YAML file"),
    ],
)
def test_one_fault_one_message(write, text, message):
    assert message in faults(write(text))


def test_values_are_shown_as_far_as_one_reads_them(write):
    """Aliases of aliases make a list of 10^7 entries out of a few bytes."""
    lines = ["a: &a [x, x, x, x, x, x, x, x, x, x]"]
    for before, key in zip("abcdef", "bcdefg", strict=True):
        lines.append(f"{key}: &{key} [{', '.join([f'*{before}'] * 10)}]")
    told = faults(write("\n".join(lines)))
    assert told.count("there is no such key") == 7
    assert len(told) < 8000


def test_a_mapping_may_take_the_keys_of_another(write):
    text = "model: &small {name: deit_tiny_patch16_224, kwargs: &k {depth: 2}}\nmodel2: 1"
    assert "model2" in faults(write(text))  # the anchor itself is legal, the key is not
    merged = "model: {kwargs: {<<: {depth: 2, num_heads: 3}, depth: 4}}"
    assert load_config(write(merged)).model.kwargs == {"depth": 4, "num_heads": 3}


def test_a_file_in_another_encoding_is_told_by_line(tmp_path):
    path = tmp_path / "latin.yaml"
    path.write_bytes("seed: 1\n# größer\n".encode("latin-1"))
    assert "line 2, is not UTF-8; save it as UTF-8" in faults(path)


@pytest.mark.parametrize("name", ["deit_tiny_toe_r05", "deit_tiny_toe_r05.yaml"])
def test_the_packages_files_go_by_their_names_from_anywhere(configs, tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    shipped = load_config(configs / "deit_tiny_toe_r05.yaml")
    assert load_config(name) == shipped
    (tmp_path / "mine.yaml").write_text(f"extends: {name}\nseed: 5")
    assert load_config("mine.yaml") == shipped.model_copy(update={"seed": 5})
    (tmp_path / "deit_tiny_toe_r05.yaml").write_text("seed: 7")  # what is there comes first
    assert load_config("deit_tiny_toe_r05.yaml").expansion is None
    with pytest.raises(UserError, match=r"deit_tiny_toe_r06 does not exist; did you mean deit_tiny_toe_r05\.yaml\?"):
        load_config("deit_tiny_toe_r06")
    with pytest.raises(UserError, match="there is no folder elsewhere"):
        load_config(f"elsewhere/{name}")


def test_a_loop_of_parents_is_shown(write):
    write("extends: b.yaml", "a.yaml")
    write("extends: c.yaml", "b.yaml")
    assert "a.yaml -> b.yaml -> c.yaml -> a.yaml" in faults(write("extends: a.yaml", "c.yaml").with_name("a.yaml"))


def test_a_missing_file_names_the_nearest(configs):
    assert "did you mean deit_tiny.yaml?" in faults(configs / "deit_tinny.yaml")
    assert "there is no folder" in faults(configs / "nowhere" / "x.yaml")


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("epochs", "must have the form KEY=VALUE"),
        ("=3", "must have the form KEY=VALUE"),
        ("optim.lr.x=3", "optim.lr is a value, not a section"),
        ("optim.betas=[0.9", "is not valid YAML"),
        ("seed=2020-13-45", "is not valid YAML"),
        ("seed=0b_", "is not valid YAML"),
        ("augment.crop_scale=[0.7, 5]", "at most 1; [0.7, 1.0] would be"),
        ("model.kwargs.in_chans=1", "must not hold in_chans: images are read as RGB"),
        ("augment.mix_group=1", "must be even, since images are mixed in pairs; use 2"),
        ("extends=x.yaml", "cannot be overridden"),
        ("optim.rl=3", "optim.rl = 3: there is no such key; did you mean lr?"),
    ],
)
def test_bad_overrides(configs, override, message):
    assert message in faults(configs / "deit_tiny.yaml", override)


def test_home_is_expanded_in_paths(configs, monkeypatch):
    monkeypatch.setenv("HOME", "/home/someone")
    config = load_config(configs / "deit_tiny.yaml", ["data.root=~/images"])
    assert config.data.root == "/home/someone/images"


@pytest.mark.parametrize("given", ["eight", "-1", "[8, -1]", "[8, x]", "true", "{a: 1}", "1.5"])
def test_tokens_to_merge_have_one_rule(configs, given):
    with pytest.raises(UserError) as fault:
        load_config(configs / "deit_tiny_tome_r8.yaml", [f"method.r={given}"])
    assert str(fault.value).startswith("1 fault in ")
    assert str(fault.value).count("\n") == 1
    assert str(fault.value).endswith("must be a whole number from 0 up, or a list of them, one for each block")
    assert "method.r" in str(fault.value)


@pytest.mark.parametrize("key", ["data.root", "model.initial_weights"])
def test_a_relative_path_in_a_folder_whose_name_is_no_text_is_refused(configs, tmp_path, monkeypatch, key):
    folder = tmp_path / os.fsdecode(b"caf\xe9")
    folder.mkdir()
    monkeypatch.chdir(folder)
    with pytest.raises(UserError, match=rf"{key} = 'images': comes to .* no text.*ln -s"):
        load_config(configs / "deit_tiny.yaml", [f"{key}=images"])
