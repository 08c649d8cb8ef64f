"""What several test folders share: shipped configurations, a run of seconds, images, and runs in processes."""

import os
import random
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import coco_files
import numpy as np
import pytest
import torch
import yaml
from PIL import Image

from toe_train.data import train_transform
from toe_train.runs.checkpoints import read
from toe_train.runs.log import read_metrics

# Indices of images are kept there, by subprocesses too; no test finds what another run of the tests has left.
_CACHE = tempfile.TemporaryDirectory(prefix="toe_train_cache", ignore_cleanup_errors=True)  # goes with this process
os.environ["XDG_CACHE_HOME"] = _CACHE.name

REPOSITORY = Path(__file__).resolve().parents[1]

# Two blocks of width 32 on the digits with 16 tokens: an epoch of 5 steps in well under a second.
TINY = {
    "extends": str(REPOSITORY / "configs" / "quickstart.yaml"),
    "epochs": 3,
    "model": {"drop_path": 0.2, "kwargs": {"patch_size": 4, "embed_dim": 32, "depth": 2, "num_heads": 2}},
    "expansion": {"stage_epochs": [0, 1, 2]},
    "augment": {"mix_group": 128, "cutmix": 1.0, "mixup": 0.8, "erasing_prob": 0.25},
    "schedule": {"warmup_epochs": 0},
    "train": {"global_batch": 256, "max_micro_batch": 256, "log_every": 1},
    "allow": ["last_stage_not_reached", "peak_not_reached"],  # many tests need one epoch alone
}

SMALL_LVVIT = {  # of lvvit_t_toe_r04.yaml
    "epochs": 3,
    "model": {"image_size": 32, "kwargs": {"patch_size": 4, "embed_dim": 24, "depth": 3, "num_heads": 2}},
    "expansion": {"stage_epochs": [0, 1, 2]},
    "augment": {"mix_group": 8},
    "optim": {"lr": 1e-3},
    "schedule": {"warmup_epochs": 0, "cooldown_epochs": 1},
    "train": {"global_batch": 16, "max_micro_batch": 8, "ema_decay": 0.9, "log_every": 1},
    "allow": ["last_stage_not_reached", "peak_not_reached"],
}


@pytest.fixture(scope="session", autouse=True)
def cache():
    """Folder of what is remembered between runs; removed in the end."""
    yield Path(os.environ["XDG_CACHE_HOME"])
    shutil.rmtree(os.environ["XDG_CACHE_HOME"])


SMALL_YOLOS = {  # of yolos_tiny_toe_r05.yaml: 2 images a micro-batch, which have one size; 2 steps an epoch
    "epochs": 4,
    "model": {
        "image_size": [64, 96],
        "kwargs": {
            "embed_dim": 24,
            "depth": 3,
            "num_heads": 2,
            "num_det_tokens": 5,
            "init_size": [64, 96],
            "mid_size": [48, 64],
        },
    },
    "expansion": {"stage_epochs": [1, 2, 3]},
    "detection": {
        "short_sides": [64, 80, 96],
        "longest_side": 160,
        "crop_from": [64, 96],
        "crop_sides": [48, 80],
        "eval_short_side": 64,
        "eval_longest_side": 128,
    },
    "optim": {"lr": 1e-3},
    "train": {"global_batch": 4, "log_every": 1},
    "allow": ["last_stage_not_reached"],
}


@pytest.fixture(scope="session")
def configs() -> Path:
    """Folder of the shipped configurations."""
    return REPOSITORY / "configs"


@pytest.fixture
def tiny(tmp_path: Path) -> Path:
    """File of a run that takes seconds and has all three stages."""
    path = tmp_path / "tiny.yaml"
    path.write_text(yaml.safe_dump(TINY))
    return path


@pytest.fixture(scope="session")
def golden_labels() -> dict[str, torch.Tensor]:
    """Token labels, targets and losses of the released code (tests/golden/README.md)."""
    file = Path(__file__).parent / "golden" / "token_labels.npz"
    return {name: torch.from_numpy(np.asarray(values)) for name, values in np.load(file).items()}


CLASSES = ("bird", "cat", "dog")


