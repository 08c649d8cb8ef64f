import pytest
import torch

from toe_train import ExpansionSchedule, TokenExpansion, attach

transformers = pytest.importorskip("transformers")
from toe_train.integrations import HuggingFaceCallback  # noqa: E402

SIZE = {
    "image_size": 32,
    "patch_size": 8,
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 16,
    "num_labels": 2,
}


class Images(torch.utils.data.Dataset):
    def __len__(self):
        return 8

    def __getitem__(self, index):
        generator = torch.Generator().manual_seed(index)
        return {"pixel_values": torch.randn(3, 32, 32, generator=generator), "labels": index % 2}


class Seen(transformers.TrainerCallback):
    """How many tokens were kept in each step."""

    def __init__(self, expansion):
        self.expansion = expansion
        self.kept = []

    def on_step_end(self, args, state, control, **kwargs):
        kept = self.expansion.kept
        self.kept.append(16 if kept is None else kept.shape[1])


def build(folder, attached=True, callback=True, **options):
    torch.manual_seed(0)
    model = transformers.ViTForImageClassification(transformers.ViTConfig(**SIZE))
    expansion = TokenExpansion(ExpansionSchedule([0, 1, 2], [0.5, 0.75, 1.0], 0.25))
    if attached:
        attach(model, expansion)
    seen = Seen(expansion)
    arguments = transformers.TrainingArguments(
        output_dir=str(folder),
        per_device_train_batch_size=4,
        num_train_epochs=3,
        report_to=[],
        use_cpu=True,
        disable_tqdm=True,
        **{"save_strategy": "no", **options},
    )
    callbacks = [seen, *([HuggingFaceCallback(expansion)] if callback else [])]
    return transformers.Trainer(model=model, args=arguments, train_dataset=Images(), callbacks=callbacks), seen


def test_the_stage_of_each_epoch_resumed_too_and_a_plain_result(tmp_path, capsys):
    trainer, seen = build(tmp_path, save_strategy="steps", save_steps=3)
    trainer.train()
    assert seen.kept == [8, 8, 12, 12, 16, 16]
    said = capsys.readouterr().out
    plan = "stage 1 (0.5 of them) in epoch 0, stage 2 (0.75 of them) in epoch 1, stage 3 (all tokens) in epoch 2"
    assert f"token expansion: {plan}\n" in said
    assert f"token expansion ran: {plan}\n" in said

    trainer, seen = build(tmp_path)
    trainer.train(resume_from_checkpoint=str(tmp_path / "checkpoint-3"))
    assert seen.kept == [12, 16, 16]
    assert "token expansion ran: stage 2 (0.75 of them) in epoch 1, stage 3" in capsys.readouterr().out

    trainer.save_model(tmp_path / "result")
    plain = transformers.ViTForImageClassification.from_pretrained(tmp_path / "result").eval()
    assert not hasattr(plain, "token_expansion")
    images = torch.randn(2, 3, 32, 32)
    assert torch.equal(plain(images).logits, trainer.model.eval()(images).logits)


def test_stages_that_are_never_reached_are_said(tmp_path, capsys):
    trainer, _ = build(tmp_path, max_steps=1)
    trainer.train()
    assert "never reached: stage 2, stage 3" in capsys.readouterr().out


def test_an_expansion_that_is_not_attached(tmp_path):
    trainer, _ = build(tmp_path, attached=False)
    with pytest.raises(ValueError, match=r"not attached to the ViTForImageClassification .*toe_train.attach"):
        trainer.train()


def test_a_forgotten_callback(tmp_path):
    trainer, _ = build(tmp_path, callback=False, max_steps=1)
    with pytest.warns(UserWarning, match="nobody has called set_epoch"):
        trainer.train()
