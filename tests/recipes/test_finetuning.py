"""Fine-tuning: the eight rows of Table 5 (docs/fidelity.md), and models of others (docs/finetuning.md)."""

import re
from pathlib import Path

import pytest
import torch

from toe_train.analysis.flops import plan_costs
from toe_train.build.step import build_optimizer, build_schedule
from toe_train.recipes import load_config, plan_epochs


@pytest.mark.parametrize("size", ["tiny", "small"])
@pytest.mark.parametrize("source", ["", "_from_toe"])
@pytest.mark.parametrize("toe", ["", "_toe"])
def test_a_row_of_table_5(configs, size, source, toe):
    config = load_config(configs / f"finetune_deit_{size}{source}{toe}.yaml", [])
    assert config.model.name == f"deit_{size}_patch16_224"
    run = f"deit_{size}{'_toe_r05' if source else ''}"
    assert config.model.initial_weights == str(Path(f"runs/{run}/checkpoints/last.pt").absolute())
    assert load_config(configs / f"{run}.yaml", []).model == config.model.model_copy(update={"initial_weights": None})
    assert (config.epochs, config.train.global_batch, config.augment.mix_group) == (1000, 768, 192)
    assert config.peak_lr == pytest.approx(7.5e-6)
    assert config.model.image_size == 224
    plans = plan_epochs(config)
    stages = [plans[epoch].stage for epoch in (0, 332, 333, 665, 666, 999)]
    assert stages == ([1, 1, 2, 2, 3, 3] if toe else [0] * 6)


def test_the_rate_rises_to_deits_minimum(configs):
    config = load_config(configs / "finetune_deit_tiny.yaml", [])
    schedule = build_schedule(config, build_optimizer(config, torch.nn.Linear(2, 2)), 65)
    assert schedule.mean(6) == pytest.approx(7.5e-6, rel=1e-3)
    assert schedule.mean(501) == pytest.approx(8.75e-6, rel=1e-6)  # trained at f(500)
    assert schedule.mean(999) == pytest.approx(1e-5, rel=1e-4)


PAGE = (Path(__file__).parents[2] / "docs" / "finetuning.md").read_text()
OTHERS = re.findall(r"^\| `(finetune_\w+)` \| .* \| (\d+) \| (\d+) \| ([\d.]+) \|$", PAGE, re.MULTILINE)
SAVED = re.findall(r"^\| `(finetune_\w+)` \| ([\d.]+) \| ([\d.]+) \| 1 \| ([\d.]+) \|$", PAGE, re.MULTILINE)


@pytest.mark.parametrize(("name", "pixels", "tokens", "macs"), OTHERS)
def test_a_model_of_others(configs, name, pixels, tokens, macs):
    plain, toe = (load_config(configs / f"{name}{end}.yaml") for end in ("", "_toe"))
    assert plain == toe.model_copy(update={"expansion": None})
    assert (plain.model.image_size, plain.model.initial_weights) == (int(pixels), "timm")
    patch = 14 if "patch14" in plain.model.name else 16
    assert int(tokens) == (int(pixels) // patch) ** 2
    assert (plain.peak_lr, plain.optim.layer_decay) == (2e-3, 0.65)
    assert [plan_epochs(toe)[epoch].stage for epoch in (0, 15, 16, 32, 33, 49)] == [1, 1, 2, 2, 3, 3]


def test_the_page_has_all_of_them(configs):
    files = {file.stem for file in configs.glob("finetune_*.yaml") if "deit" not in file.stem}
    assert {name for name, *_ in OTHERS} == {name.removesuffix("_toe") for name in files}
    assert [name for name, *_ in SAVED] == [f"{name}_toe" for name, *_ in OTHERS]


@pytest.mark.slow
@pytest.mark.parametrize("row", range(len(OTHERS)))
def test_the_pages_figures_are_the_plans(configs, row):
    (name, *stages, whole), macs = SAVED[row], OTHERS[row][-1]
    plan = plan_costs(load_config(configs / f"{name}.yaml"), 1000)
    assert f"{plan.full.macs / 1e9:.2f}" == macs
    assert [f"{stretch.speedup:.3f}" for stretch in plan.stretches] == [*stages, "1.000"]
    assert f"{plan.speedup:.3f}" == whole
