"""Images and labels that a list names."""

import io
import json
import shutil
import tarfile
from pathlib import Path

import numpy as np
import pytest
from forms import add, tar_of_tars
from scipy.io import savemat

from toe_train.data import Labelling, check_datasets, open_datasets
from toe_train.errors import UserError


def written(path, text):
    path.write_text(text)
    return path


def rows(root, split, line):
    return "".join(line(path, path.parent.name) for path in sorted((root / split).rglob("*.*")))


def opened(root, train, val):
    return open_datasets("list", root, labelling=Labelling(train, val))


@pytest.mark.parametrize("suffix", [".csv", ".jsonl", ".txt"])
@pytest.mark.parametrize("base", ["root", "split", "absolute"])
def test_paths_count_from_the_root_or_the_splits_folder(image_root, tmp_path, suffix, base):
    def line(path, label):
        shown = {"root": path.relative_to(image_root), "split": path.relative_to(path.parents[1]), "absolute": path}[
            base
        ]
        if suffix == ".jsonl":
            return json.dumps({"path": str(shown), "label": label}) + "\n"
        return f"{shown},{label}\n" if suffix == ".csv" else f"{shown}\t{label}\n"

    lists = [written(tmp_path / f"{split}{suffix}", rows(image_root, split, line)) for split in ("train", "val")]
    expected, found = open_datasets("image_folder", image_root), opened(image_root, *lists)
    for one, other in zip(expected, found, strict=True):
        assert (other.classes, other.digest(), other.counts()) == (one.classes, one.digest(), one.counts())
        assert [other.read(i) for i in range(len(other))] == [one.read(i) for i in range(len(one))]
        other.require_here()


def test_one_list_with_splits(image_root, tmp_path):
    def line(path, label):
        return f'{label},"{path.relative_to(image_root)}",{path.parts[-3]}\n'

    text = (
        "label,path,split\n"
        + rows(image_root, "train", line)
        + rows(image_root, "val", line).replace("val\n", "valid\n")
    )
    both = written(tmp_path / "all.csv", text + "cat,x.png,test\n\n")
    train, val = opened(image_root, both, both)
    assert (len(train), len(val)) == (12, 6)
    assert train.digest() == open_datasets("image_folder", image_root)[0].digest()
    assert train.notes() == [f"{both}: passed over 1 rows of the split test"]


def test_a_flat_val_folder_beside_class_folders(image_root, tmp_path):
    expected = open_datasets("image_folder", image_root)
    names = [Path(expected[1].describe(i)).name for i in range(6)]
    for path in list((image_root / "val").rglob("*.*")):
        path.rename(image_root / "val" / path.name)
    for label in range(3):
        (image_root / "val" / expected[0].classes[label]).rmdir()
    text = "".join(f"{name},{expected[1].label(i)}\n" for i, name in enumerate(names))
    train, val = opened(image_root, None, written(tmp_path / "val.csv", text))  # numbers: of train's classes
    assert [Path(val.describe(i)).name for i in range(6)] == names
    assert (train.digest(), val.digest()) == (expected[0].digest(), expected[1].digest())


def test_numbers_have_their_own_order(tmp_path):
    found, _ = opened(tmp_path, *[written(tmp_path / "a.csv", "x.png,10\ny.png,2\nz.png,0\n")] * 2)
    assert found.classes == ["0", "2", "10"]
    assert [Path(found.describe(i)).name for i in range(3)] == ["z.png", "y.png", "x.png"]


def test_an_image_counts_once(image_root, tmp_path):
    name = "cat/cat_0.JPEG"
    text = f"path,label\n{name},cat\ndog/dog_0.JPEG,dog\n./{name},cat\n{image_root}/train/{name},cat\n"
    train, _ = opened(image_root, *[written(tmp_path / "a.csv", text)] * 2)
    assert (len(train), train.notes()) == (
        2,
        [f"{tmp_path}/a.csv: 2 entries are of images that others are of, which count once"],
    )


def test_names_without_a_suffix_are_images(tmp_path):
    found, _ = opened(tmp_path, *[written(tmp_path / "a.csv", "x,cat\ny,dog\n")] * 2)
    assert len(found) == 2


FAULTS = {
    "a.csv": [
        ("", "holds no images for train"),
        ("x.png\n", "a.csv, line 1: 'x.png' must be path,label"),
        ("x.png,cat,train,more\n", "line 1: 'x.png,cat,train,more' must be"),
        ("x.png,cat\n,dog\n", "line 2: ',dog' must be"),
        ("x.png,cat\ny.png,3\n", "labels are numbers and names (3 and cat)"),
        ("x.png,cat\nx.png,dog\n", "line 2: x.png has the label dog, and cat in"),
        ('x.png,"cat\n', "it is no CSV"),
        ("x.png,cat,val\n", "holds no images for train"),
        ("filename,class\nx.png,cat\n", "a.csv, line 1 names no image; call the columns path, label"),
        ("\nclass,filename\ncat,x.png\n", "a.csv, line 2 names no image"),
        ("x.png,cat\n./x.png,dog\n", "line 2: ./x.png has the label dog, and cat in"),
    ],
    "a.jsonl": [
        ('{"path": "x.png"}', "a.jsonl, line 1: the label is None"),
        ('{"path": "x.png", "label": true}', "the label is True"),
        ('{"path": "x.png", "label": -1}', "the label is -1"),
        ('{"path": 3, "label": 1}', "there is no path"),
        ('\n["x.png"]', "line 2: there is no path"),
        ("{", "line 1: it is no JSON"),
        ('{"path": "x.png", "label": 1, "split": 2}', "split is 2"),
    ],
    "a.txt": [("x.png\n", "line 1: 'x.png' must be a path, a space and a label")],
}


