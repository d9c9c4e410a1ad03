"""What competes for a budget."""

from dataclasses import replace

import pytest
import torch

from flowmatch.guidance import CountNFE
from flowmatch.paths import VP, Linear
from flowmatch.sampling import sample
from flowmatch.solvers import UniformGrid
from flowmatch.tuning import candidates
from flowmatch.tuning.halving import rounds


def still(x, t, cond=None):
    return torch.zeros_like(x)


@pytest.mark.parametrize("nfe", [1, 2, 3, 4, 7, 10])
def test_every_candidate_keeps_the_budget_and_could_not_take_another_step(nfe):
    for solver in candidates(nfe, path=Linear()):
        field = CountNFE(still)
        sample(field, torch.zeros(1, 1), solver, path=Linear())
        assert field.nfe <= solver.nfe <= nfe < replace(solver, steps=solver.steps + 1).nfe


def test_what_follows_no_trajectory_or_no_grid_is_left_out():
    kinds = {s.kind for s in candidates(10, path=VP())}
    assert kinds >= {"euler", "heun", "rk4", "ab3", "ddim", "dpmpp_2m", "unipc", "deis"}
    assert not kinds & {"dopri5", "bosh3", "euler_maruyama", "ancestral", "edm_churn"}


def test_ddim_is_left_out_where_it_is_euler_and_all_that_need_an_unknown_path():
    assert "ddim" not in {s.kind for s in candidates(10, path=Linear())}
    assert not {"ddim", "unipc"} & {s.kind for s in candidates(10)}


def test_solvers_too_dear_for_one_step_are_left_out():
    assert {s.kind for s in candidates(1)} == {"euler", "ab2"}
    assert "rk4" not in {s.kind for s in candidates(3)}


def test_of_one_step_there_is_one_grid():
    assert [s.grid for s in candidates(1, kinds=["euler"])] == [UniformGrid()]


def test_a_cost_of_two_for_a_call_halves_the_steps():
    (steps,) = {s.steps for s in candidates(10, kinds=["heun"], cost=lambda s: 2 * s.nfe)}
    assert steps == 2


@pytest.mark.parametrize(
    ("nfe", "kinds", "why"),
    [
        (0, None, "at least 1"),
        (3, ["rk4"], "too small for one step of rk4"),
        (10, ["dopri5"], "chooses its own steps"),
        (10, ["ancestral"], "adds noise"),
        (10, ["unipc"], "needs the path"),
        (10, ["hun"], "did you mean heun"),
    ],
)
def test_what_cannot_be_tuned_is_refused(nfe, kinds, why):
    with pytest.raises(ValueError, match=why):
        candidates(nfe, kinds=kinds)


def test_rounds_end_with_all_the_samples_and_few_candidates():
    assert rounds(372, 64) == [(372, 4), (93, 8), (23, 16), (8, 32), (8, 64)]
    assert rounds(372, 2) == [(372, 2)]
    assert rounds(3, 10) == [(3, 4), (3, 8), (3, 10)]
