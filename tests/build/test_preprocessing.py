"""Mean, std, interpolation and crop of the weights' own card, where the configuration leaves them open."""

import json
from contextlib import nullcontext

import huggingface_hub
import pytest
import yaml

from toe_train.build.preprocessing import FromWeights
from toe_train.build.weights.cards import card_of_transformers, of_preprocessor, of_timm
from toe_train.errors import UserError
from toe_train.models import hub
from toe_train.recipes import RunConfig, dump_config, experiment, load_config
from toe_train.runs import checkpoints, sealed
from toe_train.runs.folder import RunFolder

HALF = (0.5, 0.5, 0.5)
IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225), "bicubic", "bicubic", 0.875)


def shown(config):
    augment, section = config.augment, config.evaluate
    return augment.mean, augment.std, augment.interpolation, section.interpolation, section.crop_pct


@pytest.fixture
def loaded(configs, tmp_path):
    """loaded(*overrides, resume=): the configuration, and what is said."""

    def load(*overrides, resume="auto", **values):
        path = tmp_path / "run.yaml"
        path.write_text(yaml.safe_dump({"extends": str(configs / "deit_tiny.yaml"), **values}))
        known = FromWeights(RunFolder(tmp_path / "run"), resume)
        return load_config(path, overrides, known), known.lines

    return load


def test_without_weights_they_are_imagenets(loaded, configs):
    config, lines = loaded()
    assert shown(config) == IMAGENET
    assert lines == []
    assert experiment(config.model_dump(mode="json")) == experiment(RunConfig().model_dump(mode="json"))


def test_timms_record(loaded):
    siglip = ("model.name=vit_base_patch16_siglip_224", "model.initial_weights=timm")
    config, (line,) = loaded(*siglip)
    assert shown(config) == (HALF, HALF, "bicubic", "bicubic", 0.9)
    assert line.startswith("preprocessing by timm's record of vit_base_patch16_siglip_224.v2_webli: ")
    assert "augment.mean [0.5, 0.5, 0.5]" in line
    config, (line,) = loaded(*siglip, "augment.mean=[0.1, 0.2, 0.3]", evaluate={"crop_pct": 1.0})
    assert shown(config) == ((0.1, 0.2, 0.3), HALF, "bicubic", "bicubic", 1.0)
    assert line.endswith("; the configuration gives its own augment.mean, evaluate.crop_pct")
    assert "augment.mean [" not in line


def test_an_export_and_a_run(loaded, tmp_path):
    folder = tmp_path / "out"
    folder.mkdir()
    (folder / "model.safetensors").touch()
    card = {"architecture": "x", "pretrained_cfg": {"mean": HALF, "std": [0.1, 0.2, 0.3], "crop_pct": 0.95}}
    (folder / "config.json").write_text(json.dumps(card))
    config, (line,) = loaded(f"model.initial_weights={folder}")
    assert shown(config) == (HALF, (0.1, 0.2, 0.3), "bicubic", "bicubic", 0.95)
    assert line.startswith(f"preprocessing by {folder / 'config.json'}: ")
    state = dict.fromkeys(checkpoints.KEYS) | {"format": checkpoints.FORMAT, "config": config.model_dump(mode="json")}
    sealed.write(tmp_path / "last.pt", state)
    again, (line,) = loaded(f"model.initial_weights={tmp_path / 'last.pt'}")
    assert shown(again) == shown(config)
    assert line.startswith(f"preprocessing by the run of {tmp_path / 'last.pt'}: ")
    (tmp_path / "plain.pth").touch()
    config, lines = loaded(f"model.initial_weights={tmp_path / 'plain.pth'}")
    assert (shown(config), lines) == (IMAGENET, [])


@pytest.mark.parametrize("resume", ["auto", "path"])
def test_a_run_goes_on_with_what_it_began_with(loaded, tmp_path, resume):
    began, _ = loaded("augment.std=[0.1, 0.2, 0.3]", "evaluate.crop_pct=0.7")
    last = tmp_path / "run/checkpoints/last.pt"
    last.parent.mkdir(parents=True)
    state = dict.fromkeys(checkpoints.KEYS) | {"format": checkpoints.FORMAT, "config": began.model_dump(mode="json")}
    sealed.write(last, state)
    if resume == "auto":
        (tmp_path / "run/config.yaml").write_text(dump_config(began))
    given = [f"model.initial_weights={tmp_path / 'gone.pt'}", "augment.mean=[0, 0, 0]"]
    config, lines = loaded(*given, resume="auto" if resume == "auto" else str(last))
    assert shown(config) == ((0, 0, 0), (0.1, 0.2, 0.3), "bicubic", "bicubic", 0.7)
    assert lines == []


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"image_mean": HALF, "image_std": HALF, "resample": 3, "size": {"height": 224, "width": 224}}, (HALF, 1.0)),
        ({"image_mean": HALF, "image_std": HALF, "size": 256, "crop_size": 224, "do_center_crop": True}, (HALF, 0.875)),
        ({"do_normalize": False}, ((0.0, 0.0, 0.0), None)),
        ({"size": {"shortest_edge": 224}, "crop_size": {"height": 384}, "do_center_crop": True}, (None, 1.0)),
    ],
)
def test_transformers_forms_of_it(settings, expected):
    found = of_preprocessor(settings)
    assert (found.get("mean"), found.get("crop_pct")) == expected
    assert found.get("interpolation") == ("bicubic" if "resample" in settings else None)


def test_a_card_that_may_be_there_is_not_passed_over(tmp_path, monkeypatch):
    """Else a model would be fed ImageNet's mean and std in silence."""
    assert card_of_transformers(f"hf:{tmp_path}") == ("", {})
    (tmp_path / "preprocessor_config.json").write_text("{")
    with pytest.raises(UserError, match=r"preprocessor_config\.json cannot be read"):
        card_of_transformers(f"hf:{tmp_path}")
    monkeypatch.setattr(hub, "HF_HUB_OFFLINE", True)
    for known, refused in [(None, True), (huggingface_hub._CACHED_NO_EXIST, False)]:
        monkeypatch.setattr(hub.huggingface_hub, "try_to_load_from_cache", lambda *_, known=known: known)
        with pytest.raises(UserError, match="HF_HUB_OFFLINE is set") if refused else nullcontext():
            assert card_of_transformers("hf:some/model") == ("", {})


def test_what_a_record_does_not_tell_is_left_out():
    assert of_timm({"mean": None, "interpolation": "random", "crop_pct": 1.14}) == {"crop_pct": 1.0}
