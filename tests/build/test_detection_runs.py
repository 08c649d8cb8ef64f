"""Detection runs from their configuration to their scores: resumed, in two processes, scored as COCO scores."""

import json
import random

import coco_files
import numpy as np
import pytest
import torch
from golden_figures import figures
from support import KILLED, losses, train, trainer_of

from toe_train.build.inputs import batch_layout, build_train_transform, largest_size
from toe_train.build.model import build_model
from toe_train.build.preflight import build_parts
from toe_train.build.step import build_optimizer, build_schedule
from toe_train.cli.tools import main as tools
from toe_train.cli.train import main
from toe_train.errors import RunFailed, UserError
from toe_train.recipes import load_config, plan_epochs
from toe_train.runs.folder import RunFolder
from toe_train.runs.log import read_metrics
from toe_train.tasks import detection
from toe_train.tasks.average_precision import coco_statistics, rows_of

OFTEN = "checkpoint.every_steps=1"
SAMPLE = [
    "data.train_folder=train",
    "data.val_folder=val",
    "data.train_annotations=annotations/instances_train.json",
    "data.val_annotations=annotations/instances_val.json",
]


def epochs_of(root):
    return read_metrics(root / "metrics.jsonl", "epoch")


def test_broken_off_at_its_worst_places_it_is_the_uninterrupted_run(yolos, tmp_path, assert_same_run):
    config = load_config(yolos, [OFTEN, "train.log_every=3"])
    train(config, tmp_path / "quiet")
    for place in [(0, 1), (1, 0), (1, 1), (2, 0), (3, 1), None]:
        train(config, tmp_path / "broken", stop_at=place)
    assert_same_run(tmp_path / "quiet", tmp_path / "broken")
    lines = epochs_of(tmp_path / "quiet")
    assert [line["stage"] for line in lines] == [0, 1, 2, 3]
    shares = [line["tokens_kept"] / line["tokens"] for line in lines]
    assert shares == pytest.approx([1, 0.5, 0.75, 1], abs=0.03)
    assert len({line["tokens"] for line in lines}) > 1  # images have many sizes
    for line in lines:
        assert line["val_images"] == 4
        assert 0 <= line["val_ap"] <= 100
        assert line["train_loss"] == pytest.approx(
            line["train_loss_ce"] + 5 * line["train_loss_bbox"] + 2 * line["train_loss_giou"], rel=1e-5
        )


@pytest.mark.slow
def test_two_processes_train_what_one_trains(yolos, tmp_path, run):
    for name, processes in (("one", 1), ("two", 2)):
        done = run("--config", yolos, "--output", name, processes=processes)
        assert done.end() == 0, done.stderr
    assert "global batch 4 = 2 processes x 1 accumulation x 2 images" in done.stdout
    assert losses(tmp_path / "two") == pytest.approx(losses(tmp_path / "one"), rel=1e-3)
    one, two = (epochs_of(tmp_path / name) for name in ("one", "two"))
    for key in ("tokens", "tokens_kept", "val_images"):
        assert [line[key] for line in one] == [line[key] for line in two]
    for key in ("val_loss_giou", "val_loss_ce"):
        assert [line[key] for line in one] == pytest.approx([line[key] for line in two], rel=1e-2)


@pytest.mark.slow
def test_broken_off_in_two_processes(yolos, tmp_path, run, assert_same_run):
    (tmp_path / "killed.py").write_text(KILLED)
    for name, place, code in (("quiet", (9, 9), 0), ("broken", (1, 1), 1), ("broken", (9, 9), 0)):
        done = run(*place, "--config", yolos, "--output", name, OFTEN, module="killed", processes=2)
        assert done.process.returncode == code, done.stderr
    assert_same_run(tmp_path / "quiet", tmp_path / "broken")


def test_micro_batches_change_nothing_but_the_order_of_sums(yolos, tmp_path):
    """Images of one micro-batch each, as on eight GPUs; a step's objects count together."""
    for name, most in (("two", 2), ("one", 1)):
        train(load_config(yolos, ["epochs=1", f"train.max_micro_batch={most}"]), tmp_path / name)
    one, two = (epochs_of(tmp_path / name)[0] for name in ("one", "two"))
    for key in ("train_loss_bbox", "train_loss_giou"):  # cross-entropy is by micro-batch, as released
        assert one[key] == pytest.approx(two[key], rel=0.02)
    assert one["tokens"] == two["tokens"]