@pytest.fixture
def image_root(tmp_path: Path) -> Path:
    """Three classes, four training and two validation images each, JPEG and PNG, of 40 x 30 random pixels."""
    root = tmp_path / "images"
    noise = np.random.default_rng(0)
    for split, count in (("train", 4), ("val", 2)):
        for name in CLASSES:
            (root / split / name).mkdir(parents=True)
            for number in range(count):
                pixels = noise.integers(0, 256, (30, 40, 3), dtype=np.uint8)
                suffix = "png" if number == 1 else "JPEG"
                Image.fromarray(pixels).save(root / split / name / f"{name}_{number}.{suffix}")
    return root


@pytest.fixture(scope="session")
def deit_transform() -> Callable[..., Any]:
    """DeiT's training transform with some values replaced."""

    def build(image_size: int = 24, **changes: Any) -> Any:
        values: dict[str, Any] = {
            "crop": "random_resized",
            "crop_scale": (0.08, 1.0),
            "crop_ratio": (3 / 4, 4 / 3),
            "interpolation": "bicubic",
            "hflip": 0.5,
            "rand_augment": "rand-m9-mstd0.5-inc1",
            "color_jitter": 0.3,
            "erasing_prob": 0.25,
            "erasing_mode": "pixel",
            "erasing_count": 1,
            "mean": (0.485, 0.456, 0.406),
            "std": (0.229, 0.224, 0.225),
        }
        return train_transform(image_size=image_size, **(values | changes))

    return build


@pytest.fixture
def global_states() -> Callable[[], tuple[Any, ...]]:
    """Return a function that reads the three global CPU generators, in a form that can be compared."""

    def read() -> tuple[Any, ...]:
        name, keys, *rest = np.random.get_state()
        return random.getstate(), name, keys.tolist(), rest, torch.get_rng_state().tolist()

    return read


TIMES = re.compile("seconds|share|images_per_second|memory|hours")
ENVIRONMENT = {
    **os.environ,
    "OMP_NUM_THREADS": "1",
    "CUDA_VISIBLE_DEVICES": "",
    "PYTHONPATH": os.pathsep.join(filter(None, [str(Path(__file__).parent), os.environ.get("PYTHONPATH")])),
}


class Job:
    """A command that runs in `folder`.

    arguments: of the module. processes: under torchrun where more than one. restarts: that torchrun may make.
    """

    def __init__(self, folder: Path, *arguments: object, module="toe_train", processes=1, restarts=0) -> None:
        launcher = []
        if processes > 1:
            launcher = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"]
            launcher.append(f"--max-restarts={restarts}")
        self.module = module
        self.out, self.err = (folder / f"{name}.{time.monotonic_ns()}" for name in ("out", "err"))
        with self.out.open("w") as out, self.err.open("w") as err:
            self.process = subprocess.Popen(
                [sys.executable, *launcher, "-m", module, *map(str, arguments)],
                cwd=folder,
                env=ENVIRONMENT,
                stdout=out,
                stderr=err,
                start_new_session=True,
            )

    def workers(self) -> list[int]:
        """Process numbers of what torchrun started, by rank."""
        command = ["ps", "--ppid", str(self.process.pid), "-o", "pid=,args="]
        found = subprocess.run(command, capture_output=True, text=True).stdout
        return sorted(int(line.split()[0]) for line in found.splitlines() if self.module in line)

    def wait_until(self, condition, seconds=120) -> None:
        """Waits for something that the run does while it lives."""
        end = time.monotonic() + seconds
        while not condition():
            assert self.process.poll() is None, self.stderr
            assert time.monotonic() < end, "it never came to that"
            time.sleep(0.01)

    def end(self, timeout=300) -> int:
        """The exit code."""
        return self.process.wait(timeout)

    @property
    def stdout(self) -> str:
        return self.out.read_text()

    @property
    def stderr(self) -> str:
        return self.err.read_text()

    def clear(self) -> None:
        """Leaves nothing running."""
        for worker in self.workers():
            os.kill(worker, 9)
        self.process.kill()
        self.process.wait()


