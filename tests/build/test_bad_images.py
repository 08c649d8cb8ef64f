"""Unreadable images: the run ends and names them, or passes them over with everything else in its place."""

import json
import resource

import pytest
import torch
from PIL import Image

from toe_train.cli.tools import main as tools
from toe_train.cli.train import main
from toe_train.data import NOT_COUNTED, EvalSet, SampleKey, SkippedImages, TrainSet, open_datasets
from toe_train.errors import RunFailed
from toe_train.runs.log import read_metrics


@pytest.fixture
def broken(tmp_path):
    """Cats are red, dogs blue, by how much tells which; four train and one val file cannot be read."""
    root = tmp_path / "images"
    for split, count in (("train", 24), ("val", 6)):
        for channel, label in ((0, "cat"), (2, "dog")):
            (root / split / label).mkdir(parents=True)
            for number in range(count):
                color = [0, 0, 0]
                color[channel] = 100 + number
                Image.new("RGB", (16, 16), tuple(color)).save(root / split / label / f"{number:02}.png")
    bad = {
        root / "train/cat/03.png": b"",
        root / "train/cat/07.png": b"not an image",
        root / "val/cat/01.png": b"\x89PNG",
    }
    bad[root / "train/dog/05.png"] = (root / "train/dog/06.png").read_bytes()[:40]
    bad[root / "train/dog/11.png"] = b"GIF89a"
    for path, content in bad.items():
        path.write_bytes(content)
    return root, sorted(map(str, bad))


def arguments(tiny, root, output, *more):
    fixed = ["data.kind=image_folder", f"data.root={root}", "train.global_batch=16", "augment.mix_group=16", "epochs=2"]
    return ["--config", str(tiny), "--output", str(output), *fixed, *more]


def test_fail_names_the_file(tiny, broken, tmp_path, capsys):
    root, bad = broken
    assert main(arguments(tiny, root, tmp_path / "run", "data.check_sample=0", "epochs=9")) == 2
    error = capsys.readouterr().err
    assert any(path in error for path in bad)


@pytest.mark.parametrize("workers", [0, 2])
def test_skip_lists_them_and_goes_on(tiny, broken, tmp_path, workers, capsys):
    root, bad = broken
    output = tmp_path / "run"
    assert main(arguments(tiny, root, output, "data.on_error=skip", "epochs=9", f"data.workers={workers}")) == 0
    listed = [json.loads(line) for line in (output / "skipped_images.jsonl").read_text().splitlines()]
    assert sorted(entry["image"] for entry in listed) == bad  # each once
    assert all("cannot be read as an image" in entry["reason"] for entry in listed)
    last = read_metrics(output / "metrics.jsonl", "epoch")[-1]
    assert (last["val_images"], last["skipped_images"]) == (11, 5)
    said = capsys.readouterr().out.splitlines()
    assert next(line for line in said if line.startswith("epoch 9/9")).endswith("  left out 5")
    assert "5 images that cannot be read are left out so far: skipped_images.jsonl in the run folder lists them" in said
    assert len(read_metrics(output / "metrics.jsonl", "step")) == 9 * 3  # 48 images: as many steps as with all of them


@pytest.mark.parametrize("on_error", ["fail", "skip"])
def test_a_thin_image_takes_no_gigabytes(tiny, broken, tmp_path, on_error):
    """1 x 65,000 pixels, in train and val: read and evaluated as any other."""
    root, bad = broken
    for path in bad:
        Image.new("RGB", (16, 16)).save(path)
    Image.new("RGB", (1, 65_000)).save(root / "val/cat/thin.png")
    Image.new("RGB", (65_000, 1)).save(root / "train/dog/thin.png")
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    more = [f"data.on_error={on_error}", "model.image_size=64", "evaluate.crop_pct=0.875", "epochs=1"]
    assert main(arguments(tiny, root, tmp_path / "run", *more)) == 0
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 500_000  # KiB
    last = read_metrics(tmp_path / "run/metrics.jsonl", "epoch")[-1]
    assert (last["val_images"], last["skipped_images"]) == (13, 0)


def test_an_evaluation_that_skipped_too_much_is_not_the_best(tiny, broken, tmp_path, capsys):
    root, _ = broken
    for label in ("cat", "dog"):
        for path in sorted((root / "val" / label).iterdir())[1 if label == "cat" else 0 :]:
            path.write_bytes(b"broken")
    limits = ["data.on_error=skip", "data.max_skipped=9"]
    assert main(arguments(tiny, root, tmp_path / "run", *limits)) == 3
    assert "data.max_skipped allows 9" in capsys.readouterr().err
    assert not (tmp_path / "run/checkpoints/best.pt").exists()
    for path in (root / "val").rglob("*.png"):
        path.write_bytes(b"broken")
    assert main(arguments(tiny, root, tmp_path / "other", "data.on_error=skip")) == 3
    assert "no validation image could be read" in capsys.readouterr().err


def test_too_many_end_the_run(tiny, broken, tmp_path, capsys):
    root, _ = broken
    assert main(arguments(tiny, root, tmp_path / "run", "data.on_error=skip", "data.max_skipped=1", "epochs=9")) == 3
    assert "images could not be read, and data.max_skipped allows 1" in capsys.readouterr().err


