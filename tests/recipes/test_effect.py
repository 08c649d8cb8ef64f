"""A key that a user gave and that has no effect in the run is refused, with what makes it count."""

import json

import pytest
import yaml

from toe_train.errors import UserError
from toe_train.recipes import RunConfig, dump_config, load_config
from toe_train.recipes.effect import OF_BOXES, OF_CLASSES, OF_COCO, RULES

RANDOM = ["expansion.initialization=random", "expansion.expansion=uniform", "expansion.merging=false"]

# Key, a configuration and overrides with which the key has no effect, and what makes it count.
CASES = [
    ("data.exif_orientation=apply", "quickstart", [], "it is of image files; set data.kind=image_folder"),
    ("data.on_error=skip", "quickstart", [], "it is of image files, which may be unreadable"),
    ("data.max_skipped=3", "cifar10_deit_tiny", [], "set data.kind=image_folder"),
    ("data.check_sample=3", "quickstart", [], "set data.kind=image_folder"),
    ("method.update_every=99", "deit_tiny_s2vite", ["method.update_until=0"], "set it above 0"),
    ("method.death_rate=0.1", "deit_tiny_s2vite", ["method.update_until=0"], "method.update_until=0"),
    ("method.revive=small_weights", "deit_tiny_s2vite", ["method.update_until=0"], "method.update_until=0"),
    ("method.drop_path=spread", "deit_base_stackbert", ["model.drop_path=0"], "set it above 0"),
    ("expansion.restore=copy", "deit_tiny_toe_r05", [], "set token_labels.root"),
    ("data.train_list=a.csv", "deit_tiny", [], "folders say the classes; set data.kind=list"),
    ("data.val_list=a.csv", "quickstart", [], "set data.kind=list"),
    ("data.label_key=class", "deit_tiny", [], "it is of shards; set data.kind=tar"),
    ("data.relist=true", "quickstart", [], "set data.kind=image_folder"),
    ("method.source=ema", "deit_base_stackbert", [], "set method.copy=insert or stack"),
    ("task.kind=classification", "lvvit_t", [], "set token_labels=null"),
    ("task.class_weights=balanced", "lvvit_t", [], "it is of task.kind=classification; set it to null"),
    ("task.class_weights=[1, 2]", "yolos_tiny", [], "it is of task.kind=classification"),
    ("data.sampling=balanced", "yolos_tiny", [], "set data.sampling=shuffled"),
    ("train.ema_warmup=true", "deit_tiny", ["train.ema_decay=null"], "set it, such as 0.9999"),
    ("detection.head_bias_decay=true", "yolos_tiny", ["optim.layer_decay=0.5"], "set optim.layer_decay=null"),
    ("method.r=0", "deit_tiny_tome_r8", [], "set it above 0, or method=null"),
    ("augment.rand_augment=rand-m5-n2", "deit_tiny_et", [], "set curriculum.rand_augments, or curriculum=null"),
    ("augment.rand_augment=null", "deit_tiny_et", [], "set curriculum.rand_augments"),
    ("augment.mix_group=128", "deit_tiny_et", [], "set curriculum.micro_batches"),
    ("augment.color_jitter=0.4", "deit_tiny", [], "set augment.rand_augment=null"),
    ("augment.crop_scale=[0.2, 1]", "cifar10_deit_tiny", [], "set augment.crop=random_resized"),
    ("augment.crop_ratio=[1, 1]", "deit_tiny", ["augment.crop=padded"], "set augment.crop=random_resized"),
    ("augment.erasing_mode=const", "deit_tiny", ["augment.erasing_prob=0"], "augment.erasing_prob=0; set it above 0"),
    ("augment.erasing_count=2", "cifar10_deit_tiny", [], "augment.erasing_prob=0"),
    ("augment.mix_prob=0.5", "quickstart", [], "set augment.mixup or augment.cutmix above 0"),
    ("augment.mix_switch_prob=0.1", "deit_tiny", ["augment.mixup=0"], "it chooses between Mixup and CutMix"),
    ("optim.momentum=0.8", "deit_tiny", [], "it is of sgd and muon; set optim.name=sgd"),
    ("optim.momentum=0.9", "deit_tiny", [], "it is of sgd"),  # the default, and given
    ("optim.betas=[0.9, 0.98]", "deit_tiny", ["optim.name=sgd"], "it is of adamw; set optim.name=adamw"),
    ("optim.eps=1e-6", "deit_tiny", ["optim.name=sgd"], "it is of adamw"),
    ("schedule.stepping=plain", "deit_tiny", ["schedule.unit=step"], "set schedule.unit=epoch"),
    ("schedule.warmup_lr=1e-5", "deit_tiny", ["schedule.warmup_epochs=0"], "schedule.warmup_epochs=0; set it above 0"),
    ("expansion.metric=euclidean", "deit_tiny_toe_r05", RANDOM, "set expansion.merging=true or"),
    ("expansion.repeats=4", "deit_tiny_toe_r05", RANDOM, "set expansion.expansion=farthest"),
    ("model.initial_averaged=true", "deit_tiny", [], "set model.initial_weights to one"),
    ("model.initial_averaged=true", "deit_tiny", ["model.initial_weights=timm"], "it is of a checkpoint of toe-train"),
    ("model.initial_weights=new", "deit_tiny", [], "set model.initial_weights=null for new ones"),
    ("data.root=/my/images", "quickstart", [], "set data.kind=image_folder for your own"),
    ("data.download=true", "deit_tiny", [], "set data.kind=cifar10 or cifar100"),
    ("data.max_skipped=5", "deit_tiny", [], "set data.on_error=skip"),
    ("data.check_sample=5", "deit_tiny", ["data.on_error=skip"], "set data.on_error=fail"),
]

