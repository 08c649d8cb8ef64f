import pytest
import torch

from toe_train.cli.train import main
from toe_train.runs.folder import RunFolder
from toe_train.runs.log import read_metrics

STAGES = "{stage_epochs: [0, 1], image_sizes: [8, 16], rand_augments: [rand-m1, rand-m2], micro_batches: [256, 256]}"


@pytest.fixture
def losses(tiny, tmp_path):
    def run(name, *arguments):
        assert main(["--config", str(tiny), "--output", str(tmp_path / name), *arguments]) == 0
        return [line["train_loss"] for line in read_metrics(RunFolder(tmp_path / name).metrics, "step")]

    return run


@pytest.mark.parametrize(
    ("arguments", "stages"),
    [((), 3), (("train.precision=bf16",), 3), (("expansion=null",), 1), ((f"curriculum={STAGES}",), 3)],
    ids=["fp32", "bf16", "plain", "curriculum"],
)
def test_each_stage_has_one_graph_and_no_step_makes_one(graphs, losses, capsys, arguments, stages):
    eager = losses("eager", "train.compile=false", *arguments)
    assert graphs == []
    compiled = losses("compiled", "train.compile=true", *arguments)
    assert "compiled the step in" in capsys.readouterr().out
    assert len(graphs) == stages
    assert torch._dynamo.utils.counters["graph_break"] == {}
    assert sum(map(len, graphs)) == stages + 15  # each once beforehand, then the steps of 3 epochs
    assert compiled == pytest.approx(eager, rel=1e-6)


def test_where_it_cannot_be_compiled_the_run_says_so_and_goes_on(losses, monkeypatch, capsys):
    real = torch.compile

    def broken(graph, inputs):
        raise FileNotFoundError("no C compiler")

    monkeypatch.setattr(torch, "compile", lambda model, **options: real(model, backend=broken, **options))
    torch.compiler.reset()
    compiled = losses("compiled", "train.compile=true")
    out = capsys.readouterr().out
    assert "torch.compile does not work here (" in out
    assert "no C compiler" in out
    assert "the run goes on without it" in out
    assert compiled == losses("eager", "train.compile=false")


@pytest.mark.slow
def test_compiled_in_two_processes(tiny, tmp_path, run, losses):
    """By torch's own compiler, with DDP around it, what one process does without."""
    eager = losses("one", "train.compile=false")
    done = run("--config", str(tiny), "--output", "two", "train.compile=true", processes=2)
    assert done.process.returncode == 0, done.stderr
    assert "compiled the step in" in done.stdout
    compiled = [line["train_loss"] for line in read_metrics(tmp_path / "two/metrics.jsonl", "step")]
    assert compiled == pytest.approx(eager, rel=1e-3)
