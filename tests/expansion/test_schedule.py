import subprocess
import sys
from dataclasses import FrozenInstanceError

import pytest

from toe_train.expansion import ExpansionSchedule


def make(rates=(0.5, 0.75, 1.0), initial=0.25, repeats=2, epochs=None):
    epochs = list(range(0, 100 * len(rates), 100)) if epochs is None else epochs
    return ExpansionSchedule(stage_epochs=epochs, keep_rates=list(rates), initial_keep_rate=initial, repeats=repeats)


PAPER_04 = [0.4, 0.7, 1.0]
PAPER_05 = [0.5, 0.75, 1.0]
PAPER_06 = [0.6, 0.8, 1.0]
FOUR_STAGES = [0.5, 0.5 + 0.5 / 3, 0.5 + 1.0 / 3, 1.0]


# Made by running the released code. Columns: patch tokens, rates, initial rate, seeds, stride, kept in each stage.
@pytest.mark.parametrize(
    ("num_tokens", "rates", "initial", "seeds", "stride", "kept"),
    [
        (196, PAPER_04, 0.2, 39, 4, [78, 136, 196]),
        (196, PAPER_05, 0.25, 49, 4, [98, 147, 196]),
        (196, PAPER_06, 0.3, 58, 3, [116, 155, 196]),
        (100, PAPER_06, 0.3, 30, 3, [60, 80, 100]),
        (100, PAPER_04, 0.2, 20, 4, [40, 69, 100]),
        (100, PAPER_05, 0.25, 25, 4, [50, 75, 100]),
        (144, PAPER_06, 0.3, 43, 3, [86, 114, 144]),
        (64, PAPER_04, 0.2, 12, 4, [24, 43, 64]),
        (64, PAPER_05, 0.25, 16, 4, [32, 48, 64]),
        (64, PAPER_06, 0.3, 19, 3, [38, 50, 64]),
        (196, PAPER_05, 0.5 / 3, 32, 6, [97, 146, 196]),
        (196, PAPER_05, 2 * 0.5 / 3, 65, 3, [97, 146, 196]),
        (196, [0.5, 1.0], 0.25, 49, 4, [98, 196]),
        (196, FOUR_STAGES, 0.25, 49, 4, [98, 130, 162, 196]),
        (196, [0.3, 0.6, 0.9], 0.15, 29, 6, [58, 116, 175]),
    ],
)
@pytest.mark.parametrize("repeats", [1, 2, 3])
def test_counts_are_those_of_the_released_code(num_tokens, rates, initial, seeds, stride, kept, repeats):
    schedule = make(rates, initial, repeats)
    assert schedule.num_seeds(num_tokens) == seeds
    assert schedule.seed_stride == stride
    assert [schedule.num_kept(stage + 1, num_tokens) for stage in range(len(rates))] == kept


@pytest.mark.parametrize(("initial", "stride"), [(0.2, 4), (0.3, 3), (0.25, 4), (0.1, 9), (0.05, 19), (0.6, 1)])
def test_seed_stride_is_the_floor_of_a_float_division(initial, stride):
    assert make([0.9, 1.0], initial).seed_stride == stride


def test_float_differences_are_truncated_as_released():
    schedule = make(PAPER_04, 0.2, repeats=1)
    assert schedule.rounds(2, 100) == (20, 29)  # 0.7 - 0.4 is 0.29999999999999993


def test_rounds_replay_earlier_stages_and_the_last_sub_step_takes_the_remainder():
    assert make(PAPER_05, repeats=3).rounds(1, 196) == (16, 16, 17)
    assert make(PAPER_05, repeats=3).rounds(2, 196) == (16, 16, 17, 16, 16, 17)
    assert make(PAPER_05, repeats=4).rounds(1, 8) == (0, 0, 0, 2)


def test_last_stage_below_one_is_counted_from_its_own_rate():
    schedule = make([0.3, 0.6, 0.9], 0.15, repeats=2)
    assert schedule.rounds(3, 196) == (14, 15, 29, 29, 29, 30)
    assert not schedule.is_dense(3)
    assert make([0.5], 0.25, repeats=1).rounds(1, 10) == (3,)  # 5 - 2, where the difference of rates would give 2


def test_dense_stages_keep_everything():
    schedule = make()
    assert schedule.is_dense(0)
    assert schedule.is_dense(3)
    assert not schedule.is_dense(1)
    assert not schedule.is_dense(2)
    for stage in (0, 3):
        assert schedule.num_kept(stage, 7) == 7
        assert schedule.rounds(stage, 7) == ()


@pytest.mark.parametrize("boundary", [0, 5])
def test_stage_of_an_epoch(boundary):
    schedule = make(epochs=[boundary, 100, 200])
    expected = {0: 1 if boundary == 0 else 0, boundary: 1, 99: 1, 100: 2, 199: 2, 200: 3, 10**6: 3}
    assert {epoch: schedule.stage(epoch) for epoch in expected} == expected


