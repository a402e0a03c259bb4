"""tests/faults.py: two of its faults at one moment each, and when it takes arms for held."""

import importlib.util

import numpy as np
import pytest

from faults import FAULTS, SLOW, Sample, held_at, row, try_fault
from test_ur_server import serve

STILL = np.zeros((2, 6))


@pytest.fixture(scope="module")
def hosts():
    """Addresses that no other process of tests has."""
    if importlib.util.find_spec("rtde_control") is None:
        pytest.skip("needs ur_rtde, see requirements-dev.txt")
    server, hosts = serve(20)
    server.close()
    return hosts


@pytest.mark.parametrize("name", ["protective stop", "NaN chunk"])
def test_a_fault_at_one_moment(hosts, name):
    """A busy machine may be late: that alone is no failure here."""
    (moment,), _ = try_fault(name, 1, 0, hosts)
    assert [text for text in moment.wrong if not text.startswith("held after")] == []
    assert moment.log == "whole" and moment.seconds > 0
    assert row(name, [moment])[:2] == [name, "1"]


def at(t, setpoint=0.0, qd=0.0, sent=0.0):
    """A Sample whose arms are at home."""
    return Sample(t, STILL, STILL + qd, STILL + setpoint, STILL + sent)


@pytest.mark.parametrize(
    "samples, first",
    [
        ([at(0), at(1)], 0),
        ([at(0, qd=2 * SLOW), at(1)], 1),
        ([at(0, setpoint=0.1), at(1, sent=0.1), at(2)], 2),
        ([at(0), at(1, qd=2 * SLOW)], None),
        ([at(0), at(1), at(2, setpoint=0.01), at(3)], 3),
    ],
)
def test_when_arms_are_held(samples, first):
    assert held_at(samples) == first


def test_every_fault_is_promised_to_end():
    assert all(0 < fault.within < 2 for fault in FAULTS.values())
