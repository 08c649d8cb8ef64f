"""What a user gets wrong ends with exit code 2 and a message that says what to do; never with a traceback."""

import subprocess
import sys

import pytest
import torch
import yaml
from PIL import Image

from toe_train.cli import running, tools, train
from toe_train.cli.exits import guarded
from toe_train.data import SkippedImages
from toe_train.errors import Interrupted, RunFailed, UserError
from toe_train.runs import sealed
from toe_train.runs.log import JsonLines
from toe_train.runs.memory import RanOut


@pytest.fixture
def run(tiny, tmp_path, capsys, monkeypatch):
    """Runs toe-train (or another command) in tmp_path; returns its exit code, output and error text."""
    monkeypatch.chdir(tmp_path)

    def runner(*arguments, config=tiny, command=train.main):
        code = command(["--config", str(config), *map(str, arguments)])
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return runner


@pytest.fixture
def refused(run):
    """The message of a run that must be refused."""

    def runner(*arguments, **options):
        code, out, error = run(*arguments, **options)
        assert code == 2, out + error
        assert "Traceback" not in out + error
        assert error.startswith("error: ")
        return error

    return runner


def test_a_run_folder_among_the_classes_is_refused_before_it_is_made(refused, folder):
    for inside in (folder / "train" / "run", folder / "val" / "dog" / "run", folder / "train"):
        message = refused("data.kind=image_folder", f"data.root={folder}", "--output", str(inside))
        assert "whose folders are the classes of the data set: give another --output" in message
    assert not (folder / "train" / "run").exists()


def test_label_files_among_the_classes_are_refused(folder, capsys):
    options = ["labels", "--images", str(folder / "train"), "--output", str(folder / "train" / "labels")]
    assert tools.main([*options, "--teacher", "deit_tiny_patch16_224", "--teacher-weights", "random"]) == 2
    assert "give another --output" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("augment.rand_augment=foo", "'foo' is not understood"),
        ("model.name=swin_tiny_patch4_window7_224", "model.name = swin_tiny"),
        ("train.global_batch=3", "nearest legal values"),
    ],
)
def test_plan_refuses_what_a_run_is_refused_for(tiny, capsys, override, message):
    assert tools.main(["plan", "--config", str(tiny), override]) == 2
    assert message in capsys.readouterr().err


def test_a_key_as_an_option_of_a_tool(tiny, capsys):
    with pytest.raises(SystemExit) as ended:
        tools.main(["plan", "--config", str(tiny), "--epochs=3"])
    error = capsys.readouterr().err
    assert ended.value.code == 2
    assert "usage: toe-tools plan" in error
    assert "write epochs=3" in error


def save_image(path, color=(200, 30, 30)):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (20, 20), color).save(path)


@pytest.fixture
def folder(tmp_path):
    """A healthy data set of two classes, and the overrides that name it."""
    root = tmp_path / "images"
    for split, count in (("train", 12), ("val", 3)):
        for label in ("cat", "dog"):
            for number in range(count):
                save_image(root / split / label / f"{number}.jpg", (20 * number, 90, 10 if label == "cat" else 200))
    return root


def of(root):
    return ["data.kind=image_folder", f"data.root={root}", "train.global_batch=8", "augment.mix_group=8"]