def test_lists_become_tuples_and_the_schedule_is_frozen():
    schedule = make()
    assert schedule.stage_epochs == (0, 100, 200)
    assert schedule.keep_rates == (0.5, 0.75, 1.0)
    assert hash(schedule) == hash(make())
    with pytest.raises(FrozenInstanceError):
        schedule.repeats = 3


@pytest.mark.parametrize(
    ("changes", "parts"),
    [
        ({"epochs": [0, 100]}, ["[0, 100] has 2", "has 3", "same length"]),
        ({"epochs": [0, 200, 100]}, ["[0, 200, 100]", "not increasing", "200 is followed by 100", "[0, 100, 200]"]),
        ({"epochs": [0, 100, 100]}, ["not increasing", "100 is followed by 100"]),
        ({"epochs": [-1, 100, 200]}, ["[-1, 100, 200]", "below 0", "begin with 0"]),
        ({"epochs": [0, 100.0, 200]}, ["100.0 is not an integer", "write 100"]),
        ({"epochs": [0, True, 200]}, ["True is not an integer"]),
        ({"epochs": [0, float("inf"), 200]}, ["inf is not an integer"]),
        ({"epochs": "0 100 200"}, ["'0 100 200'", "must be a list"]),
        ({"epochs": 0}, ["stage_epochs=0", "must be a list"]),
        ({"rates": [], "epochs": []}, ["[]", "one entry for each stage"]),
        ({"rates": [0.5, 0.4, 1.0]}, ["0.5 is followed by 0.4", "more tokens", "[0.4, 0.5, 1.0]"]),
        ({"rates": [0.5, 0.5, 1.0]}, ["0.5 is followed by 0.5"]),
        ({"rates": [0.5, 0.75, 1.1]}, ["1.1", "(0, 1]"]),
        ({"rates": [50, 75, 100]}, ["50", "(0, 1]", "write 0.5"]),
        ({"rates": [0.0, 0.75, 1.0]}, ["0.0", "(0, 1]"]),
        ({"rates": [float("nan"), 0.75, 1.0]}, ["nan", "(0, 1]"]),
        ({"rates": ["0.5", 0.75, 1.0]}, ["'0.5' is not a number"]),
        ({"initial": 0.5}, ["initial_keep_rate=0.5", "below the first keep rate 0.5", "0.25"]),
        ({"initial": 0.6}, ["initial_keep_rate=0.6", "0.25"]),
        ({"initial": 0}, ["initial_keep_rate: 0", "(0, 1]"]),
        ({"initial": -0.1}, ["-0.1", "(0, 1]"]),
        ({"repeats": 0}, ["repeats=0", "1 or more"]),
        ({"repeats": 1.5}, ["repeats: 1.5 is not an integer", "write 2"]),
    ],
)
def test_bad_schedules_name_value_rule_and_remedy(changes, parts):
    with pytest.raises(ValueError, match=r"\S") as caught:
        make(**changes)
    for part in parts:
        assert part in str(caught.value)


@pytest.mark.parametrize(("stage", "nearest"), [(-1, 0), (4, 3)])
def test_unknown_stages_name_the_nearest(stage, nearest):
    for call in (lambda s: make().is_dense(s), lambda s: make().rounds(s, 196), lambda s: make().num_kept(s, 196)):
        with pytest.raises(ValueError, match=f"stage={stage} does not exist.*0 to 3.*nearest is {nearest}"):
            call(stage)


@pytest.mark.parametrize("epoch", [-1, 1.5, None])
def test_bad_epochs(epoch):
    with pytest.raises(ValueError, match="epoch"):
        make().stage(epoch)


@pytest.mark.parametrize("num_tokens", [0, 1, 3])
def test_counts_that_leave_no_seed(num_tokens):
    with pytest.raises(ValueError, match=f"initial_keep_rate=0.25 leaves no seed among {num_tokens} .*at least 4 tok"):
        make().num_kept(1, num_tokens)


@pytest.mark.parametrize("num_tokens", [1, 3, 7, 49, 98, 103])
def test_the_remedy_against_no_seed_works(num_tokens):
    with pytest.raises(ValueError, match="leaves no seed") as caught:
        make([0.5, 1.0], 1e-3).num_seeds(num_tokens)
    remedy = float(str(caught.value).rsplit("=", 1)[1])
    assert int(num_tokens * remedy) >= 1


def test_the_schedule_file_itself_needs_no_torch():
    from toe_train.expansion import schedule

    code = (
        "import importlib.util, sys; s = importlib.util.spec_from_file_location('schedule', sys.argv[1]); "
        "m = importlib.util.module_from_spec(s); sys.modules['schedule'] = m; s.loader.exec_module(m); "
        "print('torch' in sys.modules)"
    )
    result = subprocess.run([sys.executable, "-c", code, schedule.__file__], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "False"
