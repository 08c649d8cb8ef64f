"""The scripts of the paper's tables and figures: what they start, and that they run at the scale of seconds."""

import functools
import json
import os
import re
import runpy
import shlex
import shutil
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import pytest
from PIL import Image

from toe_train.analysis.paper import PAPER
from toe_train.cli import bench
from toe_train.cli.options import tools_parser
from toe_train.data import CocoPlaces, check_datasets
from toe_train.recipes import RunConfig, load_config, plan_epochs

REPOSITORY = Path(__file__).resolve().parents[1]
SCRIPTS = sorted((REPOSITORY / "scripts").glob("*.sh"))
RUNNING = [
    path.stem
    for path in SCRIPTS
    if path.stem not in ("lib", "slurm", "slurm_table", "speed", "equal_compute", "finetune_cpu")
]
PICTURES = ("fig2", "fig7")  # these draw, the others report
SCALES = {
    "paper": [],
    "proxy": ["--proxy"],
    "proxy-cpu": ["--proxy", "--cpu"],
    "proxy-smoke": ["--proxy", "--smoke"],
}

BOTH = ["deit_tiny", "deit_tiny_toe_r05", "deit_small", "deit_small_toe_r05"]
Job = subprocess.CompletedProcess[str]

# In place of toe-train and toe-tools: writes down its arguments, and of a run what the scripts read of it.
STUB = f"""#!{sys.executable} -IS
import json, os, sys
with open(os.environ["RECORD"], "a") as record:
    record.write(json.dumps([os.path.basename(sys.argv[0]), *sys.argv[1:]]) + "\\n")
if sys.argv[0].endswith("toe-train"):
    folder = sys.argv[sys.argv.index("--output") + 1]
    roots = [argument[10:] for argument in sys.argv if argument.startswith("data.root=")]
    os.makedirs(folder, exist_ok=True)
    with open(folder + "/config.yaml", "w") as config:
        json.dump({{"data": {{"root": (roots or [None])[-1]}}}}, config)
"""


@dataclass(frozen=True)
class Started:
    """A run that a script started."""

    folder: Path
    config: str
    overrides: tuple[str, ...]

    @property
    def row(self) -> str:
        return re.sub(r"-s\d+$", "", self.folder.name)

    def resolved(self) -> RunConfig:
        return resolve(self.config, self.overrides)


@functools.cache
def resolve(config: str, overrides: tuple[str, ...]) -> RunConfig:
    resolved = load_config(REPOSITORY / config, overrides)
    assert plan_epochs(resolved)
    return resolved


@dataclass(frozen=True)
class Calls:
    """What a script calls, in order, each the program and its arguments."""

    commands: list[list[str]]

    @property
    def runs(self) -> list[Started]:
        trained = [command for command in self.commands if command[0] == "toe-train"]
        assert {(command[1], command[3]) for command in trained} == {("--config", "--output")}
        return [Started(Path(command[4]), command[2], tuple(command[5:])) for command in trained]

    @property
    def rows(self) -> list[str]:
        return list(dict.fromkeys(run.row for run in self.runs))

    @property
    def reported(self) -> list[Path]:
        """Run folders in the report that it ends in."""
        last = self.commands[-1]
        assert last[:2] == ["toe-tools", "report"]
        return [Path(folder) for folder in last[2 : last.index("--title")]]

    def option(self, what: str, name: str) -> str:
        """The value of an option of the first `toe-tools WHAT`."""
        command = next(command for command in self.commands if command[:2] == ["toe-tools", what])
        return command[command.index(name) + 1]


class Desk:
    """A copy of the scripts, with stubs for the programs that they call."""

    def __init__(self, folder: Path) -> None:
        self.root = folder / "repository"
        shutil.copytree(REPOSITORY / "scripts", self.root / "scripts")
        (self.root / "configs").symlink_to(REPOSITORY / "configs")
        stubs = folder / "stubs"
        stubs.mkdir()
        for name in ("toe-train", "toe-tools"):
            (stubs / name).write_text(STUB)
            (stubs / name).chmod(0o755)
        self.record = folder / "record.jsonl"
        self.images = folder / "images"
        make_images(self.images)
        self.environment = environment(stubs) | {"RECORD": str(self.record)}

    def have_images(self, folder: Path) -> None:
        """As if `proxy_images.py` had made them there."""
        make_images(folder)
        made = {"digits": "digits", "cifar": f"700 2000 image_folder {self.images}"}
        (folder / "made_from.txt").write_text(made.get(folder.name, ""))

    def start(self, script: str, *arguments: str, cwd: Path | None = None, **variables: str) -> Job:
        """Calls a script from a folder, by its absolute path or, from its own folder, by its name alone."""
        path = self.root / "scripts" / f"{script}.sh"
        return subprocess.run(
            ["bash", path.name if cwd == path.parent else str(path), *arguments],
            cwd=cwd,
            env=self.environment | variables,
            capture_output=True,
            text=True,
        )

    def calls(self, script: str, *arguments: str, cwd: Path | None = None, **variables: str) -> Calls:
        self.record.unlink(missing_ok=True)
        job = self.start(script, *arguments, cwd=cwd, **variables)
        assert job.returncode == 0, job.stderr
        return Calls([json.loads(line) for line in self.record.read_text().splitlines()])


