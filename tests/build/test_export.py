import json

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from safetensors.torch import load_file
from support import HERE

from toe_train.analysis import teacher
from toe_train.build import onnx_file
from toe_train.build.evaluation import evaluate_trained
from toe_train.build.export import export
from toe_train.build.initial_weights import Wanted, load_initial_weights
from toe_train.build.model import build_model
from toe_train.build.onnx_file import write_onnx
from toe_train.build.weights.trained import trained_in_run
from toe_train.cli.tools import main as tools
from toe_train.cli.train import main
from toe_train.data import eval_transform
from toe_train.errors import RunFailed, UserError
from toe_train.models import create_model
from toe_train.recipes import config_at, load_config, plan_epochs
from toe_train.runs import sealed
from toe_train.runs.checkpoints import read


@pytest.fixture
def run(tiny, tmp_path):
    assert main(["--config", str(tiny), "--output", str(tmp_path / "run"), "epochs=1"]) == 0
    return tmp_path / "run/checkpoints/last.pt"


@pytest.mark.parametrize("weights", ["model", "ema"])
def test_timm_builds_what_was_trained(run, tiny, tmp_path, capsys, weights):
    folder = tmp_path / "exported"
    command = ["export", "--checkpoint", str(run), "--weights", weights, "--output", str(folder)]
    assert tools(command) == 0
    assert f'timm.create_model("local-dir:{folder}", pretrained=True)' in capsys.readouterr().out
    assert sorted(path.name for path in folder.iterdir()) == ["README.md", "config.json", "model.safetensors"]
    model = timm.create_model(f"local-dir:{folder}", pretrained=True).eval()
    state = read(run)
    assert all(torch.equal(value, state[weights][key]) for key, value in model.state_dict().items())
    assert json.loads((folder / "config.json").read_text())["label_names"] == [str(digit) for digit in range(10)]

    # timm's own evaluation transform for it is the run's.
    config = load_config(tiny)
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 256, (30, 20, 3), dtype=np.uint8))
    ours = eval_transform(
        image_size=16, crop_pct=1.0, interpolation="bicubic", mean=config.augment.mean, std=config.augment.std
    )
    theirs = timm.data.create_transform(**timm.data.resolve_model_data_config(model), is_training=False)
    assert torch.equal(theirs(picture), ours(picture))

    # And it is something to start from.
    other = create_model("deit_tiny_patch16_224", 10, 0.0, 16, **config.model.kwargs)
    digits = [str(digit) for digit in range(10)]
    wanted = Wanted("deit_tiny_patch16_224", digits, config.augment.mean, config.augment.std)
    told = load_initial_weights(other, wanted, str(folder / "model.safetensors"), False)
    assert told == f"initial weights from {folder / 'model.safetensors'}"
    images = torch.randn(2, 3, 16, 16)
    assert torch.equal(other.eval()(images), model(images))

    assert tools(command) == 2
    assert "is not empty" in capsys.readouterr().err


def test_a_checkpoint_of_a_smaller_stage_is_exported_at_full_size(run, tmp_path):
    state = read(run)
    given = state["config"]["model"]
    small = create_model(given["name"], 10, 0.0, 12, **given["kwargs"])
    export(trained_in_run({**state, "model": small.state_dict()}, "model"), tmp_path / "exported")
    built = timm.create_model(f"local-dir:{tmp_path / 'exported'}", pretrained=True)
    assert built.pos_embed.shape[1] == 17
    assert torch.equal(built.cls_token, small.cls_token)


def test_lvvit_too(run, tmp_path):
    state = read(run)
    torch.manual_seed(0)
    model = create_model("lvvit_t", 10, 0.0, 32).eval()
    state["config"]["model"] = {"name": "lvvit_t", "image_size": 32, "kwargs": {}}
    state["model"] = model.state_dict()
    export(trained_in_run(state, "model"), tmp_path / "exported")
    built = timm.create_model(f"local-dir:{tmp_path / 'exported'}", pretrained=True).eval()
    images = torch.randn(1, 3, 32, 32)
    assert torch.equal(built(images), model(images))


