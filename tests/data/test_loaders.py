import contextlib
import errno
import multiprocessing
import os
import pickle
import resource
import signal
import time
from functools import partial

import pytest
import torch
from torch.utils.data._utils.pin_memory import pin_memory
from torch.utils.data.dataloader import _MultiProcessingDataLoaderIter

from toe_train.data import (
    BatchLayout,
    EvalSet,
    GlobalOrder,
    TrainBatchSampler,
    TrainSet,
    WorkerGone,
    ending_in_pixels,
    eval_loader,
    eval_transform,
    evaluation_indices,
    normalized,
    open_datasets,
    train_loader,
    worker_faults,
)
from toe_train.data.loaders import _Batches
from toe_train.data.worker_faults import Fault, require_open_files
from toe_train.errors import RunFailed, UserError


@pytest.fixture
def parts(image_root, deit_transform):
    train, val = open_datasets("image_folder", image_root)
    transform = eval_transform(image_size=24, crop_pct=1.0, interpolation="bicubic", mean=(0,) * 3, std=(1,) * 3)
    return TrainSet(train, ending_in_pixels(deit_transform()), seed=0), EvalSet(val, transform)


ORDER = GlobalOrder(num_samples=12, global_batch=4, seed=0, repeats=3)


def finished(pixels):
    return normalized(pixels, (0.5,) * 3, (0.5,) * 3)


def epoch_of(train_set, workers, world_size=1, accumulation=1, epoch=0, start_step=0):
    """Images and labels at their positions, (steps, global batch, ...), gathered over all processes."""
    layout = BatchLayout(4, group_size=4, world_size=world_size, accumulation=accumulation)
    images = torch.zeros(3 - start_step, 4, 3, 24, 24)
    labels = torch.full((3 - start_step, 4), -1)
    for rank in range(world_size):
        sampler = TrainBatchSampler(ORDER, layout, rank)
        loader = train_loader(train_set, sampler, workers)
        sampler.set_epoch(epoch, start_step)
        assert len(loader) == (3 - start_step) * accumulation
        for number, (batch, target) in enumerate(loader):
            step, micro = divmod(number, accumulation)
            rows = layout.rows(rank, micro)
            images[step, rows], labels[step, rows] = finished(batch), target
    return images, labels


def test_pixels_do_not_depend_on_workers_processes_or_accumulation(parts):
    train_set, _ = parts
    images, labels = epoch_of(train_set, workers=0)
    assert labels.min() >= 0
    assert images.std() > 0.1
    for setting in [{"workers": 1}, {"workers": 2}, {"workers": 0, "world_size": 2}, {"workers": 2, "accumulation": 2}]:
        other_images, other_labels = epoch_of(train_set, **setting)
        assert torch.equal(other_images, images), setting
        assert torch.equal(other_labels, labels), setting
    assert not torch.equal(epoch_of(train_set, workers=0, epoch=1)[0], images)


def test_repeated_images_are_augmented_apart(parts):
    train_set, _ = parts
    images, _ = epoch_of(train_set, workers=0)
    repeats = ORDER.epoch(0)[:3]
    assert len(set(repeats.tolist())) == 1
    assert not torch.equal(images[0, 0], images[0, 1])


@pytest.mark.parametrize("workers", [0, 2])
def test_an_epoch_taken_up_in_the_middle_is_the_same(parts, workers):
    train_set, _ = parts
    whole, _ = epoch_of(train_set, workers=0, epoch=3)
    rest, _ = epoch_of(train_set, workers=workers, epoch=3, start_step=1)
    assert torch.equal(rest, whole[1:])


def test_persistent_workers_follow_set_epoch(parts):
    train_set, _ = parts
    sampler = TrainBatchSampler(ORDER, BatchLayout(4, 4), rank=0)
    loader = train_loader(train_set, sampler, workers=2)
    passes = []
    for epoch, start_step in [(0, 0), (1, 0), (1, 2), (0, 0)]:
        sampler.set_epoch(epoch, start_step)
        passes.append(torch.cat([finished(pixels) for pixels, _ in loader]))
        assert len(passes[-1]) == 4 * (3 - start_step)
    assert not torch.equal(passes[0], passes[1])
    assert torch.equal(passes[2], passes[1][8:])
    assert torch.equal(passes[3], passes[0])