@pytest.fixture(scope="session")
def labelled(tmp_path_factory):
    """Three classes of 16 train and 4 val images, and label files by a small network with random weights."""
    root = tmp_path_factory.mktemp("labelled")
    noise = np.random.default_rng(0)
    for split, count in (("train", 16), ("val", 4)):
        for name in ("cat", "dog", "eel"):
            (root / split / name).mkdir(parents=True)
            for number in range(count):
                pixels = noise.integers(0, 256, (36, 48, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(root / split / name / f"{name}_{number}.png")
    made = ["--images", root / "train", "--output", root / "labels", "--teacher", "resnet10t", "--nproc", 1]
    from toe_train.cli.tools import main as tools

    assert (
        tools(["labels", *map(str, made), "--teacher-weights", "random", "--image-size", "64", "--workers", "0"]) == 0
    )
    return root


@pytest.fixture
def lvvit(configs, labelled, tmp_path):
    """File of an LV-ViT's run of seconds with ToE, on those images."""
    given = {
        "extends": str(configs / "lvvit_t_toe_r04.yaml"),
        **SMALL_LVVIT,
        "data": {"root": str(labelled), "workers": 0},
        "token_labels": {"root": str(labelled / "labels")},
    }
    path = tmp_path / "lvvit.yaml"
    path.write_text(yaml.safe_dump(given))
    return path


@pytest.fixture
def yolos(configs, tmp_path):
    """File of a YOLOS's run of seconds with ToE, on images made by code."""
    given = {
        "extends": str(configs / "yolos_tiny_toe_r05.yaml"),
        **SMALL_YOLOS,
        "data": {"root": str(coco_files.write(tmp_path / "coco")), "workers": 0},
    }
    path = tmp_path / "yolos.yaml"
    path.write_text(yaml.safe_dump(given))
    return path


@pytest.fixture(scope="session")
def larger_data(tmp_path_factory):
    """larger_data(name): folder of real images with boxes, unpacked."""
    folder = Path(os.environ.get("TOE_DATA") or REPOSITORY.parent / "shared" / "data")
    unpacked: dict[str, Path] = {}

    def of(name: str) -> Path:
        archive = folder / f"{name}.tar"
        if not archive.exists():
            pytest.skip(f"{archive} is not there; set TOE_DATA to the folder that holds it")
        if name not in unpacked:
            whole = tmp_path_factory.mktemp(name)
            with tarfile.open(archive) as file:
                file.extractall(whole, filter="data")
            (annotations,) = whole.rglob("annotations")
            unpacked[name] = annotations.parent
        return unpacked[name]

    return of


@pytest.fixture
def start(tmp_path):
    """start(*arguments, module=, processes=, restarts=) -> Job in tmp_path; ended with the test."""
    jobs = []

    def begin(*arguments, **options):
        jobs.append(Job(tmp_path, *arguments, **options))
        return jobs[-1]

    yield begin
    for job in jobs:
        job.clear()


@pytest.fixture
def run(start):
    """run(...) as start(...), ended; the Job."""

    def whole(*arguments, **options):
        job = start(*arguments, **options)
        job.end()
        return job

    return whole


@pytest.fixture
def assert_same_run():
    """assert_same_run(quiet, killed): the two run folders hold the same, but for times."""
    return _assert_same_run


@pytest.fixture
def steps_done():
    """steps_done(folder): number of steps that the run in it has logged."""
    return _steps_done


@pytest.fixture
def graphs(monkeypatch):
    """What torch.compile makes in the test, as graphs that run as they are; with the numbers of calls of each."""
    made = []
    real = torch.compile

    def counting(graph, inputs):
        calls = []
        made.append(calls)

        def run(*given):
            calls.append(1)
            return graph.forward(*given)

        return run

    torch.compiler.reset()
    torch._dynamo.utils.counters.clear()
    monkeypatch.setattr(torch, "compile", lambda model, **options: real(model, backend=counting, **options))
    yield made
    torch.compiler.reset()


def _told(folder: Path):
    """The metric lines without times."""
    path = folder / "metrics.jsonl"
    lines = [*read_metrics(path, "step"), *read_metrics(path, "epoch")]
    return [{key: value for key, value in line.items() if not TIMES.search(key)} for line in lines]


def _tensors(value, place=""):
    if isinstance(value, torch.Tensor):
        yield place, value
    elif isinstance(value, dict):
        for key, inner in value.items():
            yield from _tensors(inner, f"{place}.{key}")


def _assert_same_run(quiet: Path, killed: Path):
    """Metric lines, weights, averages and the optimiser's moments, to the last bit."""
    assert _told(quiet) == _told(killed)
    one, other = (dict(_tensors(read(folder / "checkpoints/last.pt"))) for folder in (quiet, killed))
    assert one.keys() == other.keys()
    assert [place for place in one if not torch.equal(one[place], other[place])] == []


def _steps_done(folder: Path) -> int:
    return len(read_metrics(folder / "metrics.jsonl", "step"))
