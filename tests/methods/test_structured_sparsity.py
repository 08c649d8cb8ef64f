"""S2ViTE against the released code's figures, and masks in training."""

import math

import numpy as np
import pytest
import torch
from golden_figures import by_rule, figures, meta, near
from timm.layers import Mlp
from timm.models.vision_transformer import VisionTransformer
from torch._dynamo.testing import CompileCounter
from torch.nn import functional as F

from toe_train.methods.sparse_parts import why_not_sparse
from toe_train.methods.structured_sparsity import (
    StructuredSparsityMethod,
    death_rate,
    unit_magnitude,
    update,
)

CASES = meta("s2vite.npz")


def stored(case):
    """The figures of a case; not those of a case whose name goes on from it."""
    longer = tuple(f"{other}_" for other in CASES if other != case and other.startswith(case))
    found = figures("s2vite.npz")
    return {
        name.removeprefix(f"{case}_"): value
        for name, value in found.items()
        if name.startswith(f"{case}_") and not (longer and name.startswith(longer))
    }


@pytest.mark.parametrize("case", ["given", "given6"])
def test_updates_of_the_released_code(case):
    figure = stored(case)
    heads, units = figure["heads0"], figure["units0"]
    for number in (1, 2):
        names = ("head_score", "head_grad_norm", "unit_score", "unit_grad")
        scores = [figure[f"{name}{number}"] for name in names]
        rate = float(figure[f"death_rate{number}"])
        steps = CASES[case]["update_steps"][number - 1]
        assert rate == pytest.approx(death_rate(steps, CASES[case]["total_steps"], CASES[case]["death_rate"]))
        heads, units = update(heads, units, rate, *scores)
        assert torch.equal(heads, figure[f"heads{number}"])
        assert torch.equal(units, figure[f"units{number}"])


def model_of(case):
    torch.manual_seed(0)
    return VisionTransformer(
        img_size=case["img"],
        patch_size=case["patch"],
        embed_dim=case["dim"],
        depth=case["depth"],
        num_heads=case["heads"],
        mlp_ratio=case["mlp_ratio"],
        num_classes=case["classes"],
    )


def method(revive="released", every=1, until=0.8, seed=0, kept=0.7):
    return StructuredSparsityMethod(kept, kept, every, until, 0.5, revive, seed)


@pytest.mark.parametrize("rate", [-1, 2, float("nan")])
def test_a_rate_is_a_share(rate):
    with pytest.raises(ValueError, match="must be from 0 to 1"):
        update(*(torch.ones(1, 2, dtype=torch.bool),) * 2, rate, *(torch.ones(1, 2),) * 4)


@pytest.mark.parametrize("name", ["real", "real_zero_bias"])
def test_a_step_of_the_released_code(name):
    """Scores of a whole model's forward and backward pass, and the masks that they make."""
    case, figure = CASES[name], stored(name)
    model = model_of(case)
    weights = by_rule(model.state_dict(), case["weights"])
    if case["zero_bias"]:
        weights = {key: torch.zeros_like(value) if key.endswith("bias") else value for key, value in weights.items()}
    sparse = method(until=1.0)
    sparse.prepare(model)
    sparse.join(lambda values: values, 10**9)  # so many that the death rate is 0.5
    sparse.heads, sparse.units = figure["heads0"], figure["units0"]
    model.load_state_dict(weights)
    sparse.begin_epoch(0)
    images = np.random.RandomState(7).standard_normal((case["batch"], 3, case["img"], case["img"]))
    labels = np.random.RandomState(8).randint(0, case["classes"], case["batch"])
    logits = model.train()(torch.from_numpy(images.astype(np.float32)))
    loss = F.cross_entropy(logits, torch.from_numpy(labels))
    loss.backward()
    near(logits, figure["logits"], 1e-5)
    near(loss, figure["loss"].float(), 1e-5)
    found = torch.stack([scores.found for scores in sparse._scores])  # (L, 2, H)
    near(found[:, 0], figure["head_score"], 1e-5)
    near(found[:, 1], figure["head_grad_norm"], 1e-5)
    layers = [(block.mlp.fc1.weight, block.mlp.fc2.weight) for block in model.blocks]
    near(unit_magnitude(layers), figure["unit_score"], 1e-4)
    sparse.after_average(torch.tensor(True))
    assert torch.equal(sparse.heads, figure["heads1"])
    assert torch.equal(sparse.units, figure["units1"])
    assert case["zero_bias"] == torch.equal(sparse.units, figure["units0"])


def test_a_threshold_of_zero_switches_all_units_on_as_released():
    units = torch.tensor([[True, True, True, False]])
    score = torch.tensor([[1.0, 2.0, 3.0, 0.0]])
    heads, head = torch.ones(1, 2, dtype=torch.bool), torch.ones(1, 2)
    _, found = update(heads, units, 0.5, head, head, score, torch.zeros(1, 4))
    assert found.all()