def make_images(folder: Path) -> None:
    """Empty files in the places of images."""
    for split in ("train", "val"):
        (folder / split / "a").mkdir(parents=True)
        (folder / split / "a/0.png").touch()


def environment(*first: Path) -> dict[str, str]:
    """One in which these folders' programs come first, then those of this Python."""
    path = os.pathsep.join([*map(str, first), str(Path(sys.executable).parent), os.environ["PATH"]])
    return {**os.environ, "PATH": path, "OMP_NUM_THREADS": "1"}


@pytest.fixture
def desk(tmp_path: Path) -> Desk:
    return Desk(tmp_path / "desk")


@pytest.fixture(scope="module")
def recorded(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Calls]]:
    """What each script calls, by scale and script."""
    desk = Desk(tmp_path_factory.mktemp("scripts") / "desk")
    for made in ("proxy-smoke/digits", "proxy-smoke/shapes", "proxy-cpu/cifar", "proxy-cpu/shapes"):
        desk.have_images(desk.root / "runs" / made)  # else they are made anew, which takes seconds
    return {
        scale: {script: desk.calls(script, *options, f"data.root={desk.images}") for script in RUNNING}
        for scale, options in SCALES.items()
    }


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.stem)
def test_each_is_a_shell_script(script):
    assert subprocess.run(["bash", "-n", str(script)], capture_output=True).returncode == 0


def test_shapes_are_drawn_anew_where_that_was_broken_off(tmp_path, monkeypatch):
    (tmp_path / "shapes.part/train").mkdir(parents=True)
    (tmp_path / "shapes.part/train/00000.png").write_bytes(b"a part of it")
    monkeypatch.setattr(sys, "argv", ["draw_shapes.py", str(tmp_path / "shapes"), "3", "2"])
    runpy.run_path(str(REPOSITORY / "scripts/draw_shapes.py"), run_name="__main__")
    places = CocoPlaces("train", "val", *(f"annotations/instances_{split}.json" for split in ("train", "val")))
    assert check_datasets("coco", tmp_path / "shapes", None, labelling=places) == []
    assert not (tmp_path / "shapes.part").exists()


def test_every_table_and_figure_has_one():
    names = (
        {f"table{number}" for number in range(1, 11)}
        | {f"fig{number}" for number in (2, 3, 4, 7)}
        | {"proxy", "tableB1", "ideas"}
    )
    assert set(RUNNING) == names


@pytest.mark.parametrize("scale", SCALES)
def test_a_name_is_one_experiment_in_all_scripts(recorded, scale):
    configs: dict[str, RunConfig] = {}
    for script, calls in recorded[scale].items():
        folder = "proxy" if (script, scale) == ("proxy", "paper") else scale  # proxy.sh is the proxy always
        assert {run.folder.parent.parts[-2:] for run in calls.runs} == {("runs", folder)}
        assert len(calls.rows) == len(calls.runs), f"{script} starts a run twice"
        for run in calls.runs:
            if (script, scale) != ("proxy", "paper"):
                assert configs.setdefault(run.row, run.resolved()) == run.resolved(), (script, run.row)
    names = {config.model_dump_json(): name for name, config in configs.items()}
    twice = [name for name, config in configs.items() if names[config.model_dump_json()] != name]
    assert not twice, f"these are there under other names too: {twice}"


@pytest.mark.parametrize("scale", SCALES)
def test_each_ends_in_its_own_report(recorded, scale):
    not_shown = {"table3": {"proxy_teacher"}, "table5": {*BOTH, "proxy", "proxy_toe_r05"}}
    for script, calls in recorded[scale].items():
        output = calls.runs[0].folder.parent
        if script in PICTURES:
            assert calls.option("view", "--checkpoint") == f"{calls.runs[0].folder}/checkpoints/last.pt"
            assert calls.option("view", "--output") == f"{output}/report/{script}/kept.png"
            assert calls.option("view", "--features") == f"{output}/report/{script}/features.png"
        else:
            assert calls.option("report", "--output") == f"{output}/report/{script}"
            assert calls.reported == [run.folder for run in calls.runs if run.row not in not_shown.get(script, ())]


