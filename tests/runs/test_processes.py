"""What two processes hand to each other, and what one learns when the other is gone."""

import pytest
import torch
import torch.distributed as dist

from toe_train.errors import Interrupted, ProcessGone, RunFailed, UserError
from toe_train.runs import joining, processes
from toe_train.runs.processes import Processes, communicating

ALONE = Processes(0, 1, torch.device("cpu"))

SENT = """
def work():
    assert rank == 0
    shared = torch.arange(6).reshape(2, 3)
    read_only = numpy.arange(9000.0)
    read_only.setflags(write=False)
    return {
        "dtypes": [torch.arange(5).to(dtype) for dtype in DTYPES],
        "parameter": nn.Parameter(torch.ones(3)),
        "scalar": torch.tensor(2.5),
        "empty": torch.empty(0, 3, dtype=torch.bfloat16),
        "strided": torch.arange(12).reshape(3, 4).t()[::2],
        "conjugate": torch.tensor([1 + 2j]).conj(),
        "twice": (shared, shared),
        "arrays": {"small": numpy.arange(3), "large": numpy.asfortranarray(numpy.arange(10000).reshape(100, 100)),
                   "words": numpy.array(["a", "bcd"] * 2000), "objects": numpy.array([None, "x"] * 2000),
                   "read only": read_only},
        "plain": (1, "two", None, [3.0, {"four": {5}}]),
    }

DTYPES = [torch.float32, torch.float64, torch.float16, torch.bfloat16, torch.bool, torch.int8, torch.uint8,
          torch.int64, torch.complex64]

def same(one, other):
    assert type(one) is type(other), (one, other)
    if isinstance(one, torch.Tensor):
        assert one.dtype == other.dtype and one.shape == other.shape and torch.equal(one, other)
        assert one.requires_grad == other.requires_grad
    elif isinstance(one, numpy.ndarray):
        assert one.dtype == other.dtype and numpy.array_equal(one, other)
    elif isinstance(one, dict):
        assert list(one) == list(other)
        for key in one:
            same(one[key], other[key])
    elif isinstance(one, (list, tuple)):
        assert len(one) == len(other)
        for pair in zip(one, other):
            same(*pair)
    else:
        assert one == other

got = here.from_main(work)
assert got["twice"][0] is got["twice"][1]
rank, real = 0, rank
same(got, work())
print("same", real)
"""


def test_a_fault_does_not_wait_for_the_others_to_leave(monkeypatch):
    """NCCL's end does, and they wait for this process in turn."""
    left, patience = [], []
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setattr(processes, "require_interfaces", lambda: None)
    monkeypatch.setattr(processes, "join", lambda *given: patience.append(given[-1]))
    monkeypatch.setattr(dist, "new_group", lambda **_: dist.ProcessGroup(0, 2))
    monkeypatch.setattr(dist, "destroy_process_group", lambda: left.append(True))
    for fault, told in (
        (UserError("an image"), UserError),
        (MemoryError(), MemoryError),
        (dist.DistError(), ProcessGone),
    ):
        with pytest.raises(told), processes.processes():
            raise fault
    assert not left
    with processes.processes():
        pass
    assert left
    assert set(patience) == {processes.PATIENCE}


def test_what_the_main_process_gives_arrives_equal(in_two):
    told = in_two(SENT)
    assert [job.out for job in told] == ["same 0\n", "same 1\n"], told


def test_tensors_are_not_in_the_pickle(in_two):
    """The letter that goes before them is small, whatever they hold."""
    told = in_two("""
real, sizes = dist.broadcast_object_list, []
def counting(letter, **options):
    real(letter, **options)
    sizes.append(len(letter[0][0]))
dist.broadcast_object_list = counting
here.from_main(lambda: {"a": torch.zeros(10**6), "b": [numpy.zeros(10**6), nn.Parameter(torch.zeros(10**6))]})
print(sizes[0] < 2000)
""")
    assert [job.out for job in told] == ["True\n", "True\n"], told


def test_a_fault_of_the_main_process_is_raised_in_all(in_two):
    told = in_two("""
def failing(fault):
    def work():
        raise fault
    return work
for fault in (UserError("wrong", then="{command} goes on"), RunFailed("ended"), OSError(28, "No space")):
    try:
        here.from_main(failing(fault))
    except (UserError, RunFailed) as error:
        print(type(error).__name__, error.told("it"), error.shared)
""")
    for job in told:
        assert job.out.splitlines() == [
            "UserError wrong; it goes on True",
            "RunFailed ended True",
            "RunFailed [Errno 28] No space; make room, or give the right to it, then it continues True",
        ], job


def test_alone_it_is_just_the_work():
    value = object()
    assert ALONE.from_main(lambda: value) is value


CALLS = """
model = here.wrap(nn.Sequential(nn.Flatten(), nn.Linear(192, 2), nn.BatchNorm1d(2)), (8, 8))
def step(skip):
    with here.averaging(model, skip):
        model(torch.ones(2, 3, 8, 8)).sum().backward()
calls = {
    "step": lambda: step(skip=False),
    "step that is not averaged": lambda: step(skip=True),
    "gather": lambda: here.gather(1),
    "max": lambda: here.max(1.0),
    "sum": lambda: here.sum(torch.ones(1)),
    "share_buffers": lambda: here.share_buffers(nn.BatchNorm1d(2)),
    "main_only": lambda: here.main_only(lambda: None),
    "from_main": lambda: here.from_main(lambda: 1),
    "wrap": lambda: here.wrap(nn.Linear(2, 2), (8, 8)),
}
model.train()
step(skip=False)
here.gather(0)
if rank == 1:
    os._exit(0)
for name in NAMES:
    try:
        calls[name]()
        calls[name]()
    except Interrupted as error:
        print(name, "|", error.told("it"), error.shared)
sys.stdout.flush()
os._exit(0)
"""
OTHERS = ["gather", "max", "sum", "share_buffers", "main_only", "from_main", "wrap"]


