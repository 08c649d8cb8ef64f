"""What tests build without the command line."""

import torch

from toe_train.build.inputs import open_images
from toe_train.build.lifecycle import find_checkpoint
from toe_train.build.resume import belonging
from toe_train.build.trainer import Setting, build_trainer
from toe_train.recipes import RunConfig
from toe_train.runs.folder import RunFolder
from toe_train.runs.processes import Processes
from toe_train.training.loop import Trainer

HERE = Processes(0, 1, torch.device("cpu"))


def trainer_of(config: RunConfig, folder: RunFolder, resume: str = "auto", here: Processes = HERE) -> Trainer:
    """A trainer of a run in a folder that is there, at its beginning or where the checkpoint left it."""
    images = open_images(config, here)
    setting = Setting(config, folder, here, images, belonging(config, images))
    return build_trainer(setting, find_checkpoint(setting, resume))