def test_the_rows_of_the_paper(recorded):
    rows = {script: calls.rows for script, calls in recorded["paper"].items()}
    models = ("deit_tiny", "deit_small")
    parts = ["random_init", "no_expansion_seeds", "no_expansion_even", "no_merging", "random_dropping"]
    assert rows["table7"] == BOTH + [f"{model}_{name}" for model in models for name in parts]
    metrics = ["manhattan", "euclidean", "manhattan_released", "euclidean_released"]
    assert rows["table9"] == BOTH + [f"{model}_{name}" for model in models for name in metrics]
    factors = ["r0_third", "r0_two_thirds", "two_stages", "four_stages", "k1", "k3"]
    assert rows["table6"] == BOTH[:2] + [f"deit_tiny_{name}" for name in factors]
    assert set(rows["table8"]) == {*BOTH[:2], *(f"deit_tiny_after_block_{block}" for block in (0, 2, 3))}
    assert set(rows["fig4"]) == {*BOTH[:2], *(f"deit_tiny_r1_{rate}" for rate in ("0.3", "0.4", "0.6", "0.7"))}
    tuned = [f"finetune_{model}{how}" for model in models for how in ("", "_toe", "_from_toe", "_from_toe_toe")]
    assert rows["table5"] == BOTH + tuned + [f"{name}_cifar100" for name in tuned]
    wanted = [row for row in rows["table2"] + rows["table3"] if "_toe_r" in row]
    assert rows["table10"] == wanted


def test_what_the_paper_printed_is_of_rows_that_there_are(recorded):
    assert set(PAPER) <= {row for calls in recorded["paper"].values() for row in calls.rows}


def test_the_rows_of_the_proxy(recorded):
    rows = {script: calls.rows for script, calls in recorded["proxy"].items()}
    parts = ["random_init", "no_expansion_seeds", "no_expansion_even", "no_merging"]
    assert rows["table7"] == ["proxy", "proxy_toe_r05", *(f"proxy_{name}" for name in parts), "proxy_random"]
    assert rows["fig4"] == ["proxy", "proxy_r1_0.3", "proxy_toe_r04", "proxy_toe_r05", "proxy_toe_r06", "proxy_r1_0.7"]
    assert rows["table3"] == ["proxy_teacher", "proxy_lvvit", "proxy_lvvit_networkexpansion", "proxy_lvvit_toe_r04"]
    assert {*rows["table4"], "proxy_random", "proxy_no_merging"} < set(rows["proxy"])


@pytest.mark.parametrize("scale", [[], ["--proxy"]], ids=["paper", "proxy"])
def test_fine_tuning_starts_from_the_run_of_its_own_seed(desk, scale):
    calls = desk.calls("table5", *scale, "--seeds", "3-4", f"data.root={desk.images}")
    trained: set[Path] = set()
    tuned = 0
    for run in calls.runs:
        config = run.resolved()
        assert run.folder.name == f"{run.row}-s{config.seed}"
        if config.model.initial_weights:
            source = Path(config.model.initial_weights).parents[1]
            assert source in trained
            assert source.name.endswith(f"-s{config.seed}")
            assert ("toe" in source.name) == ("from_toe" in run.row)
            tuned += 1
        trained.add(run.folder)
    assert tuned == len(calls.reported) == 2 * (4 if scale else 16)


def test_fine_tuning_has_images_of_its_own(desk):
    calls = desk.calls("table5", f"data.root={desk.images}", cwd=desk.record.parent, CIFAR="cifar")
    cifar = str(desk.record.parent / "cifar")
    for run in calls.runs:
        section = run.resolved().data
        kind = "cifar100" if run.row.endswith("_cifar100") else "cifar10"
        wanted = (kind, cifar) if run.row.startswith("finetune_") else ("image_folder", str(desk.images))
        assert (section.kind, section.root) == wanted


@pytest.mark.parametrize("seeds", ["2", "4-5"])
def test_one_teacher_for_all_seeds(desk, seeds):
    calls = desk.calls("table3", "--proxy", "--seeds", seeds, f"data.root={desk.images}")
    (teacher,) = (run.folder for run in calls.runs if run.row == "proxy_teacher")
    assert teacher.name == "proxy_teacher-s0"
    assert calls.option("labels", "--images") == f"{desk.images}/train"
    assert calls.option("labels", "--teacher-weights") == f"{teacher}/checkpoints/last.pt"
    students = [run.resolved() for run in calls.runs if "lvvit" in run.row]
    assert [config.token_labels.root for config in students] == 6 * [calls.option("labels", "--output")]


def test_relative_paths_are_the_caller_s(desk):
    caller = desk.root / "scripts"
    calls = desk.calls("table10", "--output", "mine", "data.root=images", "token_labels.root=labels", cwd=caller)
    labelled = [run.row for run in calls.runs if run.resolved().token_labels]
    assert labelled == ["lvvit_t_toe_r04", "lvvit_s_toe_r04", "lvvit_m_toe_r04"]
    for run in calls.runs:
        config = run.resolved()
        assert run.folder.parent == caller / "mine"
        assert config.data.root == str(caller / "images")
        assert config.token_labels is None or config.token_labels.root == str(caller / "labels")