def test_without_averaged_weights(tiny, tmp_path, capsys):
    assert main(["--config", str(tiny), "--output", str(tmp_path / "run"), "epochs=1", "train.ema_decay=null"]) == 0
    path = tmp_path / "run/checkpoints/last.pt"
    assert tools(["export", "--checkpoint", str(path), "--weights", "ema", "--output", str(tmp_path / "out")]) == 2
    assert "holds no averaged weights" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


METHODS = {
    "token_merging": "{kind: token_merging, r: 3}",
    "depth_growth": "{kind: depth_growth, depths: [1, 2], from_epochs: [0, 2]}",
    "released": "{kind: structured_sparsity, heads_kept: 0.5}",
    "small_weights": "{kind: structured_sparsity, heads_kept: 0.5, revive: small_weights}",
}


def trained_by(tiny, method, epoch=-1):
    """The model of a run with the method at an epoch, and its checkpoint."""
    config = load_config(tiny, ["expansion=null", f"method={METHODS[method]}"])
    plan = plan_epochs(config)[epoch]
    built = build_model(config_at(config, plan), 10)
    built.method.begin_epoch(plan.epoch)
    weights = {key: value.clone() for key, value in built.model.state_dict().items()}
    classes = [str(digit) for digit in range(10)]
    saved = {"config": config.model_dump(mode="json"), "classes": classes, "segment": plan.segment}
    saved["progress"] = {"epoch": epoch + 1, "step": 0}
    return built, {**saved, "model": weights, "ema": weights}


@pytest.mark.parametrize("method", list(METHODS))
def test_what_each_method_trains_is_a_plain_model_of_timm(tiny, tmp_path, method):
    built, state = trained_by(tiny, method)
    told = export(trained_in_run(state, "model"), tmp_path / "exported")
    kwargs = {"patch_size": 4, "embed_dim": 32, "depth": 2, "num_heads": 2}
    plain = timm.create_model("deit_tiny_patch16_224", img_size=16, num_classes=10, **kwargs).eval()
    plain.load_state_dict(load_file(tmp_path / "exported/model.safetensors"), strict=True)
    images = torch.randn(2, 3, 16, 16)
    own = built.model.eval()(images)
    if method == "token_merging":
        assert ["the run merged tokens" in line for line in told] == [True]
        assert not torch.allclose(plain(images), own)
        built.method.stage = 0  # merging off
        own = built.model(images)
    else:
        assert told == []
    torch.testing.assert_close(plain(images), own)


def test_a_model_that_is_still_to_grow_is_exported_as_deep_as_it_is(tiny, tmp_path):
    _, state = trained_by(tiny, "depth_growth", epoch=0)
    export(trained_in_run(state, "model"), tmp_path / "exported")
    assert len(timm.create_model(f"local-dir:{tmp_path / 'exported'}", pretrained=True).blocks) == 1


@pytest.mark.parametrize("method", ["token_merging", "released"])
def test_an_evaluation_says_where_it_merges(tiny, method):
    _, state = trained_by(tiny, method)
    told = evaluate_trained(trained_in_run(state, "model"), HERE).told
    assert any("accuracies are the merging model's" in line for line in told) == (method == "token_merging")


def test_a_teacher_is_the_plain_model_as_deep_as_its_checkpoint(tiny, tmp_path, monkeypatch):
    (tmp_path / "last.pt").write_bytes(b"read below")
    classes = [str(digit) for digit in range(10)]
    for method, epoch, depth in (("token_merging", -1, 2), ("depth_growth", 0, 1)):
        _, state = trained_by(tiny, method, epoch)
        monkeypatch.setattr(teacher.checkpoints, "read", lambda path, state=state: state)
        found = teacher.open_teacher(None, str(tmp_path / "last.pt"), None, classes)
        assert len(found.model.blocks) == depth
        assert not hasattr(found.model, "token_merging")
        assert [line for line in found.told if "merged tokens" in line] == list(found.told)
        assert bool(found.told) == (method == "token_merging")


