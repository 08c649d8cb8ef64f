"""What is seen of a detection run: predict, view, a program of one's own, and TensorBoard."""

import csv
import io
import json

import coco_files
import numpy as np
import pytest
import torch
import yaml
from conftest import SMALL_YOLOS
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from toe_train.analysis.view import draw_kept
from toe_train.analysis.viewer import open_viewer
from toe_train.build.box_prediction import FoundObjects
from toe_train.build.prediction import load
from toe_train.build.weights.trained import open_trained
from toe_train.cli.found import BoxPictures
from toe_train.cli.train import main
from toe_train.runs.log import read_metrics
from toe_train.tasks import detection
from toe_train.tasks.box_pictures import colour_of, with_boxes


@pytest.fixture(scope="module")
def trained(configs, tmp_path_factory):
    """A detection run of two epochs, the second of which drops tokens."""
    root = tmp_path_factory.mktemp("found")
    given = {
        "extends": str(configs / "yolos_tiny_toe_r05.yaml"),
        **SMALL_YOLOS,
        "data": {"root": str(coco_files.write(root / "coco")), "workers": 0},
        "epochs": 2,
    }
    (root / "yolos.yaml").write_text(yaml.safe_dump(given))
    assert main(["--config", str(root / "yolos.yaml"), "--output", str(root / "run")]) == 0
    return root / "run"


@pytest.fixture
def photos(trained, tmp_path):
    """Four images of three sizes and one that is none."""
    folder = tmp_path / "photos"
    folder.mkdir()
    for path in sorted((trained.parent / "coco/val2017").iterdir()):
        (folder / path.name).write_bytes(path.read_bytes())
    (folder / "broken.png").write_bytes(b"nothing")
    return folder


def expected(trained, photos):
    """What the model finds by the public functions, one image at a time."""
    model, classes, transform = load(trained)
    found = {}
    for path in sorted(photos.glob("val_*.png")):
        image = Image.open(path).convert("RGB")
        with torch.no_grad():
            output = model(transform(image)[None])
        found[str(path)] = detection.postprocess(*output, torch.tensor([image.size[::-1]]))[0]
    return classes, found


def test_it_writes_the_boxes_that_the_model_finds(trained, photos, said, tmp_path):
    classes, found = expected(trained, photos)
    assert classes[1] == "square"
    code, out, err = said("predict", trained, photos, "--min-score", 0, "--format", "jsonl", "--batch", 4)
    assert code == 0, err
    assert "1 of 5 images left out:\n  " in err
    assert "20 boxes of a score of 0 or more in 4 of 4 images" in err  # 5 queries each
    lines = [json.loads(line) for line in out.splitlines()]
    assert [line["image"] for line in lines] == list(found)
    for line in lines:
        own = found[line["image"]]
        assert line["scores"] == sorted(line["scores"], reverse=True)
        order = own["scores"].argsort(descending=True)
        assert line["scores"] == pytest.approx(own["scores"][order].tolist(), abs=2e-6)
        assert line["classes"] == [classes[label] for label in own["labels"][order]]
        assert (line["width"], line["height"]) == Image.open(line["image"]).size
        bounds = np.array([line["width"], line["height"]] * 2)
        np.testing.assert_allclose(line["boxes"], own["boxes"][order].clamp(min=0).numpy().clip(max=bounds), atol=0.01)

    scores = sorted(score for line in lines for score in line["scores"])
    least = (scores[9] + scores[10]) / 2
    output = tmp_path / "found.csv"
    code, out, err = said("predict", trained, photos, "--min-score", least, "--output", output, "--workers", 1)
    assert (code, out) == (0, "")
    rows = list(csv.DictReader(io.StringIO(output.read_text())))
    assert sorted(float(row["score"]) for row in rows) == pytest.approx(scores[10:], abs=2e-6)
    first = next(line for line in lines if line["scores"][0] >= least)
    assert [float(rows[0][key]) for key in ("x_min", "y_min", "x_max", "y_max")] == first["boxes"][0]
    assert rows[0]["class"] == first["classes"][0]
    code, out, _ = said("predict", trained, photos, "--min-score", 0, "--top", 2)
    assert len(out.splitlines()) == 1 + 2 * 4


def test_it_draws_them_and_tells_where_there_are_none(trained, photos, said, tmp_path):
    (photos / "more").mkdir()
    (photos / "more/val_0.png").write_bytes((photos / "val_0.png").read_bytes())
    pictures = tmp_path / "pictures"
    code, out, err = said("predict", trained, photos, "--min-score", 1, "--pictures", pictures)
    assert code == 0
    assert out == "image,class,score,x_min,y_min,x_max,y_max\n"
    assert "0 boxes of a score of 1 or more in 0 of 5 images" in err
    assert "the highest score is 0." in err
    names = sorted(path.name for path in pictures.iterdir())
    assert names == ["val_0-2.jpg", "val_0.jpg", "val_1.jpg", "val_2.jpg", "val_3.jpg"]
    assert Image.open(pictures / "val_1.jpg").size == (64 * 8, 96 * 8)  # large enough for texts
    code, _, err = said("predict", trained, photos, "--pictures", pictures)
    assert code == 2
    assert f"--pictures {pictures} is not empty: name a new folder" in err
    code, _, err = said("predict", trained, photos, "--min-score", 2)
    assert code == 2
    assert "--min-score 2.0 must be from 0 to 1, such as 0.5" in err


