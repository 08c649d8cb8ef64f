"""A console that goes away ends no command: a reader that stops, a terminal that is closed, a full disk behind it."""

import io
import os
import signal
import subprocess
import sys

import pytest

from toe_train import __version__
from toe_train.cli.console import tell_begun
from toe_train.runs.log import read_metrics

FIRST_LINE = f"toe-train {__version__}: loading PyTorch, which takes some seconds\n"
TOOLS = "from toe_train.cli.tools import main; raise SystemExit(main())"


def started(folder, *command, **streams):
    environment = {**os.environ, "CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"}
    return subprocess.Popen([sys.executable, *map(str, command)], cwd=folder, env=environment, text=True, **streams)


def test_a_run_goes_on_when_the_reader_of_its_output_is_gone(tiny, tmp_path):
    reading, writing = os.pipe()
    job = started(tmp_path, "-m", "toe_train", "--config", tiny, stdout=writing, stderr=subprocess.PIPE)
    os.close(writing)
    os.read(reading, 1)  # as `head -1`
    os.close(reading)
    _, error = job.communicate(timeout=100)
    assert (job.returncode, error) == (
        0,
        "note: standard output is gone (Broken pipe); the command goes on without it\n",
    )
    assert len(read_metrics(tmp_path / "runs/tiny/metrics.jsonl", "epoch")) == 3


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="Linux alone has one")
@pytest.mark.slow
def test_a_full_disk_behind_the_console_ends_no_run(tiny, tmp_path):
    with open("/dev/full", "w") as full:
        job = started(tmp_path, "-m", "toe_train", "--config", tiny, stdout=full, stderr=full)
        assert job.wait(timeout=100) == 0
    assert len(read_metrics(tmp_path / "runs/tiny/metrics.jsonl", "epoch")) == 3


@pytest.mark.slow
def test_a_run_without_any_console(tiny, tmp_path):
    command = f"exec {sys.executable} -m toe_train --config {tiny} >&- 2>&-"
    environment = {**os.environ, "CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"}
    assert subprocess.run(["sh", "-c", command], cwd=tmp_path, env=environment, timeout=100).returncode == 0


@pytest.mark.slow
def test_a_terminal_that_is_closed_ends_no_run(tiny, tmp_path, start):
    metrics = tmp_path / "run/metrics.jsonl"
    job = start("--config", tiny, "--output", "run", "epochs=20")
    job.wait_until(lambda: len(read_metrics(metrics, "epoch")) > 1)
    os.killpg(job.process.pid, signal.SIGHUP)
    assert job.end(timeout=100) == 0
    assert len(read_metrics(metrics, "epoch")) == 20


def test_a_tool_ends_well_when_its_reader_has_seen_enough(tiny, tmp_path):
    reading, writing = os.pipe()
    os.close(reading)
    job = started(tmp_path, "-c", TOOLS, "plan", "--config", tiny, stdout=writing, stderr=subprocess.PIPE)
    os.close(writing)
    _, error = job.communicate(timeout=100)
    assert job.returncode == 0
    assert "Traceback" not in error
    assert "Exception ignored" not in error


INTERRUPTED_WHILE = """
import os, signal, sys
class Finder:
    def find_spec(self, name, path=None, target=None):
        if name == {name!r}:
            os.kill(os.getpid(), signal.SIGINT)
sys.meta_path.insert(0, Finder())
from toe_train.cli.{command} import main
sys.exit(main({given!r}))
"""


@pytest.mark.parametrize(
    ("command", "given"), [("train", ["--config", "none.yaml"]), ("tools", ["plan", "--config", "none.yaml"])]
)
def test_ctrl_c_while_the_libraries_are_loaded_is_one_line(command, given):
    # Where the tests run in the background it is ignored.
    heard = "import signal; signal.signal(signal.SIGINT, signal.default_int_handler)\n"
    script = heard + INTERRUPTED_WHILE.format(name="torch", command=command, given=given)
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=120)
    said = "interrupted: while the libraries were loaded; nothing was begun\n"
    begun = FIRST_LINE if command == "train" else ""
    assert (done.returncode, done.stdout, done.stderr) == (130, begun, said)


def test_the_first_line_stands_before_the_libraries_are_loaded():
    """So that it comes within two seconds: what is imported before it is of Python itself, and the options."""
    script = """
import io, sys
class First(io.StringIO):
    def write(self, text):
        if text.startswith("toe-train"):
            foreign = {name.partition(".")[0] for name in sys.modules} & {"torch", "numpy", "timm", "yaml", "pydantic"}
            sys.exit(f"{text.strip()}; loaded: {foreign or None}")
sys.stdout = First()
from toe_train.cli.train import main
main(["--config", "none.yaml"])
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=120)
    assert done.stderr == f"{FIRST_LINE.strip()}; loaded: None\n"


class Stream(io.StringIO):
    def __init__(self, is_terminal):
        super().__init__()
        self.isatty = lambda: is_terminal


@pytest.mark.parametrize(
    ("loaded", "rank", "where_seen", "is_terminal", "says"),
    [
        (False, None, False, False, True),
        (False, None, True, True, True),
        (False, None, True, False, False),  # read by a program
        (False, "0", False, True, False),  # under torchrun, which has taken its seconds
        (True, None, False, True, False),
    ],
)
def test_when_a_command_says_that_it_has_begun(monkeypatch, loaded, rank, where_seen, is_terminal, says):
    if not loaded:
        monkeypatch.delitem(sys.modules, "torch")
    monkeypatch.delenv("RANK", raising=False)
    if rank is not None:
        monkeypatch.setenv("RANK", rank)
    stream = Stream(is_terminal)
    tell_begun("toe-train", stream, where_seen)
    assert stream.getvalue() == (FIRST_LINE if says else "")


def test_ctrl_c_that_is_ignored_stays_so():
    """As that of a job in the background."""
    script = "import signal; signal.signal(signal.SIGINT, signal.SIG_IGN)\n" + INTERRUPTED_WHILE.format(
        name="yaml", command="train", given=["--config", "none.yaml"]
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=120)
    assert done.returncode == 2
    assert "config file none.yaml does not exist" in done.stderr
