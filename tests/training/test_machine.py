"""What training does about the machine it is on: number formats, the optimiser's place, pinned memory, convolutions."""

import gc

import pytest
import torch
from torch import nn

from toe_train.build.step import choose_convolutions
from toe_train.data import BatchLayout
from toe_train.methods.method import Method
from toe_train.models import GivenDraws, create_model
from toe_train.training import precision
from toe_train.training.draws import ForwardDraws
from toe_train.training.optim import load_optimizer
from toe_train.training.precision import cpu_has_bf16, describe_precision, precision_on

CPU = torch.device("cpu")


@pytest.mark.parametrize(
    ("flags", "has"),
    [("flags : fpu avx2 avx512f", False), ("flags : fpu avx512_bf16", True), ("Features : fp asimd bf16", True)],
)
def test_bf16_on_a_cpu_without_it_is_float32_and_said(tmp_path, monkeypatch, flags, has):
    file = tmp_path / "cpuinfo"
    file.write_text(f"processor : 0\n{flags}\n")
    assert cpu_has_bf16(file) is has
    assert cpu_has_bf16(tmp_path / "none")  # where it is not known, what was asked for
    monkeypatch.setattr(precision, "cpu_has_bf16", lambda: has)
    assert precision_on(CPU, "bf16") == ("bf16" if has else "fp32")
    assert precision_on(torch.device("cuda"), "bf16") == "bf16"
    told = "train.precision is bf16, which this CPU has no instructions for: running in fp32"
    assert describe_precision(CPU, "bf16") == ("precision bf16 on cpu" if has else told)


@pytest.mark.parametrize("has", [True, False])
def test_bf16_on_a_gpu_that_imitates_it_is_float32_and_said(monkeypatch, has):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: has or including_emulation)
    precision.gpu_has_bf16.cache_clear()
    device = torch.device("cuda")
    assert precision_on(device, "bf16") == ("bf16" if has else "fp32")
    assert precision_on(device, "fp16") == "fp16"
    told = "train.precision is bf16, which this GPU has no instructions for: running in fp32"
    assert describe_precision(device, "bf16") == ("precision bf16 on cuda" if has else told)
    precision.gpu_has_bf16.cache_clear()


def test_the_count_of_steps_of_a_cpu_goes_where_this_optimiser_has_it():
    """As with the fused kernel of a GPU, here with the option that a device without memory knows."""
    written = torch.optim.AdamW([nn.Parameter(torch.ones(3))], lr=0.1)
    written.param_groups[0]["params"][0].sum().backward()
    written.step()
    own = torch.optim.AdamW([nn.Parameter(torch.ones(3, device="meta"))], lr=0.5, capturable=True)
    load_optimizer(own, written.state_dict())
    (state,) = own.state.values()
    assert {name: value.device.type for name, value in state.items()} == dict.fromkeys(state, "meta")
    assert (own.param_groups[0]["lr"], own.param_groups[0]["capturable"]) == (0.5, True)


def test_draws_go_to_a_gpu_from_pinned_memory(monkeypatch):
    taken = []
    monkeypatch.setattr(torch.Tensor, "pin_memory", lambda drawn: taken.append("pinned") or drawn)
    monkeypatch.setattr(torch.Tensor, "to", lambda drawn, device, non_blocking: taken.append(non_blocking) or drawn)
    draws = []

    class Drawing(Method):
        def draw(self, uniform):
            draws.append(uniform("initialization", 5))

    layout = BatchLayout(4, 4, 1, 1)
    ForwardDraws(0, layout, 0, {"drop_path": GivenDraws()}, Drawing(), torch.device("cuda")).give(0, 0, 0)
    assert draws[0].shape == (4, 5)
    assert taken == ["pinned", True]


@pytest.mark.parametrize(("name", "tried"), [("lvvit_t", True), ("deit_tiny_patch16_224", False)])
def test_cudnn_tries_its_algorithms_where_a_stem_has_convolutions(monkeypatch, name, tried):
    monkeypatch.setattr(torch.backends.cudnn, "benchmark", not tried)
    choose_convolutions(create_model(name, 3))
    assert torch.backends.cudnn.benchmark is tried


def test_garbage_is_collected_at_the_ends_of_epochs(tiny, tmp_path, monkeypatch):
    from support import trainer_of

    from toe_train.recipes import load_config
    from toe_train.runs.folder import RunFolder

    folder = RunFolder(tmp_path / "run")
    folder.create()
    trainer = trainer_of(load_config(tiny), folder, "auto")
    frozen, collect, collected = [], gc.collect, []
    begin = trainer.method.begin_epoch
    monkeypatch.setattr(
        trainer.method, "begin_epoch", lambda epoch: frozen.append(gc.get_freeze_count()) or begin(epoch)
    )
    monkeypatch.setattr("toe_train.training.loop.gc.collect", lambda *given: collected.append(1) or collect(*given))
    trainer.fit()
    assert min(frozen) > 0
    assert len(collected) >= 1 + 3
    assert gc.get_freeze_count() == 0