def test_boxes_are_drawn_where_they_are_in_the_colours_of_their_classes():
    image = Image.new("RGB", (100, 60), "white")
    drawn = np.asarray(with_boxes(image, torch.tensor([[20.0, 10.0, 60.0, 50.0]]), [3], [""], short_side=120))
    assert drawn.shape == (120, 200, 3)  # twice as large
    inside = np.argwhere((drawn == colour_of(3)).all(2))
    assert inside.min(0).tolist() == pytest.approx([20, 40], abs=2)
    assert inside.max(0).tolist() == pytest.approx([100, 120], abs=2)
    assert (drawn[60, 80] == 255).all()
    assert len({colour_of(label) for label in range(91)}) == 91
    # At an edge of the image, and of no width: still to be seen.
    edge = torch.tensor([[-5.0, -5.0, 130.0, 30.0], [50.0, 5.0, 50.0, 5.0]])
    drawn = np.asarray(with_boxes(image, edge, [1, 2], ["one", "two"]))
    assert all((drawn == colour_of(label)).all(2).any() for label in (1, 2))


@pytest.mark.parametrize(("size", "shown"), [((2000, 20), (4000, 40)), ((3, 5000), (3, 5000)), ((100, 60), (800, 480))])
def test_a_strip_is_enlarged_as_far_as_a_file_holds_it(size, shown):
    assert with_boxes(Image.new("RGB", size), torch.tensor([[0.0, 0.0, 2.0, 2.0]]), [1], ["one"]).size == shown


def test_an_image_longer_than_jpeg_takes_is_made_smaller(tmp_path):
    Image.new("L", (70_000, 20)).save(tmp_path / "long.png")
    found = FoundObjects(str(tmp_path / "long.png"), (70_000, 20), [0], [0.9], torch.tensor([[5.0, 5.0, 900.0, 15.0]]))
    BoxPictures(tmp_path / "drawn", ["cell"], "ignore").draw(found)
    assert Image.open(tmp_path / "drawn/long.jpg").size == (65_500, 19)


def test_view_shows_boxes_and_what_is_kept(trained, photos, said, tmp_path):
    images = [photos / "val_0.png"]
    given = ["--checkpoint", trained, "--images", *images, "--output", tmp_path / "kept.png"]
    code, out, err = said("view", *given, "--features", tmp_path / "map.png", "--blocks", 1, "--min-score", 0.1)
    assert code == 0, err
    assert out.count("| val_0.png |") == 1
    assert min(Image.open(tmp_path / "kept.png").size) > 500


def test_captions_count_boxes_and_the_patches_in_them_that_are_kept(trained, photos):
    viewer = open_viewer(open_trained(str(trained), "model"), [photos / "val_1.png"])
    photo = viewer.photos[0]
    assert photo.grid == (6, 4)  # of 96 x 64 pixels
    captions = [place.get_xlabel() for place in draw_kept(viewer, 0.0).axes]
    assert captions[0] == "5 boxes of a score of 0 or more"
    logits, boxes = viewer.look(photo).output
    (found,) = detection.postprocess(logits, boxes, torch.tensor([[96, 64]]))
    for stage, caption in zip(viewer.stages, captions[1::2], strict=True):
        kept = viewer.look(photo, stage).kept.tolist()
        inside = set()
        for left, top, right, bottom in found["boxes"].tolist():
            for patch in range(24):
                down, across = 16 * (patch // 4) + 8, 16 * (patch % 4) + 8
                if left <= across <= right and top <= down <= bottom:
                    inside.add(patch)
        share = 100 * len(inside & set(kept)) / len(inside)
        assert caption == f"{len(kept)} of 24 tokens, {share:.0f} % of those in boxes\n5 boxes with these tokens"
    assert captions[2].startswith("12 tokens, the largest of ")


def test_tensorboard_shows_them_by_groups_and_counts_from_one(trained):
    events = EventAccumulator(str(trained / "tensorboard"), {"images": 0, "scalars": 0, "tensors": 0})
    events.Reload()
    assert [event.step for event in events.Images("boxes")] == [1, 2]  # after each evaluation
    assert [event.step for event in events.Images("kept_tokens")] == [2]  # the first epoch drops none
    lines = read_metrics(trained / "metrics.jsonl", "epoch")
    tags = set(events.Tags()["scalars"])
    assert {tag.split("/")[0] for tag in tags} == {"accuracy", "loss", "speed", "system"}
    names = {"accuracy/val_ap", "loss/val_loss_giou", "loss/train_loss", "speed/tokens_kept", "system/val_images"}
    assert names <= tags
    assert [(event.step, event.value) for event in events.Scalars("loss/train_loss")] == [
        (line["epoch"] + 1, pytest.approx(line["train_loss"])) for line in lines
    ]
    assert "yolos_tiny" in events.Tensors("configuration/text_summary")[0].tensor_proto.string_val[0].decode()
    by_step = EventAccumulator(str(trained / "tensorboard/steps"), {"scalars": 0})
    by_step.Reload()
    assert [event.step for event in by_step.Scalars("loss/train_loss")] == [1, 2, 3, 4]
