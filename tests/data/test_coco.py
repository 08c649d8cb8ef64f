"""Images with boxes: what is read, what stands in which batch, and what is refused."""

import json
from collections import Counter

import coco_files
import numpy as np
import pytest
import torch
from torchvision.ops import box_convert

from toe_train import data
from toe_train.data.augmentation.pixels import normalized
from toe_train.errors import UserError
from toe_train.tasks.average_precision import coco_statistics, rows_of

AUGMENTATION = data.BoxAugmentation(0.5, (64, 80, 96), 160, 0.5, (64, 96), (48, 80), 16)
EVALUATION = data.BoxEvaluation(64, 160, 16)
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


@pytest.fixture
def root(tmp_path):
    return coco_files.write(tmp_path / "coco")


@pytest.fixture
def images(root):
    return data.open_datasets("coco", root)


def faults(root):
    return data.check_datasets("coco", root, sample=None)


def test_labels_are_category_ids_and_crowds_are_for_the_evaluation_alone(images):
    train, val = images
    assert (len(train), len(val)) == (8, 4)
    assert train.classes == val.classes == ["(no category 0)", "square", "(no category 2)", "disc"]
    assert train[0][1].labels.tolist() == [1, 3]
    assert train[1][1].labels.tolist() == [1]  # the second one is a crowd
    assert train[7][1].labels.tolist() == []
    truth = val.ground_truth()
    assert [one["iscrowd"] for one in truth["annotations"]].count(1) == 1
    assert [one["id"] for one in truth["annotations"]] == [1, 2, 3, 4, 5, 6]
    assert [one["id"] for one in truth["images"]] == [1, 2, 3, 4]


def test_ids_that_float64_does_not_have_are_numbered_in_their_order(root):
    made = coco_files.content("val", first=2)
    large = {one["id"]: 2**53 + 3 - number for number, one in enumerate(made["images"])}
    for one in made["images"]:
        one["id"] = large[one["id"]]
    for one in made["annotations"]:
        one["image_id"] = large[one["image_id"]]
    coco_files.save(root, "val", made)
    assert faults(root) == []
    _, val = data.open_datasets("coco", root)
    assert [val.image_id(index) for index in range(4)] == [4, 3, 2, 1]
    truth = val.ground_truth()
    assert [one["id"] for one in truth["images"]] == [4, 3, 2, 1]
    assert [one["image_id"] for one in truth["annotations"]] == [4, 4, 3, 3, 2, 2]
    rows = [
        rows_of(one["image_id"], {"scores": torch.ones(1), "labels": torch.tensor([one["category_id"]]), "boxes": box})
        for one in truth["annotations"]
        if not one["iscrowd"]
        for box in [box_convert(torch.tensor([one["bbox"]]), "xywh", "xyxy")]
    ]
    assert coco_statistics(truth, np.concatenate(rows), [1, 2, 3, 4])[0] == pytest.approx(1)


def test_healthy_data_has_no_faults(root):
    assert faults(root) == []
    found = data.examine("coco", root)
    assert (found.count("train"), found.count("val")) == (8, 4)
    assert found.classes["square"].counts == {"train": 7, "val": 3}
    assert any("1 crowds" in note for note in found.notes)


def test_other_places(root):
    (root / "train2017").rename(root / "pictures")
    (root / "annotations/instances_train2017.json").rename(root / "train.json")
    places = data.CocoPlaces("pictures", "val2017", "train.json")
    assert data.check_datasets("coco", root, labelling=places) == []
    assert len(data.open_datasets("coco", root, labelling=places)[0]) == 8


def changed(part, place, **values):
    made = coco_files.content("train")
    made[part][place].update(values)
    return made


def without(part, place, key):
    made = coco_files.content("train")
    del made[part][place][key]
    return made


