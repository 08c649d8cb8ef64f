import pytest
import torch
from timm.loss import SoftTargetCrossEntropy

from toe_train.tasks.token_labelling import TokenLabelLoss


def parts(golden, mixed):
    target = golden["target_released_code"]
    cls, patches = target[..., 1], target[..., 2:].mT
    if mixed:
        top, left, bottom, right = golden["box"].tolist()
        own = 1 - (bottom - top) * (right - left) / 196
        cls = own * cls + (1 - own) * cls.flip(0)
    return (golden["cls_logits"], golden["aux_logits"], golden["box"]), (cls, patches)


@pytest.mark.parametrize(("mixed", "expected"), [(False, "loss_no_box"), (True, "loss_box")])
def test_the_released_codes_loss(golden_labels, mixed, expected):
    output, targets = parts(golden_labels, mixed)
    torch.testing.assert_close(TokenLabelLoss()(output, targets).double(), golden_labels[expected], atol=1e-5, rtol=0)


def test_weights(golden_labels):
    output, targets = parts(golden_labels, mixed=False)
    cls = SoftTargetCrossEntropy()(output[0], targets[0])
    dense = SoftTargetCrossEntropy()(output[1].flatten(0, 1), targets[1].flatten(0, 1))
    torch.testing.assert_close(TokenLabelLoss(0.5, 2.0)(output, targets), 2 * cls + 0.5 * dense)
    torch.testing.assert_close(TokenLabelLoss(cls_weight=0.0)(output, targets), dense)


def test_patches_may_be_left_out(golden_labels):
    output, targets = parts(golden_labels, mixed=False)
    counted = torch.rand(4, 196, generator=torch.Generator().manual_seed(0)) < 0.4
    loss = TokenLabelLoss(cls_weight=0.0, counted=lambda: counted)
    expected = SoftTargetCrossEntropy()(output[1][counted], targets[1][counted])
    torch.testing.assert_close(loss(output, targets), expected)
    nothing = TokenLabelLoss(cls_weight=0.0, counted=lambda: torch.zeros_like(counted))
    assert nothing(output, targets) == 0


def test_it_is_counted_in_float32(golden_labels):
    (cls, patches, box), targets = parts(golden_labels, mixed=False)
    halved = (cls.bfloat16(), patches.bfloat16().requires_grad_(), box)
    loss = TokenLabelLoss()(halved, targets)
    assert loss.dtype == torch.float32
    loss.backward()
    assert halved[1].grad.isfinite().all()
