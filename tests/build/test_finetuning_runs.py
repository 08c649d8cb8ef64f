"""What fine-tuning asks for: a frozen body, weights and sampling by class, averages that warm up, dropout."""

from itertools import count
from types import SimpleNamespace

import pytest
import torch
from support import losses, train, trainer_of
from timm.utils import ModelEmaV3
from torch.nn import functional as F

from toe_train.build.classes import class_weights
from toe_train.build.frozen import freeze_body
from toe_train.cli.train import main
from toe_train.errors import UserError
from toe_train.models import create_model
from toe_train.recipes import load_config, plan_epochs
from toe_train.runs.checkpoints import read
from toe_train.runs.folder import RunFolder
from toe_train.tasks.classification import Classification
from toe_train.training.step import TrainStep

ALL = [
    "model.frozen_epochs=1",
    "model.dropout=0.1",
    "model.kwargs.drop_rate=0.2",
    "task.class_weights=balanced",
    "data.sampling=balanced",
    "train.ema_decay=0.9",
    "train.ema_warmup=true",
    "checkpoint.every_steps=2",
    "train.max_micro_batch=128",
]


@pytest.fixture
def weights(tiny, tmp_path):
    """File of weights to start from, whose head is of other classes."""
    torch.manual_seed(1)
    section = load_config(tiny).model
    torch.save(create_model(section.name, 7, 0.0, 16, **section.kwargs).state_dict(), tmp_path / "weights.pt")
    return tmp_path / "weights.pt"


def test_the_head_alone_trains_and_then_all(tiny, tmp_path, weights):
    config = load_config(tiny, [f"model.initial_weights={weights}", *ALL, "epochs=2"])
    assert [plan.frozen for plan in plan_epochs(config)] == [True, False]
    before = torch.load(weights)
    train(config, tmp_path / "run", stop_at=(1, 0))
    frozen = read(tmp_path / "run/checkpoints/last.pt")
    for found in (frozen["model"], frozen["ema"]):
        changed = {name for name, value in found.items() if not torch.equal(value, before[name])}
        assert changed == {"head.weight", "head.bias"}
    assert len(frozen["optimizer"]["state"]) == 2
    train(config, tmp_path / "run")
    after = read(tmp_path / "run/checkpoints/last.pt")
    assert not any(torch.equal(value, before[name]) for name, value in after["model"].items())
    steps = {int(state["step"]) for state in after["optimizer"]["state"].values()}
    assert steps == {5, 10}  # the head's moments went on, the others' began


def test_broken_off_at_the_switch_it_is_the_uninterrupted_run(tiny, tmp_path, weights, assert_same_run):
    config = load_config(tiny, [f"model.initial_weights={weights}", *ALL, "epochs=2"])
    train(config, tmp_path / "quiet")
    for place in [(1, 0), (1, 2), None]:
        train(config, tmp_path / "broken", stop_at=place)
    assert_same_run(tmp_path / "quiet", tmp_path / "broken")


@pytest.mark.slow
def test_two_processes_train_what_one_trains(tiny, tmp_path, weights, run):
    given = [f"model.initial_weights={weights}", *ALL, "epochs=2"]
    for name, processes in (("one", 1), ("two", 2)):
        done = run("--config", tiny, "--output", name, *given, processes=processes)
        assert done.end() == 0, done.stderr
    assert losses(tmp_path / "two") == pytest.approx(losses(tmp_path / "one"), rel=2e-4)
    assert "epochs 1 to 1 train the head alone: head.weight, head.bias" in done.stdout
    assert "from epoch 2 on: all weights train" in done.stdout
    assert "classes are sampled alike, about 128 places of 1280 an epoch for each" in done.stdout
    assert "weights of the classes in the training loss: 0 1" in done.stdout


def test_micro_batches_change_nothing_with_dropout(tiny, tmp_path):
    overrides = ["epochs=1", "model.dropout=0.2", "expansion=null", "task.class_weights=balanced"]
    for size in (256, 64):
        train(load_config(tiny, [*overrides, f"train.max_micro_batch={size}"]), tmp_path / f"run{size}")
    assert losses(tmp_path / "run64") == pytest.approx(losses(tmp_path / "run256"), rel=1e-5)
    train(load_config(tiny, [*overrides, "model.dropout=0"]), tmp_path / "without")
    assert losses(tmp_path / "without") != pytest.approx(losses(tmp_path / "run256"), rel=1e-4)


def test_frozen_batch_norms_keep_their_statistics():
    model = create_model("lvvit_t", 3, 0.0, 32, patch_size=4, embed_dim=24, depth=2, num_heads=2, dense=False)
    still = freeze_body(model, "lvvit_t")
    assert {name for name, one in model.named_parameters() if one.requires_grad} == {"head.weight", "head.bias"}
    before = {name: buffer.clone() for name, buffer in model.named_buffers()}
    TrainStep.train(SimpleNamespace(model=model, still=still))
    assert before
    assert model.training
    model(torch.randn(4, 3, 32, 32))
    assert all(torch.equal(buffer, before[name]) for name, buffer in model.named_buffers())


