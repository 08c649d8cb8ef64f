"""FLOPs against the paper's models, recomputed from their matrix products by hand."""

import pytest

from toe_train.analysis.flops import plan_costs, stage_cost
from toe_train.recipes import load_config
from toe_train.training.build import build_model


def deit_macs(width, after, full=197, classes=1000):
    """MACs of a DeiT forward pass: patches, one block on all tokens, eleven on `after` tokens, classifier on one."""

    def block(tokens):
        return 12 * tokens * width**2 + 2 * tokens**2 * width

    return 196 * 16 * 16 * 3 * width + block(full) + 11 * block(after) + width * classes


@pytest.mark.parametrize(("name", "width"), [("tiny", 192), ("small", 384)])
def test_stages_of_deit_at_r05(configs, name, width):
    planned = plan_costs(load_config(configs / f"deit_{name}_toe_r05.yaml"), 1000)
    assert [part.cost.tokens_kept for part in planned.segments] == [98, 147, 196]
    assert [part.cost.macs for part in planned.segments] == [deit_macs(width, kept + 1) for kept in (98, 147, 196)]
    # ToE's own: all similarities, and the merge of N tokens into K.
    own = [(196 * 196 + kept * 196) * width for kept in (98, 147)]
    assert [part.cost.expansion_macs for part in planned.segments] == [*own, 0]


# Schedule speed-ups with attention counted, recomputed for the paper's rows of Table 2 with the released models.
@pytest.mark.parametrize(
    ("name", "stages", "whole"),
    [
        ("deit_tiny_toe_r05", (1.916, 1.328, 1.0), 1.319),
        ("deit_small_toe_r05", (1.880, 1.313, 1.0), 1.308),
        ("deit_base_toe_r04", (2.244, 1.399, 1.0), 1.389),
        ("deit_base_toe_hyper_r05", (1.860, 1.305, 1.0), 1.432),
        ("deit_base_toe_hyper_r04", (2.244, 1.399, 1.0), 1.572),
    ],
)
def test_speed_ups_of_table_2(configs, name, stages, whole):
    planned = plan_costs(load_config(configs / f"{name}.yaml"), 1000)
    assert tuple(round(part.speedup, 3) for part in planned.segments) == stages
    assert round(planned.speedup, 3) == whole


def test_counting_leaves_the_model_as_it_was(configs):
    built = build_model(load_config(configs / "quickstart.yaml"), 10)
    built.expansion.set_epoch(25)
    stage_cost(built, 16, stage=1)
    assert built.expansion.stage == 3
    assert built.model.training
    assert all(module.training for module in built.model.modules())