@pytest.mark.parametrize(("name", "text", "told"), [(name, *fault) for name in FAULTS for fault in FAULTS[name]])
def test_a_faulty_list_is_refused_by_line(tmp_path, name, text, told):
    path = written(tmp_path / name, text)
    with pytest.raises(UserError) as fault:
        opened(tmp_path, path, path)
    assert told in str(fault.value)
    assert name in str(fault.value)


def test_a_list_that_is_not_there_or_no_text(tmp_path):
    with pytest.raises(UserError, match=r"nowhere\.csv cannot be read \(No such file"):
        opened(tmp_path, tmp_path / "nowhere.csv", None)
    (tmp_path / "a.csv").write_bytes(b"x.png,\xff\n")
    with pytest.raises(UserError, match=r"a\.csv is no text in UTF-8 \(byte 6\)"):
        opened(tmp_path, tmp_path / "a.csv", None)


def test_a_number_beyond_trains_classes(image_root, tmp_path):
    with pytest.raises(UserError, match="label 3 is beyond train's 3 classes"):
        opened(image_root, None, written(tmp_path / "val.csv", "x.png,0\ny.png,3\n"))


def test_the_check_names_a_listed_image_that_is_not_there(image_root, tmp_path):
    text = "cat/cat_0.JPEG,cat\ndog/dog_0.JPEG,dog\nbird/none.png,bird\n"
    lists = Labelling(written(tmp_path / "train.csv", text))
    (fault,) = check_datasets("list", image_root, labelling=lists)
    assert f"image {image_root}/train/bird/none.png does not exist: mend the path" in fault


def devkit(names):
    """ImageNet's development kit, with other synsets: a child's number is not its place among the sorted names."""
    kinds = [("ILSVRC2012_ID", "i4"), ("WNID", "O"), ("words", "O"), ("num_children", "i4")]
    synsets = np.array([(number, name, f"a {name}", 0) for number, name in names.items()], dtype=kinds)
    meta = io.BytesIO()
    savemat(meta, {"synsets": synsets.reshape(-1, 1)})
    return meta.getvalue()


@pytest.mark.parametrize("packed", [False, True])
def test_the_development_kit_gives_the_labels_of_imagenets_validation_images(image_root, tmp_path, packed):
    expected = open_datasets("image_folder", image_root)
    root = tmp_path / "imagenet"
    tar_of_tars(image_root, root)
    truth = {}
    with tarfile.open(root / "ILSVRC2012_img_val.tar", "w") as flat:
        for number, index in enumerate([4, 0, 2, 5, 1, 3], 1):
            add(flat, f"ILSVRC2012_val_{number:08d}.JPEG", expected[1].read(index))
            truth[number] = expected[1].classes[expected[1].label(index)]
    numbers = {"cat": 1, "dog": 2, "bird": 3}
    files = {
        "data/ILSVRC2012_validation_ground_truth.txt": "".join(
            f"{numbers[name]}\n" for name in truth.values()
        ).encode(),
        "data/meta.mat": devkit({number: name for name, number in numbers.items()}),
    }
    if packed:
        with tarfile.open(root / "ILSVRC2012_devkit_t12.tar.gz", "w:gz") as kit:
            for name, content in files.items():
                add(kit, f"ILSVRC2012_devkit_t12/{name}", content)
    else:
        for name, content in files.items():
            path = root / "ILSVRC2012_devkit_t12" / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)
    train, val = open_datasets("tar", root)
    assert train.digest() == expected[0].digest()
    for index in range(6):
        number = int(Path(val.describe(index)).stem.rpartition("_")[2])
        assert val.classes[val.label(index)] == truth[number]


def test_a_kit_that_is_not_whole(image_root, tmp_path):
    root = tmp_path / "imagenet"
    tar_of_tars(image_root, root)
    (root / "ILSVRC2012_devkit_t12.tar.gz").write_bytes(b"half")
    with pytest.raises(
        UserError, match=r"devkit_t12\.tar\.gz does not hold ImageNet's labels .* or set data\.val_list"
    ):
        open_datasets("tar", root)


def test_a_list_and_an_archive_that_differ(image_root, tmp_path):
    root = tmp_path / "imagenet"
    tar_of_tars(image_root, root)
    lines = (root / "val.txt").read_text().splitlines()
    short = written(tmp_path / "short.txt", "\n".join(lines[:5]))
    _, val = open_datasets("tar", root, labelling=Labelling(val_list=short))
    assert len(val) == 5
    assert val.notes()[0].endswith("passed over 1 images that the list does not name")
    long = written(tmp_path / "long.txt", "\n".join([*lines, "more.png 0"]))
    with pytest.raises(UserError, match=r"long\.txt, line 7: 1 images of the list are not in .*: more\.png; correct"):
        open_datasets("tar", root, labelling=Labelling(val_list=long))
    shutil.rmtree(root)
