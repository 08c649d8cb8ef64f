import hashlib
import os
import pickle
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision import datasets as torchvision_datasets

from toe_train.data import (
    ArrayImages,
    EvalSet,
    FolderImages,
    SampleKey,
    SkippedImages,
    TrainSet,
    eval_transform,
    open_datasets,
)
from toe_train.errors import UserError


def test_image_folder(image_root):
    train, val = open_datasets("image_folder", image_root)
    assert train.classes == val.classes == ["bird", "cat", "dog"]
    assert (len(train), len(val)) == (12, 6)
    image, label = train[5]
    assert (image.mode, image.size, label) == ("RGB", (40, 30), 1)
    assert train.describe(5) == str(image_root / "train" / "cat" / "cat_1.png")
    expected = Image.open(train.describe(5)).convert("RGB")
    assert np.array_equal(np.asarray(image), np.asarray(expected))


def test_the_digest_is_of_names_and_labels_wherever_they_lie(image_root, tmp_path):
    digest = open_datasets("image_folder", image_root)[0].digest()
    moved = tmp_path / "elsewhere"
    shutil.copytree(image_root, moved)
    assert open_datasets("image_folder", moved)[0].digest() == digest
    (moved / "train/cat/cat_1.png").rename(moved / "train/cat/cat_9.png")
    assert open_datasets("image_folder", moved)[0].digest() != digest
    train, val = open_datasets("digits", None)
    assert train.digest() == open_datasets("digits", None)[0].digest() != val.digest()


def as_torchvision(root):
    return torchvision_datasets.ImageFolder(str(root))


@pytest.fixture
def odd_names(image_root):
    """The training images with names and folders whose order or form is easily mistaken."""
    root = image_root / "train"
    origin = root / "cat/cat_0.JPEG"
    for name in ("cat/a/z.png", "cat/a-b/y.JPG", "cat/a/b/x.webp", "Bird/1.jpg", "bird/é.png", "bird/notes.txt"):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(origin, root / name)
    (root.parent / "more").mkdir()
    shutil.copy(origin, root.parent / "more/w.png")
    (root / "cat/link").symlink_to(root.parent / "more")
    (root / "file.png").write_bytes(b"")
    return root


def test_an_image_folder_lists_what_torchvision_lists(odd_names):
    images, expected = FolderImages(odd_names), as_torchvision(odd_names)
    assert images.classes == expected.classes
    listed = [(images.describe(i), int(images._labels[i])) for i in range(len(images))]
    assert listed == expected.samples
    assert images.describe(-1) == expected.samples[-1][0]
    assert [label for _, label in images] == expected.targets  # a loop over them ends
    with pytest.raises(IndexError):
        images[len(images)]


def test_the_digest_of_an_image_folder_is_what_runs_have_noted(odd_names):
    """The sum over text of a line an image; a run that is resumed compares it."""
    summed = hashlib.sha256()
    for path, label in as_torchvision(odd_names).samples:
        summed.update(f"{path[len(str(odd_names)) :]}\0{label}\n".encode())
    assert FolderImages(odd_names).digest() == summed.hexdigest()


def test_a_relative_folder_is_described_as_torchvision_does(odd_names, monkeypatch):
    monkeypatch.chdir(odd_names)
    images = FolderImages(Path("."))
    assert images.describe(0) == as_torchvision(".").samples[0][0] == "./Bird/1.jpg"
    assert images.digest() == FolderImages(odd_names).digest()


def test_names_that_are_not_utf8(image_root):
    root = image_root / "train"
    name = os.path.join(os.fsencode(root), b"cat", b"\xff.png")
    shutil.copy(root / "cat/cat_1.png", os.fsdecode(name))
    images = FolderImages(root)
    (place,) = (i for i in range(len(images)) if os.fsencode(images.describe(i)) == name)
    assert images[place][1] == 1
    before = images.digest()
    os.rename(name, name.replace(b"\xff", b"\xfe"))
    assert FolderImages(root).digest() != before


def test_an_image_folder_without_images_is_refused_in_torchvisions_words(image_root):
    for name in ("dog", "bird"):
        shutil.rmtree(image_root / "val" / name)
        (image_root / "val" / name).mkdir()
    for folder in (image_root / "val", image_root / "train/cat", image_root / "nowhere"):  # the second has no classes
        with pytest.raises(FileNotFoundError) as theirs:
            as_torchvision(folder)
        with pytest.raises(UserError) as ours:
            FolderImages(folder)
        assert str(ours.value).startswith(f"{folder} cannot be used as a folder of classes ({theirs.value}")
        assert "): put each" in str(ours.value)