def test_a_folder_has_one_name_however_it_is_given(desk):
    given = f"data.root={desk.images}"
    calls = [
        desk.calls("table5", given),
        desk.calls("table5", given, "--output", "../runs/./paper", cwd=desk.root / "scripts"),
    ]
    assert calls[0] == calls[1]


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        (["--what"], "no option --what"),
        (["--output=there"], "no option --output=there"),
        (["what"], "no KEY=VALUE"),
        (["--smoke"], "scales of --proxy"),
        (["--seeds"], "--seeds needs a value"),
        (["--seeds", "--proxy"], "--seeds needs a value"),
        (["--output"], "--output needs a value"),
        (["--output", ""], "--output needs a value"),
        (["--proxy", "--jobs", "1"], "--jobs is for --cpu and --smoke"),
        *((["--proxy", "--cpu", "--jobs", bad], f"--jobs {bad}: give") for bad in ("0", "x", "9999", "12345")),
        *((["--seeds", bad], f"--seeds {bad}: give") for bad in ("0", "x", "3-1", "1-", "1-2-3", "1.5", "08", "2 3")),
    ],
    ids=str,
)
def test_wrong_use_is_told_and_nothing_started(desk, wrong, words):
    for script in ("table2", "proxy"):
        if script == "proxy" and wrong == ["--smoke"]:
            continue  # which is what it is for
        job = desk.start(script, *wrong, cwd=desk.root / "scripts")
        assert job.returncode == 2
        assert words in job.stderr.splitlines()[-1]
        assert not job.stdout
    assert not desk.record.exists()
    assert not (desk.root / "runs").exists()


def test_an_unknown_option_shows_how_to_call(desk):
    told = desk.start("table2", "--what").stderr
    assert told.startswith("Table 2: DeiT-T/S/B")
    for option in ("--proxy", "--cpu", "--smoke", "--seeds N", "--output DIR", "KEY=VALUE"):
        assert f"  {option}" in told
    assert "set -" not in told


@pytest.mark.parametrize(
    ("scale", "variables", "rows"),
    [
        (["--proxy", "--cpu"], {}, ["proxy", "proxy_toe_r05", "proxy_toe_r05_shorter", "proxy_random"]),
        ([], {}, ["deit_tiny", "deit_tiny_toe_r05", "deit_tiny_toe_r05_shorter", "deit_tiny_random_dropping"]),
        (
            ["--proxy"],
            {"CONFIG": "proxy_lvvit_networkexpansion"},
            ["proxy_teacher", "proxy_lvvit", "proxy_lvvit_networkexpansion", "proxy_lvvit_networkexpansion_shorter"],
        ),
    ],
    ids=["cpu", "paper", "lvvit"],
)
def test_equal_compute_is_that_of_the_run_at_its_scale(desk, tmp_path, scale, variables, rows):
    written = tmp_path / "out/equal_compute"
    written.mkdir(parents=True)
    desk.have_images(tmp_path / "out/cifar")
    (written / f"{variables.get('CONFIG', rows[1])}_shorter.yaml").touch()  # as if the stub had written it
    given = [*scale, "--seeds", "2", "--output", str(tmp_path / "out"), f"data.root={desk.images}"]
    calls = desk.calls("equal_compute", *given, **variables)
    assert calls.rows == rows
    assert calls.reported == [run.folder for run in calls.runs if run.row != "proxy_teacher"]
    (plan,) = (command for command in calls.commands if command[:2] == ["toe-tools", "plan"])
    before = [command[4] for command in calls.commands[: calls.commands.index(plan)] if command[0] == "toe-train"]
    assert [Path(folder).name for folder in before] in ([], ["proxy_teacher-s0"])  # as it may refuse
    run, made = ([run for run in calls.runs if run.row == name][1] for name in plan_names(rows))
    assert plan[2:4] == ["--config", run.config]
    assert calls.option("plan", "--output") == str(written)
    assert plan[plan.index("--output") + 2 :] == list(run.overrides[:-1])
    assert calls.option("plan", "--classes") == ("10" if scale else "1000")
    assert (made.config, made.overrides) == (f"{written}/{made.row}.yaml", ("seed=1",))


@pytest.mark.parametrize(
    ("scale", "config", "plain"),
    [
        (["--proxy"], "proxy_et_toe_r06", "proxy"),
        (["--proxy"], "proxy_random", "proxy"),
        ([], "deit_tiny_et_toe_r06", "deit_tiny_et_baseline"),
        ([], "deit_small_etpp", "deit_small_et_baseline"),
        ([], "lvvit_t_toe_r04", "lvvit_t"),
        ([], "finetune_deit_tiny_toe", "finetune_deit_tiny"),
    ],
)
def test_beside_a_run_at_equal_compute_stands_the_plain_one(desk, scale, config, plain):
    calls = desk.calls("equal_compute", *scale, f"data.root={desk.images}", CONFIG=config)
    assert calls.rows[:2] == [plain, config]


