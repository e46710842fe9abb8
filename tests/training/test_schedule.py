"""Rate, momentum and crop as functions of step and epoch."""

import dataclasses
import math

import pytest

from vggfast.runs.config import TrainConfig
from vggfast.training.schedule import Schedule


def test_the_rate_is_divided_by_ten_three_times_at_most():
    schedule = Schedule(TrainConfig(lr=0.01, patience=1), total_steps=100)
    rates = []
    for error in (60, 50, 51, 52, 50, 49, 49, 49, 49, 49, 49, 49, 49):
        schedule.epoch_done(error)
        rates.append(schedule.rate(50))
    assert rates == pytest.approx([1e-2] * 3 + [1e-3] * 4 + [1e-4] * 2 + [1e-5] * 4)


def test_warm_up_and_cosine():
    schedule = Schedule(TrainConfig(lr=0.1, schedule="cosine", warmup=10), total_steps=110)
    assert [schedule.rate(step) for step in (0, 4, 9)] == pytest.approx([0.01, 0.05, 0.1])
    assert schedule.rate(60) == pytest.approx(0.05)
    assert schedule.rate(110) == pytest.approx(0)
    assert schedule.rate(85) == pytest.approx(0.1 * (1 + math.cos(0.75 * math.pi)) / 2)


def test_one_cycle_rises_and_falls_along_lines():
    schedule = Schedule(TrainConfig(lr=0.1, schedule="one-cycle", rise=0.2, low_momentum=0.8), total_steps=100)
    assert [schedule.rate(step) for step in (0, 9, 19)] == pytest.approx([0.005, 0.05, 0.1])
    assert [schedule.rate(step) for step in (20, 99, 100)] == pytest.approx([0.1 * 80 / 81, 0.1 / 81, 0])
    assert [schedule.momentum(step) for step in (9, 19, 100)] == pytest.approx([0.85, 0.8, 0.9])
    constant = Schedule(TrainConfig(schedule="one-cycle"), total_steps=3)
    assert {constant.momentum(step) for step in range(3)} == {0.9}
    assert all(constant.rate(step) > 0 for step in range(3))


def test_crops_grow_by_epochs():
    config = TrainConfig(crop=64, scale_min=73, scale_max=73, grow_from=32, epochs=10, grow_until=0.6)
    assert [config.crop_at(epoch) for epoch in range(10)] == [32] * 3 + [48] * 3 + [64] * 4
    assert [dataclasses.replace(config, grow_from=0).crop_at(epoch) for epoch in (0, 9)] == [64, 64]
    assert config.pool_size == 2
