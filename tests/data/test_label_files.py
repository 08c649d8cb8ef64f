"""Label files beside images: training pairs, substitutes, and the checks of a data set."""

import json

import pytest
import torch
from PIL import Image

from toe_train.data import (
    BatchLayout,
    GlobalOrder,
    JointTransform,
    SampleKey,
    SkippedImages,
    TokenLabelFiles,
    TokenTarget,
    TrainBatchSampler,
    TrainSet,
    check_datasets,
    ending_in_pixels,
    open_datasets,
    require_healthy,
    train_loader,
)
from toe_train.data.labels.record import LabelRecord
from toe_train.errors import UserError

CLASSES = ["bird", "cat", "dog"]


@pytest.fixture
def labels(image_root):
    """A folder of label files for the training images: all ids are the class, all scores the image's number."""
    root = image_root.parent / "labels"
    for image in (image_root / "train").glob("*/*"):
        path = root / image.parent.name / f"{image.name.split('.')[0]}.pt"
        path.parent.mkdir(parents=True, exist_ok=True)
        plane = torch.ones(1, 3, 3)
        number = int(image.name.split("_")[1].split(".")[0])
        torch.save(torch.stack([plane * number, plane * CLASSES.index(image.parent.name)]).half(), path)
    return root


@pytest.fixture
def joint(deit_transform):
    """LV-ViT's order without anything that would change a pixel of a flat picture or a score."""
    settings = {"order": "lvvit", "rand_augment": None, "color_jitter": 0.0, "erasing_prob": 0.0}
    return JointTransform(ending_in_pixels(deit_transform(8, **settings)))


def flat(image_root):
    """Give each training image one colour: red tells its class, green its number."""
    for path in (image_root / "train").glob("*/*"):
        number = int(path.name.split("_")[1].split(".")[0])
        path.unlink()
        Image.new("RGB", (20, 20), (40 + 60 * CLASSES.index(path.parent.name), 50 * number, 0)).save(path, "PNG")


