"""Time grids: what each must satisfy, and the closed forms of its times."""

import math
from itertools import pairwise
from typing import get_args

import pytest
from pydantic import TypeAdapter

from flowmatch.solvers import (
    EDMGrid,
    ExplicitGrid,
    GridConfig,
    Heun,
    LogitNormalGrid,
    ShiftedGrid,
    UniformGrid,
    parse_grid,
)

GRIDS = [g() for g in get_args(get_args(GridConfig)[0]) if g is not ExplicitGrid]
every = pytest.mark.parametrize("grid", GRIDS, ids=lambda g: g.kind)


@every
@pytest.mark.parametrize("steps", [1, 2, 7, 100])
def test_a_grid_rises_from_exactly_0_to_exactly_1(grid, steps):
    times = grid.times(steps)
    assert (times[0], times[-1], len(times)) == (0.0, 1.0, steps + 1)
    assert all(a < b for a, b in pairwise(times))


@every
def test_between_stretches_the_grid_and_walks_it_backward(grid):
    forward = grid.between(0.2, 0.9, 5)
    assert (forward[0], forward[-1]) == (0.2, 0.9)
    assert forward == pytest.approx([0.2 + 0.7 * t for t in grid.times(5)])
    assert grid.between(0.9, 0.2, 5) == forward[::-1]


def test_closed_forms():
    assert UniformGrid().times(4) == [0, 0.25, 0.5, 0.75, 1]
    assert ShiftedGrid(shift=1.0).times(4) == pytest.approx(UniformGrid().times(4))
    # a shift s multiplies the noise-to-signal ratio (1 - t) / t by s
    for t, u in zip(
        ShiftedGrid(shift=3.0).times(8)[1:-1], UniformGrid().times(8)[1:-1], strict=True
    ):
        assert (1 - t) / t == pytest.approx(3 * (1 - u) / u)
    # the median of a logit-normal law is the sigmoid of its mean
    middle = LogitNormalGrid(mean=0.7, std=0.9).times(10)[5]
    assert math.log(middle / (1 - middle)) == pytest.approx(0.7)


def test_the_ratios_of_an_edm_grid_are_those_of_the_paper():
    times = EDMGrid(rho=7.0).times(18)
    ratios = [(1 - t) / t for t in times[1:-1]]
    # Karras et al. 2022, equation 5, computed independently for 18 steps
    roots = [80 ** (1 / 7) + i / 17 * (0.002 ** (1 / 7) - 80 ** (1 / 7)) for i in range(1, 18)]
    assert ratios == pytest.approx([r**7 for r in roots])
    assert ratios[-1] == pytest.approx(0.002)


MISTAKES = {
    "start": (lambda: ExplicitGrid(values=(0.1, 1.0)), "runs from 0 to 1, got 0.1, 1"),
    "end": (lambda: ExplicitGrid(values=(0.0, 0.5, 0.9)), "runs from 0 to 1"),
    "order": (lambda: ExplicitGrid(values=(0.0, 0.6, 0.4, 1.0)), "0.4 follows 0.6"),
    "twice": (lambda: ExplicitGrid(values=(0.0, 0.5, 0.5, 1.0)), "0.5 follows 0.5"),
    "nan": (lambda: ExplicitGrid(values=(0.0, math.nan, 1.0)), "increase strictly"),
    "length": (
        lambda: Heun(steps=3, grid=ExplicitGrid(values=(0.0, 0.5, 1.0))),
        "3 times has 2 steps, but the solver has steps=3",
    ),
    "shift": (lambda: ShiftedGrid(shift=0.0), "shift > 0"),
    "shift nan": (lambda: ShiftedGrid(shift=math.nan), "shift > 0"),
    "std": (lambda: LogitNormalGrid(std=0.0), "std > 0"),
    "mean": (lambda: LogitNormalGrid(mean=math.nan), "finite mean"),
    "wide": (lambda: Heun(steps=4, grid=LogitNormalGrid(std=1e4)), "does not increase strictly"),
    "rho": (lambda: EDMGrid(rho=math.nan), "rho > 0"),
    "infinite": (lambda: EDMGrid(sigma_max=math.inf), "sigma_min < sigma_max"),
    "steps": (lambda: Heun(steps=2.5), "at least 1 step, a whole number"),
    "sigma": (lambda: EDMGrid(sigma_min=2.0, sigma_max=1.0), "sigma_min < sigma_max"),
}


@pytest.mark.parametrize(("make", "message"), MISTAKES.values(), ids=MISTAKES.keys())
def test_mistakes(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_a_list_is_no_grid():
    with pytest.raises(TypeError, match="write ExplicitGrid"):
        Heun(steps=2, grid=[0.0, 0.5, 1.0])


def test_a_grid_from_text_and_from_a_config():
    assert parse_grid("uniform") == UniformGrid()
    assert parse_grid("shifted:2.5") == ShiftedGrid(shift=2.5)
    assert parse_grid("edm:5") == EDMGrid(rho=5.0)
    assert parse_grid("logit_normal:0.2,1.5") == LogitNormalGrid(mean=0.2, std=1.5)
    assert parse_grid("0,0.3,1") == ExplicitGrid(values=(0.0, 0.3, 1.0))
    for text in ("shifted", "edm:a", "logit_normal:1", "bent", "uniform:3", "0,a,1", ""):
        with pytest.raises(ValueError, match="cannot read the time grid"):
            parse_grid(text)
    node = {"kind": "explicit", "values": [0, 0.25, 1]}
    assert TypeAdapter(GridConfig).validate_python(node).times(2) == [0, 0.25, 1]


def test_a_name_reads_back():
    for text in ("uniform", "shifted:2.5", "logit_normal:0.2,1.5", "edm:5,0.01,40", "0,0.3,1"):
        assert parse_grid(text).name == text