@pytest.mark.parametrize("workers", [0, 1])
def test_a_pass_leaves_the_global_generators_alone(parts, workers, global_states):
    train_set, eval_set = parts
    before = global_states()
    list(train_loader(train_set, TrainBatchSampler(ORDER, BatchLayout(4, 4), 0), workers))
    list(eval_loader(eval_set, range(6), 4, workers))
    assert global_states() == before


@pytest.mark.parametrize(("workers", "world_size"), [(0, 1), (0, 4), (2, 2)])
def test_evaluation_sees_each_image_once(parts, workers, world_size):
    _, eval_set = parts
    expected = torch.stack([eval_set[i][0] for i in range(6)])
    found = torch.zeros_like(expected)
    count = 0
    for rank in range(world_size):
        indices = evaluation_indices(6, rank, world_size)
        loader = eval_loader(eval_set, indices, batch_size=2, workers=workers)
        batches = [images for images, _ in loader]
        assert len(batches) == len(loader)
        found[list(indices)] = torch.cat(batches)
        count += sum(map(len, batches))
    assert count == 6
    assert torch.equal(found, expected)


def test_an_empty_share(parts):
    _, eval_set = parts
    assert list(eval_loader(eval_set, evaluation_indices(1, 1, 2), 2, workers=0)) == []


class ThreadCount(torch.utils.data.Dataset):
    def __len__(self):
        return 1

    def __getitem__(self, index):
        return torch.get_num_threads()


def test_workers_use_one_thread():
    assert next(iter(eval_loader(ThreadCount(), range(1), 1, workers=1))).item() == 1


@pytest.mark.parametrize("workers", [0, 2])
def test_errors_arrive_as_their_message_only(parts, image_root, workers):
    train_set, eval_set = parts
    broken = image_root / "val" / "cat" / "cat_0.JPEG"
    broken.write_bytes(b"no image")
    with pytest.raises(UserError) as fault:
        list(eval_loader(eval_set, range(6), 2, workers))
    assert str(fault.value).startswith(f"{broken} cannot be read as an image (")
    assert str(fault.value).endswith("lists every such file")
    assert "Traceback" not in str(fault.value)
    for path in (image_root / "train").glob("*/*"):
        path.write_bytes(b"")
    with pytest.raises(UserError, match=r"^\S+\.(JPEG|png) cannot be read"):
        list(train_loader(train_set, TrainBatchSampler(ORDER, BatchLayout(4, 4), 0), workers))


class Faulty(torch.utils.data.Dataset):
    def __init__(self, error):
        self.error = error

    def __len__(self):
        return 1

    def __getitem__(self, index):
        raise self.error


@pytest.mark.parametrize("workers", [0, 1])
def test_messages_of_several_lines_stay_whole(workers):
    with pytest.raises(UserError) as fault:
        list(eval_loader(Faulty(UserError("first: a\n  second: b")), range(1), 1, workers))
    assert str(fault.value) == "first: a\n  second: b"


def test_faults_of_ours_keep_their_traceback():
    with pytest.raises(RuntimeError, match="Original Traceback"):
        list(eval_loader(Faulty(RuntimeError("ours")), range(1), 1, 1))


@pytest.mark.parametrize("error", [UserError("theirs"), RuntimeError("ours")])
def test_workers_end_with_an_error(error):
    loader = eval_loader(Faulty(error), range(1), 1, workers=2)
    others = set(multiprocessing.active_children())
    for _ in range(2):  # and the loader can be used again
        with pytest.raises(type(error)):
            list(loader)
        assert set(multiprocessing.active_children()) <= others


class Quoting(torch.utils.data.Dataset):
    def __len__(self):
        return 1

    def __getitem__(self, index):
        raise UserError("theirs, after toe_train.errors.UserError: quoted")


