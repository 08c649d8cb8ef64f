"""The plan of a run: what its epochs train with, and where a trainer of its own begins."""

import dataclasses
import itertools

import pytest

from toe_train.recipes import (
    CurriculumStage,
    MethodSection,
    RunConfig,
    curriculum_stages,
    load_config,
    plan_epochs,
    stretches,
)


class Growing(MethodSection):
    """A method whose model grows at epoch 100."""

    def segment(self, epoch):
        return int(epoch >= 100)


@pytest.fixture
def growing(monkeypatch):
    monkeypatch.setattr(RunConfig, "cheaper", property(lambda config: Growing()))


def test_a_plain_run_is_one_stage_of_one_segment():
    plans = plan_epochs(RunConfig())
    assert {plan.curriculum for plan in plans} == {CurriculumStage(224, 224, "rand-m9-mstd0.5-inc1", 256, 256)}
    assert {(plan.stage, plan.segment) for plan in plans} == {(0, 0)}
    assert [(part.first, part.last) for part in stretches(plans)] == [(0, 299)]


def test_an_epoch_reads_its_stage_of_the_curriculum(configs):
    plans = plan_epochs(load_config(configs / "deit_tiny_et_toe_r06.yaml"))
    for plan in plans:
        names = [field.name for field in dataclasses.fields(CurriculumStage)]
        assert [getattr(plan, name) for name in names] == [getattr(plan.curriculum, name) for name in names]
    assert (plans[0].image_size, plans[0].loaded_size, plans[0].micro_batch) == (160, 224, 512)


def test_lanczos_loads_what_the_model_sees(configs):
    plans = plan_epochs(load_config(configs / "deit_tiny_etpp.yaml"))
    assert {(plan.image_size, plan.loaded_size) for plan in plans} == {(size, size) for size in (96, 160, 192, 224)}


def test_a_segment_of_the_method_has_a_trainer_of_its_own(growing):
    plans = plan_epochs(RunConfig())
    assert [plan.segment for plan in plans] == [0] * 100 + [1] * 200
    assert [(plan.epoch, plan.segment) for plan in curriculum_stages(plans)] == [(0, 0), (100, 1)]
    assert [(part.first, part.last) for part in stretches(plans)] == [(0, 99), (100, 299)]
    assert [plan.clock.done for plan in plans] == list(range(300))


def test_a_segment_cuts_a_stage_of_the_curriculum_in_two(configs, growing):
    stages = curriculum_stages(plan_epochs(load_config(configs / "deit_tiny_et.yaml")))
    assert [(stage.epoch, stage.segment) for stage in stages] == [
        (0, 0),
        (60, 0),
        (100, 1),
        (120, 1),
        (180, 1),
        (240, 1),
    ]
    assert all(before.curriculum != after.curriculum for before, after in itertools.pairwise(stages))