BAD_VALUES = {
    "unknown key": (["optim.leraning_rate=1"], "optim.leraning_rate = 1: there is no such key"),
    "unknown section": (["trian.precision=fp32"], "did you mean train?"),
    "wrong type": (["epochs=many"], "epochs = 'many': should be a valid integer"),
    "out of range": (["augment.hflip=1.5"], "augment.hflip = 1.5: should be less than or equal to 1"),
    "unknown choice": (["train.precision=fp8"], "did you mean fp"),
    "no such model": (["model.name=deit_tinny_patch16_224"], "did you mean deit_tiny_patch16_224"),
    "model without patches": (["model.name=resnet18", "model.kwargs={}", "expansion=null"], "model.name = resnet18"),
    "model that cannot drop tokens": (
        ["model.name=vit_tiny_r_s16_p8_224", "model.kwargs={}", "model.image_size=64"],
        "is a hybrid",
    ),
    "bad model arguments": (["model.kwargs={depht: 3}"], "unexpected keyword argument 'depht'"),
    "size and patches": (["model.image_size=18"], "model.image_size = 18 is not a multiple of the patch size 4"),
    "rates not increasing": (["expansion.keep_rates=[0.9, 0.5, 1.0]"], "is not increasing"),
    "seeds over the first rate": (["expansion.initial_keep_rate=0.6"], "is not below the first keep rate 0.5"),
    "no seed": (["expansion.initial_keep_rate=0.01"], "leaves no seed among 16 patch tokens"),
    "boundaries": (["expansion.stage_epochs=[0, 0, 1]"], "is not increasing"),
    "block out of range": (["expansion.after_block=2"], "after_block=2 must be from 0"),
    "odd batch": (["train.global_batch=255"], "nearest legal values: 254 and 256"),
    "batch and mixing group": (["train.global_batch=200"], "nearest legal values: 128 and 256"),
    "batch over the data": (["train.global_batch=2048"], "the training set has 1433 images"),
    "RandAugment text": (["augment.rand_augment=rnd-m9"], "'rnd' is not understood"),
    "momentum of one": (["optim.betas=[1.0, 0.999]"], "optim.betas.0 = 1.0: should be less than 1"),
    "evaluation by chance": (["evaluate.interpolation=random"], "evaluate.interpolation = 'random': should be"),
    "what the data set gives": (["model.kwargs.num_classes=5"], "must not hold num_classes: the data set gives it"),
    "patches of no size": (["model.kwargs.patch_size=0"], "model.kwargs"),
    "pretrained weights": (["model.kwargs.pretrained=true"], "must not hold pretrained"),
    "pretrained tag": (["model.name=deit_tiny_patch16_224.fb_in1k"], "use 'deit_tiny_patch16_224'"),
    "a convolutional network": (["model.name=convnext_tiny", "model.kwargs={}"], "not a plain vision transformer"),
    "windows": (
        ["model.name=swin_tiny_patch4_window7_224", "model.kwargs={}", "model.image_size=224"],
        "attends within windows",
    ),
    "a section that is none": (["optim=null"], "optim = None: must be a section of `key: value` lines"),
    "a list that is none": (["expansion.keep_rates=0.5"], "expansion.keep_rates = 0.5: must be a list"),
    "a list that is too short": (["augment.mean=[0, 0]"], "augment.mean: the list is too short; entry 3 is missing"),
    "no rates": (["expansion.keep_rates=[]"], "such as [0.5, 0.75, 1.0]"),
    "workers without end": (["data.workers=1000000"], "data.workers = 1000000: should be less than or equal to 512"),
    "dropout": (["model.kwargs.attn_drop_rate=0.2"], "drops out with probability 0.2"),
    "processes": (["--nproc", "0"], "--nproc 0 must be auto or a whole number"),
    "no such checkpoint": (["--resume", "gone.pt"], "checkpoint gone.pt does not exist"),
    "no such data": (["data.kind=image_folder", "data.root=/nowhere"], "/nowhere"),
    "no CIFAR": (["data.kind=cifar10", "data.root=nowhere"], "data.download=true"),
    "override": (["epochs"], "must have the form KEY=VALUE"),
    "a path as a model": (["model.name=../../passwd"], "there is no such model"),
    "a family of models": (["model.name=deit_tinny"], "did you mean deit_tiny_patch16_224"),
    "the beginning of a model": (["model.name=deit_tiny"], "did you mean deit_tiny_patch16_224"),
    "a key as an option": (
        ["--epochs", "3"],
        "--epochs is no option; values of the YAML file are given as KEY=VALUE: write epochs=3",
    ),
    "a key as an option with =": (["--epochs=3"], "write epochs=3"),
    "a key of a section as an option": (["--lr", "1e-3"], "write optim.lr=1e-3"),
    "a key as an option, with dashes": (["--train.global-batch", "8"], "write train.global_batch=8"),
    "a key as an option without a value": (["--lr"], "write optim.lr=VALUE"),
    "a misspelt option": (["--ouput", "run"], "--ouput is no option; did you mean --output?"),
    "an option that there is not": (["--gpu"], "--gpu is no option; there are --config"),
    "a path with a space": (["data.root=/my", "pictures"], 'quote the whole: "data.root=/my pictures"'),
    "an output with a space": (["--output", "my", "run"], 'quote it: --output "my run"'),
    "no value for resume": (["--resume", ""], "--resume is empty; give auto, never or the path of a checkpoint"),
    "a misspelt word for resume": (["--resume", "nver"], "did you mean --resume never?"),
    "a long warm-up": (
        ["allow=[]", "epochs=5", "schedule.warmup_epochs=5"],
        "never reaches the peak learning rate 0.003; write schedule.warmup_epochs=4 or less",
    ),
    "growth that ends elsewhere": (
        ["expansion=null", "method={kind: depth_growth, depths: [3, 6], from_epochs: [0, 1]}"],
        "ends with a model of 6 blocks, and model.name = deit_tiny_patch16_224 has 2; end with 2, or set",
    ),
    "growth that shrinks": (
        ["expansion=null", "method={kind: depth_growth, depths: [3, 2], from_epochs: [0, 1]}"],
        "method: depths: [3, 2] must rise: a run begins with the fewest blocks",
    ),
    "a misspelt method": (["expansion=null", "method={kind: token_mergin}"], "did you mean token_merging?"),
    "a misspelt key of a method": (
        ["expansion=null", "method={kind: token_merging, rr: 3}"],
        "method.rr = 3: there is no such key; did you mean r?",
    ),
    "two methods": (["method={kind: token_merging}"], "a run has one method; set expansion=null"),
    "a key without effect": (["optim.momentum=0.8"], "optim.momentum = 0.8: has no effect in this run"),
}