def test_an_image_folder_is_pickled_as_arrays(odd_names):
    """Another process has it without a look at the files."""
    images = FolderImages(odd_names)
    held = [value for value in vars(images).values() if isinstance(value, np.ndarray)]
    assert [array.dtype for array in held] == [np.uint8, np.int64, np.int32]
    lists = [value for value in vars(images).values() if isinstance(value, list | tuple | dict)]
    assert lists == [images.classes]
    sent = pickle.dumps(images)
    assert len(sent) < sum(array.nbytes for array in held) + 1500
    expected = [images.describe(i) for i in range(len(images))], images.digest(), images.classes
    shutil.rmtree(odd_names)
    got = pickle.loads(sent)
    assert ([got.describe(i) for i in range(len(got))], got.digest(), got.classes) == expected


def test_a_digest_is_summed_up_once(odd_names, monkeypatch):
    sources = [FolderImages(odd_names), ArrayImages("a", np.zeros((2, 4, 4, 3), np.uint8), [0, 1], ["0", "1"])]
    digests = [source.digest() for source in sources]
    assert digests[1] == hashlib.sha256(bytes(96) + b"[0, 1]").hexdigest()
    monkeypatch.delattr(hashlib, "sha256")
    assert [source.digest() for source in sources] == digests
    assert [pickle.loads(pickle.dumps(source)).digest() for source in sources] == digests


def test_image_folder_without_images(image_root):
    for path in (image_root / "val" / "dog").iterdir():
        path.unlink()
    with pytest.raises(UserError, match=r"val cannot be used as a folder of classes.*dog.*put each image into"):
        open_datasets("image_folder", image_root)


def test_image_folder_with_other_classes(image_root):
    (image_root / "val" / "dog").rename(image_root / "val" / "fox")
    with pytest.raises(UserError) as fault:
        open_datasets("image_folder", image_root)
    assert "train has 3 classes and val 3" in str(fault.value)
    assert "only in train (1): dog; only in val (1): fox" in str(fault.value)


@pytest.mark.parametrize("kind", ["image_folder", "cifar10"])
def test_missing_root(tmp_path, kind):
    with pytest.raises(UserError, match="nowhere"):
        open_datasets(kind, tmp_path / "nowhere")
    with pytest.raises(UserError, match=r"needs data\.root"):
        open_datasets(kind, None)


def test_unknown_kind(tmp_path):
    with pytest.raises(
        UserError, match="data kind 'mnist' is not known: use one of image_folder, tar, list, coco, cifar10"
    ):
        open_datasets("mnist", tmp_path)


def test_digits():
    train, val = open_datasets("digits", None)
    assert train.classes == val.classes == [str(digit) for digit in range(10)]
    assert len(train) + len(val) == 1797
    assert len(val) / 1797 == pytest.approx(0.2, abs=0.01)
    for part in (train, val):
        counts = np.bincount([part[i][1] for i in range(len(part))])
        assert counts.min() > 0.95 * counts.mean()  # stratified: each digit about as often
    image, _ = train[0]
    assert (image.mode, image.size) == ("RGB", (8, 8))
    pixels = np.stack([np.asarray(train[i][0]) for i in range(len(train))])
    assert (pixels == pixels[..., :1]).all()
    assert np.unique(pixels).tolist() == [round(value * 255 / 16) for value in range(17)]
    assert train.describe(17) == "image 17 of digits (train)"


def test_digits_split_is_complete_and_fixed():
    from sklearn.datasets import load_digits

    def rows(parts):
        return [(np.asarray(part[i][0])[..., 0].tobytes(), part[i][1]) for part in parts for i in range(len(part))]

    digits = load_digits()
    grey = (digits.images * 255 / 16).round().astype(np.uint8)
    assert sorted(rows(open_datasets("digits", None))) == sorted(
        (image.tobytes(), int(label)) for image, label in zip(grey, digits.target, strict=True)
    )
    assert rows(open_datasets("digits", None)) == rows(open_datasets("digits", None))


