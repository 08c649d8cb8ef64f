"""How sure the difference of two rows is."""

import pytest

from toe_train.analysis.comparison import Comparison, found_together


def found(*differences):
    return Comparison(None, None, differences)


def test_the_interval_is_students():
    low, high = found(1.0, 2.0, 3.0).interval
    assert (low, high) == pytest.approx((2 - 4.302653 / 3**0.5, 2 + 4.302653 / 3**0.5))  # t(0.975, 2) of a table


@pytest.mark.parametrize(
    ("differences", "finding"),
    [
        ((), "no seed in common"),
        ((9.0,), "one seed shows nothing"),
        ((1.0, 2.0, 3.0), "no difference shown"),
        ((2.0, 2.1, 1.9), "higher"),
        ((-2.0, -2.1, -1.9), "lower"),
        ((0.0, 0.0), "no spread to judge by"),
        ((1.0, 1.0), "no spread to judge by"),
    ],
)
def test_what_follows_of_it(differences, finding):
    assert found(*differences).finding == finding


def test_seeds_that_would_show_a_point():
    # Of tables: (3.182 + 0.978) / sqrt(4) = 2.08 and (2.776 + 0.941) / sqrt(5) = 1.66; a point in halves is 2.
    assert found(0.5, 1.0, 1.5).seeds_needed == 5
    assert found(-7.5, -8.0, -8.5).seeds_needed == 5  # the spread's alone, whatever was seen
    assert found(-50.0, 50.0).seeds_needed is None  # over a thousand
    assert found(5.0).seeds_needed is found(1.0, 1.0).seeds_needed is None


def test_how_often_chance_gives_as_much():
    assert found(1.0, 2.0, 3.0).chance == pytest.approx(0.0742, abs=1e-4)  # t = 3.464, 2 degrees of freedom, of a table
    assert found(-1.0, -2.0, -3.0).chance == found(1.0, 2.0, 3.0).chance
    assert found(5.0).chance is found(1.0, 1.0).chance is found().chance is None


def test_differences_are_judged_together_by_holm():
    """Limits are 0.05 / 3, / 2 and / 1, from the smallest chance on, and the first that misses its own ends it."""
    small, middle, large = found(9.0, 10.0, 9.5, 12.0), found(1.0, 2.0, 3.4, 1.2), found(-1.0, -2.0, -3.8, -1.2)
    assert [round(one.chance, 3) for one in (small, middle, large)] == [0.001, 0.04, 0.052]
    assert found_together([middle, found(1.0), small]) == [True, False, True]  # 0.05 / 1
    assert found_together([middle, large, small]) == [False, False, True]  # 0.05 / 2
    assert found_together([]) == []
