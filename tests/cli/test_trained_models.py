"""eval, view, export and labels of a run folder, a checkpoint, an exported folder and published weights."""

import json
import os
import stat

import numpy as np
import pytest
import timm
import torch
from PIL import Image

from toe_train.build import export as exporting
from toe_train.cli.train import main
from toe_train.models import create_model

SMALL = {"patch_size": 4, "embed_dim": 32, "depth": 2, "num_heads": 2}  # as in conftest.TINY


@pytest.fixture
def trained(tiny, tmp_path, image_root):
    """A run on three classes of images."""
    given = ["data.kind=image_folder", f"data.root={image_root}", "data.workers=0", "train.global_batch=4"]
    given += ["augment.mix_group=4", "epochs=1", "expansion=null"]
    assert main(["--config", str(tiny), "--output", str(tmp_path / "run"), *given]) == 0
    return tmp_path / "run"


def scores(out):
    return out[out.index("top-1") :]


def test_each_form_of_a_model_scores_the_same(trained, said, tmp_path, tiny, image_root):
    code, out, _ = said("eval", "--checkpoint", trained)  # no --config: the checkpoint holds it
    assert code == 0
    assert out.startswith(f"{trained}/checkpoints/best.pt (model): top-1")
    expected = scores(out)
    for path in (trained / "checkpoints", trained / "checkpoints/last.pt"):
        assert scores(said("eval", "--checkpoint", path)[1]) == expected
    code, out, err = said("export", "--checkpoint", trained, "--output", tmp_path / "out")
    assert code == 0, err
    images = ["data.kind=image_folder", f"data.root={image_root}", "data.workers=0", "train.precision=fp32"]
    code, out, err = said("eval", "--checkpoint", tmp_path / "out", *images)
    assert code == 0, err
    assert scores(out) == expected
    # As plain weights, under a prefix; the file tells neither model nor classes.
    state = torch.load(trained / "checkpoints/best.pt", weights_only=True)["model"]
    plain = tmp_path / "plain.pth"
    torch.save({"state_dict": {f"module.{key}": value for key, value in state.items()}}, plain)
    code, _, err = said("eval", "--checkpoint", plain, *images)
    assert code == 2
    assert "does not tell their model; give --config FILE" in err
    code, out, err = said("eval", "--checkpoint", plain, "--config", tiny, *images)
    assert code == 0, err
    assert scores(out) == expected
    assert "renamed: 32 tensors, module. taken off their names" in out
    assert "the file does not name its classes" in out


def test_exports_of_exports_and_of_plain_weights(trained, said, tmp_path, tiny):
    first, second, third = (tmp_path / name for name in ("first", "second", "third"))
    assert said("export", "--checkpoint", trained, "--output", first)[0] == 0
    assert said("export", "--checkpoint", first, "--output", second)[0] == 0
    assert (first / "model.safetensors").read_bytes() == (second / "model.safetensors").read_bytes()
    cards = [json.loads((folder / "config.json").read_text()) for folder in (first, second)]
    assert cards[0] == cards[1]
    code, _, err = said("export", "--checkpoint", first / "model.safetensors", "--config", tiny, "--output", third)
    assert code == 0, err
    assert timm.create_model(f"local-dir:{third}", pretrained=True).num_classes == 3


def test_an_export_has_the_users_licence_and_the_umasks_rights(trained, said, tmp_path):
    before = os.umask(0o022)
    try:
        for name, given, licence in (("none", [], None), ("own", ["--license", "cc-by-4.0"], "cc-by-4.0")):
            assert said("export", "--checkpoint", trained, "--output", tmp_path / name, *given)[0] == 0
            card = json.loads((tmp_path / name / "config.json").read_text())
            assert card["pretrained_cfg"].get("license") == licence
            for path in (tmp_path / name).iterdir():
                assert stat.S_IMODE(path.stat().st_mode) == 0o644
            assert stat.S_IMODE((tmp_path / name).stat().st_mode) == 0o755
    finally:
        os.umask(before)


def test_where_an_export_cannot_be_written(trained, said, tmp_path, monkeypatch):
    code, _, err = said("export", "--checkpoint", trained, "--output", "/dev/null/x")
    assert code == 2
    assert err == "error: --output /dev/null/x: /dev/null is a file and no folder; name a new folder elsewhere\n"

    def full(self, content):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(exporting.Path, "write_bytes", full)
    code, _, err = said("export", "--checkpoint", trained, "--output", tmp_path / "out")
    assert code == 3
    assert "No space left on device; make room" in err
    assert [path.name for path in tmp_path.iterdir() if "out" in path.name] == []