def test_samples_carry_their_images_labels(image_root, labels, joint, global_states):
    flat(image_root)
    train, _ = open_datasets("image_folder", image_root)
    samples = TrainSet(train, joint, seed=0, labels=TokenLabelFiles(labels, train.classes))
    before = global_states()
    for index in range(12):
        shown, target = samples[SampleKey(index, 0, index)]
        assert isinstance(target, TokenTarget)
        assert target.label == index // 4
        assert (target.ids == index // 4).all()
        assert (target.scores == index % 4).all()
        red, green, _ = shown.images[0, 4, 4].tolist()
        assert (red, green) == (40 + 60 * (index // 4), 50 * (index % 4))
        again = samples[SampleKey(index, 0, index)][1]
        assert all(torch.equal(a, b) for a, b in zip(target, again, strict=True))
        assert not torch.equal(target.crop, samples[SampleKey(index, 1, index)][1].crop)
    assert global_states() == before


@pytest.mark.parametrize("workers", [0, 2])
def test_batches(image_root, labels, joint, workers):
    train, _ = open_datasets("image_folder", image_root)
    samples = TrainSet(train, joint, seed=0, labels=TokenLabelFiles(labels, train.classes))
    sampler = TrainBatchSampler(GlobalOrder(12, 4, seed=0), BatchLayout(4, 4), rank=0)
    for pixels, target in train_loader(samples, sampler, workers):
        assert pixels.images.shape == (4, 8, 8, 3)
        assert isinstance(target, TokenTarget)
        assert target.scores.shape == target.ids.shape == (4, 1, 3, 3)
        assert torch.equal(target.ids[:, 0, 0, 0].long(), target.label)


def test_a_broken_label_file_is_named_or_passed_over_with_its_image(image_root, labels, joint, tmp_path):
    flat(image_root)
    (labels / "cat/cat_1.pt").write_bytes(b"broken")
    (labels / "dog/dog_2.pt").unlink()
    train, _ = open_datasets("image_folder", image_root)
    files = TokenLabelFiles(labels, train.classes)
    with pytest.raises(UserError, match=r"label file .*cat_1\.pt cannot be used"):
        TrainSet(train, joint, seed=0, labels=files)[SampleKey(5, 0, 0)]
    skipped = SkippedImages(tmp_path / "skipped.jsonl", 100)
    samples = TrainSet(train, joint, seed=0, skipped=skipped, labels=files)
    drawn = set()
    for position in range(20):
        for index in (5, 10):
            shown, target = samples[SampleKey(index, 0, position)]
            red, green, _ = shown.images[0, 4, 4].tolist()
            assert (target.ids == (red - 40) / 60).all()
            assert (target.scores == green / 50).all()
            assert target.label == (red - 40) / 60
            drawn.add((red, green))
    assert len(drawn) > 5
    assert skipped.images() == {train.describe(5), train.describe(10)}
    assert skipped.gather() == 2
    reasons = [json.loads(line)["reason"] for line in skipped.path.read_text().splitlines()]
    assert any("cat_1.pt cannot be used" in reason for reason in reasons)
    assert any("dog_2.pt is missing" in reason for reason in reasons)


@pytest.mark.parametrize("sample", [64, None])
def test_healthy(image_root, labels, sample):
    assert check_datasets("image_folder", image_root, sample, label_root=labels) == []
    require_healthy("image_folder", image_root, sample, label_root=labels)


@pytest.mark.parametrize("sample", [64, None])
def test_faults(image_root, labels, sample):
    (labels / "cat/cat_1.pt").write_bytes(b"broken")
    (labels / "dog/dog_2.pt").unlink()
    (labels / "dog/dog_3.pt").unlink()
    torch.save(torch.zeros(2, 1, 4, 4).half(), labels / "bird/bird_1.pt")
    missing, size, broken = check_datasets("image_folder", image_root, sample, label_root=labels)
    assert missing.startswith(f"2 of 12 training images that were looked at have no label file in {labels}: dog/dog_")
    assert "make them with `toe-tools labels`" in missing
    assert "bird_1.pt holds labels of 4 x 4 cells with 1 classes each and" in size
    assert "cat_1.pt cannot be used" in broken
    with pytest.raises(UserError, match="2 of 12 training images"):
        require_healthy("image_folder", image_root, sample, label_root=labels)
    for path in image_root.glob("*/*/*"):
        path.write_bytes(b"")
    with pytest.raises(UserError, match=r"more: `toe-tools doctor --config FILE` lists"):  # of the folder alone it sees
        require_healthy("image_folder", image_root, sample, label_root=labels)  # no label files


def test_a_folder_that_is_none(image_root):
    (fault,) = check_datasets("image_folder", image_root, label_root=image_root / "none")
    assert fault.startswith(f"{image_root / 'none'} is not a folder: set token_labels.root")


def test_images_that_share_a_label_file(image_root, labels):
    path = image_root / "train/cat/cat_0.JPEG"
    path.with_name("cat_0.second.JPEG").write_bytes(path.read_bytes())
    (fault,) = check_datasets("image_folder", image_root, sample=None, label_root=labels)
    assert fault.startswith("2 training images share their label file")
    assert "cat_0.second.JPEG" in fault


def test_many_label_files_are_checked_in_processes(image_root, labels):
    pixels = (image_root / "train/cat/cat_0.JPEG").read_bytes()
    content = (labels / "cat/cat_0.pt").read_bytes()
    for number in range(1000):
        (image_root / f"train/cat/more_{number}.JPEG").write_bytes(pixels)
        (labels / f"cat/more_{number}.pt").write_bytes(content if number != 777 else content[:99])
    torch.save(torch.zeros(2, 1, 4, 4).half(), labels / "cat/more_999.pt")
    faults = check_datasets("image_folder", image_root, sample=None, label_root=labels)
    assert len(faults) == 2
    assert any("more_777.pt cannot be used" in fault for fault in faults)
    assert any("more_999.pt holds labels of 4 x 4" in fault for fault in faults)


def test_the_makers_record_is_compared(image_root, labels):
    def faults(**changes):
        LabelRecord(**({"teacher": "t", "weights": "random", "image_size": 8, "geometry": "full"} | changes)).write(
            labels
        )
        return check_datasets("image_folder", image_root, label_root=labels)

    assert faults(classes=CLASSES) == []
    (fault,) = faults(classes=CLASSES, geometry="center_crop")
    assert "set token_labels.geometry=center_crop" in fault
    (fault,) = faults(classes=["bird", "cat", "fox"])
    assert "only in their teacher (1): fox; only in train (1): dog" in fault
    (labels / "labels.json").write_text("{}")
    (fault,) = check_datasets("image_folder", image_root, label_root=labels)
    assert "labels.json is not the record that `toe-tools labels` writes" in fault