VALUES = RunConfig().model_dump(mode="json")


def given(key):
    section, name = key.split(".")
    return f"{key}={json.dumps(VALUES[section][name])}"


CASES += [(given(key), "yolos_small", [], "as the section detection says") for key in OF_CLASSES]
CASES += [(given(key), "deit_tiny", [], "it is of boxes; set task.kind=detection") for key in OF_BOXES]
CASES += [(given(key), "deit_tiny", [], "it is of COCO's files; set data.kind=coco") for key in OF_COCO]
CASES += [
    ("detection.same_size=2", "yolos_small", ["detection.padding=true"], "set it to false"),
    ("train.max_micro_batch=4", "yolos_tiny", [], "raise that to it too"),
    ("detection.crop_sides=[384, 600]", "yolos_small", ["detection.crop_prob=0"], "set it above 0"),
]


def refusal(path, *overrides):
    with pytest.raises(UserError) as fault:
        load_config(path, overrides)
    return str(fault.value)


@pytest.mark.parametrize(("key", "name", "others", "remedy"), CASES)
def test_it_is_refused_with_what_makes_it_count(configs, key, name, others, remedy):
    for overrides in ([*others, key], [key, *others]):
        message = refusal(configs / f"{name}.yaml", *overrides)
        assert message.startswith("1 fault in "), message
        assert f"{key.partition('=')[0]} = " in message
        assert "has no effect in this run: " in message
        assert remedy in message
    load_config(configs / f"{name}.yaml", others)


def test_each_rule_has_a_case():
    assert {key for rule in RULES for key in rule.keys} == {case[0].partition("=")[0] for case in CASES}


def test_each_key_of_a_rule_is_one():
    sections = RunConfig().model_dump().items()
    known = {f"{name}.{key}" for name, section in sections if isinstance(section, dict) for key in section}
    keys = {key for rule in RULES for key in rule.keys if not key.startswith(("expansion.", "method."))}
    assert keys <= known


def test_every_shipped_file_gives_what_counts(configs):
    for file in configs.glob("*.yaml"):
        load_config(file)


@pytest.fixture
def write(tmp_path):
    def writer(values, name="run.yaml"):
        path = tmp_path / name
        path.write_text(values if isinstance(values, str) else yaml.safe_dump(values))
        return path

    return writer


def test_a_line_of_the_file_counts_as_given(write):
    assert "optim.momentum = 0.5: has no effect in this run" in refusal(write({"optim": {"momentum": 0.5}}))


def test_a_line_of_a_parent_too_where_it_has_no_effect_there(write):
    write({"optim": {"momentum": 0.5}}, "parent.yaml")
    assert "optim.momentum = 0.5" in refusal(write({"extends": "parent.yaml"}))
    assert load_config(write({"extends": "parent.yaml", "optim": {"name": "sgd"}})).optim.momentum == 0.5


def test_what_a_child_or_an_override_makes_idle_is_no_fault(write):
    write({"optim": {"name": "sgd", "momentum": 0.5}}, "parent.yaml")
    assert load_config(write({"extends": "parent.yaml", "optim": {"name": "adamw"}})).optim.name == "adamw"
    assert load_config(write({"optim": {"name": "sgd", "momentum": 0.5}}), ["optim.name=adamw"]).optim.momentum == 0.5


def test_a_file_that_gives_all_keys_is_not_asked(configs, write):
    config = load_config(configs / "deit_tiny_et.yaml", ["seed=3"])
    assert load_config(write(dump_config(config))) == config
    assert "optim.momentum" in refusal(write(dump_config(config)), "optim.momentum=0.5")


def test_defaults_are_not_asked(write):
    assert load_config(write({"optim": {"name": "sgd"}, "augment": {"erasing_prob": 0.0}})).optim.betas == (0.9, 0.999)


def test_a_saved_file_is_known_by_its_writer_and_not_by_its_sections(configs, write, monkeypatch):
    """A section that a later version adds is not in it, and makes no typed file of it."""
    saved = yaml.safe_load(dump_config(load_config(configs / "deit_tiny_et.yaml")))
    assert saved["written_by"].startswith("toe-train ")
    del saved["checkpoint"], saved["token_labels"]
    assert load_config(write(saved)).optim.momentum == 0.9
    del saved["written_by"]
    assert "optim.momentum = 0.9: has no effect" in refusal(write(saved))


def test_a_saved_file_of_before_it_named_its_writer_is_known(configs, write):
    saved = yaml.safe_load(dump_config(load_config(configs / "deit_tiny_et.yaml")))
    for later in ("written_by", "method", "allow"):
        del saved[later]
    assert load_config(write(saved)).optim.momentum == 0.9
