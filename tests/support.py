"""What tests build without the command line."""

import torch

from toe_train.build.inputs import open_images
from toe_train.build.lifecycle import find_checkpoint
from toe_train.build.resume import belonging
from toe_train.build.trainer import Setting, build_trainer
from toe_train.recipes import RunConfig
from toe_train.runs.folder import RunFolder
from toe_train.runs.log import RunLog, read_metrics
from toe_train.runs.processes import Processes
from toe_train.training.loop import Trainer

HERE = Processes(0, 1, torch.device("cpu"))


def trainer_of(config: RunConfig, folder: RunFolder, resume: str = "auto", here: Processes = HERE) -> Trainer:
    """A trainer of a run in a folder that is there, at its beginning or where the checkpoint left it."""
    images = open_images(config, here)
    setting = Setting(config, folder, here, images, belonging(config, images))
    return build_trainer(setting, find_checkpoint(setting, resume))


class Album(RunLog):
    """Keeps the pictures that it is shown, by name."""

    def __init__(self):
        self.pictures = {}

    def picture(self, tag, picture, epoch):
        self.pictures[tag] = picture


def pictures_of(trainer, epoch):
    """What a trainer shows where an epoch begins, by name."""
    album = Album()
    trainer.method.begin_epoch(epoch)
    trainer.pictures.begin(trainer.cadence.plans[epoch], album)
    return album.pictures


class Killed(BaseException):
    """The process ends here."""


def train(config, root, stop_at=None):
    """Trains to the end, stage after stage; or up to the save at a place (epoch, step), after which it is killed."""
    folder = RunFolder(root)
    folder.create()
    while True:
        trainer = trainer_of(config, folder)
        save = trainer.keeper.checkpoints.save

        def dying(state, is_best, save=save):
            save(state, is_best)
            if (state["progress"]["epoch"], state["progress"]["step"]) == stop_at:
                raise Killed

        trainer.keeper.checkpoints.save = dying
        try:
            trainer.fit()
        except Killed:
            return
        finally:
            trainer.log.close()
        if trainer.progress.epoch == config.epochs:
            break
    assert stop_at is None, f"nothing was saved at {stop_at}"


def losses(root):
    return [line["train_loss"] for line in read_metrics(root / "metrics.jsonl", "step")]


# The command line's program, which dies after the save at a place that its first arguments name.
KILLED = """
import os, sys
from toe_train.cli.train import main
from toe_train.runs.checkpoints import Checkpoints

epoch, step = map(int, sys.argv[1:3])
del sys.argv[1:3]
save = Checkpoints.save

def dying(self, state, is_best):
    save(self, state, is_best)
    if (state["progress"]["epoch"], state["progress"]["step"]) == (epoch, step):
        os._exit(9)

Checkpoints.save = dying
sys.exit(main())
"""
