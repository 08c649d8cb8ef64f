"""Models of transformers under `hf:`: made, started from their weights, trained, evaluated, exported."""

import json
import sys
from pathlib import Path

import pytest
import torch
import yaml
from PIL import Image

from toe_train import load
from toe_train.analysis.flops import plan_costs
from toe_train.build.model import build_model, load_initial
from toe_train.cli.tools import main as tools
from toe_train.cli.train import main
from toe_train.errors import UserError
from toe_train.models import create_model, hub
from toe_train.recipes import load_config
from toe_train.runs.checkpoints import read
from toe_train.training.optim import create_optimizer, set_lr

transformers = pytest.importorskip("transformers")

SIZE = {"image_size": 16, "patch_size": 4, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
KINDS = {
    "dinov2": ("Dinov2Config", {"mlp_ratio": 2}),
    "vit": ("ViTConfig", {"intermediate_size": 64}),
    "deit": ("DeiTConfig", {"intermediate_size": 64, "architectures": ["DeiTForImageClassification"]}),
    "siglip": ("SiglipConfig", None),
    "clip": ("CLIPConfig", None),
}
RUN = Path(__file__).parents[2] / "configs" / "quickstart.yaml"
CLASSES = [str(number) for number in range(10)]  # of the digits
PREPROCESSOR = {
    "image_mean": [0.4, 0.5, 0.6],
    "image_std": [0.2, 0.3, 0.4],
    "resample": 2,
    "size": {"shortest_edge": 20},
    "do_center_crop": True,
    "crop_size": {"height": 16, "width": 16},
}


def made(folder, kind="dinov2", classes=None, preprocessor=PREPROCESSOR, **changes):
    """A folder of a tiny model with random weights, as save_pretrained writes it; and the model."""
    name, own = KINDS[kind]
    names = {"id2label": dict(enumerate(classes)), "label2id": {}} if classes else {}
    if own is None:
        small = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
        vision = {**SIZE, "intermediate_size": 64, **changes}
        config = getattr(transformers, name)(text_config=small, vision_config=vision, **names)
    else:
        config = getattr(transformers, name)(**{**SIZE, **own, **changes, **names})
    torch.manual_seed(1)
    model = transformers.AutoModelForImageClassification.from_config(config)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    model.save_pretrained(folder)
    if preprocessor:
        (folder / "preprocessor_config.json").write_text(json.dumps(preprocessor))
    return model.eval()


def run_of(folder, tmp_path, **changes):
    """File of a run of seconds on the digits."""
    given = {
        "extends": str(RUN),
        "epochs": 2,
        "model": {"name": f"hf:{folder}", "drop_path": 0.0, "kwargs": {}, **changes.pop("model", {})},
        "expansion": {"stage_epochs": [0, 1], "keep_rates": [0.5, 1.0], "initial_keep_rate": 0.25},
        "augment": {"mix_group": 128, "mean": None, "std": None},
        "evaluate": {"crop_pct": None},
        "schedule": {"warmup_epochs": 0},
        "train": {"global_batch": 256, "max_micro_batch": 256, "log_every": 1},
        "allow": ["last_stage_not_reached", "peak_not_reached"],
        **changes,
    }
    path = tmp_path / "hf.yaml"
    path.write_text(yaml.safe_dump(given))
    return path


@pytest.mark.parametrize("kind", KINDS)
def test_a_model_is_the_librarys_with_its_weights_and_a_new_head(kind, tmp_path):
    theirs = made(tmp_path / "m", kind)
    config = load_config(run_of(tmp_path / "m", tmp_path))
    built = build_model(config, 10)
    assert built.grid == (4, 4)
    told = load_initial(config, built, CLASSES)
    assert told.startswith(f"initial weights from {tmp_path / 'm'}\n")
    assert "new: classifier.weight, classifier.bias (the file does not name its classes)" in told
    ours = dict(built.model.state_dict())
    assert ours.keys() == theirs.state_dict().keys()
    for name, value in theirs.state_dict().items():
        assert torch.equal(ours[name], value) is not name.startswith("classifier."), name
    theirs.classifier = built.model.classifier
    images = torch.randn(2, 3, 16, 16)
    assert torch.equal(built.model.eval()(images), theirs(images).logits)
    built.method.begin_epoch(0)
    built.model.train()(images).sum().backward()
    assert len(built.method.expansion.kept[0]) == 8
    without = [name for name, p in built.model.named_parameters() if p.requires_grad and p.grad is None]
    assert without == []


def test_the_head_stays_for_its_own_classes_and_positions_follow_the_size(tmp_path):
    theirs = made(tmp_path / "m", classes=CLASSES)
    config = load_config(run_of(tmp_path / "m", tmp_path, model={"image_size": 24}))
    built = build_model(config, 10)
    told = load_initial(config, built, CLASSES)
    assert "new:" not in told
    assert "resized: dinov2.embeddings.position_embeddings from 4x4 to 6x6 patches" in told
    assert torch.equal(built.model.classifier.weight, theirs.classifier.weight)
    positions = built.model.dinov2.embeddings.position_embeddings
    assert torch.equal(positions[:, :1], theirs.dinov2.embeddings.position_embeddings[:, :1])
    built.method.begin_epoch(0)
    built.model.train()(torch.zeros(2, 3, 24, 24)).sum().backward()
    assert len(built.method.expansion.kept[0]) == 18


def test_a_backbone_alone_begins_with_a_new_head_and_others_are_refused(tmp_path):
    made(tmp_path / "m").dinov2.save_pretrained(tmp_path / "backbone")
    config = load_config(run_of(tmp_path / "backbone", tmp_path))
    told = load_initial(config, build_model(config, 10), CLASSES)
    assert "new: classifier.weight, classifier.bias" in told
    made(tmp_path / "wide", hidden_size=48)
    other = load_config(run_of(tmp_path / "m", tmp_path, model={"initial_weights": str(tmp_path / "wide")}))
    with pytest.raises(UserError, match=r"model.initial_weights = .*/wide: these are not the weights of Dinov2"):
        load_initial(other, build_model(other, 10), CLASSES)
    plain = load_config(RUN, ["model.kwargs={patch_size: 4}", f"model.initial_weights={tmp_path / 'm'}"])
    with pytest.raises(UserError, match=r"is of transformers, and deit.* is not; use model.name=hf:.*/m"):
        load_initial(plain, build_model(plain, 10), CLASSES)
    new = load_config(run_of(tmp_path / "m", tmp_path), ["model.initial_weights=new"])
    assert load_initial(new, build_model(new, 10), CLASSES) == "initial weights are new, drawn at random"


def test_a_run_from_start_to_export(tmp_path, capsys, monkeypatch):
    """Trained, broken off and resumed, evaluated, asked, and opened by transformers, without the first folder."""
    theirs = made(tmp_path / "m")
    monkeypatch.chdir(tmp_path)
    config = run_of("m", tmp_path, model={"drop_path": 0.2})
    output = tmp_path / "run"
    assert main(["--config", str(config), "--output", str(output), "epochs=1"]) == 0
    told = capsys.readouterr().out
    assert f"preprocessing by preprocessor_config.json of {tmp_path / 'm'}: " in told
    assert "augment.mean [0.4, 0.5, 0.6]" in told
    assert "initial weights from" in told
    saved = yaml.safe_load((output / "config.yaml").read_text())
    assert saved["augment"]["std"] == [0.2, 0.3, 0.4]
    assert saved["augment"]["interpolation"] == saved["evaluate"]["interpolation"] == "bilinear"
    assert saved["evaluate"]["crop_pct"] == 0.8
    assert saved["model"]["architecture"]["model_type"] == "dinov2"
    (tmp_path / "m").rename(tmp_path / "gone")
    config = run_of(tmp_path / "m", tmp_path, model={"drop_path": 0.2})
    assert main(["--config", str(config), "--output", str(output)]) == 0
    told = capsys.readouterr().out
    assert "continuing at epoch 2 of 2" in told
    assert "epochs: 1 in the checkpoint, 2 now" in told
    assert " in the checkpoint, " not in told.replace("epochs: 1 in the checkpoint, ", "")
    state = read(output / "checkpoints/last.pt")
    assert state["model"].keys() == theirs.state_dict().keys()
    assert tools(["eval", str(output)]) == 0
    assert "top-1" in capsys.readouterr().out
    assert tools(["export", "--checkpoint", str(output), "--output", str(tmp_path / "out")]) == 0
    assert "AutoModelForImageClassification.from_pretrained" in capsys.readouterr().out
    opened = transformers.AutoModelForImageClassification.from_pretrained(tmp_path / "out").eval()
    mine = load(output)
    images = torch.randn(2, 3, 16, 16)
    torch.testing.assert_close(opened(images).logits, mine.model(images))
    assert opened.config.id2label[3] == mine.classes[3]
    processor = json.loads((tmp_path / "out/preprocessor_config.json").read_text())
    assert processor["image_mean"] == [0.4, 0.5, 0.6]
    assert processor["size"] == {"shortest_edge": 20}
    assert (tmp_path / "out/model.safetensors").stat().st_mode & 0o777 == 0o666 & ~_umask(tmp_path)
    again = load(tmp_path / "out")
    assert again.classes == mine.classes
    torch.testing.assert_close(again.model(images), mine.model(images))
    picture = Image.new("RGB", (40, 30), (200, 30, 30))
    torch.testing.assert_close(again.transform(picture), mine.transform(picture))


def _umask(tmp_path):
    (tmp_path / "touched").touch()
    return 0o666 & ~(tmp_path / "touched").stat().st_mode


def test_drop_path_rises_and_rates_fall_by_layer(tmp_path):
    made(tmp_path / "m", num_hidden_layers=3)
    config = load_config(run_of(tmp_path / "m", tmp_path, model={"drop_path": 0.2}))
    built = build_model(config, 10)
    rates = [float(layer.rate) for layer in built.draws["drop_path"].layers]
    assert rates == pytest.approx([0.1, 0.1, 0.2, 0.2])  # of attention and perceptron
    optimizer = create_optimizer(built.model, "adamw", 1e-3, 0.05, (0.9, 0.999), 1e-8, 0.9, layer_decay=0.5)
    set_lr(optimizer, 0.8)
    named = dict(built.model.named_parameters())
    rates = {id(p): (group["lr"], group["weight_decay"]) for group in optimizer.param_groups for p in group["params"]}
    expected = {
        "dinov2.embeddings.position_embeddings": (0.05, 0),
        "dinov2.embeddings.patch_embeddings.projection.weight": (0.05, 0.05),
        "dinov2.encoder.layer.0.norm1.weight": (0.1, 0),
        "dinov2.encoder.layer.2.mlp.fc1.weight": (0.4, 0.05),
        "dinov2.layernorm.weight": (0.4, 0),
        "classifier.weight": (0.8, 0.05),
    }
    for name, wanted in expected.items():
        assert rates[id(named[name])] == pytest.approx(wanted), name
    assert id(named["dinov2.embeddings.mask_token"]) not in rates


@pytest.mark.parametrize(
    ("kind", "kwargs", "drop_path"), [("dinov2", {}, 0.5), ("vit", {"hidden_dropout_prob": 0.5}, 0.0)]
)
def test_both_branches_of_a_block_drop_by_draws_of_their_own(kind, kwargs, drop_path, tmp_path):
    made(tmp_path / "m", kind)
    section = {"drop_path": drop_path, "kwargs": kwargs}
    config = load_config(run_of(tmp_path / "m", tmp_path, model=section, expansion=None, allow=[]))
    built = build_model(config, 10)
    block, x = built.model.train().transformer_blocks[1], torch.randn(16, 17, 32)
    draws = built.draws["drop_path" if drop_path else "dropout"]
    uniform = torch.rand(draws.count, 16, generator=torch.Generator().manual_seed(0))

    def output(uniform):
        draws.give(uniform)
        return block(x)

    first = output(uniform)
    for row in (-1, -2):  # the last block's
        changed = uniform.clone()
        changed[row] = uniform[row].roll(1)
        assert not torch.equal(output(changed), first)
    assert torch.equal(output(uniform), first)
    block.compile(backend="eager", fullgraph=True)
    assert torch.equal(output(uniform), first)
    assert torch.equal(output(uniform), first)
    assert torch.equal(block.eval()(x), block(x))


def test_its_flops_have_attention(tmp_path):
    """2 blocks of 4 D^2 + 2 r D^2 per token and 2 T^2 D, patches and head."""
    made(tmp_path / "m")
    cost = plan_costs(load_config(run_of(tmp_path / "m", tmp_path)), 10).full
    tokens, width = 17, 32
    blocks = 2 * (8 * width * width * tokens + 2 * tokens * tokens * width)
    assert cost.macs == blocks + 16 * 48 * width + 2 * width * 10


def test_what_is_none_is_named(tmp_path, monkeypatch):
    for name, words in [
        (tmp_path / "nothing", "there is no such folder"),
        (tmp_path, "there is no config.json in it"),
    ]:
        with pytest.raises(UserError, match=f"model.name = hf:{name}: {words}"):
            create_model(f"hf:{name}", 10)
    (tmp_path / "config.json").write_text('{"architecture": "vit_tiny_patch16_224"}')
    with pytest.raises(UserError, match="names no model_type, so that it is not of transformers"):
        create_model(f"hf:{tmp_path}", 10)
    (tmp_path / "config.json").write_text('{"model_type": "dinov3_vit"}')
    with pytest.raises(UserError, match="has no image classifier of dinov3_vit; look for the model in timm"):
        create_model(f"hf:{tmp_path}", 10)
    (tmp_path / "config.json").write_text('{"model_type": "resnet"}')
    with pytest.raises(UserError, match="resnet has no patches of one size"):
        create_model(f"hf:{tmp_path}", 10)
    made(tmp_path / "m", "vit", attention_probs_dropout_prob=0.1)
    with pytest.raises(UserError, match=r"drops out of its attention with attention_probs_dropout_prob=0\.1"):
        create_model(f"hf:{tmp_path / 'm'}", 10, img_size=16)
    quiet = {"attention_probs_dropout_prob": 0.0}
    with pytest.raises(UserError, match="vit of transformers has no drop path; set it to 0"):
        create_model(f"hf:{tmp_path / 'm'}", 10, 0.1, 16, **quiet)
    stray = {
        **json.loads((tmp_path / "m/config.json").read_text()),
        "drop_path_rate": 0.0,
    }  # which it reads and ignores
    with pytest.raises(UserError, match="vit of transformers has no drop path; set it to 0"):
        create_model("hf:m", 10, 0.1, 16, architecture=stray, **quiet)
    with pytest.raises(UserError, match=r"model.kwargs.layer_norm_ep: .* no such value; did you mean layer_norm_eps"):
        create_model(f"hf:{tmp_path / 'm'}", 10, 0.0, 16, layer_norm_ep=1e-5)
    with pytest.raises(
        UserError, match=r"model\.architecture: it is of a model of transformers, and model\.name=deit_"
    ):
        load_config(RUN, ["model.architecture={model_type: vit}"])
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(UserError, match=r"needs transformers, which is not installed: .*toe-train\[transformers\]"):
        create_model(f"hf:{tmp_path / 'm'}", 10, 0.0, 16)


def test_a_name_on_the_hub_out_of_reach_is_said_at_once(monkeypatch):
    monkeypatch.setattr(hub.huggingface_hub, "try_to_load_from_cache", lambda *_: None)
    monkeypatch.setattr(hub, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(hub.huggingface_hub, "hf_hub_download", None)  # not even tried
    with pytest.raises(UserError, match=r"taken for a name on the hub.*does not answer \(HF_HUB_OFFLINE is set\)"):
        create_model("hf:facebook/dinov2-small", 10)
