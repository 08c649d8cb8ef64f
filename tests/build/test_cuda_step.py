"""Every shipped configuration's step on a GPU that is not there: one device, and no waiting (tests/fake_cuda.py)."""

import re
from itertools import groupby, product, repeat
from pathlib import Path

import numpy as np
import pytest
import torch
from fake_cuda import GPU, WaitsForTheGpu, fake_gpu, is_possible
from PIL import Image
from torch._subclasses.fake_tensor import DataDependentOutputException, DynamicOutputShapeException

from toe_train import data
from toe_train.build.inputs import build_finish, build_train_transform, example_batch
from toe_train.build.model import build_model
from toe_train.build.step import build_optimizer, build_step
from toe_train.build.task import build_task
from toe_train.data.augmentation.device_augment import NAMES, View
from toe_train.expansion import EXPANSIONS, INITIALIZATIONS, METRICS, RESTORES
from toe_train.recipes import config_at, load_config, plan_epochs, stretches
from toe_train.runs.clock import EpochClock
from toe_train.runs.processes import Processes
from toe_train.tasks.classification import Classification
from toe_train.training.device_batches import DeviceBatches
from toe_train.training.draws import ForwardDraws
from toe_train.training.records import counted

IS_OLD = tuple(int(part) for part in torch.__version__.split(".")[:2]) < (2, 14)
pytestmark = [
    pytest.mark.skipif(IS_OLD and not is_possible(), reason="this version of torch needs a driver for fake tensors"),
    pytest.mark.filterwarnings("ignore:Accessing the data pointer of FakeTensor"),  # so torch copies an averaged model
]

CONFIGS = sorted(path.stem for path in (Path(__file__).resolve().parents[2] / "configs").glob("*.yaml"))
SMALL = {"patch_size": 4, "embed_dim": 24, "depth": 2, "num_heads": 2}
HERE = Processes(0, 1, GPU)
CLASSES = 10


def small(configs, name, *overrides):
    """A shipped configuration with two narrow blocks, for what does not depend on the model."""
    kwargs = [f"model.kwargs.{key}={value}" for key, value in SMALL.items()]
    return load_config(configs / f"{name}.yaml", ["model.image_size=32", "augment.mix_group=4", *kwargs, *overrides])


def built_step(config, plan, accumulation=1, loaded=None):
    """The step of `plan`'s epoch, and endless micro-batches of two images for it, each `loaded` if that is given."""
    config = config_at(config, plan)
    built = build_model(config, CLASSES, plan.image_size)
    built.model.to(GPU).train()
    layout = data.BatchLayout(2 * accumulation, 2, 1, accumulation)
    task = build_task(config, built, CLASSES, layout)
    step = build_step(config, built, task, layout, HERE, plan.image_size)
    loaded = loaded or example_batch(config, task, 2, plan.loaded_size)
    return step, iter(DeviceBatches(repeat(loaded), GPU, build_finish(config, plan.image_size)))


def take_steps(config, *plans, **options):
    """Takes a step as in each of these epochs of one trainer (none: the run's first), without waiting.

    What they leave behind must be on the GPU.
    """
    plans = plans or plan_epochs(config)[:1]
    with fake_gpu() as gpu:
        step, batches = built_step(config, plans[0], **options)
        clock = EpochClock(GPU)
        window = torch.zeros(2, device=GPU)
        with gpu.never_waiting():
            for number, plan in enumerate(plans):
                step.method.stage = plan.stage
                window += counted(step(batches, clock, 0, number))
    assert {value.device for value in step.tensors().values()} == {GPU}
    assert len(step.optimizer.state) == len(list(step.model.parameters()))  # all had a gradient


@pytest.fixture(scope="module")
def done():
    """Kinds of step that have been taken."""
    return set()


def kind(config, plan):
    """What decides which operations a step is made of; neither rates nor sizes do."""
    method, model, augment, train = config.expansion, config.model, config.augment, config.train
    rates = {"stage_epochs", "keep_rates", "initial_keep_rate"}
    return (
        (model.name, str(model.kwargs), model.drop_path > 0, plan.image_size < plan.loaded_size),
        method and (method.model_dump_json(exclude=rates), plan.stage > 0 and method.keep_rates[plan.stage - 1] < 1),
        (config.cheaper.__class__, plan.segment),
        (config.token_labels is not None, augment.mixup > 0, augment.cutmix > 0, augment.on_device),
        (train.precision, train.ema_decay is not None, config.optim.name, config.optim.clip_grad is not None),
    )


# What waits all the same: the matching of boxes is done on the CPU, as DETR does it; and timm makes DINOv3's rotary
# positions from coordinates on the CPU in each forward pass.
WAITS = {"yolos": "_to_copy.default from cuda:0 to cpu", "dinov3": "_to_copy.default from cpu to cuda:0"}


@pytest.mark.parametrize("name", [name for name in CONFIGS if any(kind in name for kind in WAITS)])
def test_where_a_step_waits_for_the_gpu(configs, name):
    """No longer where this fails: then the configuration belongs to those below."""
    config = load_config(configs / f"{name}.yaml", ["model.kwargs.depth=3"])
    (told,) = (told for kind, told in WAITS.items() if kind in name)
    with pytest.raises(WaitsForTheGpu, match=re.escape(told)):
        take_steps(config)


