import pytest
import torch

from toe_train.data import Pixels, TokenTarget, normalized
from toe_train.training.device_batches import DeviceBatches

needs_cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")


def loaded(count, labels=torch.tensor):
    """Batches whose pixels and labels tell their number; one rectangle of the first image is erased with it."""
    for number in range(count):
        images = torch.full((2, 4, 4, 3), number, dtype=torch.uint8)
        yield Pixels(images, torch.tensor([[0, 1, 1, 2, 2]]), torch.full((12,), float(number))), labels([number] * 2)


def finish(pixels):
    return normalized(pixels, (0.0,) * 3, (1 / 255,) * 3)


def token_target(numbers):
    return TokenTarget(*(torch.tensor(numbers) for _ in range(4)))


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=needs_cuda)])
@pytest.mark.parametrize("count", [0, 1, 5])
def test_all_batches_come_in_order(device, count):
    device = torch.device(device)
    batches = list(DeviceBatches(loaded(count), device, finish))
    assert len(batches) == count
    for number, (images, labels) in enumerate(batches):
        assert (images.device.type, images.dtype, images.shape) == (device.type, torch.float32, (2, 3, 4, 4))
        assert torch.allclose(images.cpu(), torch.tensor(float(number)))
        assert labels.tolist() == [number] * 2


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=needs_cuda)])
def test_token_targets_stay_what_they_are(device):
    ((_, labels),) = DeviceBatches(loaded(1, token_target), torch.device(device), finish)
    assert isinstance(labels, TokenTarget)
    assert {part.device.type for part in labels} == {device}


@needs_cuda
def test_a_batch_in_use_is_not_overwritten_by_the_next_ones():
    device = torch.device("cuda")
    held = []
    for images, _ in DeviceBatches(loaded(50), device, finish):
        torch.cuda._sleep(1_000_000)  # the device is behind
        held.append(images.sum())
    assert [round(value.item()) for value in held] == [96 * number for number in range(50)]
