import pytest
import torch
import torch.distributed as dist
from functorch.compile import make_boxed_func
from support import trainer_of
from torch._dynamo.backends.common import aot_autograd
from torch.nn.parallel import DistributedDataParallel

from toe_train.build import step as step_module
from toe_train.cli.train import main
from toe_train.recipes import load_config
from toe_train.runs.folder import RunFolder
from toe_train.runs.log import read_metrics
from toe_train.training.compiling import compile_stages

STAGES = "{stage_epochs: [0, 1], image_sizes: [8, 16], rand_augments: [rand-m1, rand-m2], micro_batches: [256, 256]}"


@pytest.fixture
def losses(tiny, tmp_path):
    def run(name, *arguments):
        assert main(["--config", str(tiny), "--output", str(tmp_path / name), *arguments]) == 0
        return [line["train_loss"] for line in read_metrics(RunFolder(tmp_path / name).metrics, "step")]

    return run


# A graph for each kind of block (the first drops no path) and number of tokens that it sees, and for each stage of ToE
# that drops some; stages, and those of them that drop; epochs that drop.
@pytest.mark.parametrize(
    ("arguments", "kinds", "stages", "dropping", "epochs"),
    [
        ((), 1 + 3 + 2, 3, 2, 2),
        pytest.param(("train.precision=bf16",), 1 + 3 + 2, 3, 2, 2, marks=pytest.mark.slow),
        pytest.param(("expansion=null",), 2, 1, 0, 0, marks=pytest.mark.slow),
        pytest.param((f"curriculum={STAGES}",), 2 + 3 + 2, 3, 2, 2, marks=pytest.mark.slow),
        pytest.param(
            ("model.kwargs.depth=5", "expansion.stage_epochs=[0, 1, 8]"), 1 + 2 + 2, 2, 2, 3, marks=pytest.mark.slow
        ),
    ],
    ids=["fp32", "bf16", "plain", "curriculum", "deeper"],
)
def test_each_kind_of_block_has_one_graph_a_stage_and_no_step_makes_one(
    graphs, losses, capsys, arguments, kinds, stages, dropping, epochs
):
    eager = losses("eager", "train.compile=false", *arguments)
    assert graphs == []
    compiled = losses("compiled", "train.compile=true", *arguments)
    assert "compiled the step in" in capsys.readouterr().out
    assert len(graphs) == kinds
    assert torch._dynamo.utils.counters["graph_break"] == {}
    depth = 5 if "model.kwargs.depth=5" in arguments else 2
    # Each stage once beforehand, then 5 steps in each of 3 epochs.
    assert sum(map(len, graphs)) == depth * (stages + 15) + dropping + 5 * epochs
    assert compiled == pytest.approx(eager, rel=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("revive", ["released", "small_weights"])
def test_both_forms_of_a_masked_step_are_made_beforehand(revive, graphs, losses, monkeypatch):
    """With and without the heads' scores, which the steps before the updates take."""
    made = []
    real = step_module.compile_stages
    monkeypatch.setattr(step_module, "compile_stages", lambda *given: [real(*given), made.append(len(graphs))][0])
    method = f"method={{kind: structured_sparsity, heads_kept: 0.5, update_every: 3, revive: {revive}}}"
    eager = losses("eager", "train.compile=false", "expansion=null", method)
    compiled = losses("compiled", "train.compile=true", "expansion=null", method)
    assert made == [len(graphs)]
    assert torch._dynamo.utils.counters["graph_break"] == {}
    assert compiled == pytest.approx(eager, rel=1e-5)


class Backend:
    """aot_eager, with the backward graphs that ran counted."""

    def __init__(self):
        self.backwards = 0
        self.compile = aot_autograd(
            fw_compiler=lambda graph, inputs: make_boxed_func(graph.forward), bw_compiler=self.bw
        )

    def bw(self, graph, inputs):
        def run(*given):
            self.backwards += 1
            return graph.forward(*given)

        return make_boxed_func(run)


@pytest.fixture
def alone():
    """A process group of one."""
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield
    dist.destroy_process_group()


@pytest.mark.parametrize("whole", [False, True])
def test_gradients_are_there_to_be_sent_while_the_backward_pass_goes_on(whole, tiny, tmp_path, monkeypatch, alone):
    """Of blocks compiled one by one; a graph of the whole model gives none before its end."""
    depth = 6
    folder = RunFolder(tmp_path / "run")
    folder.create()
    torch.compiler.reset()
    backend, real = Backend(), torch.compile
    monkeypatch.setattr(torch, "compile", lambda model, **options: real(model, backend=backend.compile, **options))
    trainer = trainer_of(load_config(tiny, [f"model.kwargs.depth={depth}", "model.drop_path=0.1"]), folder)
    step = trainer.step
    batch = next(iter(trainer.inputs.train))
    assert compile_stages(step, [1], batch, whole) is None
    sent = []
    wrapped = DistributedDataParallel(step.model, bucket_cap_mb=0.005, gradient_as_bucket_view=True)

    def ready(state, bucket):
        sent.append((backend.backwards, bucket.buffer().numel()))
        done = torch.futures.Future()
        done.set_result(bucket.buffer())
        return done

    wrapped.register_comm_hook(None, ready)
    step.trained = wrapped
    step.draws.give(0, 0, 0)
    for _ in range(2):  # after the first pass DDP arranges its buckets in the order of the gradients
        sent.clear()
        backend.backwards = 0
        images, targets = step.task.mix(batch[0].clone(), batch[1], 0, 0, 0, 0)
        step.task.loss(wrapped(images), targets).backward()
    graphs = 1 if whole else depth + 1  # ToE's own
    assert backend.backwards == graphs
    total = sum(numbers for _, numbers in sent)
    early = sum(numbers for ran, numbers in sent if ran < graphs)
    assert (early == 0) == whole
    assert whole or early > 0.6 * total
    trainer.log.close()
    trainer.inputs.close()
    torch.compiler.reset()


@pytest.mark.slow
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
