"""Label files from teachers with random weights, on a few small images."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from torch import nn
from torchvision import transforms

from toe_train.analysis import label_maker
from toe_train.analysis import teacher as teacher_module
from toe_train.analysis.label_maker import dense_logits, label_tensors
from toe_train.analysis.teacher import open_teacher
from toe_train.cli import tools, train
from toe_train.data import FolderImages, check_datasets, read_token_labels
from toe_train.errors import UserError
from toe_train.runs.checkpoints import read

REPOSITORY = Path(__file__).resolve().parents[2]
CLASSES = [f"class{number}" for number in range(7)]


@pytest.fixture
def images(tmp_path):
    """Two images in each of seven classes, 60 x 40 random pixels, in train; one in val."""
    noise = np.random.default_rng(0)
    for split, count in (("train", 2), ("val", 1)):
        for name in CLASSES:
            for number in range(count):
                path = tmp_path / "images" / split / name / f"{name}_{number}.JPEG"
                path.parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray(noise.integers(0, 256, (40, 60, 3), dtype=np.uint8)).save(path, "PNG")
    return tmp_path / "images" / "train"


@pytest.fixture
def make(images, tmp_path, capsys):
    """Runs `toe-tools labels` with a random ResNet of 64 pixels; returns exit code, output and error text."""

    def runner(
        *arguments, output=tmp_path / "labels", teacher=("--teacher", "resnet10t", "--teacher-weights", "random")
    ):
        fixed = ["--images", images, "--output", output, *teacher, "--workers", 0, "--nproc", 1, "--batch", 4]
        size = [] if "--image-size" in arguments or not teacher else ["--image-size", 64]
        code = tools.main(["labels", *map(str, [*fixed, *size, *arguments])])
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return runner


def built(name, size, **options):
    torch.manual_seed(0)
    return timm.create_model(name, num_classes=7, **options).eval(), torch.randn(3, 3, size, size)


@pytest.mark.parametrize(
    ("name", "size", "places", "options"),
    [
        ("resnet10t", 64, (2, 2), {}),
        ("efficientnet_b0", 64, (2, 2), {}),  # its map's width is not that of its last block
        ("swin_tiny_patch4_window7_224", 64, (2, 2), {"img_size": 64}),  # channels last
        (
            "vit_tiny_patch16_224",
            64,
            (4, 4),
            {"img_size": 64, "class_token": False, "global_pool": "avg", "fc_norm": False},
        ),
    ],
)
@torch.no_grad()
def test_linear_heads_give_their_logits_as_the_mean(name, size, places, options):
    model, pictures = built(name, size, **options)
    dense = dense_logits(model, pictures)
    assert dense.shape == (3, *places, 7)
    assert dense.std(dim=(1, 2)).min() > 0
    torch.testing.assert_close(dense.mean(dim=(1, 2)), model(pictures), atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("name", ["resnet10t", "convnext_atto", "mobilenetv3_small_050"])
@torch.no_grad()
def test_one_place_is_the_plain_classifier(name):
    model, pictures = built(name, 32)
    dense = dense_logits(model, pictures)
    assert dense.shape == (3, 1, 1, 7)
    torch.testing.assert_close(dense[:, 0, 0], model(pictures), atol=1e-6, rtol=1e-5)


@torch.no_grad()
def test_convolutional_maps_lie_like_the_image():
    """A patch in one corner changes the logits there most."""
    for name, options in (("resnet10t", {}), ("vit_tiny_patch16_224", {"img_size": 96})):
        model, _ = built(name, 96, **options)
        plain, marked = torch.zeros(2, 1, 3, 96, 96)
        marked[..., :32, 64:] = 3.0
        change = (dense_logits(model, marked) - dense_logits(model, plain)).norm(dim=-1)[0]
        row, column = divmod(change.argmax().item(), change.shape[1])
        assert row < change.shape[0] / 2 <= column, name


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("vit_tiny_patch16_224", {"img_size": 64}),
        ("vit_tiny_patch16_224", {"img_size": 64, "global_pool": "avg"}),  # norm after pooling
        ("deit_tiny_distilled_patch16_224", {"img_size": 64}),  # two prefix tokens and two heads
    ],
)
@torch.no_grad()
def test_tokens_go_through_norm_and_head(name, options):
    model, pictures = built(name, 64, **options)
    features = model.forward_features(pictures)
    tokens = model.fc_norm(features[:, model.num_prefix_tokens :])
    expected = model.head(tokens)
    if hasattr(model, "head_dist"):
        expected = (expected + model.head_dist(tokens)) / 2
    torch.testing.assert_close(dense_logits(model, pictures), expected.unflatten(1, (4, 4)), atol=1e-5, rtol=1e-4)


def test_a_head_for_patch_tokens_is_used():
    class WithAuxHead(nn.Module):
        """What of LV-ViT counts here."""

        num_features = 5

        def __init__(self):
            super().__init__()
            self.patch_embed = nn.Module()
            self.patch_embed.grid_size = (2, 3)
            self.aux_head = nn.Linear(5, 7)

        def forward_features(self, x):
            return x

    model, tokens = WithAuxHead(), torch.randn(4, 7, 5)
    torch.testing.assert_close(dense_logits(model, tokens), model.aux_head(tokens[:, 1:]).unflatten(1, (2, 3)))


def test_models_without_a_plain_map_are_refused():
    model, _ = built("hiera_tiny_224", 32)
    with pytest.raises(UserError, match="use a convolutional network, a ViT or a Swin"), torch.no_grad():
        dense_logits(model, torch.randn(1, 3, 224, 224))


def test_the_candidates_are_the_best_five_in_order():
    logits = torch.randn(2, 3, 4, 9)
    labels = label_tensors(logits)
    assert labels.shape == (2, 2, 5, 3, 4)
    assert labels.dtype == torch.float16
    scores, ids = logits.sort(dim=-1, descending=True)
    assert torch.equal(labels[:, 0].movedim(1, 3), scores[..., :5].half())
    assert torch.equal(labels[:, 1].movedim(1, 3), ids[..., :5].half())
    assert label_tensors(torch.randn(1, 2, 2, 3)).shape == (1, 2, 3, 2, 2)


def expected_logits(image, size, squashed):
    """What the command's random ResNet says of a file, made with torchvision."""
    teacher = open_teacher("resnet10t", "random", size, CLASSES)
    resize = transforms.Resize((size, size) if squashed else size, transforms.InterpolationMode.BICUBIC)
    steps = [
        resize,
        transforms.CenterCrop(size),
        transforms.ToTensor(),
        transforms.Normalize(teacher.mean, teacher.std),
    ]
    picture = transforms.Compose(steps)(Image.open(image).convert("RGB"))
    with torch.no_grad():
        return dense_logits(teacher.model.eval(), picture[None])


