"""Table 5: the eight configurations of fine-tuning (docs/fidelity.md, "Fine-tuning on CIFAR")."""

from pathlib import Path

import pytest
import torch

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