@pytest.mark.parametrize("case", BAD_VALUES)
def test_bad_values(refused, case):
    arguments, message = BAD_VALUES[case]
    assert message in refused(*arguments)


def test_an_odd_batch_trains_where_nothing_is_mixed(run, folder):
    mixing_off = ["augment.mixup=0", "augment.cutmix=0"]
    code, out, error = run(*of(folder), *mixing_off, "train.global_batch=3")
    assert code == 0, error
    assert "global batch 3 = 1 process x 1 accumulation x 3 images" in out


@pytest.mark.parametrize("how", [["--dry-run"], ["--nproc", "2"]])
def test_a_wrong_place_is_found_before_anything_starts(refused, tmp_path, monkeypatch, how):
    monkeypatch.setattr(running, "launch", None)
    assert "checkpoint gone.pt does not exist" in refused(*how, "--resume", "gone.pt")
    (tmp_path / "plain.pt").write_bytes(b"no checkpoint")
    assert "plain.pt" in refused(*how, "--resume", "plain.pt")
    (tmp_path / "file").touch()
    for output in ("file", "file/run"):
        assert f"{tmp_path / 'file'} is a file; choose another with --output" in refused(*how, "--output", output)
    assert not (tmp_path / "runs").exists()


def test_a_checkpoint_of_another_model_is_found_before_anything_starts(refused, trained, monkeypatch):
    monkeypatch.setattr(running, "launch", None)
    for how in (["--dry-run"], ["--nproc", "2"]):
        message = refused(*how, "--resume", str(trained), "model.kwargs.depth=3")
        assert "belongs to another model" in message


def test_a_missing_config_file(refused, configs):
    assert "did you mean quickstart.yaml?" in refused(config=configs / "quikstart.yaml")


def test_a_folder_or_an_empty_file_as_config(refused, configs, tmp_path):
    assert f"is a folder, not a YAML file; name a file in it, such as {configs}" in refused(config=configs)
    empty = tmp_path / "empty.yaml"
    empty.write_text("# nothing\n")
    assert "is empty; write at least `extends:" in refused(config=empty)


def test_a_syntax_error_is_placed(refused, tmp_path):
    bad = tmp_path / "bad.yaml"
    bad.write_text("epochs: 3\nmodel: {name: x\noptim: {}\n")
    assert "bad.yaml, line 3, column " in refused(config=bad)


def test_a_finished_run_is_left_as_it_is(run, trained):
    before = (trained.parents[1] / "config.yaml").read_text()
    code, out, _ = run("--output", "run", "epochs=1", "data.workers=1", "train.log_every=7")
    assert code == 0
    assert "are done: nothing to train" in out
    assert "count from now on" not in out
    code, _, error = run("--output", "run", "epochs=1", "optim.lr=0.5")
    assert code == 2  # and does not pass the old one off as the new one
    assert "are done, with other values:" in error
    assert "in the checkpoint, 0.5 now" in error
    assert (trained.parents[1] / "config.yaml").read_text() == before


def test_a_model_with_attention_pooling_is_counted_too(run):
    code, out, error = run("epochs=1", "model.kwargs.global_pool=map")
    assert code == 0, error
    assert "by FLOPs" in out