WRONG = {
    "image_twice": (changed("images", 1, id=1), ["2 of images have the id 1"]),
    "annotation_twice": (changed("annotations", 1, id=1), ["2 of annotations have the id 1"]),
    "category_twice": (changed("categories", 1, id=1), ["2 of categories have the id 1"]),
    "unknown_image": (changed("annotations", 0, image_id=77), ["annotation 1 is of image 77, which is not in images"]),
    "unknown_category": (changed("annotations", 0, category_id=2), ["is of category 2", "the nearest is 1"]),
    "negative_category": (changed("categories", 0, id=-1), ["has the id -1, and ids are logits"]),
    "outside": (changed("annotations", 0, bbox=[90, 0, 20, 10]), ["reaches 14 pixels out of its image of 96 x 64"]),
    "corners": (changed("annotations", 0, bbox=[50, 50, -20, 10]), ["width and height must not be below 0"]),
    "not_a_number": (changed("annotations", 0, bbox=[1, 2, float("nan"), 4]), ["a box is [left, top, width, height]"]),
    "three_numbers": (changed("annotations", 0, bbox=[1, 2, 3]), ["a box is [left, top, width, height]"]),
    "missing_image": (changed("images", 0, file_name="gone.png"), ["gone.png is annotated and not there"]),
    "other_size": (changed("images", 2, width=640, height=480), ["96 x 64 pixels and annotated as 640 x 480"]),
    "no_bbox": (without("annotations", 0, "bbox"), ["annotations[0] has no bbox"]),
    "no_name": (without("images", 0, "file_name"), ["images[0] has no file_name"]),
    "other_categories": (changed("categories", 1, name="ring"), ["3 is ring in train and disc in val"]),
    "id_a_list": (changed("annotations", 0, id=[1]), ["annotations[0] has the id [1], and it must be a whole number"]),
    "id_a_fraction": (changed("annotations", 0, id=1.5), ["annotations[0] has the id 1.5", "or leave id out"]),
    "area_a_word": (changed("annotations", 0, area="big"), ["has the area 'big', and it must be a number of pixels"]),
    "area_negative": (changed("annotations", 0, area=-1), ["has the area -1, and it must be", "0 or more"]),
    "area_not_a_number": (changed("annotations", 0, area=float("nan")), ["has the area nan"]),
    "area_huge": (changed("annotations", 0, area=10**400), ["annotations[0] has the area 1000"]),
    "crowd_a_word": (changed("annotations", 0, iscrowd="0"), ["has the iscrowd '0', and it must be 1 for a crowd"]),
    "crowd_of_2": (changed("annotations", 0, iscrowd=2), ["has the iscrowd 2"]),
    "huge_image_id": (changed("images", 0, id=2**70), ["images[0] has the id 1180591620717411303424", "64 bits"]),
    "huge_width": (changed("images", 0, width=10**30), ["images[0] has the width 1000", "64 bits hold: mend it"]),
    "huge_box": (changed("annotations", 0, bbox=[1, 2, 10**400, 4]), ["a box is [left, top, width, height]"]),
    "far_away": (changed("annotations", 0, bbox=[1e308, 2, 1e308, 4]), ["reaches inf pixels out of its image"]),
    "a_list": ([], ["must hold the lists images, annotations, categories"]),
}


@pytest.mark.parametrize("case", WRONG)
def test_what_is_wrong_is_a_line(root, case):
    made, words = WRONG[case]
    coco_files.save(root, "train", made)
    found = [line for line in faults(root) if all(word in line for word in words)]
    assert len(found) == 1, faults(root)
    assert "\n" not in found[0]
    with pytest.raises(UserError):
        data.require_healthy("coco", root)


def test_of_many_faults_doctor_lists_all(root):
    made = coco_files.content("train")
    for one in made["annotations"]:
        one["area"] = -1
    coco_files.save(root, "train", made)
    with pytest.raises(UserError, match=r"and 4 more: `toe-tools doctor --config FILE` lists them all"):
        data.require_healthy("coco", root)


def test_a_wrong_size_is_of_no_image_to_be_removed(root):
    coco_files.save(root, "train", changed("images", 2, width=640, height=480))
    (root / "val2017/val_1.png").write_bytes(b"no image")
    found = data.examine("coco", root)
    assert len(found.faults) == 2
    assert found.unreadable == [root / "val2017/val_1.png"]


