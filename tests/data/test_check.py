import pytest

from toe_train.data import check_datasets, load_rgb, require_healthy
from toe_train.errors import UserError


def only_fault(root, sample=64):
    faults = check_datasets("image_folder", root, sample)
    assert len(faults) == 1, faults
    assert "\n" not in faults[0]
    with pytest.raises(UserError) as raised:
        require_healthy("image_folder", root, sample)
    assert str(raised.value) == faults[0]
    return faults[0]


@pytest.mark.parametrize("sample", [64, 2, None])
def test_healthy(image_root, sample):
    assert check_datasets("image_folder", image_root, sample) == []
    require_healthy("image_folder", image_root, sample)


def test_digits_are_healthy():
    assert check_datasets("digits", None) == []


def test_no_root(tmp_path):
    assert "data.root" in check_datasets("image_folder", None)[0]
    fault = only_fault(tmp_path / "nowhere")
    assert fault.startswith(f"{tmp_path / 'nowhere'} is not a folder: set data.root")


@pytest.mark.parametrize("split", ["train", "val"])
def test_missing_split(image_root, split):
    (image_root / split).rename(image_root / "other")
    fault = only_fault(image_root)
    assert f"{image_root} has no {split} (it holds other, " in fault
    assert "create or rename" in fault


def test_both_splits_missing(tmp_path):
    assert "has no train and no val (it holds nothing)" in only_fault(tmp_path)


def test_root_one_level_too_deep(image_root):
    assert f"did you mean its parent, {image_root}?" in only_fault(image_root / "train")


def test_root_one_level_too_high(image_root):
    assert f"did you mean {image_root}?" in only_fault(image_root.parent)


def test_flat_val(image_root):
    for path in list((image_root / "val").glob("*/*")):
        path.rename(image_root / "val" / path.name)
    for folder in [path for path in (image_root / "val").iterdir() if path.is_dir()]:
        folder.rmdir()
    fault = only_fault(image_root)
    assert f"{image_root / 'val'} is flat" in fault
    assert "move each into the folder of its class" in fault
    assert "valprep.sh" in fault


def test_empty_split(image_root):
    (image_root / "val").rename(image_root / "old")
    (image_root / "val").mkdir()
    assert f"{image_root / 'val'} holds no class folders and no images" in only_fault(image_root)


def test_classes_differ(image_root):
    (image_root / "val" / "dog").rename(image_root / "val" / "fox")
    (image_root / "train" / "bird").rename(image_root / "train" / "ant")
    fault = only_fault(image_root)
    assert "train has 3 classes and val 3" in fault
    assert "only in train (2): ant, dog; only in val (2): bird, fox" in fault
    assert "rename, add or remove" in fault


def test_many_different_classes_are_shortened(image_root):
    for number in range(9):
        (image_root / "train" / f"x{number}").mkdir()
        source = (image_root / "train" / "cat" / "cat_0.JPEG").read_bytes()
        (image_root / "train" / f"x{number}" / "image.JPEG").write_bytes(source)
    assert "only in train (9): x0, x1, x2, x3, x4, ... (9 in all): " in only_fault(image_root)


def test_empty_class(image_root):
    for path in (image_root / "train" / "cat").iterdir():
        path.rename(path.with_suffix(".txt"))
    fault = only_fault(image_root)
    assert f"1 of 3 class folders of {image_root / 'train'} hold no images: cat (passed over: 4 files" in fault
    assert "); fill them, or remove" in fault


def test_no_images_at_all(image_root):
    for path in image_root.glob("*/*/*"):
        path.unlink()
    faults = check_datasets("image_folder", image_root)
    assert [fault.partition(":")[0] for fault in faults] == [
        f"{image_root / split} holds no images" for split in ("train", "val")
    ]


@pytest.mark.parametrize("sample", [64, None])
def test_unreadable_files(image_root, sample):
    truncated = image_root / "train" / "cat" / "cat_2.JPEG"
    truncated.write_bytes(truncated.read_bytes()[:300])
    text = image_root / "val" / "dog" / "dog_0.JPEG"
    text.write_text("not an image")
    faults = check_datasets("image_folder", image_root, sample)
    assert len(faults) == 2
    for fault, path in zip(faults, (truncated, text), strict=True):
        assert fault.startswith(f"{path} cannot be read as an image")
        assert "replace or remove" in fault


def test_images_in_deeper_folders_count(image_root):
    (image_root / "val" / "dog" / "more").mkdir()
    for path in list((image_root / "val" / "dog").glob("*.*")):
        path.rename(path.parent / "more" / path.name)
    assert check_datasets("image_folder", image_root) == []


def test_the_sample_is_small_and_always_the_same(image_root, monkeypatch):
    decoded = []
    monkeypatch.setattr(
        "toe_train.data.check.load_rgb", lambda path, turned: decoded.append(path) or load_rgb(path, turned)
    )
    check_datasets("image_folder", image_root, sample=3)
    first = list(decoded)
    check_datasets("image_folder", image_root, sample=3)
    assert decoded == first * 2
    assert sorted(str(path.parent.relative_to(image_root)) for path in first) == [
        f"{split}/{name}" for split in ("train", "val") for name in ("bird", "cat", "dog")
    ]


def test_full_check_in_processes(image_root):
    source = (image_root / "train" / "cat" / "cat_0.JPEG").read_bytes()
    for number in range(1000):
        content = source if number != 777 else source[:200]
        (image_root / "train" / "cat" / f"more_{number}.JPEG").write_bytes(content)
    (fault,) = check_datasets("image_folder", image_root, sample=None)
    assert "more_777.JPEG cannot be read" in fault


def test_many_faults_are_counted(image_root):
    for path in image_root.glob("*/*/*"):
        path.write_bytes(b"")
    with pytest.raises(UserError) as raised:
        require_healthy("image_folder", image_root)
    lines = str(raised.value).splitlines()
    assert len(lines) == 11
    assert lines[-1].startswith("and 8 more: `toe-tools doctor")


def test_cifar_missing(tmp_path):
    (fault,) = check_datasets("cifar10", tmp_path)
    assert "cifar10 is missing or damaged" in fault
    assert "data.download=true" in fault
