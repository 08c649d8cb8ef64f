import threading
import time

import pytest
import torch
from safetensors.torch import save_file
from torch.nn import functional as F

from toe_train.build.initial_weights import Wanted, load_initial_weights
from toe_train.build.weights import fetched
from toe_train.cli.train import main
from toe_train.errors import UserError
from toe_train.models import create_model, hub
from toe_train.runs.checkpoints import read

NAME = "deit_tiny_patch16_224"
SMALL = {"patch_size": 4, "embed_dim": 32, "depth": 2, "num_heads": 2}


def model_of(seed=0, classes=10, size=16, name=NAME, **changes):
    torch.manual_seed(seed)
    return create_model(name, classes, 0.0, size, **({**SMALL, **changes} if name == NAME else changes))


def wanted(name=NAME, classes=10, mean=(0.5,) * 3, std=(0.5,) * 3):
    return Wanted(name, [f"class {number}" for number in range(classes)], mean, std)


def weights_file(path, state):
    if path.suffix == ".safetensors":
        save_file(state, path)
    else:
        torch.save(state, path)
    return str(path)


@pytest.mark.parametrize("kind", ["weights.pt", "deit.pth", "weights.safetensors"])
def test_files_of_others(tmp_path, kind):
    source, model = model_of(0).state_dict(), model_of(1)
    state = {"model": source, "epoch": 300} if kind == "deit.pth" else source
    told = load_initial_weights(model, wanted(), weights_file(tmp_path / kind, state), False)
    assert told.splitlines()[0] == f"initial weights from {tmp_path / kind}"
    assert told.endswith("new: head.weight, head.bias (the file does not name its classes)")
    rest = {key: value for key, value in model.state_dict().items() if not key.startswith("head.")}
    assert all(torch.equal(value, source[key]) for key, value in rest.items())
    assert not torch.equal(model.head.weight, source["head.weight"])  # never by its shape alone


def test_a_head_for_other_classes_stays_new(tmp_path):
    source, model = model_of(0, classes=7).state_dict(), model_of(1)
    head = model.head.weight.clone()
    told = load_initial_weights(model, wanted(), weights_file(tmp_path / "w.pt", source), False)
    assert "new: head.weight, head.bias (" in told
    assert torch.equal(model.head.weight, head)
    assert torch.equal(model.blocks[0].attn.qkv.weight, source["blocks.0.attn.qkv.weight"])


def test_weights_that_are_not_finite_are_refused(tmp_path):
    source = model_of(0).state_dict()
    source["norm.weight"][3], source["norm.bias"][0] = torch.nan, torch.inf
    with pytest.raises(UserError, match=r"hold numbers that are not finite: norm.weight, norm.bias; give"):
        load_initial_weights(model_of(1), wanted(), weights_file(tmp_path / "w.pt", source), False)


def test_positions_are_resized_as_deit_does(tmp_path):
    source, model = model_of(0, size=16).state_dict(), model_of(1, size=24)
    told = load_initial_weights(model, wanted(), weights_file(tmp_path / "w.pt", source), False)
    assert "resized: pos_embed from 4x4 to 6x6 patches" in told
    grid = source["pos_embed"][:, 1:].view(1, 4, 4, 32).permute(0, 3, 1, 2)
    expected = F.interpolate(grid, size=(6, 6), mode="bicubic", align_corners=False).flatten(2).mT
    torch.testing.assert_close(model.pos_embed[:, 1:], expected)
    assert torch.equal(model.pos_embed[:, :1], source["pos_embed"][:, :1])


def test_lvvit_keeps_its_positions_and_renews_both_heads(tmp_path):
    source, model = (model_of(seed, classes, 32, "lvvit_t") for seed, classes in ((0, 7), (1, 10)))
    told = load_initial_weights(model, wanted("lvvit_t"), weights_file(tmp_path / "w.pt", source.state_dict()), False)
    assert "new: head.weight, head.bias, aux_head.weight, aux_head.bias (" in told
    assert torch.equal(model.pos_embed, source.pos_embed)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda state: {**state, "extra": torch.zeros(1)}, "extra is not the model's"),
        (lambda state: {key: value for key, value in state.items() if key != "norm.bias"}, "norm.bias is missing"),
        (lambda state: {**state, "norm.bias": torch.zeros(9)}, r"norm.bias has shape \[9\] and not \[32\]"),
        (lambda state: {"norm.bias": state["norm.bias"]}, r"and \d+ more"),
    ],
)
def test_other_models_weights_are_refused(tmp_path, change, words):
    path = weights_file(tmp_path / "w.pt", change(model_of().state_dict()))
    model = model_of(1)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    with pytest.raises(UserError, match=words):
        load_initial_weights(model, wanted(), path, False)
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


def test_files_that_are_none(tmp_path, monkeypatch):
    (tmp_path / "text.pt").write_text("hello")
    (tmp_path / "run.yaml").write_text("extends: deit_tiny.yaml\nepochs: 1\n")
    (tmp_path / "empty.pth").touch()
    for path, words in [
        (tmp_path / "run.yaml", "is a configuration and no trained model"),
        (tmp_path / "empty.pth", "cannot be read"),
        (tmp_path / "none.pt", "there is no such file"),
        (tmp_path / "text.pt", "cannot be read"),
    ]:
        with pytest.raises(UserError, match=words):
            load_initial_weights(model_of(), wanted(), str(path), False)