def test_checkpoints_of_another_make(refused, trained):
    state = torch.load(trained, weights_only=True)
    for name, wrong in {
        "bare": {"format": 1},
        "weights": {**state, "model": {k: v for k, v in state["model"].items() if k != "head.bias"}},
        "shapes": {**state, "model": {**state["model"], "head.bias": torch.zeros(3)}},
    }.items():
        path = trained.with_name(f"{name}.pt")
        sealed.write(path, wrong)
        assert "checkpoint" in refused("--output", "run", "--resume", path, "epochs=3"), name
        given = ["eval", "--checkpoint", str(path)]
        assert "checkpoint" in refused(command=lambda rest, given=given: tools.main([*given, *rest])), name
    assert "is a folder; name a file in it" in refused("--resume", trained.parents[2])


def test_a_loop_of_parents(refused, tmp_path):
    (tmp_path / "a.yaml").write_text("extends: b.yaml")
    (tmp_path / "b.yaml").write_text("extends: a.yaml")
    assert "a.yaml -> b.yaml -> a.yaml" in refused(config=tmp_path / "a.yaml")


def test_a_healthy_folder_trains(run, folder):
    code, out, _ = run(*of(folder), "epochs=1", "expansion.stage_epochs=[0,1,2]")
    assert code == 0
    assert "top-1" in out


def test_classes_that_differ(refused, folder):
    (folder / "val/dog").rename(folder / "val/cow")
    message = refused(*of(folder))
    assert "dog" in message
    assert "cow" in message


def test_an_empty_class(refused, folder):
    for image in (folder / "train/dog").iterdir():
        image.unlink()
    assert f"class folders of {folder / 'train'} hold no images: dog" in refused(*of(folder))


def test_a_flat_validation_folder(refused, folder):
    for image in list((folder / "val").rglob("*.jpg")):
        image.rename(folder / "val" / f"{image.parent.name}_{image.name}")
    for empty in ("cat", "dog"):
        (folder / "val" / empty).rmdir()
    assert "move each into the folder of its class" in refused(*of(folder))


def test_an_unreadable_image_is_named_at_the_start(refused, folder):
    bad = folder / "train/cat/3.jpg"
    bad.write_bytes(bad.read_bytes()[:200])
    assert str(bad) in refused(*of(folder))


@pytest.mark.parametrize("workers", [0, 1])
def test_an_unreadable_image_that_the_sample_missed_is_named_when_met(refused, folder, workers):
    bad = folder / "train/cat/3.jpg"
    bad.write_bytes(bad.read_bytes()[:200])
    message = refused(*of(folder), "data.check_sample=0", f"data.workers={workers}", "epochs=9")
    assert str(bad) in message
    assert message.count("\n") == 1


def test_the_doctor_finds_every_fault(run, folder):
    code, out, _ = run(*of(folder), command=lambda given: tools.main(["doctor", *given]))
    assert code == 0
    assert out.endswith("\nhealthy: 24 train and 6 val images in 2 classes\n")
    (folder / "train/cat/3.jpg").write_text("not an image")
    (folder / "train/dog/4.jpg").write_bytes(b"")
    code, out, _ = run(*of(folder), command=lambda given: tools.main(["doctor", *given]))
    assert code == 2
    assert "2 images of 24 train and 6 val images in 2 classes cannot be read:" in out
    assert all(name in out for name in ("3.jpg", "4.jpg"))


def test_the_doctor_looks_at_token_labels_too(run, folder, tmp_path):
    labels = tmp_path / "labels"
    for image in (folder / "train").rglob("*.jpg"):
        (labels / image.parent.name).mkdir(parents=True, exist_ok=True)
        torch.save(torch.ones(2, 1, 3, 3).half(), labels / image.parent.name / f"{image.stem}.pt")
    given = [*of(folder), f"token_labels.root={labels}", "augment.mixup=0", "augment.cutmix=0"]
    code, out, error = run(*given, command=lambda rest: tools.main(["doctor", *rest]))
    assert (code, error) == (0, "")
    assert out.endswith(
        f"healthy: 24 train and 6 val images in 2 classes; token labels of all train images in {labels}\n"
    )
    (labels / "cat/3.pt").unlink()
    (labels / "dog/4.pt").write_text("x")
    code, out, _ = run(*given, command=lambda rest: tools.main(["doctor", *rest]))
    assert code == 2
    assert "1 of 24 training images that were looked at have no label file" in out
    assert f"{labels / 'dog/4.pt'} cannot be used" in out


@pytest.fixture
def trained(run, tmp_path):
    assert run("epochs=1", "--output", "run")[0] == 0
    return tmp_path / "run/checkpoints/last.pt"


