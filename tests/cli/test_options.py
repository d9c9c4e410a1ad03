"""What the shared options mean together."""

import pytest

from flowmatch.cli.options import choose_solver, guidance_of, parse_solvers, weak_model
from flowmatch.guidance import Guidance
from flowmatch.solvers import (
    Dopri5,
    DPMpp2M,
    Euler,
    ExplicitGrid,
    Heun,
    ShiftedGrid,
    UniformGrid,
)


def test_a_solver_is_what_the_flags_say_and_the_default_for_the_rest():
    assert choose_solver(None, None, None) == Euler(steps=100)
    assert choose_solver(None, None, Heun(steps=3)) == Heun(steps=3)
    assert choose_solver(None, 7, Heun(steps=3)) == Heun(steps=7)
    assert choose_solver("dpmpp_2m", 7, Heun(steps=3)) == DPMpp2M(steps=7)
    shifted = ShiftedGrid(shift=2.0)
    assert choose_solver(None, 7, None, grid="shifted:2") == Euler(steps=7, grid=shifted)
    tuned = Heun(steps=4, grid=shifted)
    assert choose_solver("heun", 6, tuned) == Heun(steps=6, grid=shifted)
    assert choose_solver(None, None, tuned, grid="uniform").grid == UniformGrid()


def test_times_of_ones_own_bring_their_number_of_steps():
    chosen = choose_solver("heun", None, None, grid="0,0.4,1")
    assert chosen == Heun(steps=2, grid=ExplicitGrid(values=(0.0, 0.4, 1.0)))
    with pytest.raises(ValueError, match="3 times has 2 steps, but the solver has steps=5"):
        choose_solver("heun", 5, None, grid="0,0.4,1")
    for grid, message in {"0.1,1": "runs from 0 to 1", "0,0.6,0.5,1": "0.5 follows 0.6"}.items():
        with pytest.raises(ValueError, match=message):
            choose_solver("heun", None, None, grid=grid)


def test_an_adaptive_solver_has_neither_steps_nor_grid():
    assert choose_solver("dopri5", None, None) == Dopri5()
    for steps, grid in ((5, None), (None, "edm:7")):
        with pytest.raises(ValueError, match="chooses its own steps"):
            choose_solver("dopri5", steps, None, grid=grid)


def test_solvers_of_a_table(trained):
    off = Guidance()
    found = parse_solvers(["heun:2,3", "dopri5", "heun:2"], trained, guidance=off, grid="shifted:2")
    shifted = ShiftedGrid(shift=2.0)
    assert found == [Heun(steps=2, grid=shifted), Heun(steps=3, grid=shifted), Dopri5()]
    for spec, message in {
        "auto": "no tuned solver; make one with `flowmatch tune",
        "auto:10": "no tuned solver",
        "auto:ten": "cannot read 'auto:ten'",
        "auto:": "no tuned solver",
    }.items():
        with pytest.raises(ValueError, match=message):
            parse_solvers([spec], trained, guidance=off)


def test_guidance_that_is_off_may_not_be_described():
    assert guidance_of(1.0, "cfg", "0,1", "constant") == Guidance()
    assert guidance_of(2.0, "apg", "0.1,0.9", "cosine") == Guidance(
        scale=2.0, method="apg", interval=(0.1, 0.9), schedule="cosine"
    )
    with pytest.raises(ValueError, match="scale 1 is off"):
        guidance_of(1.0, "apg", "0,1", "constant")
    for interval in ("0.1", "a,b", "0.1,0.2,0.3"):
        with pytest.raises(ValueError, match="two times"):
            guidance_of(2.0, "cfg", interval, "constant")


def test_the_weak_model(trained):
    weights = trained / "ckpt/step0000006/model_ema.safetensors"
    assert weak_model(None, weights) == (None, None)
    weak, name = weak_model("model", weights)
    other, other_name = weak_model(str(trained), weights.with_name("model.safetensors"))
    assert weak.shape == other.shape == (1, 8, 8)
    assert name != other_name
    with pytest.raises(ValueError, match="the very weights that it should guide"):
        weak_model(str(trained), weights)
    with pytest.raises(ValueError, match="without averaging beside"):
        weak_model("model", weights.with_name("model.safetensors"))
    with pytest.raises(ValueError, match="no run directory"):
        weak_model("nowhere", weights)