def test_equal_compute_says_what_does_not_belong_together(desk):
    given = f"data.root={desk.images}"
    job = desk.start("equal_compute", given, CONFIG="finetune_deit_tiny_from_toe_toe")
    assert "no plain run of full length: there is no configs/finetune_deit_tiny_from.yaml" in job.stderr
    for scale, config, words in (
        ([], "proxy_toe_r05", "is of the proxy: give --proxy too"),
        (["--proxy"], "deit_tiny_toe_r05", "with --proxy give one of the proxy's"),
        ([], "none", "there is no configs/none.yaml"),
    ):
        job = desk.start("equal_compute", *scale, given, CONFIG=config)
        assert (job.returncode, words in job.stderr) == (2, True)
    job = desk.start("equal_compute", given, CONFIG="photos")
    assert "no plain run of full length: the name photos tells of none" in job.stderr


@pytest.mark.parametrize(
    ("scale", "half", "most"),
    [([], "deit_tiny_toe_r05", "deit_tiny_r1_0.6"), (["--proxy"], "proxy_toe_r05", "proxy_toe_r06")],
)
def test_ideas_are_held_against_token_expansion_as_it_is(desk, scale, half, most):
    calls = desk.calls("ideas", *scale, f"data.root={desk.images}")
    found = [command for command in calls.commands if command[:2] == ["toe-tools", "report"]]
    assert [command[command.index("--against") + 1] for command in found] == [half, most]
    assert {half, most} < set(calls.rows)


def plan_names(rows: list[str]) -> tuple[str, str]:
    """The run, and the row that was planned to equal it."""
    (made,) = (row for row in rows if row.endswith("_shorter"))
    return made.removesuffix("_shorter"), made


@pytest.mark.parametrize("script", ["table2", "table5", "fig2"])
def test_a_list_has_the_commands_of_the_runs_and_starts_none(desk, script):
    given = ["--seeds", "2", f"data.root={desk.images}"]
    started = desk.calls(script, *given).commands
    desk.record.unlink()
    job = desk.start(script, *given, "--list")
    assert job.returncode == 0
    assert [shlex.split(line) for line in job.stdout.splitlines()] == [run for run in started if run[0] == "toe-train"]
    assert not desk.record.exists()


def test_as_many_jobs_as_cores_are_taken_whatever_the_threads(desk):
    desk.have_images(desk.root / "runs/proxy-cpu/cifar")
    cores = str(len(os.sched_getaffinity(0)))
    given = ["--proxy", "--cpu", "--jobs", cores, f"data.root={desk.images}"]
    assert len(desk.calls("fig3", *given, OMP_NUM_THREADS="1", OMP_THREAD_LIMIT="1").runs) > 1


def test_jobs_are_the_runs_of_the_list_seed_by_seed(desk):
    desk.have_images(desk.root / "runs/proxy-cpu/cifar")
    given = ["--proxy", "--cpu", "--seeds", "3-4", f"data.root={desk.images}"]
    listed = [shlex.split(line) for line in desk.start("table7", *given, "--list").stdout.splitlines()]
    calls = desk.calls("table7", *given, "--jobs", "1")
    assert len(listed) == 14
    assert calls.commands[:-1] == sorted(listed, key=lambda command: command[-1])  # their seeds
    assert calls.reported == [Path(command[4]) for command in listed]
    output = desk.root / "runs/proxy-cpu"
    assert {path.stem for path in (output / "logs").iterdir()} == {run.folder.name for run in calls.runs}
    moment, *loads = (output / "load.log").read_text().split()
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT[\d:]+Z", moment)
    assert len(loads) == 3


def test_what_another_job_starts_from_is_there_first(desk):
    desk.have_images(desk.root / "runs/proxy-cpu/cifar")
    given = ["--proxy", "--cpu", "--seeds", "2", "--jobs", "1", f"data.root={desk.images}"]
    tuned = desk.calls("table5", *given)
    assert [run.row for run in tuned.runs][:4] == 2 * ["proxy", "proxy_toe_r05"]
    labelled = desk.calls("table3", *given)
    assert [command[0] for command in labelled.commands[:2]] == ["toe-train", "toe-tools"]
    assert len(labelled.runs) == 1 + 2 * 3


@pytest.mark.parametrize("code", [2, 75])
def test_a_job_that_fails_ends_the_script_with_its_code(desk, code):
    desk.have_images(desk.root / "runs/proxy-cpu/cifar")
    stub = desk.root.parent / "stubs/toe-train"
    stub.write_text(f'#!/bin/sh\necho "error: the reason"; exit {code}\n')
    job = desk.start("fig3", "--proxy", "--cpu", "--jobs", "1", f"data.root={desk.images}")
    assert job.returncode == code
    assert "error: the reason" in job.stderr
    assert f"proxy-s0 ended with {code};" in job.stderr
    assert job.stderr.splitlines()[-1].startswith("error: not all runs are there;")
    assert job.stdout.count("==") == 1


