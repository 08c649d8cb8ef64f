"""The pictures of kept tokens that a run drew, in the report of it."""

import io

import torch
from PIL import Image
from torch.utils.tensorboard import SummaryWriter

from toe_train.analysis.figures import png
from toe_train.analysis.kept_pictures import kept_figures
from toe_train.analysis.page import page
from toe_train.analysis.runs import Row, Run
from toe_train.recipes import load_config


def row_of(configs, config, *folders):
    resolved = load_config(configs / f"{config}.yaml")
    return Row("a_row", [Run(f"a_row-s{seed}", resolved, [{}], [], folder) for seed, folder in enumerate(folders)])


def draw(folder, shades):
    """Pictures of one shade each, at epochs from 1."""
    with SummaryWriter(str(folder)) as writer:
        writer.add_scalar("accuracy/val_top1", 1.0, 1)
        for epoch, shade in enumerate(shades, 1):
            writer.add_image("kept_tokens", torch.full((3, 16, 16), shade), epoch)


def test_the_first_picture_of_the_first_run_that_has_one(configs, tmp_path):
    draw(tmp_path / "with", [0.5, 1.0])
    draw(tmp_path / "without", [])
    places = [tmp_path / name for name in ("gone", "without", "with")]
    (figure,) = kept_figures([row_of(configs, "proxy_toe_r05", *places)])
    assert (figure.name, figure.title) == ("kept_a_row", "What a_row keeps at epoch 1")
    shown = Image.open(io.BytesIO(png(figure))).convert("L")
    assert 120 < shown.getpixel((shown.width // 2, shown.height // 2)) < 135


def test_rows_that_drop_nothing_or_came_without_pictures_have_none(configs, tmp_path):
    draw(tmp_path / "with", [0.5])
    rows = [row_of(configs, "proxy", tmp_path / "with"), row_of(configs, "proxy_toe_r05", tmp_path / "gone")]
    assert kept_figures(rows) == []


def test_marked_words_and_columns_of_words_on_the_page():
    html = page("A page", ["**bold**, *lean*, 2 * 3 * 4, `a*b`"], [("", ["run", "seeds"], [("a", "1")])], [], [])
    assert "<p><b>bold</b>, <i>lean</i>, 2 * 3 * 4, <code>a*b</code></p>" in html
    assert '<td class="words">a</td><td>1</td>' in html