def train(sparse, model, steps, lr=0.05, good=True):
    optimizer = torch.optim.SGD(model.parameters(), lr=lr)
    torch.manual_seed(1)
    masks = []
    for _ in range(steps):
        images = torch.randn(8, 3, 32, 32).to(model.head.weight)
        loss = F.cross_entropy(model.train()(images), torch.randint(0, 10, (8,)))
        loss.backward()
        if good:
            optimizer.step()
        sparse.after_step(torch.tensor(good))
        assert_at_rest(sparse, model)
        sparse.after_average(torch.tensor(good))
        optimizer.zero_grad()
        masks.append((sparse.heads.clone(), sparse.units.clone()))
    return masks


def assert_at_rest(sparse, model):
    """What is off adds nothing: values and the perceptron's second layer are 0 there."""
    for heads, units, block in zip(sparse.heads, sparse.units, model.blocks, strict=True):
        values = block.attn.qkv.weight.view(3, block.attn.num_heads, -1)[2]
        assert not values[~heads].any()
        assert values[heads].any()
        assert not block.mlp.fc2.weight[:, ~units].any()


def prepared(**options):
    model = model_of(CASES["given"])
    sparse = method(**options)
    sparse.prepare(model)
    sparse.join(lambda values: values, 20)
    sparse.begin_epoch(0)
    return sparse, model


def test_the_share_that_is_on_stays_and_the_masks_move_only_where_they_should():
    sparse, model = prepared(every=3, until=0.6)
    before = (sparse.heads.clone(), sparse.units.clone())
    masks = [before, *train(sparse, model, 20)]
    assert all(heads.sum(dim=1).tolist() == [2] * 3 for heads, _ in masks)
    moved = [step for step in range(1, 21) if not torch.equal(masks[step][0], masks[step - 1][0])]
    assert moved
    assert set(moved) <= {3, 6, 9}  # multiples of 3 below 0.6 of 20


def test_updates_come_at_multiples_with_the_death_rate_of_the_steps_taken(monkeypatch):
    """What only rests, at weights other than 0, has no score."""
    sparse, model = prepared(every=3, until=0.6, revive="small_weights")
    rates = []

    def noting(heads, units, rate, *scores):
        rates.append(rate)
        assert not scores[2][~units].any()
        return heads, units

    monkeypatch.setattr("toe_train.methods.structured_sparsity.update", noting)
    train(sparse, model, 20)
    released = [0.005 + 0.495 * (1 + math.cos(math.pi * step / 20)) / 2 for step in (3, 6, 9)]
    assert rates == pytest.approx(released)


def test_from_zero_biases_released_units_never_move_and_the_mended_ones_do():
    released, model = prepared()
    units = released.units.clone()
    train(released, model, 10)
    assert torch.equal(released.units, units)
    mended, model = prepared(revive="small_weights")
    units = mended.units.clone()
    train(mended, model, 10)
    assert not torch.equal(mended.units, units)
    assert mended.units.sum(dim=1).tolist() == [67] * 3


def test_what_rests_at_small_weights_can_learn_once_it_is_on():
    sparse, model = prepared(revive="small_weights")
    for heads, units, block in zip(sparse.heads, sparse.units, model.blocks, strict=True):
        queries_and_keys = block.attn.qkv.weight.view(3, len(heads), -1)[:2, ~heads]
        assert queries_and_keys.any(dim=2).all()
        assert block.mlp.fc1.weight[~units].any(dim=1).all()
    assert_at_rest(sparse, model)


def test_a_step_that_is_not_taken_moves_no_mask():
    sparse, model = prepared()
    before = (sparse.heads.clone(), sparse.units.clone())
    for heads, units in train(sparse, model, 4, good=False):
        assert torch.equal(heads, before[0])
        assert torch.equal(units, before[1])


def test_masks_are_a_function_of_the_seed_and_go_through_a_checkpoint():
    first, model = prepared(seed=1)
    second, _ = prepared(seed=1)
    other, _ = prepared(seed=2)
    assert torch.equal(first.units, second.units)
    assert not torch.equal(first.units, other.units)
    train(first, model, 3)
    second.load_state(first.state())
    assert torch.equal(second.heads, first.heads)
    assert second.state()["steps"] == 3


def test_masks_of_other_shares_are_refused():
    sparse, _ = prepared()
    with pytest.raises(ValueError, match=r"\[0\.5, 0\.5\], not \[0\.7, 0\.7\]"):
        sparse.load_state(prepared(kept=0.5)[0].state())


def test_the_state_dict_stays_the_plain_models_and_the_saving_is_counted():
    sparse, model = prepared()
    assert list(model.state_dict()) == list(model_of(CASES["given"]).state_dict())
    linear, attention = sparse.idle(5, 1)
    assert sparse.idle(5, 0) == (0, 0)
    # 3 blocks: 1 of 3 heads of width 8 off, 29 of 96 units off, 24 wide.
    assert linear == 3 * 5 * 24 * (3 * 8 + 2 * 29)
    assert attention == 3 * 2 * 25 * 8