def test_its_card_says_what_was_measured(run, tmp_path):
    lines = [json.loads(line) for line in (run.parents[1] / "metrics.jsonl").read_text().splitlines()]
    epoch = next(line for line in lines if line["kind"] == "epoch")
    for weights, key in (("model", "val_top1"), ("ema", "ema_top1")):
        folder = tmp_path / weights
        command = ["export", "--checkpoint", str(run), "--weights", weights, "--output", str(folder)]
        assert tools([*command, "--license", "cc-by-4.0"]) == 0
        card = (folder / "README.md").read_text()
        assert f"| {key} | {epoch[key]:.4f} |" in card
        assert ("| val_top5 |" in card) == (weights == "model")
        assert "license: cc-by-4.0" in card
        assert "After epoch 1, on the run's validation images" in card
        assert "share of the patch tokens kept: 0.5 from epoch 0, 0.75 from epoch 1, 1 from epoch 2" in card
        assert str(tmp_path) not in card
        assert "EXIF" not in card
    alone = tmp_path / "alone/w.pt"
    alone.parent.mkdir()
    state = read(run)
    state["config"]["data"]["exif_orientation"] = "apply"
    sealed.write(alone, state)
    assert tools(["export", "--checkpoint", str(alone), "--output", str(tmp_path / "third")]) == 0
    card = (tmp_path / "third/README.md").read_text()
    assert "Nothing: the run's metric lines are not beside" in card
    assert "Licence: none is named" in card
    assert "RGB images, turned upright as their EXIF blocks say, of " in card


def test_the_card_of_a_run_that_merged_tokens_says_whose_scores_it_has(tiny, tmp_path):
    given = ["epochs=1", "expansion=null", "method={kind: token_merging, r: 2}"]
    assert main(["--config", str(tiny), "--output", str(tmp_path / "run"), *given]) == 0
    assert tools(["export", "--checkpoint", str(tmp_path / "run"), "--output", str(tmp_path / "out")]) == 0
    told = "of the model that merges tokens, which this plain one is not: its accuracy is another"
    assert told in (tmp_path / "out/README.md").read_text()


def test_onnx_computes_the_same(run, tmp_path, capsys):
    runtime = pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    command = ["export", "--checkpoint", str(run), "--format", "onnx", "--output", str(tmp_path / "out")]
    assert tools(command) == 0
    out, err = capsys.readouterr()
    assert "model.onnx: differs from torch by" in out
    assert "torch.onnx" not in out + err
    model = timm.create_model(f"local-dir:{tmp_path / 'out'}", pretrained=True).eval()
    session = runtime.InferenceSession(tmp_path / "out/model.onnx")
    images = torch.randn(5, 3, 16, 16)
    (logits,) = session.run(["logits"], {"images": images.numpy()})
    with torch.no_grad():
        torch.testing.assert_close(torch.from_numpy(logits), model(images), atol=1e-4, rtol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "size"), [("lvvit_t", 32), ("deit3_small_patch16_224", 32), ("vit_small_patch14_reg4_dinov2", 28)]
)
def test_other_models_as_onnx(tmp_path, name, size):
    pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    torch.manual_seed(0)
    model = create_model(name, 10, 0.0, size, depth=2).eval()
    assert write_onnx(model, size, tmp_path / "model.onnx") < 1e-5


def test_an_onnx_file_for_one_size_of_batches_is_refused(tmp_path):
    pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")

    class Counting(torch.nn.Module):
        """Its output depends on the batch's size as a Python number."""

        def forward(self, images):
            return images.mean((2, 3)) * len(images)

    with pytest.raises(UserError, match="for batches of any size"):
        write_onnx(Counting().eval(), 16, tmp_path / "model.onnx")


def test_an_onnx_file_that_computes_something_else_is_refused(tmp_path):
    pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")

    class Fickle(torch.nn.Module):
        """Means something else each time it is called."""

        calls = 0

        def forward(self, images):
            self.calls += 1
            return images.mean((2, 3)) * self.calls

    with pytest.raises(RunFailed, match="the ONNX file differs from torch by"):
        write_onnx(Fickle().eval(), 16, tmp_path / "model.onnx")


def test_without_onnx_it_says_what_to_install(run, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(onnx_file, "NEEDED", ("torch", "no_such_package"))
    command = ["export", "--checkpoint", str(run), "--format", "onnx", "--output", str(tmp_path / "out")]
    assert tools(command) == 2
    told = "error: --format onnx: no_such_package is not installed; pip install 'toe-train[onnx]'\n"
    assert capsys.readouterr().err == told
    assert not (tmp_path / "out").exists()
