"""What a run says of itself: its method, its task, and the legal values it shares with the algorithm."""

import pytest

from toe_train.errors import UserError
from toe_train.expansion.schedule import EXPANSIONS, INITIALIZATIONS, METRICS, RESTORES
from toe_train.recipes import MethodSection, RunConfig, load_saved


def test_without_a_method_every_epoch_is_plain():
    method = RunConfig().cheaper
    assert method == MethodSection()
    assert (method.stage(299), method.segment(299), method.is_dense(0)) == (0, 0, True)


def test_token_expansion_is_a_method(configs):
    config = load_saved(configs / "deit_tiny_toe_r05.yaml")
    assert config.cheaper is config.expansion
    assert [config.cheaper.stage(epoch) for epoch in (0, 99, 100, 200, 299)] == [1, 1, 2, 3, 3]
    assert [config.cheaper.is_dense(stage) for stage in range(4)] == [True, False, False, True]
    assert {config.cheaper.segment(epoch) for epoch in range(300)} == {0}


@pytest.mark.parametrize(("name", "kind"), [("deit_tiny", "classification"), ("lvvit_t", "token_labelling")])
def test_the_task_goes_by_the_token_labels(configs, name, kind):
    assert load_saved(configs / f"{name}.yaml").task_kind == kind


@pytest.mark.parametrize(
    ("key", "legal"),
    [("metric", METRICS), ("initialization", INITIALIZATIONS), ("expansion", EXPANSIONS), ("restore", RESTORES)],
)
def test_options_are_those_of_the_algorithm(configs, key, legal):
    file = configs / "deit_tiny_toe_r05.yaml"
    for value in legal:
        assert getattr(load_saved(file, [f"expansion.{key}={value}"]).expansion, key) == value
    with pytest.raises(UserError) as caught:
        load_saved(file, [f"expansion.{key}={legal[0]}s"])
    values = [repr(value) for value in legal]
    rule = f"should be {', '.join(values[:-1])} or {values[-1]}; did you mean {legal[0]}?"
    assert f"expansion.{key} = '{legal[0]}s': {rule}" in str(caught.value)