@pytest.mark.parametrize("workers", [0, 1])
def test_messages_are_not_searched(workers):
    with pytest.raises(UserError) as fault:
        list(eval_loader(Quoting(), range(1), 1, workers))
    assert str(fault.value) == "theirs, after toe_train.errors.UserError: quoted"


class Letters(torch.utils.data.Dataset):
    def __len__(self):
        return 4

    def __getitem__(self, index):
        return "abcd"[index]


def refused(samples):
    raise UserError(f"refused: {samples[0]}")


@pytest.mark.parametrize("workers", [0, 1])
def test_another_collate_function(workers):
    batches = [[0, 1], [2, 3]]
    assert list(train_loader(Letters(), batches, workers, collate="-".join)) == ["a-b", "c-d"]
    with pytest.raises(UserError, match=r"^refused: a$"):
        list(train_loader(Letters(), batches, workers, collate=refused))


def test_a_fault_passes_the_thread_that_pins_memory():
    fault = _Batches(Faulty(UserError("theirs")), list).__getitems__([0])
    assert type(fault) is Fault
    assert pin_memory(fault) == pickle.loads(pickle.dumps(fault)) == Fault(UserError, "theirs", "")
    assert type(pin_memory(fault)) is Fault


@pytest.fixture
def started(parts):
    """An evaluation loader with two workers, which have begun."""
    loader = eval_loader(parts[1], range(6), 2, workers=2)
    list(loader)
    yield loader
    loader.close()


def fail_with(monkeypatch, seen, before=lambda: None):
    def failing(self):
        before()
        raise seen

    monkeypatch.setattr(_MultiProcessingDataLoaderIter, "_next_data", failing)


def kill(worker):
    os.kill(worker.pid, signal.SIGKILL)


@pytest.mark.parametrize(
    "seen",
    [
        ConnectionResetError(104, "reset"),  # the batch's memory is asked of the worker
        EOFError(),
        FileNotFoundError(2, "no socket"),
        RuntimeError("Pin memory thread exited unexpectedly"),
        RuntimeError("DataLoader worker (pid 1) is killed by signal: Killed."),
    ],
)
def test_a_worker_that_is_gone_is_named(started, monkeypatch, seen):
    worker = started.loader._iterator._workers[1]

    def before():
        with contextlib.suppress(RuntimeError):  # torch raises it at SIGCHLD, wherever the main thread is
            kill(worker)
            worker.join()

    fail_with(monkeypatch, seen, before)
    others = set(multiprocessing.active_children()) - set(started.loader._iterator._workers)
    with pytest.raises(WorkerGone) as caught:
        list(started)
    assert str(caught.value) == (
        f"a loader process is gone (process {worker.pid}: signal 9); too little memory is a frequent cause"
    )
    assert caught.value.told("this") == f"{caught.value}; with fewer data.workers this continues"
    assert isinstance(caught.value, RunFailed)
    assert set(multiprocessing.active_children()) <= others
    monkeypatch.undo()
    assert len(list(started)) == 3


@pytest.mark.parametrize("seen", [OSError(28, "No space left"), FileNotFoundError(2, "ours"), EOFError("ours")])
def test_a_fault_while_all_workers_live_is_raised_as_it_is(started, monkeypatch, seen):
    fail_with(monkeypatch, seen)
    with pytest.raises(type(seen)) as caught:
        list(started)
    assert caught.value is seen


class Dying(torch.utils.data.Dataset):
    def __len__(self):
        return 1

    def __getitem__(self, index):
        os._exit(7)


def test_a_worker_that_ends_itself():
    with pytest.raises(WorkerGone, match=r"^a loader process is gone \(process \d+: exit code 7\); too little memory"):
        list(eval_loader(Dying(), range(1), 1, workers=1))