def test_resuming_another_model(refused, trained):
    message = refused("--output", "run", "model.kwargs.depth=3")
    assert "model.kwargs.depth: 2 in the checkpoint, 3 now" in message
    assert "--resume never" in message


def test_resuming_with_another_optimiser(refused, trained):
    message = refused("--output", "run", "optim.name=sgd", "epochs=2")
    assert "optim.name: 'adamw' in the checkpoint, 'sgd' now" in message
    state = torch.load(trained, weights_only=True)
    assert state["progress"]["epoch"] == 1  # nothing was overwritten


def test_resuming_with_another_recipe_says_so_and_follows_it(run, trained):
    code, out, _ = run("--output", "run", "optim.weight_decay=0.5", "epochs=2", "data.workers=1")
    assert code == 0
    assert "optim.weight_decay: 0.05 in the checkpoint, 0.5 now" in out
    state = torch.load(trained, weights_only=True)
    assert {group["weight_decay"] for group in state["optimizer"]["param_groups"]} == {0.0, 0.5}


@pytest.mark.parametrize("override", ["optim.weight_decay=0", "model.drop_path=0.1", "train.ema_decay=null"])
def test_values_that_may_change_when_resuming(run, trained, override):
    code, out, error = run("--output", "run", override, "epochs=2")
    assert code == 0, error
    assert f"{override.split('=')[0]}: " in out


def test_resuming_with_other_classes(refused, trained, folder):
    message = refused("--output", "run", *of(folder))
    assert "trained on other classes: 10 in the checkpoint, 2 in the data set" in message


def full(*arguments):
    raise OSError(28, "No space left on device", "metrics.jsonl")


def test_a_path_that_cannot_be_is_the_users(folder, tmp_path, capsys):
    (tmp_path / "file").touch()
    given = ["pack", "--images", folder, "--output", tmp_path / "file/copy", "--short-side", 8]
    assert tools.main([*map(str, given)]) == 2
    message = capsys.readouterr().err
    assert message == f"error: Not a directory: {tmp_path}/file/copy; name another path, or put this one right\n"


def test_a_full_disk_while_logging(run, monkeypatch):
    monkeypatch.setattr(JsonLines, "_write", full)
    code, out, error = run("--output", "run")
    assert (code, error.count("\n")) == (3, 1), out + error
    assert error.startswith("run failed: [Errno 28] No space left on device: 'metrics.jsonl'; make room, or")
    assert error.endswith("then the same command continues\n")


@pytest.mark.parametrize("workers", [0, 1])
def test_a_full_disk_while_noting_an_unreadable_image(run, folder, monkeypatch, workers):
    """In a loader process too, whose traceback torch sends along; and not by the main process alone."""
    bad = folder / "train/cat/3.jpg"
    bad.write_bytes(bad.read_bytes()[:200])
    monkeypatch.setattr(SkippedImages, "note", full)
    arguments = ["data.on_error=skip", "data.check_sample=0", f"data.workers={workers}", "epochs=9"]
    code, out, error = run(*of(folder), *arguments)
    assert (code, error.count("\n")) == (3, 1), out + error
    assert "No space left on device" in error


def test_a_process_that_fails_alone_says_so(monkeypatch, capsys):
    monkeypatch.setenv("RANK", "1")
    assert guarded(full) == 3
    assert "No space left on device" in capsys.readouterr().err


@pytest.mark.parametrize(
    "text", ["", "Caught MemoryError in DataLoader worker process 0.\nTraceback\nMemoryError: 9 GiB"]
)
def test_full_memory_is_said_in_a_line(capsys, text):
    def failing():
        raise MemoryError(text)

    assert guarded(failing) == 3
    error = capsys.readouterr().err
    assert error.startswith("run failed: the machine's memory is full")
    assert error.count("\n") == 1
    assert ("9 GiB" in error) == bool(text)
    assert "then the same command continues" in error


def test_an_image_that_the_memory_does_not_hold(run, folder, monkeypatch):
    def full(image):
        raise MemoryError

    monkeypatch.setattr("toe_train.data.sources.images.to_rgb", full)
    code, out, error = run(*of(folder), "data.check_sample=0", "data.workers=1")
    assert (code, error.count("\n")) == (3, 1), out + error
    assert "run failed: the memory does not hold " in error
    assert ".jpg as an image; give the process more" in error