def test_a_box_that_is_not_finite_is_told_by_step_and_image(yolos, tmp_path):
    folder = RunFolder(tmp_path / "run")
    folder.create()
    overrides = ["epochs=1", "train.max_skipped_steps=0", "train.max_rollbacks=0", "train.max_micro_batch=1"]
    trainer = trainer_of(load_config(yolos, overrides), folder)
    loss, calls = trainer.step.task.loss, iter(range(100))

    def broken(output, targets):
        logits, boxes = output
        return loss((logits, boxes * (torch.nan if next(calls) == 6 else 1)), targets)

    trainer.step.task.loss = broken
    with pytest.raises(RunFailed, match="step 2 of epoch 1") as caught:  # four micro-batches a step
        trainer.fit()
    assert "its images (1, those whose loss is not finite, by micro-batch):" in str(caught.value)
    assert "train_" in str(caught.value)


def test_an_evaluation_that_is_not_finite_names_the_images(yolos, tmp_path):
    folder = RunFolder(tmp_path / "run")
    folder.create()
    trainer = trainer_of(load_config(yolos, ["epochs=1"]), folder)
    trainer.model.bbox_embed.layers[2].bias.data.fill_(torch.nan)
    task = trainer.step.task
    with pytest.raises(RunFailed, match=r"finds in 4 validation images is not finite: .*val_0\.png"):
        task.score({"val": trainer.model}, trainer.inputs.val, trainer.processes, trainer.step.autocast, lambda: None)
    trainer.log.close()


class Oracle(torch.nn.Module):
    """Finds the objects of known images, but not quite, and a few that are not there."""

    def __init__(self, samples, queries=8, classes=4):
        super().__init__()
        source = torch.Generator().manual_seed(0)
        self.known = {}
        for seen in samples:
            logits, boxes = (
                torch.randn(queries, classes + 1, generator=source),
                torch.rand(queries, 4, generator=source) * 0.5,
            )
            for query, (label, box) in enumerate(zip(*seen.objects, strict=True)):
                logits[query, label] += 3
                boxes[query] = box + 0.02 * torch.randn(4, generator=source)
            self.known[float(seen.image.sum())] = logits, boxes

    def forward(self, images):
        logits, boxes = zip(*(self.known[float(image.sum())] for image in images), strict=True)
        return torch.stack(logits), torch.stack(boxes)


def test_scores_are_pycocotools_own(yolos, tmp_path):
    """In batches of one size, against the released evaluation's one image at a time on the file's own JSON."""
    folder = RunFolder(tmp_path / "run")
    folder.create()
    trainer = trainer_of(load_config(yolos, ["evaluate.batch=3"]), folder)
    trainer.log.close()
    task, batches = trainer.step.task, trainer.inputs.val
    samples, ids = batches.loader.dataset._samples, [2, 12, 22, 32]
    model = Oracle([samples[index] for index in range(4)])
    found = task.score({"val": model}, batches, trainer.processes, trainer.step.autocast, lambda: None)
    rows = [
        rows_of(ids[index], detection.postprocess(*model(seen.image[None]), torch.tensor([seen.size]))[0])
        for index, seen in ((index, samples[index]) for index in range(4))
    ]
    truth = json.loads((tmp_path / "coco/annotations/instances_val2017.json").read_text())
    expected = coco_statistics(truth, np.concatenate(rows), ids)
    assert [found[f"val_{name}"] for name in ("ap", "ap50", "ap75")] == (100 * expected[:3]).tolist()
    assert 10 < found["val_ap"] < 100
    assert np.isnan(found["val_ap_large"])  # there are none
    assert found["val_images"] == 4


def of_sample(name, root):
    """Overrides for a run of seconds an epoch on real images."""
    batch = 32 if name == "bccd" else 4
    return [*SAMPLE, f"data.root={root}", f"train.global_batch={batch}", OFTEN, "model.kwargs.num_det_tokens=20"]