def test_eval_passes_over_what_training_passed_over(tiny, broken, tmp_path, capsys):
    root, _ = broken
    run = arguments(tiny, root, tmp_path / "run", "data.on_error=skip", "epochs=1")
    assert main(run) == 0
    listed = (tmp_path / "run/skipped_images.jsonl").read_text()
    given = ["--config", str(tmp_path / "run/config.yaml"), "--checkpoint", str(tmp_path / "run/checkpoints/last.pt")]
    capsys.readouterr()
    assert tools(["eval", *given]) == 0
    counted = read_metrics(tmp_path / "run/metrics.jsonl", "epoch")[0]["val_images"]
    assert f"over {counted} images; 1 that cannot be read left out" in capsys.readouterr().out
    assert (tmp_path / "run/skipped_images.jsonl").read_text() == listed
    assert tools(["eval", *given, "data.max_skipped=0"]) == 3
    assert "data.max_skipped allows 0" in capsys.readouterr().err


def test_an_evaluation_counts_what_all_processes_passed_over(tiny, broken, tmp_path, run):
    """One broken image in each process's share."""
    root, _ = broken
    assert main(arguments(tiny, root, tmp_path / "run", "data.on_error=skip", "epochs=1")) == 0
    (root / "val/dog/00.png").write_bytes(b"broken")
    checkpoint = str(tmp_path / "run/checkpoints/last.pt")
    given = ["eval", "--config", str(tmp_path / "run/config.yaml"), "--checkpoint", checkpoint]
    done = run(*given, "data.max_skipped=1", module="toe_train.cli.tools", processes=2)
    assert done.process.returncode == 1  # torchrun's
    assert done.stderr.count("2 images could not be read, and data.max_skipped allows 1") == 1
    assert "/toe_train/" not in done.stderr  # the traceback is torchrun's alone


def test_a_substitute_brings_its_own_label_and_depends_on_the_place_only(broken, tmp_path):
    root, bad = broken
    train, val = open_datasets("image_folder", root)
    skipped = SkippedImages(tmp_path / "skipped.jsonl", 100)

    def transform(image):
        return torch.tensor(image.getpixel((0, 0)))

    dataset = TrainSet(train, transform, seed=1, skipped=skipped)
    index = next(i for i in range(len(train)) if train.describe(i) == bad[0])
    drawn = []
    for position in range(30):
        pixel, label = dataset[SampleKey(index, 0, position)]
        assert pixel.argmax().item() == (0 if label == 0 else 2)
        assert torch.equal(dataset[SampleKey(index, 0, position)][0], pixel)
        drawn.append(pixel.max().item())
    assert len(set(drawn)) > 5
    evaluated = EvalSet(val, transform, skipped)
    labels = [evaluated[i][1] for i in range(len(val))]
    assert labels.count(NOT_COUNTED) == 1
    assert labels[1] == NOT_COUNTED


def test_an_epoch_counts_what_its_own_evaluation_left_out(tiny, broken, tmp_path):
    root, bad = broken
    for path in bad:
        if "/train/" in path:
            Image.new("RGB", (16, 16)).save(path)
    assert main(arguments(tiny, root, tmp_path / "run", "data.on_error=skip", "epochs=1")) == 0
    assert read_metrics(tmp_path / "run/metrics.jsonl", "epoch")[0]["skipped_images"] == 1


def test_each_process_writes_a_file_of_its_own_and_the_list_holds_each_once(tmp_path):
    ranks = [SkippedImages(tmp_path / "skipped_images.jsonl", 3, rank) for rank in (0, 1)]
    worker = SkippedImages(tmp_path / "skipped_images.jsonl", 3, 1)
    for one, image in ((0, "a"), (1, "b"), (1, "a"), (1, "b")):
        ranks[one].note(image, "broken")
    worker.note("b", "broken")
    files = {path.name: path.read_text().count("\n") for path in (tmp_path / "skipped_images").iterdir()}
    assert files == {"rank0.jsonl": 1, "rank1.jsonl": 3}
    for _ in range(2):
        ranks[0].require_within_limit()
        listed = [json.loads(line) for line in (tmp_path / "skipped_images.jsonl").read_text().splitlines()]
        assert [entry["image"] for entry in listed] == ["a", "b"]
    (tmp_path / "skipped_images" / "rank2.jsonl").write_text('{"image": "c", "reason": "x"}\n{"image": "to')  # torn
    assert ranks[0].gather() == 3
    ranks[1].note("d", "broken")
    with pytest.raises(RunFailed, match=r"4 images could not be read, and data\.max_skipped allows 3"):
        ranks[0].require_within_limit()
    assert len((tmp_path / "skipped_images.jsonl").read_text().splitlines()) == 4


def test_a_list_of_an_earlier_version_is_continued(tmp_path):
    path = tmp_path / "skipped_images.jsonl"
    path.write_text('{"image": "a", "reason": "x"}\n' * 3)
    skipped = SkippedImages(path, 3)
    skipped.note("b", "y")
    assert skipped.gather() == 2
    assert [json.loads(line)["image"] for line in path.read_text().splitlines()] == ["a", "b"]


def test_a_data_set_of_broken_images_ends_with_a_message(tmp_path):
    class Broken:
        def __len__(self):
            return 4

        def __getitem__(self, index):
            from toe_train.errors import UserError

            raise UserError("cannot be read")

        def describe(self, index):
            return f"{index}"

    dataset = TrainSet(Broken(), None, 0, SkippedImages(tmp_path / "skipped.jsonl", 100))
    with pytest.raises(ValueError, match="20 images in a row could not be read"):
        dataset[SampleKey(0, 0, 0)]