@pytest.mark.parametrize("geometry", ["full", "center_crop"])
def test_files_have_the_published_format_and_the_teachers_scores(make, images, tmp_path, geometry):
    code, out, error = make("--geometry", geometry)
    assert (code, error) == (0, "")
    assert out == f"{tmp_path / 'labels'}: 14 label files made, 0 were there (resnet10t, random)\n"
    files = sorted((tmp_path / "labels").rglob("*.pt"))
    assert [file.relative_to(tmp_path / "labels") for file in files] == [
        Path(name) / f"{name}_{number}.pt" for name in CLASSES for number in range(2)
    ]
    for file in files:
        content = torch.load(file, weights_only=True)
        assert (content.shape, content.dtype) == ((2, 5, 2, 2), torch.float16)
        image = images / file.parent.name / f"{file.stem}.JPEG"
        expected = label_tensors(expected_logits(image, 64, geometry == "full"))[0]
        torch.testing.assert_close(content[0], expected[0], atol=2e-3, rtol=2e-3)
        assert (content[1] == expected[1]).float().mean() > 0.9  # near ties may swap
    assert files[0].stat().st_size < 4000  # its own content only
    assert check_datasets("image_folder", images.parent, label_root=tmp_path / "labels", label_geometry=geometry) == []


def test_what_was_broken_off_is_continued(make, tmp_path, monkeypatch):
    saved, real = [], label_maker._save

    def save(path, labels):
        if len(saved) == 6:
            raise KeyboardInterrupt
        saved.append(path)
        real(path, labels)

    monkeypatch.setattr(label_maker, "_save", save)
    assert make()[0] == 130
    monkeypatch.setattr(label_maker, "_save", real)
    whole = {path: path.read_bytes() for path in saved}
    saved[0].write_bytes(whole[saved[0]][:100])
    before = {path: path.stat().st_mtime_ns for path in saved[1:]}
    code, out, _ = make()
    assert code == 0
    assert "9 label files made, 5 were there" in out
    assert {path: path.stat().st_mtime_ns for path in saved[1:]} == before
    assert saved[0].read_bytes() == whole[saved[0]]
    assert "0 label files made, 14 were there" in make()[1]
    assert not list((tmp_path / "labels").rglob(".*"))