def test_a_view_of_each(trained, said, tmp_path, tiny):
    picture = tmp_path / "a.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (20, 20, 3), dtype=np.uint8)).save(picture)
    assert said("export", "--checkpoint", trained, "--output", tmp_path / "out")[0] == 0
    headless = create_model("deit_tiny_patch16_224", 0, 0.0, 16, **SMALL).state_dict()
    torch.save({"teacher": {f"backbone.{key}": value for key, value in headless.items()}}, tmp_path / "dino.pth")
    for path, more in ((trained, []), (tmp_path / "out", []), (tmp_path / "dino.pth", ["--config", tiny])):
        given = ["view", "--checkpoint", path, "--images", picture, "--output", tmp_path / "kept.png", *more]
        code, out, err = said(*given)
        assert code == 0, err
        assert out.endswith(f"drawn: {tmp_path / 'kept.png'}\n")
        (tmp_path / "kept.png").unlink()
    assert "taken: teacher" in out
    code, _, err = said(*given, "--images", tmp_path / "none.png")
    assert code == 2
    assert err == f"error: --images {tmp_path / 'none.png'}: there is no such file; give image files\n"


def test_a_tool_takes_no_weights_in_part(said, tmp_path, tiny):
    """To start from, a lost token may do; to evaluate it would be another model."""
    for name, changes, words in [
        ("deit_tiny_distilled_patch16_224", {}, "give model.name=deit_tiny_distilled_patch16_224"),
        ("deit_tiny_patch16_224", {"reg_tokens": 4}, "give model.kwargs.reg_tokens=4"),
        ("deit_tiny_patch16_224", {"num_classes": 0}, "holds no classifier"),
        ("deit_tiny_patch16_224", {"num_classes": 7}, "knows 7 classes and the data set has 10"),
    ]:
        model = timm.create_model(name, **{"num_classes": 10, "img_size": 16, **SMALL, **changes})
        torch.save(model.state_dict(), tmp_path / "w.pth")
        code, _, err = said("eval", "--checkpoint", tmp_path / "w.pth", "--config", tiny)
        assert code == 2
        assert words in err
        assert err.count("\n") == 1


def test_remedies_are_the_tools_own(trained, said, tiny):
    code, _, err = said("eval", "--checkpoint", trained, "model.kwargs.embed_dim=64")
    assert code == 2
    assert "Leave --config out" in err
    assert "--resume" not in err
    assert "--output" not in err
    code, _, err = said("eval", "--checkpoint", trained, "--weights", "ema", "train.ema_decay=0.5")
    assert code == 0, err
    for path, words in (("none.pt", "there is no such file; give a run folder"), (trained.parent, "neither a run")):
        code, _, err = said("eval", "--checkpoint", path)
        assert code == 2
        assert words in err


@pytest.mark.parametrize("averaged", [False, True])
def test_a_teacher_s_raw_weights_unless_asked(said, tmp_path, image_root, averaged):
    """timm's own reader takes the averaged ones silently."""
    raw, average = (timm.create_model("deit_tiny_patch16_224", num_classes=3, img_size=16, **SMALL) for _ in range(2))
    card = {"architecture": "deit_tiny_patch16_224", "model_args": SMALL, "pretrained_cfg": {"input_size": [3, 16, 16]}}
    (tmp_path / "config.json").write_text(json.dumps(card))
    torch.save({"state_dict": raw.state_dict(), "state_dict_ema": average.state_dict()}, tmp_path / "pytorch_model.bin")
    given = ["--images", image_root / "train", "--output", tmp_path / "labels", "--workers", 0, "--nproc", 1]
    given += ["--teacher-averaged"] if averaged else []
    code, out, err = said("labels", *given, "--teacher-weights", tmp_path)
    assert code == 0, err
    assert ("taken: state_dict_ema, not state_dict" if averaged else "taken: state_dict, not state_dict_ema") in out
    from toe_train.analysis.teacher import open_teacher

    teacher = open_teacher(None, str(tmp_path), None, ["bird", "cat", "dog"], averaged)
    expected = average if averaged else raw
    assert torch.equal(teacher.model.pos_embed, expected.pos_embed)


def test_a_teacher_that_does_not_exist(said, tmp_path, image_root):
    given = ["--images", image_root / "train", "--output", tmp_path / "labels", "--nproc", 1]
    code, _, err = said("labels", *given, "--teacher", "nosuch")
    assert code == 2
    assert err == "error: --teacher nosuch: there is no such model; timm.list_models() lists them, e.g. resnet50\n"
