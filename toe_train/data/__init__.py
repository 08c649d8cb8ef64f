"""Data: what images a step sees, and with what augmentation.

check.py            is the data healthy?
datasets.py         image folders, CIFAR, digits; TrainSet and EvalSet over them
images.py           a file of any kind as RGB
transforms.py       augmentation of one image
order.py            positions of an epoch, their split over processes and accumulation steps
low_frequency.py    a batch's low frequencies alone, at a smaller size
pixels.py           images as bytes up to the device, normalised and erased there
device_augment.py   crop, flip and RandAugment on the device in place of the host
mixing.py           Mixup and CutMix of a batch
token_labels.py     what a teacher saw in each part of an image: files, and soft targets for each patch token
joint_transform.py  augmentation that moves an image and its label map together
token_mixing.py     MixToken's boxes and a batch's soft targets
label_record.py     what the maker of label files noted about them
randomness.py       the rule that all of them keep: every choice is a function of (seed, purpose, place in the run)
loaders.py          DataLoaders
pack.py             a smaller copy of an image folder
skipping.py         images that cannot be read and are passed over
"""

from toe_train.data.check import check_datasets, require_healthy
from toe_train.data.datasets import (
    NOT_COUNTED,
    ArrayImages,
    EvalSet,
    FolderImages,
    ImageSource,
    TrainSet,
    open_datasets,
)
from toe_train.data.device_augment import DrawView, Views, made
from toe_train.data.images import load_rgb
from toe_train.data.joint_transform import JointTransform
from toe_train.data.loaders import CleanErrors, eval_loader, train_loader
from toe_train.data.low_frequency import low_frequency_crop
from toe_train.data.mixing import BatchMixing
from toe_train.data.order import (
    BatchLayout,
    GlobalOrder,
    SampleKey,
    Segment,
    TrainBatchSampler,
    evaluation_indices,
    split_batch,
)
from toe_train.data.pack import Packed, Packing, pack_images
from toe_train.data.pixels import Pixels, collate, ending_in_pixels, normalized
from toe_train.data.randomness import derive_seed, generator, seeded
from toe_train.data.skipping import SkippedImages
from toe_train.data.token_labels import TokenLabelFiles, TokenMap, TokenTarget, read_token_labels, token_targets
from toe_train.data.token_mixing import TokenMixing
from toe_train.data.transforms import TwoSizes, eval_transform, train_transform

__all__ = [
    "NOT_COUNTED",
    "ArrayImages",
    "BatchLayout",
    "BatchMixing",
    "CleanErrors",
    "DrawView",
    "EvalSet",
    "FolderImages",
    "GlobalOrder",
    "ImageSource",
    "JointTransform",
    "Packed",
    "Packing",
    "Pixels",
    "SampleKey",
    "Segment",
    "SkippedImages",
    "TokenLabelFiles",
    "TokenMap",
    "TokenMixing",
    "TokenTarget",
    "TrainBatchSampler",
    "TrainSet",
    "TwoSizes",
    "Views",
    "check_datasets",
    "collate",
    "derive_seed",
    "ending_in_pixels",
    "eval_loader",
    "eval_transform",
    "evaluation_indices",
    "generator",
    "load_rgb",
    "low_frequency_crop",
    "made",
    "normalized",
    "open_datasets",
    "pack_images",
    "read_token_labels",
    "require_healthy",
    "seeded",
    "split_batch",
    "token_targets",
    "train_loader",
    "train_transform",
]