@pytest.mark.slow
def test_scores_on_coco_are_pycocotools_own(yolos, larger_data, tmp_path):
    """On COCO's file and ids, of what the released post-processing makes of each image."""
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    root = larger_data("coco_sample")
    folder = RunFolder(tmp_path / "run")
    folder.create()
    trainer = trainer_of(load_config(yolos, [*of_sample("coco_sample", root), "evaluate.batch=4"]), folder)
    trainer.log.close()
    batches = trainer.inputs.val
    samples = batches.loader.dataset._samples
    truth = COCO(root / SAMPLE[3].partition("=")[2])
    named = list(truth.imgs.values())  # in the file's order, which is the data set's
    model = Oracle([samples[index] for index in range(len(named))], queries=40, classes=91)
    found = trainer.step.task.score({"val": model}, batches, trainer.processes, trainer.step.autocast)
    rows = []
    for index, image in enumerate(named):
        logits, boxes = (part[0].double() for part in model(samples[index].image[None]))
        scores, labels = logits.softmax(-1)[:, :-1].max(-1)
        x, y, w, h = (boxes * torch.tensor([image["width"], image["height"]] * 2)).unbind(1)
        columns = [torch.full_like(scores, image["id"]), x - w / 2, y - h / 2, w, h, scores, labels.double()]
        rows.append(torch.stack(columns, 1).numpy())
    evaluator = COCOeval(truth, truth.loadRes(np.concatenate(rows)), "bbox")
    evaluator.evaluate()
    evaluator.accumulate()
    evaluator.summarize()
    names = ("ap", "ap50", "ap75", "ap_small", "ap_medium", "ap_large")
    assert [found[f"val_{name}"] for name in names] == pytest.approx((100 * evaluator.stats[:6]).tolist(), abs=1e-9)
    assert 10 < found["val_ap"] < 90
    assert found["val_images"] == len(named) == 20


@pytest.mark.slow
@pytest.mark.parametrize("name", ["bccd", "coco_sample"])
def test_real_images_through_all_stages_in_two_processes(name, yolos, larger_data, tmp_path, run, assert_same_run):
    (tmp_path / "killed.py").write_text(KILLED)
    given = of_sample(name, larger_data(name))
    for output, place, code in (("quiet", (9, 9), 0), ("broken", (1, 2), 1), ("broken", (9, 9), 0)):
        done = run(*place, "--config", yolos, "--output", output, *given, module="killed", processes=2)
        assert done.process.returncode == code, done.stderr
    assert_same_run(tmp_path / "quiet", tmp_path / "broken")
    lines = epochs_of(tmp_path / "quiet")
    assert [line["stage"] for line in lines] == [0, 1, 2, 3]
    assert lines[-1]["train_loss"] < lines[0]["train_loss"]
    assert lines[-1]["val_images"] == (87 if name == "bccd" else 20)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["bccd", "coco_sample"])
def test_real_images_through_all_stages(name, yolos, larger_data, tmp_path, assert_same_run):
    config = load_config(yolos, of_sample(name, larger_data(name)))
    train(config, tmp_path / "quiet")
    for place in [(1, 2), (3, 1), None]:
        train(config, tmp_path / "broken", stop_at=place)
    assert_same_run(tmp_path / "quiet", tmp_path / "broken")
    lines = epochs_of(tmp_path / "quiet")
    assert [line["stage"] for line in lines] == [0, 1, 2, 3]
    assert lines[-1]["train_loss"] < lines[0]["train_loss"]
    assert lines[-1]["val_images"] == (87 if name == "bccd" else 20)


def test_wrong_annotations_end_with_a_line_each_and_exit_code_2(yolos, tmp_path, capsys):
    made = coco_files.content("train")
    made["annotations"][0]["bbox"] = [90, 0, 20, 10]
    made["annotations"][1]["category_id"] = 9
    made["images"].append({**made["images"][0], "file_name": "again.png"})
    coco_files.save(tmp_path / "coco", "train", made)
    assert tools(["doctor", "--config", str(yolos)]) == 2
    told = capsys.readouterr().out
    assert main(["--config", str(yolos), "--output", str(tmp_path / "run")]) == 2
    asked = capsys.readouterr().err
    for text in (told, asked):
        for fault in ("have the id 1:", "is of category 9,", "reaches 14 pixels out of its image"):
            assert len([line for line in text.splitlines() if fault in line]) == 1
    assert "Traceback" not in told + asked


def test_doctor_finds_it_healthy(yolos, capsys):
    assert tools(["doctor", "--config", str(yolos)]) == 0
    assert "healthy: 8 train and 4 val images in 2 classes" in capsys.readouterr().out


@pytest.mark.parametrize(("name", "short"), [("yolos_small", "s"), ("yolos_tiny", "ti")])
def test_rates_and_stages_as_released(configs, name, short):
    stored = figures("yolos_geometry.npz")
    config = load_config(configs / f"{name}_toe_r05.yaml")
    optimizer = torch.optim.AdamW([torch.zeros(1, requires_grad=True)], lr=config.peak_lr)
    schedule = build_schedule(config, optimizer, 1)
    rates = [schedule.lr(epoch, 0) for epoch in range(config.epochs)]
    assert rates == pytest.approx(stored[f"lr_yolos_{short}"].tolist(), rel=1e-9)
    assert [plan.stage for plan in plan_epochs(config)] == stored[f"stage_yolos_{short}"].tolist()