def test_what_an_annotation_need_not_have(root):
    made = coco_files.content("train")
    for key in ("id", "area", "iscrowd"):
        del made["annotations"][0][key]
    made["annotations"][1].update(iscrowd=False, area=0)
    made["annotations"][2].update(iscrowd=True, area=10**300)
    coco_files.save(root, "train", made)
    assert faults(root) == []
    truth = data.open_datasets("coco", root)[0].ground_truth()["annotations"]
    _, _, width, height = truth[0]["bbox"]
    assert [one["area"] for one in truth[:3]] == [width * height, 0, 1e300]
    assert [one["iscrowd"] for one in truth[:3]] == [0, 0, 1]


def test_broken_and_missing_files(root):
    file = root / "annotations/instances_train2017.json"
    file.write_text(file.read_text()[:-40])
    assert "is no JSON" in faults(root)[0]
    with pytest.raises(UserError, match="is no JSON"):
        data.open_datasets("coco", root)
    file.unlink()
    assert "is not there: name the annotation file" in faults(root)[0]
    assert "is not a folder" in data.check_datasets("coco", root / "nowhere")[0]


def test_boxes_without_area_and_on_the_edge_are_cocos_own(root):
    made = coco_files.content("train")
    made["annotations"][0]["bbox"] = [5, 5, 0, 10]
    made["annotations"][1]["bbox"] = [80.5, 5, 16.4, 10]
    coco_files.save(root, "train", made)
    assert faults(root) == []
    train, _ = data.open_datasets("coco", root)
    assert train[0][1].labels.tolist() == [3]
    assert train[0][1].boxes.tolist() == [[80.5, 5, 96, 15]]