@pytest.mark.parametrize(("heads", "units", "what"), [(0.3, 0.5, "heads_kept"), (1, 0.001, "units_kept")])
def test_masks_that_keep_nothing_are_refused(heads, units, what):
    with pytest.raises(ValueError, match=what):
        StructuredSparsityMethod(heads, units, 1, 0.8, 0.5, "released", 0).prepare(model_of(CASES["given"]))


def test_dropout_behind_the_activation_is_not_left_out():
    model = model_of(CASES["given"])
    assert why_not_sparse(model.blocks[0]) is None
    model.blocks[0].mlp.drop1.p = 0.1
    assert "dropout" in why_not_sparse(model.blocks[0])


def whole(model):
    """Lets the model compute what is off."""
    for block in model.blocks:
        block.attn.split = block.mlp.split = None


@pytest.mark.parametrize("biases", ["zero", "trained"])
@pytest.mark.parametrize("fused", [True, False])
def test_what_is_off_is_not_computed_and_every_gradient_is_the_dense_one(biases, fused):
    """Also of what is off, whose moments go on, and where biases make its values other than 0."""
    sparse, model = prepared(every=1000)
    model.double()
    torch.manual_seed(3)
    with torch.no_grad():
        for name, value in model.named_parameters():
            value.add_(0.2 * torch.randn_like(value)) if biases == "trained" or name.endswith("weight") else None
    sparse.set_to_rest()
    images, found = torch.randn(4, 3, 32, 32, dtype=torch.float64), []
    shapes = []
    for block in model.blocks:
        block.attn.fused_attn = fused
        block.mlp.act.register_forward_hook(lambda _, given, out: shapes.append(tuple(given[0].shape)))
    for _ in range(2):
        model.zero_grad()
        loss = F.cross_entropy(model.train()(images), torch.arange(4))
        loss.backward()
        found.append((loss.detach(), {name: value.grad.clone() for name, value in model.named_parameters()}))
        whole(model)
    gathered, dense = found
    torch.testing.assert_close(gathered[0], dense[0], atol=1e-12, rtol=1e-12)
    for name, gradient in dense[1].items():
        torch.testing.assert_close(gathered[1][name], gradient, atol=1e-11, rtol=1e-9)
    assert shapes[0][2] == 67  # of 96 units
    assert shapes[-1][2] == 96
    heads = sparse.heads[0]
    value_rows = dense[1]["blocks.0.attn.qkv.weight"].view(3, 3, -1)[2]
    assert value_rows[~heads].any()  # what is off has gradients there


def test_a_run_that_computes_what_is_on_alone_is_the_dense_run():
    """With updates between, of which the steps before compute everything."""
    ends = []
    for gathers in (True, False):
        sparse, model = prepared(every=3)
        model.double()
        if not gathers:
            sparse._splits = []
            sparse._gathers = False
            whole(model)
        masks = train(sparse, model, 8)
        ends.append((masks, dict(model.named_parameters())))
    for one, other in zip(*(masks for masks, _ in ends), strict=True):
        assert torch.equal(one[0], other[0])
        assert torch.equal(one[1], other[1])
    for name, value in ends[0][1].items():
        torch.testing.assert_close(value, ends[1][1][name], atol=1e-10, rtol=1e-8)


def test_where_it_would_not_be_the_dense_step_everything_is_computed():
    """What rests at small weights has attention of its own; evaluation is the plain model's."""
    _, model = prepared(revive="small_weights")
    assert type(model.blocks[0].mlp) is Mlp
    released, model = prepared(every=2)
    assert model.blocks[0].mlp.split is not None
    train(released, model, 1)
    assert model.blocks[0].mlp.split is None  # an update follows
    train(released, model, 1)
    assert model.blocks[0].mlp.split is not None
    released.stage = 0
    assert model.blocks[0].mlp.split is None
    released.stage = 1
    images = torch.randn(2, 3, 32, 32)
    evaluated = model.eval()(images)
    whole(model)
    assert torch.equal(model(images), evaluated)


@pytest.mark.parametrize("revive", ["released", "small_weights"])
def test_graphs_of_each_block_give_the_same_scores(revive):
    """Of both forms of the step; neither is broken into pieces."""
    torch.compiler.reset()  # graphs of earlier models count towards the eight that torch keeps of timm's block
    found = []
    for compiled in (False, True):
        sparse, model = prepared(every=2, revive=revive)
        counter = CompileCounter()
        if compiled:
            for block in model.blocks:
                block.compile(backend=counter, dynamic=False, fullgraph=True)
        masks = train(sparse, model, 4)
        found.append((masks, [scores.found for scores in sparse._scores], dict(model.named_parameters())))
    assert counter.frame_count == 2  # all blocks share them
    for one, other in zip(found[0][0], found[1][0], strict=True):
        assert torch.equal(one[0], other[0])
        assert torch.equal(one[1], other[1])
    torch.testing.assert_close(found[0][1], found[1][1])
    assert all(value.any() for value in found[0][1])
    torch.testing.assert_close(found[0][2], found[1][2])