def test_what_decays_as_released(configs):
    config = load_config(configs / "yolos_small.yaml")
    model = build_model(config, 91).model
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    for extra in ([], ["detection.head_bias_decay=false"]):
        groups = build_optimizer(load_config(configs / "yolos_small.yaml", extra), model).param_groups
        by_decay = {group["weight_decay"]: [names[id(p)] for p in group["params"]] for group in groups}
        heads = [name for name in by_decay[1e-4] if not name.startswith("backbone.")]
        assert len(heads) == (6 if extra else 12)
        assert any("mid_pos_embed" in name for name in by_decay[1e-4])

    groups = build_optimizer(config, model).param_groups
    counts = {g["weight_decay"]: (len(g["params"]), sum(p.numel() for p in g["params"])) for g in groups}
    assert counts == {0.0: (102, 802_176), 1e-4: (62, 628_320 + 29_254_272)}


def test_accumulation_where_gpus_are_few(configs):
    config = load_config(configs / "yolos_small.yaml")
    assert [batch_layout(config, world).accumulation for world in (1, 2, 8)] == [8, 4, 1]
    tiny = load_config(configs / "yolos_tiny.yaml")
    assert [batch_layout(tiny, world).micro_batch for world in (1, 8, 16)] == [2, 2, 1]
    with pytest.raises(UserError, match="cannot be split over 3 processes"):
        batch_layout(config, 3)


def test_eval_says_what_the_run_said(yolos, tmp_path, capsys):
    assert main(["--config", str(yolos), "--output", str(tmp_path / "run"), "epochs=1"]) == 0
    assert "AP" in capsys.readouterr().out
    assert tools(["eval", "--checkpoint", str(tmp_path / "run/checkpoints/last.pt")]) == 0
    (line,) = epochs_of(tmp_path / "run")
    told = capsys.readouterr().out
    assert f"AP {line['val_ap']:.3f}, AP50 {line['val_ap50']:.3f}" in told
    assert f"loss_giou {line['val_loss_giou']:.4f} over 4 images" in told


def test_the_plan_counts_with_the_mean_image(configs):
    """2080 and 972 patches stand for images of many sizes: those of COCO's in the transforms of a training epoch."""
    for name, patches in (("yolos_small", 2080), ("yolos_tiny", 972)):
        config = load_config(configs / f"{name}_toe_r05.yaml")
        height, width = config.model.image_size
        assert height * width // 256 == patches
        transform = build_train_transform(config)
        random.seed(0)
        sizes = [(640, 480), (640, 427), (480, 640), (640, 426), (500, 375), (427, 640), (640, 640)] * 300
        drawn = [transform.draw([size]).size for size in sizes]
        mean = sum(width * height // 256 for width, height in drawn) / len(drawn)
        assert mean == pytest.approx(patches, rel=0.06)


@pytest.mark.parametrize(
    ("given", "micro_batch", "size"),
    [
        ([], 1, (800, 1328)),
        (["detection.padding=true"], 1, (800, 1328)),
        (["detection.padding=true"], 2, (1328, 1328)),  # an upright and a lying image
        (["detection.longest_side=600"], 1, (592, 592)),
        (["detection.longest_side=null"], 1, (800, 1600)),
    ],
)
def test_memory_is_tried_with_the_largest_images(configs, given, micro_batch, size):
    config = load_config(configs / "yolos_small.yaml", given)
    assert largest_size(config, config.model.image_size, micro_batch) == size


@pytest.mark.parametrize("side", ["[16, 16]", "0", "16.0"])
def test_a_patch_is_a_number_of_pixels(yolos, side):
    with pytest.raises(UserError, match=r"patch_size=.* must be a whole number of pixels from 1 up, such as 16"):
        build_train_transform(load_config(yolos, [f"model.kwargs.patch_size={side}"]))


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ("short_sides=[16, 96]", "detection.short_sides: .* 16 x 16 .*no seed among 1 patch tokens.*larger image"),
        ("longest_side=16", "detection.short_sides: .* 16 x 16 .*no seed among 1 patch tokens"),
        (
            "longest_side=95",
            "detection.longest_side: a very long image .* 16 x 63 pixels .*no seed among 3 patch tokens",
        ),
        ("longest_side=96", None),  # 4 patches, one seed
        ("short_sides=[32, 96]", None),
    ],
)
def test_images_too_small_for_the_schedule_are_refused_before_the_run(yolos, given, said):
    config = load_config(yolos, [f"detection.{given}"])
    if said is None:
        build_parts(config, 1, 3)
    else:
        with pytest.raises(UserError, match=said):
            build_parts(config, 1, 3)