@pytest.mark.parametrize("names", [["step"], ["step that is not averaged"], OTHERS], ids=["step", "skip", "others"])
def test_a_process_that_is_gone_is_an_interruption(in_two, names):
    """In a micro-batch that is not averaged too, whose forward pass hands a batch norm's buffers on."""
    told = in_two(CALLS.replace("NAMES", repr(names)))
    lines = told[0].out.splitlines()
    assert [line.split(" | ")[0] for line in lines] == names, told
    for line in lines:
        assert "another process of the run is gone (" in line
        assert line.endswith("report, says why; it continues from the last checkpoint True")


def test_gradients_are_averaged_unless_skipped(in_two):
    told = in_two("""
model = here.wrap(nn.Sequential(nn.Flatten(), nn.Linear(3 * 8 * 8, 1, bias=False)), (8, 8))
for skip in (True, False):
    model.zero_grad()
    with here.averaging(model, skip):
        model(torch.full((1, 3, 8, 8), float(rank))).sum().backward()
    print(float(model.module[1].weight.grad[0, 0]))
""")
    assert [job.out for job in told] == ["0.0\n0.5\n", "1.0\n0.5\n"], told


@pytest.mark.parametrize("backend", ["gloo", "nccl"])
def test_what_else_fails_meanwhile_stays_what_it_is(backend):
    for fault in (torch.OutOfMemoryError("full"), RunFailed("ended"), NotImplementedError("no"), ValueError("wrong")):
        with pytest.raises(type(fault)) as caught, communicating(backend):
            raise fault
        assert caught.value is fault
    with pytest.raises(Interrupted, match="gone"), communicating(backend):
        raise dist.DistBackendError("NCCL: remote process exited")


def test_a_bare_error_is_gloos_only_where_torch_communicates():
    with pytest.raises(RuntimeError, match=r"^CUDA error$"), communicating("nccl"):
        raise RuntimeError("CUDA error")
    with pytest.raises(RuntimeError, match="shapes cannot be multiplied"), communicating("gloo"):
        torch.nn.Linear(2, 2)(torch.ones(1, 3))
    with pytest.raises(Interrupted, match="another process of the run is gone"), communicating("gloo"):
        torch.ones(2, requires_grad=True).sum().backward(torch.ones(3))  # from autograd, as a broken connection


def test_memory_that_the_machine_does_not_give_is_no_process_that_is_gone():
    """In the backward pass too, from within which gloo communicates."""
    raising = 'raise RuntimeError("[enforce fail at alloc_cpu.cpp:127] . DefaultCPUAllocator: can\'t allocate memory")'
    with pytest.raises(MemoryError, match="can't allocate memory"), communicating("gloo"):
        exec(compile(raising, "/lib/torch/autograd/graph.py", "exec"))


def test_alone_nothing_is_lost():
    with pytest.raises(RuntimeError, match=r"^bare$"), ALONE.averaging(torch.nn.Linear(1, 1), skip=False):
        raise RuntimeError("bare")


@pytest.mark.slow
def test_in_the_steps_the_others_are_waited_for_in_minutes_and_longer_before(in_two):
    script = """
import time
from datetime import timedelta
from toe_train.runs import processes
processes.PATIENCE_IN_STEPS = timedelta(seconds=2)
assert processes.PATIENCE > timedelta(hours=1)
time.sleep(4 * rank)  # before the steps
here.sum(torch.zeros(1))
wrapped = here.wrap(nn.Sequential(nn.Flatten(), nn.Linear(12, 2)), (2, 2))
with here.waiting():
    here.main_only(lambda: time.sleep(4))
print("waited", flush=True)
try:
    if rank == 0:
        here.largest([0.0])
    time.sleep(5)
except processes.ProcessGone as error:
    print("gone", flush=True)
os._exit(0)
"""
    told = in_two(script)
    assert (told[0].out, told[0].code) == ("waited\ngone\n", 0), told[0].err


@pytest.mark.parametrize(("gpus", "local_rank", "taken"), [(1, 3, 0), (1, 0, 0), (4, 3, 3)])
def test_a_task_that_sees_one_gpu_takes_it_whatever_its_local_rank(monkeypatch, gpus, local_rank, taken):
    """Slurm's --gpus-per-task shows each task its own GPU as number 0."""
    chosen = []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus)
    monkeypatch.setattr(torch.cuda, "set_device", chosen.append)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "4")
    monkeypatch.delenv("TORCHELASTIC_RUN_ID", raising=False)
    assert joining.own_device(local_rank) == torch.device("cuda", taken)
    assert chosen == [torch.device("cuda", taken)]
    if gpus == 1 and local_rank:  # the same GPU is that of all processes of one torchrun
        monkeypatch.setenv("TORCHELASTIC_RUN_ID", "none")
        with pytest.raises(UserError, match="process 3 of this node has no GPU: 1 visible; start at most 1 processes"):
            joining.own_device(local_rank)


def test_processes_talk_over_the_network_that_gloo_is_told(monkeypatch):
    """GLOO_SOCKET_IFNAME; one that this machine lacks is named, and no other process is said to be gone."""
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", "lo")
    joining.require_interfaces()
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", "lo,ib7")
    with pytest.raises(UserError, match="GLOO_SOCKET_IFNAME=lo,ib7: this machine has no network interface ib7; it has"):
        joining.require_interfaces()