@pytest.fixture
def waiting(desk):
    """waiting(*arguments) -> a script with jobs, once the first runs, which saves its place where it is stopped."""
    desk.have_images(desk.root / "runs/proxy-cpu/cifar")
    stub = desk.root.parent / "stubs/toe-train"
    begun, saved = desk.root.parent / "begun", desk.root.parent / "saved"
    stub.write_text(
        f"#!/bin/bash\ntrap 'echo >>{saved}; exit 75' TERM\necho >>{begun}\nfor i in {{1..300}}; do sleep 0.1; done\n"
    )
    started = []

    def begin(*arguments: str) -> subprocess.Popen[str]:
        script = ["bash", str(desk.root / "scripts/fig3.sh"), "--proxy", "--cpu", *arguments]
        quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
        started.append(subprocess.Popen([*script, f"data.root={desk.images}"], env=desk.environment, **quiet))
        for _ in range(300):
            if begun.exists():
                return started[-1]
            time.sleep(0.05)
        raise AssertionError("no run began")

    yield begin
    for script in started:
        script.terminate()
        script.wait()


def test_a_script_that_is_stopped_stops_its_jobs(desk, waiting):
    script = waiting("--jobs", "1")
    script.terminate()
    script.wait(timeout=20)
    assert script.returncode == 143
    assert [(desk.root.parent / name).read_text().count("\n") for name in ("begun", "saved")] == [1, 1]
    left = subprocess.run(["pgrep", "-f", str(desk.root.parent / "stubs")], capture_output=True, text=True).stdout
    assert not left  # neither the queue nor a run


def test_a_second_script_in_the_same_folder_is_refused(desk, waiting):
    waiting("--jobs", "1")
    job = desk.start("table7", "--proxy", "--cpu", f"data.root={desk.images}")
    assert job.returncode == 2
    assert "works in" in job.stderr
    assert "give another --output" in job.stderr
    assert desk.start("table7", "--proxy", "--cpu", "--list", f"data.root={desk.images}").returncode == 0


@pytest.fixture
def small(tmp_path, monkeypatch):
    """small(*arguments) -> exit code of proxy_images.py, which takes 2 images of a class and 1 more to evaluate."""
    for split, count in (("train", 5), ("val", 2)):
        for name in ("cat", "dog"):
            (tmp_path / "whole" / split / name).mkdir(parents=True)
            for number in range(count):
                Image.new("RGB", (4, 4), (number, 0, 0)).save(tmp_path / "whole" / split / name / f"{number}.png")
    script = str(REPOSITORY / "scripts/proxy_images.py")

    def call(*arguments: object) -> int:
        monkeypatch.setattr(sys, "argv", [script, *map(str, arguments)])
        made = runpy.run_path(script)
        made["main"].__globals__.update(TRAIN=2, MORE_VAL=1)
        try:
            made["main"]()
        except SystemExit as end:
            return int(end.code or 0)
        return 0

    return call


def test_the_images_of_a_small_scale_are_a_part_of_cifar_10(tmp_path, small):
    (tmp_path / "part.part/train/horse").mkdir(parents=True)  # of another one that was broken off
    assert small(tmp_path / "part", "image_folder", tmp_path / "whole") == 0

    def reds(split: str, name: str) -> list[int]:
        images = [Image.open(path) for path in sorted((tmp_path / "part" / split / name).iterdir())]
        return [image.getpixel((0, 0))[0] for image in images]

    assert sorted(path.name for path in (tmp_path / "part/train").iterdir()) == ["cat", "dog"]
    for name in ("cat", "dog"):
        assert (reds("train", name), reds("val", name)) == ([0, 1], [2, 0, 1])


def test_images_that_are_there_are_those_that_are_asked_for(tmp_path, small, capsys):
    assert small(tmp_path / "part", "image_folder", tmp_path / "whole") == 0
    made = (tmp_path / "part/train/cat").stat().st_mtime_ns
    assert small(tmp_path / "part", "image_folder", tmp_path / "whole") == 0
    assert (tmp_path / "part/train/cat").stat().st_mtime_ns == made
    assert small(tmp_path / "part", "image_folder", tmp_path / "elsewhere") == 2
    assert "give another --output, or what it was made from" in capsys.readouterr().err


def test_a_class_with_too_few_images_is_refused(tmp_path, small, capsys):
    for number in (2, 3, 4):
        (tmp_path / f"whole/train/dog/{number}.png").unlink()
    assert small(tmp_path / "part", "image_folder", tmp_path / "whole") == 2
    assert "class dog has 2 training images; 2 of each train and 1 others" in capsys.readouterr().err
    assert not (tmp_path / "part").exists()


def test_a_list_with_labels_needs_them_made(desk):
    job = desk.start("table3", "--proxy", "--list", f"data.root={desk.images}")
    assert (job.returncode, job.stdout) == (2, "")
    assert "give token_labels.root=DIR" in job.stderr
    job = desk.start("table3", "--proxy", "--list", f"data.root={desk.images}", "token_labels.root=labels")
    assert [line.count("token_labels.root=/") for line in job.stdout.splitlines()] == 3 * [1]


