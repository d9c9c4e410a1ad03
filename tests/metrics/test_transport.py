"""Energy and straightness of paths whose integrals are known."""

import math

import pytest
import torch

from flowmatch.metrics import curvature, path_energy, straightness

F64 = torch.float64


def straight(times, x0, x1):
    t = times[:, None, None]
    return (1 - t) * x0 + t * x1


@pytest.mark.parametrize("steps", [1, 10])
def test_straight_lines_have_the_energy_of_their_length_and_no_curvature(steps):
    times = torch.linspace(0, 1, steps + 1, dtype=F64) ** 2  # uneven steps, even speed
    x0, x1 = torch.randn(2, 20, 3, dtype=F64)
    states = straight(times, x0, x1)
    expected = float(((x1 - x0) ** 2).sum(1).mean())
    assert path_energy(states, times) == pytest.approx(expected, rel=1e-12)
    assert straightness(states, times) == pytest.approx(0, abs=1e-20)
    assert curvature(states, times) == pytest.approx(0, abs=1e-20)


def test_a_quarter_circle_at_constant_speed():
    times = torch.linspace(0, 1, 2001, dtype=F64)
    angle = math.pi / 2 * times
    states = torch.stack([angle.cos(), angle.sin()], 1)[:, None]
    # energy (pi/2)^2, of which the chord of length 2^(1/2) needs 2
    assert path_energy(states, times) == pytest.approx(math.pi**2 / 4, rel=1e-6)
    assert straightness(states, times) == pytest.approx(math.pi**2 / 4 - 2, rel=1e-5)
    assert curvature(states, times) == pytest.approx(1 - 8 / math.pi**2, rel=1e-5)


def test_varying_speed_on_a_line_counts():
    times = torch.linspace(0, 1, 2001, dtype=F64)
    states = (times**2)[:, None, None]  # speed 2t: energy 4/3, chord 1
    assert path_energy(states, times) == pytest.approx(4 / 3, rel=1e-6)
    assert straightness(states, times) == pytest.approx(1 / 3, rel=1e-5)
    assert curvature(states, times) == pytest.approx(1 / 4, rel=1e-5)


def test_straightness_is_energy_less_that_of_the_chord():
    times = torch.tensor([0.1, 0.15, 0.4, 0.9], dtype=F64)
    states = torch.randn(4, 6, 2, 3, dtype=F64)
    chord = (states[-1] - states[0]).square().sum((1, 2)).mean() / 0.8
    energy, bent = path_energy(states, times), straightness(states, times)
    assert bent == pytest.approx(energy - float(chord), rel=1e-10)
    assert curvature(states, times) == pytest.approx(bent / energy, rel=1e-12)
    assert 0 < curvature(states, times) < 1


def test_backward_paths_have_the_same_numbers():
    times = torch.linspace(0, 1, 6, dtype=F64)
    states = torch.randn(6, 4, 2, dtype=F64)
    for measure in (path_energy, straightness, curvature):
        assert measure(states.flip(0), times.flip(0)) == pytest.approx(measure(states, times))


def test_paths_that_return_are_all_curvature_and_paths_that_rest_have_none():
    times = torch.tensor([0.0, 0.5, 1.0])
    states = torch.tensor([[[0.0]], [[1.0]], [[0.0]]])
    assert curvature(states, times) == 1
    assert curvature(torch.zeros(3, 2, 1), times) == 0


def test_mistakes_are_named():
    times = torch.linspace(0, 1, 3)
    with pytest.raises(ValueError, match=r"one time for each of 4 states, got shape \(3,\)"):
        path_energy(torch.zeros(4, 2, 1), times)
    with pytest.raises(ValueError, match=r"\[S \+ 1, B, \*D\] .* got shape \(3, 2\)"):
        path_energy(torch.zeros(3, 2), times)
    with pytest.raises(ValueError, match="must all increase or all decrease"):
        path_energy(torch.zeros(3, 2, 1), torch.tensor([0.0, 1.0, 1.0]))
    states = torch.zeros(3, 5, 2)
    states[1, 3, 0] = torch.nan
    with pytest.raises(ValueError, match="1 of 5 paths hold NaN"):
        curvature(states, times)