def test_the_hub_out_of_reach_is_said_at_once(monkeypatch):
    """Its own client tries ten times, for a minute."""

    def unreachable(*_, **__):
        raise OSError("no route to host")

    monkeypatch.setattr(hub.urllib.request, "urlopen", unreachable)
    monkeypatch.setattr(hub.huggingface_hub, "try_to_load_from_cache", lambda *_: None)
    model = model_of()
    monkeypatch.setattr(fetched.timm, "create_model", None)  # not even tried
    with pytest.raises(UserError, match=r"weights of deit_tiny.* not on this machine.*\(no route to host\); check"):
        load_initial_weights(model, wanted(), "timm", False)
    with pytest.raises(UserError, match="timm has no weights of lvvit_t"):
        load_initial_weights(model, wanted("lvvit_t"), "timm", False)
    with pytest.raises(UserError, match=r"holds no averaged weights, which model.initial_averaged=true asks for"):
        load_initial_weights(model, wanted(), "timm", True)


def test_new_weights_where_timms_are_not_at_hand(monkeypatch):
    """The look-up of a name may hang without end: it is not waited for."""

    ended = threading.Event()

    def hang(*_, **__):
        ended.wait(60)
        raise OSError("too late")

    monkeypatch.setattr(hub.urllib.request, "urlopen", hang)
    monkeypatch.setattr(hub.huggingface_hub, "try_to_load_from_cache", lambda *_: None)
    monkeypatch.setattr(hub, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(hub, "SECONDS", 0.05)
    model = model_of()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    begun = time.monotonic()
    told = load_initial_weights(model, wanted(), "timm_or_new", False)
    assert time.monotonic() - begun < 30
    assert told.startswith(
        "initial weights are new, drawn at random: model.initial_weights = timm_or_new: timm's weights"
    )
    assert "does not answer (nothing within 0.1 seconds)" in told
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    ended.set()
    monkeypatch.setattr(hub, "HF_HUB_OFFLINE", True)
    with pytest.raises(UserError, match=r"does not answer \(HF_HUB_OFFLINE is set\)"):
        load_initial_weights(model, wanted(), "timm", False)


def test_timms_weights_from_the_cache_need_no_network(tmp_path, monkeypatch):
    name = "vit_tiny_patch16_224.augreg_in21k_ft_in1k"
    source = create_model(name.partition(".")[0], 1000, 0.0, 224)
    cached = weights_file(tmp_path / "model.safetensors", source.state_dict())

    def unreachable(*_, **__):
        raise AssertionError("it asked the network")

    monkeypatch.setattr(hub.urllib.request, "urlopen", unreachable)
    monkeypatch.setattr(hub.huggingface_hub, "hf_hub_download", unreachable)
    monkeypatch.setattr("timm.models._hub.hf_hub_download", unreachable)
    monkeypatch.setattr(hub.huggingface_hub, "try_to_load_from_cache", lambda hub, file: cached)
    model = create_model("vit_tiny_patch16_224", 10, 0.0, 224)
    told = load_initial_weights(model, wanted("vit_tiny_patch16_224"), "timm_or_new", False)
    assert told.startswith("initial weights from timm\n")
    assert torch.equal(model.pos_embed, source.pos_embed)
    small = model_of()  # another model than timm's: the new weights stay
    assert "drawn at random" in load_initial_weights(small, wanted(), "timm_or_new", False)


def test_a_run_goes_on_from_another_ones_weights(tiny, tmp_path, capsys):
    first = ["--config", str(tiny), "--output", str(tmp_path / "first"), "epochs=1"]
    assert main(first) == 0
    source = tmp_path / "first/checkpoints/last.pt"
    given = ["--config", str(tiny), f"model.initial_weights={source}", "optim.lr=1e-12", "schedule.min_lr=1e-12"]
    for name, averaged in (("raw", "false"), ("averaged", "true")):
        output = tmp_path / name
        assert main([*given, f"model.initial_averaged={averaged}", "--output", str(output), "epochs=1"]) == 0
        assert f"initial weights from {source}" in capsys.readouterr().out
        trained = read(output / "checkpoints/last.pt")
        for key, value in read(source)["ema" if averaged == "true" else "model"].items():
            torch.testing.assert_close(trained["model"][key], value, atol=1e-6, rtol=0)
            torch.testing.assert_close(trained["ema"][key], value, atol=1e-6, rtol=0)
    # A run that is broken off continues from its own checkpoint, whatever became of the first one.
    source.unlink()
    assert main([*given, "--output", str(output), "epochs=2"]) == 0
    assert "initial weights" not in capsys.readouterr().out
    assert main([*given, "--output", str(output), "--nproc", "2", "--dry-run", "epochs=3"]) == 0
    assert main([*given, "--output", str(tmp_path / "new"), "--dry-run"]) == 2
    assert "there is no such file" in capsys.readouterr().err


def test_a_damaged_checkpoint_is_not_taken_for_plain_weights(tiny, tmp_path):
    assert main(["--config", str(tiny), "--output", str(tmp_path / "run"), "epochs=1"]) == 0
    path = tmp_path / "run/checkpoints/last.pt"
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    with pytest.raises(UserError, match="the checksums differ"):
        load_initial_weights(model_of(), wanted(), str(path), False)


def test_a_rate_that_rises_is_told(tiny, tmp_path, capsys):
    given = ["--config", str(tiny), "--output", str(tmp_path / "run"), "--dry-run", "optim.lr=7.5e-6"]
    assert main([*given, "schedule.min_lr=1e-5", "allow=[min_lr_above_peak]"]) == 0
    assert "note: schedule.min_lr=1e-05 is above the peak learning rate 7.5e-06" in capsys.readouterr().out
    assert main([*given, "schedule.min_lr=1e-6"]) == 0
    assert "above the peak" not in capsys.readouterr().out