def keys_of(train, group, global_batch=4, epoch=1, world=1):
    order = data.ShapedOrder(len(train), global_batch, 0, shapes=train.sizes, group=group)
    found = []
    for rank in range(world):
        layout = data.BatchLayout(global_batch, 1, world, global_batch // world // group, mixed=False)
        sampler = data.TrainBatchSampler(order, layout, rank)
        sampler.set_epoch(epoch)
        found.append(list(sampler))
    return found


def test_images_of_like_shape_stand_together_each_once(images):
    train, _ = images
    (batches,) = keys_of(train, 2)
    assert Counter(key.index for batch in batches for key in batch) == Counter(range(8))
    alike = [len({train.size(key.index) for key in batch}) == 1 for batch in batches]
    assert alike.count(True) == 3  # two of 96 x 64, one of 64 x 96; 80 x 64 and 96 x 72 are left over
    assert keys_of(train, 2) == [batches]
    assert keys_of(train, 2, epoch=2) != [batches]


def test_a_batch_has_one_size_and_is_the_same_in_two_processes(images):
    train, _ = images
    samples = data.BoxTrainSet(train, AUGMENTATION, seed=0)
    one = {key: samples[key] for batch in keys_of(train, 2)[0] for key in batch}
    two = {key: samples[key] for batches in keys_of(train, 2, world=2) for batch in batches for key in batch}
    assert one.keys() == two.keys()
    for key, (pixels, target) in one.items():
        assert torch.equal(pixels.images, two[key][0].images)
        assert torch.equal(target.boxes, two[key][1].boxes)
    sizes = set()
    for batch in keys_of(train, 2)[0]:
        pixels, objects = data.collate_boxes(samples.__getitems__(batch))
        assert len(pixels.rectangles) == 0
        assert objects.counts.sum() == len(objects.labels) == objects.of_step
        sizes.add(tuple(pixels.images.shape[1:3]))
    assert len(sizes) > 1


def test_what_is_drawn_is_a_function_of_the_place(images):
    train, _ = images
    keys = [data.SampleKey(0, 3, position) for position in range(8)]
    first, again, other = (
        [data.BoxTrainSet(train, AUGMENTATION, seed)[key][0].images for key in keys] for seed in (0, 0, 1)
    )
    assert all(map(torch.equal, first, again))
    assert [image.shape for image in first] != [image.shape for image in other]
    assert len({image.shape for image in first}) > 2


def test_what_stands_for_an_unreadable_image_keeps_its_own_shape(images, root, tmp_path):
    """Where it is alone: of a group it has the size."""
    train, _ = images
    (root / "train2017/train_0.png").write_bytes(b"no image")  # 96 x 64
    transform = data.BoxAugmentation(0.0, (64,), None, 0.0, (64,), (48, 80), 16)
    samples = data.BoxTrainSet(train, transform, 0, data.SkippedImages(tmp_path / "skipped.jsonl", 9))
    shapes = {tuple(samples[data.SampleKey(0, 0, position)][0].images.shape[1:3]) for position in range(40)}
    assert shapes == {(64, 96), (96, 64), (64, 80)}  # height and width, of four kinds of images
    grouped = samples[data.SampleKey(0, 0, 0, (0, 2))][0]
    assert grouped.images.shape[1:3] == (64, 96)


def test_padding_is_0_once_normalised(images):
    train, _ = images
    samples = data.BoxTrainSet(train, AUGMENTATION, seed=0)
    batch = [samples[data.SampleKey(index, 0, index)] for index in (0, 1, 6)]
    pixels, objects = data.collate_boxes(batch)
    shown = normalized(pixels, MEAN, STD)
    assert objects.counts.tolist() == [len(target.labels) for _, target in batch]
    for image, (own, _) in zip(shown, batch, strict=True):
        height, width = own.images.shape[1:3]
        assert torch.equal(image[:, :height, :width], normalized(own, MEAN, STD)[0])
        assert not image[:, height:].any()
        assert not image[:, :, width:].any()
    assert [len(one["labels"]) for one in objects.by_image()] == objects.counts.tolist()


def test_evaluation_batches_have_one_size_and_every_image_once(images):
    _, val = images
    samples = data.BoxEvalSet(val, EVALUATION, MEAN, STD)
    batches = samples.batches(range(4), 2)
    assert sorted(index for batch in batches for index in batch) == [0, 1, 2, 3]
    for batch in batches:
        shown, seen = data.collate_seen([samples[index] for index in batch])
        assert shown.shape[0] == len(batch)
        assert [one.size for one in seen] == [val.size(index)[::-1] for index in batch]


def test_an_image_that_cannot_be_read_is_named_or_passed_over(images, root, tmp_path):
    _, val = images
    (root / "val2017/val_1.png").write_bytes(b"no image")
    with pytest.raises(UserError, match=r"val_1\.png cannot be read"):
        data.BoxEvalSet(val, EVALUATION, MEAN, STD)[1]
    skipped = data.SkippedImages(tmp_path / "skipped.jsonl", 3)
    seen = data.BoxEvalSet(val, EVALUATION, MEAN, STD, skipped)[1]
    assert seen.index == data.NOT_COUNTED
    assert skipped.images() == {str(root / "val2017/val_1.png")}


def test_a_step_knows_all_its_objects_beforehand():
    none = torch.zeros(0)
    batches = [(number, data.Objects(none, none, none, torch.tensor(number))) for number in range(1, 6)]
    assert [(number, int(objects.of_step)) for number, objects in data.in_steps(iter(batches), 2)] == [
        (1, 3),
        (2, 3),
        (3, 7),
        (4, 7),
        (5, 5),
    ]


def test_coco_itself(larger_data):
    """Real images and annotations: crowds, boxes on the edge, images without objects."""
    places = data.CocoPlaces("train", "val", "annotations/instances_train.json", "annotations/instances_val.json")
    for name in ("bccd", "coco_sample"):
        root = larger_data(name)
        assert data.check_datasets("coco", root, 4, labelling=places) == []
        train, val = data.open_datasets("coco", root, labelling=places)
        truth = json.loads((root / "annotations/instances_val.json").read_text())
        assert len(val.ground_truth()["annotations"]) == len(truth["annotations"])
        assert len(train.classes) == max(one["id"] for one in truth["categories"]) + 1
        assert np.isfinite(train.target(0).boxes.numpy()).all()