def test_a_full_disk_leaves_whole_files_only(make, tmp_path, monkeypatch):
    def full(content, file):
        file.write(b"some")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(torch, "save", full)
    code, _, error = make()
    assert code == 3
    assert "cannot be written (No space left on device); what was made is whole" in error
    assert [path.name for path in (tmp_path / "labels").rglob("*") if path.is_file()] == ["labels.json"]


def test_scores_that_float16_does_not_hold(make, monkeypatch):
    monkeypatch.setattr(label_maker, "dense_logits", lambda model, images: torch.full((len(images), 1, 1, 7), 1e6))
    code, _, error = make()
    assert code == 3
    assert "class0_0.JPEG are not finite or beyond float16's 65504" in error


def test_a_broken_image_is_named(make, images):
    (images / "class3/class3_1.JPEG").write_bytes(b"broken")
    code, _, error = make()
    assert code == 2
    assert f"{images / 'class3/class3_1.JPEG'} cannot be read as an image" in error


def test_images_that_would_share_a_file(make, images):
    path = images / "class3/class3_1.JPEG"
    path.with_name("class3_1.again.JPEG").write_bytes(path.read_bytes())
    code, _, error = make()
    assert code == 2
    assert "2 images would share a label file" in error


REFUSED = {
    "another size": (["--image-size", 96], "image_size 64 there, 96 now): name another folder"),
    "another geometry": (["--geometry", "center_crop"], "geometry full there, center_crop now"),
    "batch": (["--batch", 0], "--batch 0 must be at least 1"),
    "unknown model": (
        ["--teacher", "resnet10tt"],
        "--teacher resnet10tt: there is no such model; did you mean resnet10t",
    ),
    "no such file": (["--teacher-weights", "none.pt"], "--teacher-weights none.pt: there is no such file"),
    "patches over the edge": (["--teacher", "vit_tiny_patch16_224", "--image-size", 60], "edge; use 48 or 64"),
    "no size at all": (["--teacher", "vit_tiny_patch16_224", "--image-size", 3], "the edge; use 16\n"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_is_refused(make, case):
    arguments, message = REFUSED[case]
    assert make()[0] == 0
    code, out, error = make(*arguments)
    assert code == 2, out + error
    assert message in error
    assert "Traceback" not in error


def test_other_faults_of_the_command_line(make, tmp_path):
    assert "--teacher is required" in make(teacher=())[2]
    (tmp_path / "full").mkdir()
    (tmp_path / "full/notes.txt").write_text("x")
    assert "holds what `toe-tools labels` did not write" in make(output=tmp_path / "full")[2]
    assert "cannot be written" in make(output=tmp_path / "full/notes.txt")[2]
    with pytest.raises(SystemExit) as ended:
        make("optim.lr=1")
    assert ended.value.code == 2


def test_a_teacher_of_other_classes(make, images, monkeypatch):
    plain = timm.create_model
    monkeypatch.setattr(teacher_module, "require_reachable", lambda *_: None)
    monkeypatch.setattr(timm, "create_model", lambda name, pretrained=False, **options: plain(name, **options))
    code, _, error = make(teacher=("--teacher", "resnet10t"))  # pretrained on ImageNet, here without its weights
    assert code == 2
    assert "--teacher resnet10t knows 1000 classes and the images have 7" in error


def test_plain_weights(make, tmp_path, images):
    model, _ = built("resnet10t", 32)
    torch.save({"state_dict": model.state_dict()}, tmp_path / "weights.pth")
    code, out, error = make(
        "--image-size", 32, teacher=("--teacher", "resnet10t", "--teacher-weights", tmp_path / "weights.pth")
    )
    assert code == 0, error
    assert "(resnet10t, weights.pth sha256 " in out
    torch.save({"fc.bias": torch.zeros(7)}, tmp_path / "weights.pth")
    code, _, error = make(teacher=("--teacher", "resnet10t", "--teacher-weights", tmp_path / "weights.pth"))
    assert code == 2
    assert "these are not the weights of resnet10t as it is built here (conv1.0.weight is missing;" in error


@pytest.mark.parametrize("metric", ["val_top1", "ema_top1"])
def test_a_teacher_that_toe_train_trained(make, images, tiny, tmp_path, capsys, metric):
    data = ["data.kind=image_folder", f"data.root={images.parent}", "train.global_batch=14", "augment.mix_group=14"]
    wide = ["augment.mixup=0", "augment.cutmix=0", "epochs=1", "optim.lr=0.1", f"checkpoint.best_metric={metric}"]
    assert train.main(["--config", str(tiny), "--output", str(tmp_path / "run"), *data, *wide]) == 0
    path = tmp_path / "run/checkpoints/best.pt"
    code, out, error = make(teacher=("--teacher-weights", path))
    assert code == 2
    assert "--image-size 64:" in error
    code, out, error = make("--image-size", 16, teacher=("--teacher-weights", path))
    assert code == 0, error
    assert "14 label files made" in out
    state, source = read(path), FolderImages(images)
    teacher = open_teacher(None, str(path), None, source.classes)
    saved = state["ema" if metric == "ema_top1" else "model"]
    assert all(torch.equal(saved[key], value) for key, value in teacher.model.state_dict().items())
    assert not all(torch.equal(state["ema"][key], value) for key, value in state["model"].items())
    assert read_token_labels(tmp_path / "labels/class0/class0_0.pt", 7).ids.shape == (5, 4, 4)
    with pytest.raises(
        UserError, match=r"the teacher has 7 classes and the images 6.*only in the teacher \(1\): class6"
    ):
        open_teacher(None, str(path), None, CLASSES[:-1])
    with pytest.raises(UserError, match="was trained with deit_tiny_patch16_224; leave the option out"):
        open_teacher("resnet18", str(path), None, CLASSES)
    path.write_bytes(path.read_bytes()[:1000])
    code, _, error = make(teacher=("--teacher-weights", path))
    assert "cannot be used: it has 1000 bytes and no seal" in error


@pytest.mark.slow
def test_two_processes_make_the_same_files(make, images, tmp_path):
    assert make()[0] == 0
    arguments = ["--images", images, "--output", tmp_path / "both", "--teacher", "resnet10t", "--image-size", 64]
    arguments += ["--teacher-weights", "random", "--nproc", 2, "--workers", 0, "--batch", 3]
    done = subprocess.run(
        [sys.executable, "-m", "toe_train.cli.tools", "labels", *map(str, arguments)],
        env={**os.environ, "PYTHONPATH": str(REPOSITORY), "CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout == f"{tmp_path / 'both'}: 14 label files made, 0 were there (resnet10t, random)\n"
    for file in sorted((tmp_path / "labels").rglob("*.pt")):
        one, other = (torch.load(tmp_path / folder / file.parent.name / file.name) for folder in ("labels", "both"))
        torch.testing.assert_close(one[0], other[0], atol=2e-3, rtol=2e-3)
