"""A GPU that is not there: its tensors have device, shape and type, and no values (torch's `FakeTensor`).

Within `fake_gpu()` what a GPU would compute is not computed, and tensors on the CPU are what they always are. So a
step shows on a machine without a GPU that it would run on one: what mixes tensors of two devices raises. And it shows
that it would not wait for one: where a value is read back (`.item()`, `bool`) or a shape depends on values (`nonzero`)
torch raises, since there are none; and within `never_waiting()` a copy that is not `non_blocking` raises, and a call
that waits.

It cannot show numbers, memory, speed, and the backward pass, which needs a driver: in its place `Tensor.backward` gives
a gradient to each parameter that the loss comes from.
"""

from contextlib import ExitStack, contextmanager, nullcontext
from unittest.mock import MagicMock, patch

import torch
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode, unset_fake_temporarily
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

GPU = torch.device("cuda", 0)
CONVERT, COPY = torch.ops.aten._to_copy.default, torch.ops.aten.copy_.default
# These change what they are given, and not every torch can do that to fake tensors.
NO_FAKE_KERNEL = {torch.ops.aten._fused_sgd_, torch.ops.aten._amp_update_scale_}


class WaitsForTheGpu(Exception):
    """The program would stand still here until the GPU has done all that it was given."""


class FakeGpu(TorchDispatchMode):
    """Leaves to torch's fake tensors every operation that concerns the GPU, and to the CPU the others."""

    def __init__(self):
        super().__init__()
        self._fake = FakeTensorMode(allow_non_fake_inputs=True)
        self._may_wait = True

    def __enter__(self):
        self._fake.__enter__()
        return super().__enter__()

    def __exit__(self, *error):
        super().__exit__(*error)
        self._fake.__exit__(*error)

    @contextmanager
    def never_waiting(self):
        """Raises WaitsForTheGpu for what in the block waits for the GPU."""
        self._may_wait = False
        try:
            yield
        finally:
            self._may_wait = True

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        given = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, torch.Tensor)]
        on_cpu = torch.device(kwargs.get("device") or "cpu").type == "cpu"
        if on_cpu and not any(isinstance(tensor, FakeTensor) for tensor in given):
            with unset_fake_temporarily():
                return func(*args, **kwargs)
        if not self._may_wait:
            _require_no_wait(func, given, args, kwargs)
        if func.overloadpacket in NO_FAKE_KERNEL:
            assert {tensor.device for tensor in given} == {GPU}
            return args[0] if func._schema.returns else None
        return func(*args, **kwargs)


def _require_no_wait(func, given, args, kwargs):
    if func is CONVERT or func is COPY:
        source = args[0] if func is CONVERT else args[1]
        target = torch.device(kwargs.get("device") or source.device) if func is CONVERT else args[0].device
        non_blocking = kwargs.get("non_blocking", False) or True in args[2:]
        if source.device.type != target.type and not non_blocking:
            raise WaitsForTheGpu(f"{func} from {source.device} to {target} is not non_blocking")
    # A number from the CPU goes along with the operation. Most refuse anything larger, but an index is copied, waiting.
    elif any(tensor.device.type == "cpu" and tensor.ndim for tensor in given):
        raise WaitsForTheGpu(f"{func} of tensors on {[str(tensor.device) for tensor in given]}")


def _gradients(loss, *_, **__):
    """In place of Tensor.backward: walks the graph from `loss` back to the parameters."""
    seen, ahead = set(), [loss.grad_fn]
    while ahead:
        node = ahead.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        parameter = getattr(node, "variable", None)
        if parameter is not None:
            gradient = torch.empty_like(parameter)
            parameter.grad = gradient if parameter.grad is None else parameter.grad + gradient
        ahead += [before for before, _ in node.next_functions]


def _waits(*_):
    raise WaitsForTheGpu("the program waits for a device, a stream or an event")


class _Generator(torch.Generator):
    """A GPU's too is on the CPU: nothing is drawn there."""

    def __new__(cls, device="cpu"):
        return super().__new__(cls)


def _made():
    """A stand-in for a class or function of streams or events."""
    stand_in = MagicMock()
    stand_in.return_value.synchronize = stand_in.return_value.elapsed_time = _waits
    return stand_in


@contextmanager
def fake_gpu():
    """torch as on a machine with a GPU; the FakeGpu. Streams and events do nothing."""
    replaced = {
        "torch.Generator": _Generator,
        "torch.Tensor.backward": _gradients,
        "torch.Tensor.pin_memory": lambda tensor, *_: tensor,  # which asks for a driver
        "torch.Tensor.record_stream": lambda *_: None,
        "torch.cuda.Event": _made(),
        "torch.cuda.Stream": _made(),
        "torch.cuda.amp.common.amp_definitely_not_available": lambda: False,
        "torch.cuda.current_stream": _made(),
        "torch.cuda.is_bf16_supported": lambda *_: True,
        "torch.cuda.stream": lambda _: nullcontext(),
        "torch.cuda.synchronize": _waits,
    }
    with ExitStack() as stack:
        for name, stand_in in replaced.items():
            stack.enter_context(patch(name, stand_in))
        yield stack.enter_context(FakeGpu())


def is_possible():
    """Whether this torch can: torch 2.6 asks for a driver where it cuts a fake tensor, torch 2.14 does not."""
    try:
        with fake_gpu():
            return torch.ones(2).to(GPU)[:1].device == GPU
    except RuntimeError:
        return False
