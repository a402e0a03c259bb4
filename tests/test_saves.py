"""saves.py: numbers that are not finite (test_train.py and test_dbpo.py resume whole runs)."""

import math

import torch

import saves


def test_first_not_finite():
    good = torch.tensor(1.0)
    assert saves.first_not_finite([good, good]) is None
    for value in (math.nan, math.inf, -math.inf):
        assert saves.first_not_finite([good, torch.tensor(value), torch.tensor(value)]) == 1
