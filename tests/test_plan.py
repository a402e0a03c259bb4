"""The plan of an arm: its values by hand, what a new chunk replaces, and what it refuses."""

import numpy as np
import pytest

from plan import Plan

ONES = np.ones(6)


def made(times=(10, 11, 13), heights=(0, 1, 5), now=9.0):
    """A plan that holds 0 at `now` and then goes through these heights with all its joints."""
    plan = Plan(now, 0 * ONES, 0)
    plan.overwrite(times, np.outer(heights, ONES), np.array(heights) / 5, now)
    return plan


@pytest.mark.parametrize(
    "t, height",
    [(8, 0), (9, 0), (9.5, 0), (10, 0), (10.25, 0.25), (11, 1), (12, 3), (12.5, 4), (13, 5)],
)
def test_values_between_the_waypoints(t, height):
    q, grip = made().at(t)
    assert q == pytest.approx(height * ONES) and grip == pytest.approx(height / 5)


def test_each_joint_goes_its_own_way():
    plan = Plan(0, np.arange(6), 1)
    plan.overwrite([2], [[6, 5, 4, 3, 2, 1]], [0], 0)
    assert plan.at(1)[0].tolist() == [3, 3, 3, 3, 3, 3] and plan.at(1)[1] == 0.5


def test_it_holds_after_the_last_waypoint():
    assert made().at(13.001)[0].tolist() == made().at(1e9)[0].tolist() == [5] * 6


def test_a_new_chunk_overwrites_the_future():
    plan = made()
    assert plan.overwrite([12, 14], np.outer([6.5, 8.5], ONES), [0, 0], now=10.5) == 2
    assert plan.at(11)[0][0] == 2.5  # from 0.5 at 10.5 to 6.5 at 12: the old waypoints have gone
    assert plan.at(13)[0][0] == 7.5
    assert plan.at(20)[0][0] == 8.5


def test_it_does_not_jump_where_it_is_overwritten():
    plan = made()
    plan.overwrite([12.5], [-9 * ONES], [1], now=12)
    assert plan.at(12)[0] == pytest.approx(3 * ONES) and plan.at(12)[1] == pytest.approx(0.6)
    assert plan.at(12.25)[0] == pytest.approx(-3 * ONES)


def test_waypoints_whose_time_has_passed_are_dropped():
    plan = made()
    assert plan.overwrite([9, 10, 11], np.outer([50, 60, 7], ONES), [0, 0, 0], now=10.5) == 1
    assert plan.at(10.5)[0][0] == 0.5
    assert plan.at(10.75)[0][0] == 0.5 + 6.5 / 2


def test_a_chunk_of_the_past_alone_changes_nothing():
    plan = made()
    assert plan.overwrite([9, 12], np.outer([50, 60], ONES), [0, 0], now=12) == 0
    assert [plan.at(t)[0][0] for t in (11, 12, 13)] == [1, 3, 5]


def test_hold_stays_where_the_plan_is():
    plan = made()
    plan.hold(12)
    assert [plan.at(t)[0][0] for t in (12, 12.5, 99)] == [3, 3, 3]
    assert plan.at(12)[1] == pytest.approx(0.6)


def test_what_at_returns_is_a_copy():
    plan = made()
    plan.at(20)[0][:] = 99
    assert plan.at(20)[0][0] == 5


def test_a_long_run_does_not_grow():
    plan = made()
    for now in np.arange(10, 60, 0.1):
        plan.overwrite(now + np.arange(1, 9) / 10, np.ones((8, 6)), np.ones(8), now)
    assert len(plan.times) < 12


NAN = float("nan")


@pytest.mark.parametrize(
    "times, q, grip, words",
    [
        ([], np.zeros((0, 6)), [], "times"),
        (11, [ONES], [0], "times"),
        ([11], [ONES[:5]], [0], "joints"),
        ([11], [ONES], [], "grips"),
        ([11, 12], [ONES], [0], "joints"),
        ([11], [NAN * ONES], [0], "finite"),
        ([NAN], [ONES], [0], "finite"),
        ([float("inf")], [ONES], [0], "finite"),
        ([11], [ONES], [NAN], "finite"),
        ([11, 11], [ONES, ONES], [0, 0], "rise"),
        ([12, 11], [ONES, ONES], [0, 0], "rise"),
    ],
)
def test_bad_waypoints_are_refused_and_the_old_plan_goes_on(times, q, grip, words):
    plan = made()
    with pytest.raises(ValueError, match=words):
        plan.overwrite(times, q, grip, now=10)
    assert [plan.at(t)[0][0] for t in (11, 12, 13)] == [1, 3, 5]
