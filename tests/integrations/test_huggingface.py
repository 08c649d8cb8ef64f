import json

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


class Stream(torch.utils.data.IterableDataset):
    """The same images without a length; 2 batches a pass."""

    def __iter__(self):
        return (Images()[index] for index in range(8))


class Seen(transformers.TrainerCallback):
    """How many tokens were kept in each step."""

    def __init__(self, expansion):
        self.expansion = expansion
        self.kept = []

    def on_step_end(self, args, state, control, **kwargs):
        kept = self.expansion.kept
        self.kept.append(16 if kept is None else kept.shape[1])


def build(folder, attached=True, callback=True, data=Images, **options):
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
    return transformers.Trainer(model=model, args=arguments, train_dataset=data(), callbacks=callbacks), seen


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


def test_data_without_a_length_resumed_twice(tmp_path, capsys):
    """An epoch is a pass. The Trainer counts passes anew when it resumes, and the rest of the broken pass is lost."""
    stream = {"data": Stream, "max_steps": 6, "save_strategy": "steps", "save_steps": 1}
    trainer, seen = build(tmp_path, **stream)
    trainer.train()
    assert seen.kept == [8, 8, 12, 12, 16, 16]
    said = capsys.readouterr().out
    assert (
        "in epoch 0, stage 2 (0.75 of them) in epoch 1, stage 3 (all tokens) in epochs from 2 on (no fixed end)" in said
    )
    assert "never reached" not in said

    trainer, seen = build(tmp_path / "second", **{**stream, "max_steps": 8})
    trainer.train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))
    assert seen.kept[:3] == [12, 12, 16]
    trainer, seen = build(tmp_path / "third", **{**stream, "max_steps": 8})
    trainer.train(resume_from_checkpoint=str(tmp_path / "second" / "checkpoint-5"))  # in pass 2
    assert set(seen.kept) == {16}
    assert "token expansion: stage 3 (all tokens) in epochs from 2 on" in capsys.readouterr().out


def test_data_without_a_length_and_no_count_of_passes(tmp_path, capsys):
    stream = {"data": Stream, "save_strategy": "steps", "save_steps": 3, "max_steps": 6}
    trainer, _ = build(tmp_path, **stream)
    trainer.train()
    file = tmp_path / "checkpoint-3" / "trainer_state.json"
    state = json.loads(file.read_text())
    assert state["stateful_callbacks"].pop("token_expansion") == {"epoch": 1}
    file.write_text(json.dumps(state))
    capsys.readouterr()
    trainer, _ = build(tmp_path, **stream)
    trainer.train(resume_from_checkpoint=str(tmp_path / "checkpoint-3"))
    assert "it goes on in epoch 1, which is wrong if it was resumed before" in capsys.readouterr().out