@pytest.mark.parametrize(("fault", "code"), [(Interrupted, 4), (RanOut, 4), (RunFailed, 3), (UserError, 2)])
def test_exit_codes(fault, code, capsys):
    def failing():
        raise fault("the reason")

    assert guarded(failing) == code
    assert capsys.readouterr().err.endswith(": the reason\n")


def test_checkpoints_that_do_not_fit_name_the_versions(refused, trained):
    state = torch.load(trained, weights_only=True)
    state["model"].pop("head.bias")
    sealed.write(trained, {**state, "versions": {**state["versions"], "torch": "1.0"}})
    assert "version of torch: '1.0' in the checkpoint" in refused("--output", "run", "epochs=2")


def test_resuming_a_truncated_checkpoint(refused, trained):
    trained.with_name("previous.pt").unlink()
    trained.write_bytes(trained.read_bytes()[:5000])  # and best.pt, which is the same file, with it
    message = refused("--output", "run", "epochs=2")
    assert "last.pt is damaged (it has 5000 bytes and no seal at its end: truncated" in message
    assert "start anew with --resume never" in message


def test_evaluating(run, refused, trained, folder):
    def evaluate(given):
        return tools.main(["eval", "--checkpoint", str(trained), *given])

    code, out, _ = run(command=evaluate)
    assert code == 0
    assert "over 364 images" in out
    assert "trained on other classes" in refused(*of(folder), command=evaluate)
    assert "belongs to another model" in refused("model.kwargs.embed_dim=64", command=evaluate)


def test_evaluation_repeats_what_the_run_measured(run, trained):
    from toe_train.runs.log import read_metrics

    record = read_metrics(trained.parents[1] / "metrics.jsonl", "epoch")[-1]
    for weights, key in (("model", "val_top1"), ("ema", "ema_top1")):
        given = ["eval", "--checkpoint", str(trained), "--weights", weights]
        _, out, _ = run(command=lambda rest, given=given: tools.main([*given, *rest]))
        assert f"top-1 {record[key]:.3f} %" in out


def test_overrides_may_stand_anywhere(run, trained):
    assert run("epochs=1", "--output", "other", "seed=1")[0] == 0
    evaluate = ["eval", "evaluate.batch=7", "--checkpoint", str(trained), "--weights", "ema"]
    code, out, _ = run("data.workers=0", command=lambda rest: tools.main([*evaluate, *rest]))
    assert code == 0
    assert "(ema)" in out
    with pytest.raises(SystemExit) as ended:
        tools.main(["plan", "--config", "x.yaml", "--speed", "3"])
    assert ended.value.code == 2


def test_the_current_folder_as_the_run_folder(run, tmp_path, monkeypatch):
    here = tmp_path / "here"
    here.mkdir()
    monkeypatch.chdir(here)
    assert run("--output", ".", "epochs=1")[0] == 0
    assert run("--output", ".", "epochs=1", "--resume", "never")[0] == 0
    assert (tmp_path / "here.old-1/checkpoints/last.pt").exists()


def test_an_output_that_cannot_be_written(refused, tmp_path):
    (tmp_path / "file").write_text("")
    assert "choose another with --output" in refused("--output", "file/run")


def test_a_dry_run_prints_the_plan_and_writes_nothing(run, tmp_path):
    before = sorted(tmp_path.rglob("*"))
    code, out, _ = run("--dry-run")
    assert code == 0
    assert sorted(tmp_path.rglob("*")) == before
    assert "predicted speed-up of the whole schedule" in out
    config = yaml.safe_load(out[: out.index("global batch")])
    assert config["model"]["kwargs"]["embed_dim"] == 32


def test_a_dry_run_refuses_what_a_run_would(refused):
    assert "nearest legal values: 254 and 256" in refused("--dry-run", "train.global_batch=255")


def test_the_installed_command_ends_with_the_code(tmp_path):
    done = subprocess.run(
        [sys.executable, "-m", "toe_train", "--config", "none.yaml"], cwd=tmp_path, capture_output=True, text=True
    )
    assert done.returncode == 2
    assert done.stderr.startswith("error: config file none.yaml does not exist; name a YAML file, or one of the ")
    assert done.stderr.endswith(" shipped ones, such as quickstart, photos, deit_tiny_toe_r05\n")


def test_a_fault_of_epochs_is_one(refused):
    for value in ("zehn", "-3", "0", "true"):
        told = refused(f"epochs={value}", "expansion.stage_shares=[0, 1/3, 2/3]")
        assert "epochs" in told
        assert "stage" not in told
