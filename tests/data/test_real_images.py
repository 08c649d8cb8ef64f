"""ImageNet's own files through the whole package."""

import io
import os
import tarfile
import warnings
from pathlib import Path

import pytest
import torch
from PIL import Image

from toe_train.data import (
    BatchLayout,
    EvalSet,
    GlobalOrder,
    TrainBatchSampler,
    TrainSet,
    check_datasets,
    ending_in_pixels,
    eval_loader,
    eval_transform,
    open_datasets,
    train_loader,
)

DATA = Path(os.environ.get("TOE_DATA") or Path(__file__).resolve().parents[2].parent / "shared" / "data")
ARCHIVE = DATA / "imagenet1k_sample.tar"


@pytest.fixture(scope="module")
def imagenet_sample(tmp_path_factory):
    """The first 24 images and the first greyscale one, the same files as train and val."""
    if not ARCHIVE.is_file():
        pytest.skip(f"{ARCHIVE} is not there; set TOE_DATA to the folder that holds it")
    root, taken, grey = tmp_path_factory.mktemp("imagenet"), 0, None
    with tarfile.open(ARCHIVE) as archive:
        for member in archive:
            if not (member.isfile() and member.name.endswith(".JPEG")):
                continue
            content = archive.extractfile(member).read()
            is_grey = Image.open(io.BytesIO(content)).mode == "L"
            if taken >= 24 and not is_grey:
                continue
            folder = root / "train" / Path(member.name).parent.name
            folder.mkdir(parents=True, exist_ok=True)
            (folder / Path(member.name).name).write_bytes(content)
            taken, grey = taken + 1, folder.name if is_grey else grey
            if taken >= 24 and grey:
                break
    (root / "val").symlink_to("train")
    return root, taken, grey


def test_imagenet_files(imagenet_sample, deit_transform):
    root, count, grey = imagenet_sample
    assert check_datasets("image_folder", root, sample=None) == []
    train, val = open_datasets("image_folder", root)
    assert len(train) == len(val) == len(train.classes) == count
    train_set = TrainSet(train, ending_in_pixels(deit_transform(224)), seed=0)
    sampler = TrainBatchSampler(GlobalOrder(count, 8, seed=0, repeats=3), BatchLayout(8, 4), rank=0)
    runs = []
    for workers in (0, 2):
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            runs.append(list(train_loader(train_set, sampler, workers)))
    assert [pixels.images.shape for pixels, _ in runs[0]] == [(8, 224, 224, 3)] * (count // 8)
    for (first, labels), (second, same_labels) in zip(*runs, strict=True):
        assert all(torch.equal(one, other) for one, other in zip(first, second, strict=True))
        assert torch.equal(labels, same_labels)
    mean, std = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
    evaluation = eval_transform(image_size=224, crop_pct=0.875, interpolation="bicubic", mean=mean, std=std)
    images, labels = map(torch.cat, zip(*eval_loader(EvalSet(val, evaluation), range(count), 8, 0), strict=True))
    assert images.shape == (count, 3, 224, 224)
    assert labels.tolist() == list(range(count))
    raw = images * torch.tensor(std).view(3, 1, 1) + torch.tensor(mean).view(3, 1, 1)
    is_grey = (raw - raw[:, :1]).abs().amax(dim=(1, 2, 3)) < 1e-5
    assert is_grey[train.classes.index(grey)]
    assert not is_grey.all()
