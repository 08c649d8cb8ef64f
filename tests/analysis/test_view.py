import dataclasses

import numpy as np
import pytest
import torch
import yaml
from conftest import TINY
from PIL import Image

from toe_train.analysis.features import token_sets
from toe_train.analysis.view import borders, draw_kept, kept_and_merged
from toe_train.analysis.viewer import open_viewer
from toe_train.build.model import build_model
from toe_train.build.weights.trained import trained_in_run
from toe_train.cli.tools import main as tools
from toe_train.cli.train import main
from toe_train.errors import UserError
from toe_train.methods.pictures import enlarged, hatched
from toe_train.recipes import RunConfig
from toe_train.runs.checkpoints import read


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Two images of 16 x 16 pixels, each patch of 4 x 4 in a colour of its own."""
    root = tmp_path_factory.mktemp("images")
    for number in range(2):
        colours = np.random.default_rng(number).integers(0, 256, (4, 4, 3), dtype=np.uint8)
        Image.fromarray(colours.repeat(4, axis=0).repeat(4, axis=1)).save(root / f"{number}.png")
    return root


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    root = tmp_path_factory.mktemp("viewed")
    (root / "tiny.yaml").write_text(yaml.safe_dump(TINY))
    assert main(["--config", str(root / "tiny.yaml"), "--output", str(root / "run"), "epochs=1"]) == 0
    return root / "run/checkpoints/last.pt"


def viewer_of(checkpoint, folder, **changes):
    state = read(checkpoint)
    for key, value in changes.items():
        section, name = key.split("__")
        if section == "expansion" and value is None:
            state["config"]["expansion"] = None
        else:
            state["config"][section][name] = value
    return open_viewer(trained_in_run(state, "model"), sorted(folder.glob("*.png")))


@pytest.mark.parametrize("stage", [1, 2])
def test_pictures_show_what_the_module_does(checkpoint, folder, stage):
    viewer = viewer_of(checkpoint, folder)
    viewer.expansion.stage = stage
    viewer.expansion.train()
    with torch.no_grad():
        viewer.built.model(torch.cat([photo.image for photo in viewer.photos]))
    kept, owner = viewer.expansion.kept, viewer.expansion.owner
    viewer.expansion.eval()
    side = 448 // 4
    for image, photo in enumerate(viewer.photos):
        shown, merged, _ = kept_and_merged(photo, viewer.look(photo, stage))
        assert shown.shape == merged.shape == (3, 448, 448)
        for patch in range(16):
            row, column = divmod(patch, 4)
            cell = (slice(None), slice(row * side, (row + 1) * side), slice(column * side, (column + 1) * side))
            own = photo.picture[:, 4 * row + 2, 4 * column + 2]
            as_it_is = torch.allclose(shown[cell], own.view(3, 1, 1).expand(3, side, side))
            assert as_it_is == (patch in kept[image])
            group = (owner[image] == owner[image, patch]).nonzero().flatten()
            colours = torch.stack([photo.picture[:, 4 * (p // 4) + 2, 4 * (p % 4) + 2] for p in group.tolist()])
            torch.testing.assert_close(merged[cell], colours.mean(0).view(3, 1, 1).expand(3, side, side))


@pytest.mark.parametrize("grey", [0.0, 0.5, 1.0])
def test_hatches_show_on_dark_grey_and_bright_photos(grey):
    image = torch.full((1, 3, 64, 64), grey)
    keeps = torch.tensor([[True, False, False, True]])
    shown = hatched(image, keeps, (2, 2))
    assert torch.equal(shown[:, :, :32, :32], image[:, :, :32, :32])
    dropped = shown[0, 0, :32, 32:]
    lines = dropped == dropped.max()
    assert 0.1 < lines.float().mean() < 0.5
    assert dropped.max() - dropped.min() == pytest.approx(0.3)  # lines and ground
    assert max((dropped.max() - grey).abs(), (dropped.min() - grey).abs()) > 0.2  # and the photo beside
    assert dropped.min() >= 0
    assert dropped.max() <= 1


def test_small_pictures_are_enlarged_by_a_whole_factor():
    image = torch.rand(2, 3, 32, 48)
    large = enlarged(image, 224)
    assert large.shape == (2, 3, 224, 336)
    assert torch.equal(large[:, :, ::7, ::7], image)
    assert enlarged(torch.rand(1, 3, 300, 400), 224).shape == (1, 3, 300, 400)


def test_lines_are_around_groups_and_around_all():
    lines = borders(torch.tensor([[0, 0], [1, 0]]))
    assert len(lines) == 8 + 2
    assert ((0, 1), (1, 1)) in lines  # between 0 and 1 below it
    assert ((1, 1), (1, 2)) in lines  # between 1 and 0 right of it
    assert ((1, 0), (1, 1)) not in lines


def test_captions_say_the_class_and_what_the_model_says_with_each_stages_tokens(checkpoint, folder):
    viewer = viewer_of(checkpoint, folder)
    assert viewer.classes == [str(digit) for digit in range(10)]
    photo = dataclasses.replace(viewer.photos[0], folder="3")
    places = draw_kept(dataclasses.replace(viewer, photos=(photo,)), 0.5).axes
    for place, stage, first in [
        (places[0], 0, "is 3"),
        (places[1], 1, "8 of 16 tokens"),
        (places[3], 2, "12 of 16 tokens"),
    ]:
        shares = viewer.look(photo, stage).output.softmax(1)[0]
        taken = int(shares.argmax())
        assert place.get_xlabel() == f"{first}\ntaken for {taken}, {100 * shares[taken]:.0f} %"
        assert place.xaxis.label.get_color() == ("tab:green" if taken == 3 else "tab:red")
    assert places[2].get_xlabel().startswith("8 tokens, the largest of ")


def test_without_merging_what_is_left_out_is_hatched(checkpoint, folder):
    viewer = viewer_of(checkpoint, folder, expansion__merging=False)
    for photo in viewer.photos:
        look = viewer.look(photo, 1)
        _, merged, _ = kept_and_merged(photo, look)
        varied = merged[0].unflatten(0, (4, 112)).unflatten(2, (4, 112)).std(dim=(1, 3)).flatten() > 0.01
        assert (~varied).nonzero().flatten().tolist() == look.kept.sort().values.tolist()


def test_a_run_without_toe_is_shown_with_the_papers(checkpoint, folder):
    viewer = viewer_of(checkpoint, folder, expansion__=None)
    assert viewer.stages == [1, 2]
    assert viewer.expansion.num_kept(16, 1) == 8


def test_random_seeds_are_the_same_each_time(checkpoint, folder):
    viewers = [viewer_of(checkpoint, folder, expansion__initialization="random") for _ in range(2)]
    pictures = [kept_and_merged(viewer.photos[0], viewer.look(viewer.photos[0], 1))[0] for viewer in viewers]
    assert torch.equal(*pictures)


def test_a_checkpoint_of_a_smaller_stage(checkpoint, folder):
    state = read(checkpoint)
    size = state["config"]["model"]["image_size"]
    small = {**state["config"]["model"], "image_size": size - 4}
    model = build_model(RunConfig.model_validate({**state["config"], "model": small}), 10).model
    viewer = open_viewer(trained_in_run({**state, "model": model.state_dict()}, "model"), sorted(folder.glob("*.png")))
    assert viewer.built.num_tokens == (size // 4) ** 2


def test_token_sets(checkpoint, folder):
    viewer = viewer_of(checkpoint, folder)
    first, second = token_sets(viewer, viewer.photos[0], [1, 2], stage=1)
    for found in (first, second):
        assert found.full.shape == (16, 2)
        assert found.reduced.shape == (8, 2)
        assert all(distance > 0 for distance in found.distances)
    # At block 1 the reduced set is what ToE hands on; its tokens are means of the full set's.
    with torch.no_grad():
        tokens = []
        hook = viewer.expansion.register_forward_hook(lambda module, given, output: tokens.append(output[0][0, 1:]))
        viewer.expansion.stage = 1
        viewer.expansion.train()
        viewer.built.model(viewer.photos[0].image)
        hook.remove()
        viewer.expansion.eval()
    unit = torch.nn.functional.normalize(tokens[0], dim=1)
    pairs = torch.triu_indices(8, 8, 1)
    expected = 1 - (unit @ unit.T)[pairs[0], pairs[1]].mean().item()
    assert first.reduced_cosine == pytest.approx(expected, abs=1e-5)
    with pytest.raises(UserError, match="--blocks 3: the model has blocks 1 to 2"):
        token_sets(viewer, viewer.photos[0], [3], stage=1)


def test_the_command(checkpoint, folder, tmp_path, capsys):
    images = [str(path) for path in sorted(folder.glob("*.png"))]
    command = ["view", "--checkpoint", str(checkpoint), "--images", *images, "--output", str(tmp_path / "kept.png")]
    assert tools([*command, "--features", str(tmp_path / "features.png"), "--weights", "ema"]) == 0
    out = capsys.readouterr().out
    assert out.count("| 0.png |") == out.count("| 1.png |") == 2
    for name in ("kept", "features"):
        assert Image.open(tmp_path / f"{name}.png").size[0] > 500
    for wrong, words in [
        (["--stage", "3"], "drops tokens in stage 1 or 2"),
        (["--blocks", "a"], "give numbers joined by commas"),
        (["--output", str(tmp_path / "kept.xyz")], "cannot be written"),
        (["--output", str(tmp_path)], "must be a file with the suffix of its format, such as"),
        (["--min-score", "0.5"], "is a classifier, and --min-score is of detectors"),
        (["--features", str(tmp_path / "f.png"), "--blocks", "9", "--output", str(tmp_path / "new.png")], "--blocks 9"),
    ]:
        assert tools([*command, *wrong]) == 2
        assert words in capsys.readouterr().err
    assert not (tmp_path / "new.png").exists()


def test_a_run_with_another_method_is_refused(checkpoint, folder):
    state = read(checkpoint)
    state["config"] |= {"expansion": None, "method": {"kind": "token_merging"}}
    with pytest.raises(UserError, match=r"method\.kind=token_merging, and pictures are of Token Expansion alone"):
        open_viewer(trained_in_run(state, "model"), sorted(folder.glob("*.png")))
