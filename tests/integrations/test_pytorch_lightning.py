import pytest
import timm
import torch

from toe_train import ExpansionSchedule, TokenExpansion, attach

lightning = pytest.importorskip("lightning.pytorch")
from toe_train.integrations import LightningCallback  # noqa: E402


class Classifier(lightning.LightningModule):
    def __init__(self, attached=True):
        super().__init__()
        torch.manual_seed(0)
        self.model = timm.create_model(
            "vit_tiny_patch16_224", img_size=32, patch_size=8, depth=2, embed_dim=16, num_heads=2, num_classes=2
        )
        self.expansion = TokenExpansion(ExpansionSchedule([0, 1, 2], [0.5, 0.75, 1.0], 0.25))
        if attached:
            attach(self.model, self.expansion)
        else:
            self.__dict__["expansion"] = self._modules.pop("expansion")  # no part of the model
        self.kept = []

    def training_step(self, batch):
        images, labels = batch
        loss = torch.nn.functional.cross_entropy(self.model(images), labels)
        self.kept.append(16 if self.expansion.kept is None else self.expansion.kept.shape[1])
        return loss

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.01)

    def train_dataloader(self):
        labels = torch.arange(8) % 2
        images = torch.randn(8, 3, 32, 32, generator=torch.Generator().manual_seed(0))
        return torch.utils.data.DataLoader(torch.utils.data.TensorDataset(images, labels), batch_size=4)


def fit(module, folder, path=None, others=(), **options):
    trainer = lightning.Trainer(
        accelerator="cpu",
        default_root_dir=folder,
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=[LightningCallback(module.expansion), *others],
        **{"max_epochs": 3, "enable_checkpointing": False, **options},
    )
    trainer.fit(module, ckpt_path=path)
    return trainer


@pytest.mark.filterwarnings("ignore::UserWarning:lightning.*")
def test_the_stage_of_each_epoch_resumed_too_and_a_plain_result(tmp_path, capsys):
    module = Classifier()
    fit(module, tmp_path)
    assert module.kept == [8, 8, 12, 12, 16, 16]
    said = capsys.readouterr().out
    plan = "stage 1 (0.5 of them) in epoch 0, stage 2 (0.75 of them) in epoch 1, stage 3 (all tokens) in epoch 2"
    assert f"token expansion: {plan}\n" in said
    assert f"token expansion ran: {plan}\n" in said

    trainer = fit(Classifier(), tmp_path, max_epochs=1)
    trainer.save_checkpoint(tmp_path / "one.ckpt")
    module = Classifier()
    fit(module, tmp_path, path=tmp_path / "one.ckpt")
    assert module.kept == [12, 12, 16, 16]
    state = torch.load(tmp_path / "one.ckpt", weights_only=True)["state_dict"]
    assert all("expansion" not in key for key in state)


@pytest.mark.filterwarnings("ignore::UserWarning:lightning.*")
def test_an_expansion_that_is_not_attached(tmp_path):
    with pytest.raises(ValueError, match=r"not attached to the Classifier that is trained: call toe_train.attach"):
        fit(Classifier(attached=False), tmp_path)


@pytest.mark.filterwarnings("ignore::UserWarning:lightning.*")
def test_an_epoch_that_is_resumed_within_is_said_in_the_end(tmp_path, capsys):
    saving = lightning.callbacks.ModelCheckpoint(tmp_path, "{step}", every_n_train_steps=3)
    fit(Classifier(), tmp_path, others=[saving], max_epochs=2, enable_checkpointing=True)
    capsys.readouterr()
    module = Classifier()
    fit(module, tmp_path, path=tmp_path / "step=3.ckpt")
    assert module.kept == [12, 16, 16]
    assert "ran: stage 2 (0.75 of them) in epoch 1, stage 3 (all tokens) in epoch 2\n" in capsys.readouterr().out