@pytest.mark.parametrize("kind", ["cifar10", "cifar100"])
def test_cifar_missing(tmp_path, kind):
    with pytest.raises(UserError) as fault:
        open_datasets(kind, tmp_path)
    for word in (f"{kind} is missing or damaged", "data.download=true", str(tmp_path), "https://"):
        assert word in str(fault.value)


def test_cifar_download_fails(tmp_path, monkeypatch):
    def offline(self):
        raise OSError("no route to host")

    monkeypatch.setattr(torchvision_datasets.CIFAR10, "download", offline)
    with pytest.raises(UserError, match=r"could not be fetched \(no route to host\); check the connection"):
        open_datasets("cifar10", tmp_path, download=True)


def test_cifar_reads_torchvisions_files(tmp_path, monkeypatch):
    """Files of CIFAR-10's form, with their checksums left out."""
    folder = tmp_path / "cifar-10-batches-py"
    folder.mkdir()
    pixels = np.random.default_rng(0).integers(0, 256, (6, 3072), dtype=np.uint8)
    for name, rows in (("data_batch_1", slice(0, 4)), ("test_batch", slice(4, 6))):
        content = {"data": pixels[rows], "labels": list(range(6))[rows]}
        (folder / name).write_bytes(pickle.dumps(content))
    (folder / "batches.meta").write_bytes(pickle.dumps({"label_names": [f"class {i}" for i in range(10)]}))
    cifar = torchvision_datasets.CIFAR10
    monkeypatch.setattr(cifar, "train_list", [["data_batch_1", None]])
    monkeypatch.setattr(cifar, "test_list", [["test_batch", None]])
    monkeypatch.setattr(cifar, "meta", cifar.meta | {"md5": None})
    train, val = open_datasets("cifar10", tmp_path)
    assert (len(train), len(val)) == (4, 2)
    assert train.classes[3] == "class 3"
    image, label = val[1]
    assert label == 5
    assert np.array_equal(np.asarray(image), pixels[5].reshape(3, 32, 32).transpose(1, 2, 0))
    assert train.describe(2) == "image 2 of cifar10 (train)"


def test_train_set_depends_on_the_place_only(image_root, deit_transform, global_states):
    train, _ = open_datasets("image_folder", image_root)
    samples = TrainSet(train, deit_transform(), seed=0)
    assert len(samples) == 12
    before = global_states()
    key = SampleKey(index=3, epoch=1, position=40)
    first, label = samples[key]
    samples[SampleKey(4, 1, 41)]
    assert global_states() == before
    torch.rand(3), np.random.rand(3)
    again, _ = samples[key]
    assert label == 0
    assert torch.equal(first, again)
    others = [
        samples[key._replace(epoch=2)],
        samples[key._replace(position=41)],
        TrainSet(train, deit_transform(), 1)[key],
    ]
    for other, _ in others:
        assert not torch.equal(first, other)


def test_an_image_is_read_once_for_all_its_views_in_a_batch(image_root, deit_transform, monkeypatch):
    """And they are what they are when each is asked for alone, substitutes of an unreadable image too."""
    (image_root / "train/cat/cat_1.png").write_bytes(b"broken")  # image 5
    source = open_datasets("image_folder", image_root)[0]
    keys = [SampleKey(index, 0, position) for position, index in enumerate([7, 5, 2, 7, 2, 5, 7, 5])]

    def train_set(name):
        return TrainSet(source, deit_transform(), 0, SkippedImages(image_root / name, 10))

    alone = [train_set("alone")[key] for key in keys]
    reads = []
    read = type(source).__getitem__
    monkeypatch.setattr(type(source), "__getitem__", lambda self, index: reads.append(index) or read(self, index))
    together = train_set("together").__getitems__(keys)
    assert [label for _, label in together] == [label for _, label in alone]
    assert all(torch.equal(a, b) for (a, _), (b, _) in zip(together, alone, strict=True))
    assert (reads.count(2), reads.count(7), reads.count(5)) == (1, 1, 3)


def test_eval_set(image_root):
    _, val = open_datasets("image_folder", image_root)
    transform = eval_transform(image_size=16, crop_pct=0.875, interpolation="bicubic", mean=(0.5,) * 3, std=(0.5,) * 3)
    samples = EvalSet(val, transform)
    image, label = samples[4]
    assert (len(samples), label) == (6, 2)
    assert torch.equal(image, transform(val[4][0]))
