"""The batch that follows the number of training images, and the rates that follow it."""

import pytest

from toe_train.errors import UserError
from toe_train.recipes import load_config, of_images
from toe_train.recipes.of_images import batch_of


@pytest.mark.parametrize(
    ("images", "batch"),
    [(1, 1), (3, 2), (7, 4), (8, 8), (41, 8), (127, 8), (128, 16), (511, 32), (512, 64), (1024, 128), (10**6, 128)],
)
def test_an_epoch_has_eight_steps_where_it_can(images, batch):
    assert batch_of(images) == batch
    assert images // batch >= min(8, images // 8) or batch == 128


def test_photos_follow_their_number(configs):
    config = load_config(configs / "photos.yaml")
    assert config.train.global_batch == "auto"
    assert config.global_batch == 128  # of very many
    few = of_images(config, 80)
    assert (few.train.global_batch, few.peak_lr) == (8, 5e-5)
    assert of_images(few, 10**6) == few
    assert config.peak_lr == 16 * few.peak_lr


def test_a_number_stays(configs):
    config = load_config(configs / "photos.yaml", ["train.global_batch=24"])
    assert of_images(config, 10**6) is config


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ("some", "train.global_batch = 'some': must be a number of images, or auto"),
        ("true", "train.global_batch = True: must be a number of images, or auto"),
        ("0", "train.global_batch = 0: should be greater than 0"),
    ],
)
def test_what_is_no_batch(configs, given, words):
    with pytest.raises(UserError) as fault:
        load_config(configs / "photos.yaml", [f"train.global_batch={given}"])
    assert words in str(fault.value)


def test_a_plan_that_means_nothing_with_that_batch_is_refused(configs):
    config = load_config(configs / "photos.yaml", ["schedule.min_lr=1e-4"])
    with pytest.raises(UserError, match=r"above the peak learning rate 5e-05.*\n.*=auto is 8 for 41 training images"):
        of_images(config, 41)


def test_boxes_need_a_number(configs):
    with pytest.raises(UserError, match=r"train\.global_batch: auto is for images with a class each.*number: 2"):
        load_config(configs / "yolos_tiny.yaml", ["train.global_batch=auto"])
