"""Data: what images a step sees, and with what augmentation.

sources/       where images come from: image folders, archives, lists, COCO's, CIFAR, digits; the index of files,
               remembered; files of any kind as RGB; what cannot be read
augmentation/  what is done to them: transforms of one image, with its label map or on the device; a batch's frequencies
order/         which image stands at which place of a run, and the rule that every random choice is a function of it
labels/        what a teacher saw in each part of an image, in files
sets.py        what loaders read: a source's images with a transform; box_sets.py: images with boxes
loaders.py     DataLoaders
check.py       a tool: is the data healthy? findings.py: what it finds; check_files.py: of archives and lists;
               coco_check.py: of images with boxes
worker_faults.py  what goes wrong in a loader process, told
pack.py        a tool: a smaller copy of an image folder; pack_tar.py, parquet.py: as archives, of any images
split.py       a tool: train and val from one folder of photos
whole.py       a folder that a tool makes

Other packages import from this one and not from its files.
"""

from toe_train.data.augmentation.box_transform import BoxAugmentation, BoxEvaluation, BoxTarget
from toe_train.data.augmentation.device_augment import DrawView, Views, made
from toe_train.data.augmentation.joint_transform import GEOMETRIES, JointTransform
from toe_train.data.augmentation.low_frequency import low_frequency_crop
from toe_train.data.augmentation.pixels import Pixels, collate, ending_in_pixels, normalized
from toe_train.data.augmentation.thin import cutting_thin_ones
from toe_train.data.augmentation.transforms import Transform, TwoSizes, eval_transform, train_transform
from toe_train.data.box_sets import (
    BoxEvalSet,
    BoxTrainSet,
    Objects,
    SceneTransform,
    Seen,
    ShapedOrder,
    collate_boxes,
    collate_seen,
    in_steps,
)
from toe_train.data.check import check_datasets, examine, require_healthy
from toe_train.data.findings import ClassFound, Fault, Findings
from toe_train.data.labels.files import (
    ALIGNMENTS,
    TokenLabelFiles,
    TokenMap,
    TokenTarget,
    label_name,
    read_token_labels,
)
from toe_train.data.labels.record import LabelRecord
from toe_train.data.loaders import CleanErrors, eval_loader, in_order, train_loader
from toe_train.data.order.balanced import BalancedOrder
from toe_train.data.order.positions import (
    BatchLayout,
    GlobalOrder,
    SampleKey,
    Sampling,
    Segment,
    TrainBatchSampler,
    evaluation_indices,
    smallest_micro_batch,
    split_batch,
)
from toe_train.data.order.randomness import derive_seed, generator, seeded
from toe_train.data.pack import Packed, Packing, pack_images
from toe_train.data.pack_tar import archives_of_images, pack_tars
from toe_train.data.parquet import archives_of_parquet
from toe_train.data.sets import NOT_COUNTED, EvalSet, TrainSet
from toe_train.data.sources.arrays import ArrayImages
from toe_train.data.sources.coco import CocoImages, CocoPlaces
from toe_train.data.sources.folder import FolderImages, IndexedImages
from toe_train.data.sources.images import load_rgb
from toe_train.data.sources.listing import SPLITS, all_images
from toe_train.data.sources.lists import ListImages
from toe_train.data.sources.named import NamedImages, NamedScenes
from toe_train.data.sources.names import compare_classes, escaped, legible, shorten
from toe_train.data.sources.opening import (
    BY_FOLDERS,
    FILE_KINDS,
    Labelling,
    only_class,
    open_datasets,
    open_split,
    require_outside,
    single_class,
)
from toe_train.data.sources.orientation import ExifOrientation
from toe_train.data.sources.skipping import SkippedImages
from toe_train.data.sources.source import ImageSource
from toe_train.data.sources.span import Span
from toe_train.data.sources.tar import TarImages, all_in_archive, holds_archives, images_at
from toe_train.data.split import SPLIT_LIST, Split, Splitting, split_images
from toe_train.data.whole import require_new, whole_folder
from toe_train.data.worker_faults import WorkerGone, require_open_files

__all__ = [
    "ALIGNMENTS",
    "BY_FOLDERS",
    "FILE_KINDS",
    "GEOMETRIES",
    "NOT_COUNTED",
    "SPLITS",
    "SPLIT_LIST",
    "ArrayImages",
    "BalancedOrder",
    "BatchLayout",
    "BoxAugmentation",
    "BoxEvalSet",
    "BoxEvaluation",
    "BoxTarget",
    "BoxTrainSet",
    "ClassFound",
    "CleanErrors",
    "CocoImages",
    "CocoPlaces",
    "DrawView",
    "EvalSet",
    "ExifOrientation",
    "Fault",
    "Findings",
    "FolderImages",
    "GlobalOrder",
    "ImageSource",
    "IndexedImages",
    "JointTransform",
    "LabelRecord",
    "Labelling",
    "ListImages",
    "NamedImages",
    "NamedScenes",
    "Objects",
    "Packed",
    "Packing",
    "Pixels",
    "SampleKey",
    "Sampling",
    "SceneTransform",
    "Seen",
    "Segment",
    "ShapedOrder",
    "SkippedImages",
    "Span",
    "Split",
    "Splitting",
    "TarImages",
    "TokenLabelFiles",
    "TokenMap",
    "TokenTarget",
    "TrainBatchSampler",
    "TrainSet",
    "Transform",
    "TwoSizes",
    "Views",
    "WorkerGone",
    "all_images",
    "all_in_archive",
    "archives_of_images",
    "archives_of_parquet",
    "check_datasets",
    "collate",
    "collate_boxes",
    "collate_seen",
    "compare_classes",
    "cutting_thin_ones",
    "derive_seed",
    "ending_in_pixels",
    "escaped",
    "eval_loader",
    "eval_transform",
    "evaluation_indices",
    "examine",
    "generator",
    "holds_archives",
    "images_at",
    "in_order",
    "in_steps",
    "label_name",
    "legible",
    "load_rgb",
    "low_frequency_crop",
    "made",
    "normalized",
    "only_class",
    "open_datasets",
    "open_split",
    "pack_images",
    "pack_tars",
    "read_token_labels",
    "require_healthy",
    "require_new",
    "require_open_files",
    "require_outside",
    "seeded",
    "shorten",
    "single_class",
    "smallest_micro_batch",
    "split_batch",
    "split_images",
    "train_loader",
    "train_transform",
    "whole_folder",
]