def test_a_loop_can_ask_whether_a_worker_is_gone(started):
    def elsewhere():
        kill(started.loader._iterator._workers[0])
        time.sleep(60)

    with pytest.raises(RuntimeError, match="ours"), started.watching():
        raise RuntimeError("ours")
    with pytest.raises(WorkerGone, match="signal 9") as caught, started.watching():
        elsewhere()
    assert str(caught.value.__cause__).startswith("DataLoader worker")
    with pytest.raises(UserError, match="theirs"), started.watching():
        raise UserError("theirs")  # is what it is, whoever is gone


def test_workers_end_when_closed(parts):
    _, eval_set = parts
    loader = eval_loader(eval_set, range(6), 2, workers=2)
    others = set(multiprocessing.active_children())
    assert len(list(loader)) == 3
    assert len(set(multiprocessing.active_children()) - others) == 2
    loader.close()
    assert set(multiprocessing.active_children()) <= others
    assert len(list(loader)) == 3
    loader.close()
    eval_loader(eval_set, range(6), 2, workers=0).close()


FULL = "/dev/shm (0.2 MiB) is full: loader processes hand their batches over through it"


@pytest.fixture
def small_shared_memory(monkeypatch):
    """Shared memory of 200 KiB, none of it free, of which torch gets nothing; a call in C raises, as torch's does."""
    monkeypatch.setattr(worker_faults, "_space", lambda: (200 * 1024, 0))
    for name in ("_new_using_fd_cpu", "_share_fd_cpu_"):
        monkeypatch.setattr(torch.UntypedStorage, name, partial(torch.zeros, -1))


def unshared(samples):
    """A batch that is made shared when it is sent, by a thread of the queue."""
    return torch.stack([image for image, _ in samples])


@pytest.mark.parametrize("collate", [torch.utils.data.default_collate, unshared])
def test_full_shared_memory_is_said_as_such(parts, small_shared_memory, collate):
    """Without a word a batch that cannot be sent would be waited for without end."""
    loader = eval_loader(parts[1], range(6), 2, workers=1, collate=collate)
    with pytest.raises(RunFailed) as caught:
        list(loader)
    assert str(caught.value) == FULL
    assert "data.workers=0, again continues" in caught.value.told("again")


def test_a_worker_that_ended_for_want_of_shared_memory(monkeypatch):
    class Ended:
        pid, exitcode = 5, -signal.SIGBUS

        def join(self, seconds):
            pass

    monkeypatch.setattr(worker_faults, "_space", lambda: (200 * 1024, 0))
    assert str(worker_faults.gone([Ended()])) == FULL


def test_a_run_time_error_of_our_own_is_not_the_machine():
    assert worker_faults.fault_of(RuntimeError("ours")) is None
    with pytest.raises(RuntimeError, match="ours"):
        list(eval_loader(Faulty(RuntimeError("ours")), range(1), 1, workers=1))


@pytest.mark.parametrize("workers", [0, 1])
@pytest.mark.parametrize(
    ("fault", "told"),
    [
        (OSError(errno.EMFILE, "Too many open files"), "raise the limit of open files (`ulimit -n`)"),
        (MemoryError("of an image"), "the machine's memory is full (of an image); give the process more memory"),
        (OSError(errno.EIO, "Input/output error"), "Input/output error; make room, or give the right to it"),
    ],
)
def test_what_the_machine_lacks_in_a_worker_has_a_remedy(fault, told, workers):
    with pytest.raises(RunFailed) as caught:
        list(eval_loader(Faulty(fault), range(1), 1, workers))
    assert told in caught.value.told("it")


def test_too_few_open_files_are_refused_before_a_run_waits_without_end(monkeypatch):
    asked = []
    monkeypatch.setattr(resource, "getrlimit", lambda kind: (30, 100))
    monkeypatch.setattr(resource, "setrlimit", lambda kind, limits: asked.append(limits))
    with pytest.raises(RunFailed) as caught:
        require_open_files(8)
    assert caught.value.told("it") == (
        "data.workers = 8 takes up to 248 open files, and this process may have 100 (`ulimit -n`); with a higher "
        "limit, or data.workers=2, it goes on"
    )
    require_open_files(2)
    require_open_files(0)
    assert asked == [(100, 100)] * 2  # as many as it may have