def test_a_task_of_a_slurm_array_is_a_run_of_the_table(desk):
    launcher = desk.root / "scripts/slurm.sh"
    launcher.write_text('printf "%s\\n" "$@"\n')
    given = ["table6", "--seeds", "2", f"data.root={desk.images}"]
    listed = desk.start("slurm_table", *given, cwd=desk.root).stdout.splitlines()
    assert len(listed) == 16
    for number in (0, 9, 15):
        job = desk.start("slurm_table", *given, cwd=desk.root, SLURM_ARRAY_TASK_ID=str(number))
        assert ["toe-train", "--config", *job.stdout.splitlines()] == shlex.split(listed[number])
    job = desk.start("slurm_table", *given, cwd=desk.root, SLURM_ARRAY_TASK_ID="16")
    assert (job.returncode, job.stdout) == (2, "")
    assert "task 16, and there are 16 runs" in job.stderr
    job = desk.start("slurm_table", "table66", cwd=desk.root)
    assert (job.returncode, job.stdout) == (2, "")
    assert "table66 is none of scripts/ that trains a table's runs" in job.stderr


@pytest.mark.parametrize(
    ("given", "number", "words"),
    [
        ([], "", "no script: scripts/slurm_table.sh SCRIPT"),
        (["lib"], "", "lib is none of scripts/"),
        (["slurm"], "", "slurm is none of scripts/"),
        (["--help"], "", "--help is none of scripts/"),
        (["scripts/fig3.sh"], "-1", "SLURM_ARRAY_TASK_ID=-1: tasks are numbered from 0"),
        (["fig3"], "abc", "SLURM_ARRAY_TASK_ID=abc"),
    ],
)
def test_an_array_that_cannot_be_is_told(desk, given, number, words):
    job = desk.start("slurm_table", *given, cwd=desk.root, SLURM_ARRAY_TASK_ID=number)
    assert (job.returncode, job.stdout, len(job.stderr.splitlines())) == (2, "", 1)
    assert words in job.stderr


@pytest.mark.parametrize(
    ("given", "variables", "words"),
    [
        ([], {}, "no configuration: sbatch"),
        (["configs/deit_tiny.yaml"], {}, "this is no Slurm job: start it by sbatch"),
        (["configs/deit_tiny.yaml"], {"SLURM_JOB_ID": "1"}, "this is no Slurm job: start it by sbatch"),  # no srun
    ],
)
def test_a_slurm_job_that_cannot_be_is_told(desk, given, variables, words):
    job = desk.start("slurm", *given, **variables)
    assert (job.returncode, job.stdout, len(job.stderr.splitlines())) == (2, "", 1)
    assert words in job.stderr


def test_programs_that_are_not_installed_are_told(desk):
    for name in ("toe-train", "toe-tools"):
        (Path(desk.environment["PATH"].split(os.pathsep)[0]) / name).unlink()
    job = desk.start("table2", PATH="/usr/bin:/bin")
    assert (job.returncode, job.stdout) == (2, "")
    assert "toe-train is not installed here: make quickstart" in job.stderr
    assert not (desk.root / "runs").exists()


def test_equal_compute_names_a_configuration_that_is_not_there(desk):
    job = desk.start("equal_compute", CONFIG="deit_tinny")
    assert (job.returncode, job.stderr) == (2, "error: CONFIG=deit_tinny: there is no configs/deit_tinny.yaml\n")


@pytest.mark.slow
def test_equal_compute_runs_and_reports(tmp_path):
    command = ["bash", str(REPOSITORY / "scripts/equal_compute.sh"), "--proxy", "--smoke", "--output", str(tmp_path)]
    jobs = [subprocess.run(command, capture_output=True, text=True, env=environment(), timeout=900) for _ in range(2)]
    assert [job.returncode for job in jobs] == [0, 0], jobs[0].stderr[-3000:]
    assert [job.stdout.count("nothing to train") for job in jobs] == [0, 5]
    report = (tmp_path / "report/equal_compute/report.md").read_text()
    for row in ("proxy", "proxy_toe_r05", "proxy_toe_r05_shorter", "proxy_toe_r05_smaller", "proxy_random"):
        assert f" {row} |" in report
        assert row == "proxy_toe_r05" or f"| proxy_toe_r05 | {row}" in re.sub(" +", " ", report)