@pytest.mark.parametrize("name", [name for name in CONFIGS if not any(kind in name for kind in WAITS)])
def test_no_step_of_a_shipped_configuration_waits_for_the_gpu(configs, done, name):
    """As shipped, but of three blocks: one before tokens are dropped, and two like all others after it."""
    config = load_config(configs / f"{name}.yaml", ["model.kwargs.depth=3"])
    plans = [stretch.plan for stretch in stretches(plan_epochs(config))]
    for _, of_one_trainer in groupby(plans, key=lambda plan: plan.curriculum):
        new = {kind(config, plan): plan for plan in of_one_trainer}
        new = {alike: plan for alike, plan in new.items() if alike not in done}
        if new:
            take_steps(config, *new.values())
            done.update(new)


@pytest.mark.parametrize("optimizer", ["adamw", "sgd"])
@pytest.mark.parametrize("precision", ["fp16", "bf16", "fp32"])
def test_no_precision_and_no_optimizer_waits(configs, precision, optimizer):
    config = small(configs, "deit_tiny_toe_r05", f"train.precision={precision}", f"optim.name={optimizer}")
    take_steps(config, *plan_epochs(config)[:2], accumulation=2)


@pytest.mark.parametrize("merging", ["true", "false"])
@pytest.mark.parametrize(("initialization", "expansion"), list(product(INITIALIZATIONS, EXPANSIONS)))
def test_no_expansion_waits(configs, initialization, expansion, merging):
    options = {"initialization": initialization, "expansion": expansion, "merging": merging}
    take_steps(small(configs, "deit_tiny_toe_r05", *(f"expansion.{key}={value}" for key, value in options.items())))


@pytest.mark.parametrize("metric", METRICS)
def test_no_metric_waits(configs, metric):
    take_steps(small(configs, "deit_tiny_toe_r05", f"expansion.metric={metric}"))


@pytest.mark.parametrize("restore", RESTORES)
def test_no_restoring_of_dense_outputs_waits(configs, restore):
    take_steps(small(configs, "lvvit_t_toe_r04", f"expansion.restore={restore}"))


def test_no_augmentation_on_the_gpu_waits(configs):
    config = small(configs, "deit_tiny", "augment.on_device=true")
    transform = build_train_transform(config)
    noise = np.random.default_rng(0).integers(0, 256, (40, 50, 3), dtype=np.uint8)
    drawn = View.joined([transform(Image.fromarray(noise)) for _ in range(2)])
    every = torch.tensor([[(number, 0.5) for number in range(len(NAMES))]] * 2, dtype=torch.float64)  # (2, L, 2)
    take_steps(config, loaded=(drawn._replace(operations=every), torch.tensor([0, 1])))


FAULTS = {
    "a value read as a number": (lambda loss: loss * loss.item(), DataDependentOutputException),
    "a value read as a condition": (lambda loss: loss if loss > 0 else -loss, DataDependentOutputException),
    "values read as a list": (lambda loss: loss * loss.detach().view(1).tolist()[0], DataDependentOutputException),
    "values copied to the CPU": (lambda loss: loss * loss.detach().cpu().to(GPU, non_blocking=True), WaitsForTheGpu),
    "a shape that depends on values": (lambda loss: loss * len(loss.view(1).nonzero()), DynamicOutputShapeException),
    "a tensor on the CPU": (lambda loss: (loss.view(1) * torch.ones(1)).sum(), WaitsForTheGpu),
    "an index on the CPU": (lambda loss: loss.view(1)[torch.zeros(1, dtype=torch.int64)].sum(), WaitsForTheGpu),
    "a copy that is waited for": (lambda loss: loss * torch.ones(()).to(GPU), WaitsForTheGpu),
    "a tensor made there of numbers": (lambda loss: loss * torch.tensor(2.0, device=GPU), WaitsForTheGpu),
    "a wait for the device": (lambda loss: [loss, torch.cuda.synchronize()][0], WaitsForTheGpu),
    "a wait for a stream": (lambda loss: [loss, torch.cuda.current_stream().synchronize()][0], WaitsForTheGpu),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_what_waits_or_lies_on_the_cpu_is_found_in_a_loss(configs, monkeypatch, fault):
    broken, expected = FAULTS[fault]
    sound = Classification.loss
    monkeypatch.setattr(Classification, "loss", lambda *given: broken(sound(*given)))
    with pytest.raises(expected):
        take_steps(small(configs, "deit_tiny"))


def test_draws_that_were_left_on_the_cpu_are_found(configs, monkeypatch):
    monkeypatch.setattr(ForwardDraws, "give", _give_on_the_cpu)
    with pytest.raises(WaitsForTheGpu, match=r"'cuda:0', 'cpu'"):
        take_steps(small(configs, "deit_tiny"))


def _give_on_the_cpu(draws, *_):
    layers = draws.layers["drop_path"]
    layers.give(torch.rand(layers.count, 2))


def test_moments_that_were_left_on_the_cpu_are_found(configs, monkeypatch):
    """The fused AdamW's kernel takes its count of steps from the GPU."""
    config = small(configs, "deit_tiny")

    def left_behind(config, model):
        optimizer = build_optimizer(config, model)
        for parameter in model.parameters():
            moments = {name: torch.zeros_like(parameter) for name in ("exp_avg", "exp_avg_sq")}
            optimizer.state[parameter] = {"step": torch.zeros(()), **moments}
        return optimizer

    monkeypatch.setattr("toe_train.build.step.build_optimizer", left_behind)
    with pytest.raises(AssertionError):
        take_steps(config)