def test_a_model_without_a_head_is_refused():
    with pytest.raises(UserError, match=r"model.frozen_epochs: Linear has no head by timm's name"):
        freeze_body(torch.nn.Linear(2, 2), "Linear")


def test_averages_warm_up_as_timms(tiny, tmp_path):
    """timm's train.py counts updates from 1 and hands the count over."""
    folder = RunFolder(tmp_path / "run")
    folder.create()
    overrides = ["epochs=2", "train.ema_decay=0.9", "train.ema_warmup=true", "expansion=null"]
    trainer = trainer_of(load_config(tiny, overrides), folder)
    reference, number = ModelEmaV3(trainer.model, decay=0.9, use_warmup=True), count(1)
    after, decays = trainer.method.after_average, []

    def beside(good):
        after(good)
        step = next(number)
        reference.update(trainer.model, step=step)
        decays.append(reference.get_decay(step))

    trainer.method.after_average = beside
    trainer.fit()
    assert decays[:3] == pytest.approx([0.0, 1 - 2 ** (-2 / 3), 1 - 3 ** (-2 / 3)])
    assert len(decays) == 10
    for name, value in reference.module.state_dict().items():
        assert torch.equal(value, trainer.step.ema.module.state_dict()[name]), name


def test_weights_multiply_each_class_term_and_the_mean_is_over_images():
    """torch's rule for targets that are distributions."""
    logits, weights = torch.randn(6, 3), torch.tensor([0.5, 2.0, 1.0])
    targets = torch.rand(6, 3).softmax(1)
    loss = Classification(lambda *given: given, weights).loss(logits, targets)
    torch.testing.assert_close(loss, F.cross_entropy(logits, targets, weights))
    halves = [
        Classification(lambda *given: given, weights).loss(logits[s], targets[s]) for s in (slice(3), slice(3, 6))
    ]
    torch.testing.assert_close(sum(halves) / 2, loss)


def images_of(*counts):
    names = [f"class {number}" for number in range(len(counts))]
    return SimpleNamespace(classes=names, counts=lambda: list(counts))


def test_balanced_weights_are_one_for_an_image_on_average(tiny):
    found = class_weights(load_config(tiny, ["task.class_weights=balanced"]), images_of(30, 10, 20))
    assert found.tolist() == pytest.approx([60 / 90, 60 / 30, 60 / 60])
    assert found @ torch.tensor([30.0, 10.0, 20.0]) / 60 == pytest.approx(1)
    given = class_weights(load_config(tiny, ["task.class_weights=[1, 0, 2.5]"]), images_of(30, 10, 20))
    assert given.tolist() == [1, 0, 2.5]


@pytest.mark.parametrize(
    ("weights", "counts", "words"),
    [
        ("[1, 2]", (3, 4, 5), r"2 are given, and the data set has 3 classes \(class 0, class 1, class 2\)"),
        ("balanced", (3, 0, 5), "class 1 has none to train on"),
    ],
)
def test_weights_that_do_not_go_with_the_classes(tiny, weights, counts, words):
    with pytest.raises(UserError, match=f"task.class_weights: .*{words}"):
        class_weights(load_config(tiny, [f"task.class_weights={weights}"]), images_of(*counts))


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["task.class_weights=[0, 0]"], "not all 0, such as"),
        (["task.class_weights=[1, -2]"], "a number from 0 up for each class"),
        (["task.class_weights=even"], "must be balanced, null, or a list"),
        (["model.frozen_epochs=1"], "set model.initial_weights, or model.frozen_epochs=0"),
        (["model.frozen_epochs=1", "model.initial_weights=timm_or_new"], "set model.initial_weights=timm, or"),
        (["model.frozen_epochs=9", "model.initial_weights=timm"], "are more than epochs=3; use 3"),
        (["model.frozen_epochs=-1"], "greater than or equal to 0"),
        (
            [
                "expansion=null",
                "model.frozen_epochs=1",
                "model.initial_weights=timm",
                "method={kind: structured_sparsity, heads_kept: 0.5}",
            ],
            "method structured_sparsity changes the weights",
        ),
        (["model.dropout=1.0"], "should be less than 1"),
        (["model.kwargs.proj_drop_rate=0.1"], "must not hold proj_drop_rate: use model.dropout"),
    ],
)
def test_what_cannot_be_is_refused(tiny, overrides, words):
    with pytest.raises(UserError, match=words.replace("(", r"\(")):
        load_config(tiny, overrides)


def test_a_model_without_dropout_is_refused(tiny, tmp_path, capsys):
    small = "model.kwargs={patch_size: 4, embed_dim: 24, depth: 2, num_heads: 2, dense: false}"
    arguments = [
        "--config",
        str(tiny),
        "--output",
        str(tmp_path / "run"),
        "expansion=null",
        "model.name=lvvit_t",
        small,
    ]
    assert main([*arguments, "model.dropout=0.1"]) == 2
    assert "model.dropout = 0.1: lvvit_t has none" in capsys.readouterr().err