@pytest.mark.slow
@pytest.mark.parametrize("script", RUNNING)
def test_each_runs_and_reports(desk, script, tmp_path):
    output, stubbed = tmp_path / "out", tmp_path / "stubbed"
    desk.have_images(stubbed / "digits")
    calls = desk.calls(script, "--proxy", "--smoke", "--output", str(stubbed))
    expected = {
        output / run.folder.name: resolve(
            run.config, tuple(value.replace(str(stubbed), str(output)) for value in run.overrides)
        )
        for run in calls.runs
    }
    command = ["bash", str(REPOSITORY / f"scripts/{script}.sh"), "--proxy", "--smoke", "--output", str(output)]
    jobs = [
        subprocess.run(command, capture_output=True, text=True, env=environment(), timeout=900)
        for _ in range(2)  # the second time all is done
    ]
    for job in jobs:
        assert job.returncode == 0, job.stderr[-3000:]
        assert re.findall(r"^== (.*)", job.stdout, re.MULTILINE) == [str(folder) for folder in expected]
    assert [job.stdout.count("nothing to train") for job in jobs] == [0, len(expected)]
    for folder, config in expected.items():
        assert load_config(folder / "config.yaml") == config
    if script in PICTURES:
        for name in ("kept.png", "features.png"):
            assert (output / "report" / script / name).stat().st_size > 10_000
        return
    report = (output / "report" / script / "report.md").read_text()
    rows = re.findall(r"^\| *(\w[^ |]*) *\|", report.split("###")[0], re.MULTILINE)
    assert rows[1:] == [re.sub(r"-s0$", "", folder.name) for folder in calls.reported]
    assert "Not finished" not in report
    assert (output / "report" / script / "report.html").read_text().count("<table>") >= 1


def test_fine_tuning_on_a_cpu_starts_all_its_runs_from_one_base(desk, tmp_path):
    images = [{"id": number, "file_name": f"{number}.png", "width": 60, "height": 40} for number in range(2)]
    kinds = [{"id": number, "name": name} for number, name in enumerate(("RBC", "WBC"), 1)]
    objects = [{"image_id": 0, "category_id": 1, "bbox": [5 * place, 3, 8, 12]} for place in range(3)]
    objects += [{"image_id": number, "category_id": 2, "bbox": [50, 30, 30, 40]} for number in range(2)]
    for split in ("train", "val", "test"):
        (tmp_path / "bccd" / split).mkdir(parents=True)
        (tmp_path / "bccd/annotations").mkdir(exist_ok=True)
        whole = {"images": images, "annotations": objects, "categories": kinds}
        (tmp_path / f"bccd/annotations/instances_{split}.json").write_text(json.dumps(whole))
        for image in images:
            Image.new("RGB", (60, 40), (200, 90, 90)).save(tmp_path / "bccd" / split / image["file_name"])
    given = ["--seeds", "2", "--output", str(tmp_path / "out"), f"data.root={desk.images}"]
    calls = desk.calls("finetune_cpu", *given, BCCD=str(tmp_path / "bccd"))
    assert [run.folder.name for run in calls.runs] == [
        "cells_base-s0",
        "cells-s0",
        "cells-s1",
        "cells_toe-s0",
        "cells_toe-s1",
    ]
    assert calls.runs[0].resolved().data.root == str(desk.images)
    for run in calls.runs[1:]:
        config = run.resolved()
        assert config.data.root == str(tmp_path / "out/cells")
        assert config.model.initial_weights == str(tmp_path / "out/cells_base-s0/checkpoints/last.pt")
        assert (config.expansion is not None) == ("toe" in run.folder.name)
    assert calls.reported == [run.folder for run in calls.runs[1:]]
    cells = {path.parent: len(list(path.parent.iterdir())) for path in (tmp_path / "out/cells").rglob("*.png")}
    assert cells == {  # two red cells of an image at most
        tmp_path / "out/cells/train/RBC": 2,
        tmp_path / "out/cells/train/WBC": 2,
        tmp_path / "out/cells/val/RBC": 2,
        tmp_path / "out/cells/val/WBC": 2,
    }


def test_every_speed_figure_has_a_command_that_the_benchmarks_take(desk, tmp_path):
    calls = desk.calls("speed", str(tmp_path / "figures"), f"data.root={desk.images}", "--batch", "32", "--rounds", "3")
    files = set()
    for program, command, *given in calls.commands:
        assert (program, command) == ("toe-tools", "bench")
        options = tools_parser().parse_args(["bench", *given])
        bench.require_consistent(options)
        assert options.rounds == 3
        config = resolve(options.config, tuple(options.overrides))
        assert (config.data.root == str(desk.images)) == (options.what in ("loader", "end-to-end"))
        files.add(Path(options.json).stem)
    assert len(files) == len(calls.commands)
    assert {f"{what}_deit_{size}" for what in ("step", "end_to_end", "saving") for size in ("tiny", "base")} <= files


@pytest.mark.parametrize("arguments", [[], ["figures"], ["figures", "data.root=x", "--batch", "12"], ["a", "b"]])
def test_what_the_speed_figures_cannot_do_without_is_said(desk, tmp_path, arguments):
    job = desk.start("speed", *arguments, cwd=tmp_path)
    assert job.returncode == 2
    assert job.stderr.startswith("error: ")
    assert not list(tmp_path.glob("figures/*"))
