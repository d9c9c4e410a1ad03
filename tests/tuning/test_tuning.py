"""The tuned choice against uniform grids at equal cost, on fields in closed form."""

from itertools import pairwise

import pytest
import torch

from closed_form import GaussianFlow, MixtureFlow, PointsFlow
from flowmatch.flow import Flow
from flowmatch.guidance import CountNFE, Guided
from flowmatch.paths import Trig
from flowmatch.sampling import sample
from flowmatch.solvers import AB2, AB3, Dopri5, Euler, ExplicitGrid, Heun, Midpoint
from flowmatch.tuning import Trials, as_table, candidates, halving, refine, tune

POINTS = PointsFlow(torch.tensor([[2.0, 0.5], [-1.5, 1.0], [0.0, -2.0]], dtype=torch.float64))
FLOWS = {
    "gaussian": (GaussianFlow(std=0.2), 1),
    "gaussian on another path": (GaussianFlow(path=Trig()), 2),
    "mixture": (MixtureFlow(), 1),
}


def draws(n, dim, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(n, dim, dtype=torch.float64, generator=generator)


def rms(a, b):
    return (a - b).square().mean(1).sqrt().mean().item()


@pytest.mark.parametrize("nfe", [4, 10])
@pytest.mark.parametrize("name", FLOWS)
def test_the_choice_beats_uniform_euler_and_heun_on_noise_it_never_saw(name, nfe):
    field, dim = FLOWS[name]
    tuned = tune(field, draws(72, dim), nfe)
    fresh = draws(200, dim, seed=1)
    truth = sample(field, fresh, Dopri5(rtol=1e-9, atol=1e-9))
    counted = CountNFE(field)
    found = rms(sample(counted, fresh, tuned.solver), truth)
    assert counted.nfe == tuned.best.nfe <= nfe
    for rival in (Euler(steps=nfe), Heun(steps=nfe // 2)):
        assert found < 0.6 * rms(sample(field, fresh, rival), truth)
    off = 10 * tuned.reference_error
    assert found == pytest.approx(tuned.error, rel=0.7, abs=off)  # it says the truth of itself


def test_the_reported_errors_are_those_of_the_last_third():
    field, x0 = GaussianFlow(std=0.2), draws(24, 1)
    tuned = tune(field, x0, 4, among=[Heun(steps=2), Euler(steps=4)], budget=0)
    exact = field.solution(x0, 1.0)
    for tried in (tuned.best, *tuned.others):
        end = sample(field, x0, tried.solver)
        assert tried.fitted == pytest.approx(rms(end[:8], exact[:8]), rel=1e-3)
        assert tried.compared == pytest.approx(rms(end[8:16], exact[8:16]), rel=1e-3)
        assert tried.error == pytest.approx(rms(end[16:], exact[16:]), rel=1e-3)
    assert tuned.best.compared < tuned.others[0].compared


class Halved(torch.nn.Module):
    """Predicts half of what it sees, whose flow never comes to rest before t=1."""

    def forward(self, x, t, cond=None):
        return x / 2


@pytest.mark.parametrize("around", [lambda flow: flow, CountNFE])
def test_flows_that_predict_x1_are_followed_to_just_before_the_data(around):
    # dx/dt = (x/2 - x) / (1 - t) is solved by x0 sqrt(1 - t); steps equal up to t=1 leave a tenth
    field = around(Flow(Halved(), predict="x1"))
    x0 = draws(18, 3)
    tuned = tune(field, x0, 6, among=[Heun(steps=3), Euler(steps=6)], budget=0)
    last = tuned.reference.times()[-2]
    assert 0.98 < last < 0.995
    exact = x0 * (1 - last) ** 0.5 / 2  # what is predicted there
    assert rms(sample(field, x0, tuned.reference), exact) < 1e-4
    assert tuned.reference_error < 1e-4
    for tried in (tuned.best, *tuned.others):
        end = sample(field, x0, tried.solver)
        assert tried.error == pytest.approx(rms(end[12:], exact[12:]), rel=0.01)
    assert "edm:7,0.0102,10" in as_table(tuned)


def test_points_are_reached_exactly():
    tuned = tune(POINTS, draws(36, 2), 10)
    assert tuned.error < 1e-3
    assert tuned.error < 0.1 * tuned.baselines["heun"].error or tuned.error < 1e-9


def test_the_same_call_gives_the_same_choice_whatever_the_batch():
    field, x0 = MixtureFlow(), draws(12, 1)
    among = candidates(5, kinds=["ab3", "heun3"])
    one, again, other = (
        tune(field, x0, 5, among=among, batch=batch, budget=4_000) for batch in (100, 100, 5)
    )
    assert one == again
    assert one.solver.kind == other.solver.kind
    assert one.solver.times() == pytest.approx(other.solver.times(), abs=1e-4)


def test_progress_ends_near_what_was_expected_and_counts_every_call():
    calls, rows = [], [0]

    def field(x, t, cond=None):
        rows[0] += len(x)
        return GaussianFlow()(x, t)

    tuned = tune(field, draws(16, 1), 4, progress=lambda done, total: calls.append((done, total)))
    assert calls[-1][0] == rows[0] == tuned.evaluations
    assert all(a[0] < b[0] <= b[1] for a, b in pairwise(calls))
    assert calls[-1][0] > 0.4 * calls[-1][1]


def test_guidance_halves_the_field_calls_and_keeps_the_budget():
    counted = CountNFE(lambda x, t, cond: GaussianFlow(1.5 if cond else 0.0)(x, t))
    field, label = Guided(counted, 2.0), torch.zeros(16, dtype=torch.long)
    tuned = tune(field, draws(16, 1), 8, label, cost=lambda s: 2 * s.nfe, budget=2_000)
    counted.nfe = 0
    sample(field, draws(4, 1), tuned.solver, label[:4])
    assert counted.nfe == tuned.best.nfe == 8


def test_what_does_not_fit_the_budget_is_left_out_or_refused():
    x0 = draws(8, 1)
    tuned = tune(GaussianFlow(), x0, 4, among=[Heun(steps=3), Euler(steps=4)], budget=0)
    assert tuned.solver.kind == "euler"
    assert not tuned.others
    with pytest.raises(ValueError, match="none of 1 solvers fits"):
        tune(GaussianFlow(), x0, 4, among=[Heun(steps=3)])
    with pytest.raises(ValueError, match="3 or more"):
        tune(GaussianFlow(), x0[:2], 4)
    with pytest.raises(ValueError, match="finite end"):
        tune(lambda x, t, cond=None: x / 0, x0, 2)


def test_refining_moves_the_times_where_they_help_and_keeps_them_apart():
    field = GaussianFlow(std=0.05)
    trials = Trials(field, draws(32, 1), reference=AB3(steps=400))
    start = Midpoint(steps=4)
    better = refine(trials, start, budget=100_000)
    times = better.times()
    assert isinstance(better.grid, ExplicitGrid)
    assert trials.error(better) < 0.5 * trials.error(start)
    assert min(b - a for a, b in pairwise(times)) > 1e-4
    assert all(t == round(t, 6) for t in times)
    # no time can be moved alone to a much better place
    for k in range(1, 4):
        for shift in (-0.01, 0.01):
            values = tuple(t + shift * (i == k) for i, t in enumerate(times))
            moved = Midpoint(steps=4, grid=ExplicitGrid(values=values))
            assert trials.error(moved) > 0.97 * trials.error(better)


def test_refining_keeps_to_its_budget_and_to_what_fits():
    trials = Trials(GaussianFlow(), draws(8, 1), reference=AB3(steps=50))
    start = Euler(steps=4)
    before = trials.evaluations
    refine(trials, start, budget=400)
    assert 0 < trials.evaluations - before <= 400 + 4 * 4 * 8  # and the tries of the last step
    assert refine(trials, start, budget=0) == start
    assert refine(trials, start, budget=10_000, fits=lambda solver: False) == start
    assert refine(trials, Euler(steps=1), budget=10_000) == Euler(steps=1)


def test_halving_finds_the_best_and_prefers_the_first_of_equals():
    field = GaussianFlow(std=0.2)
    trials = Trials(field, draws(16, 1), reference=AB3(steps=100))
    pool = [Euler(steps=n) for n in (2, 5, 3, 40, 4)]
    assert [s.steps for _, s in halving(trials, pool)] == [40, 5, 4, 3, 2]
    for twins in ([Euler(steps=1), AB2(steps=1)], [AB2(steps=1), Euler(steps=1)]):
        assert halving(trials, twins)[0][1] == twins[0]


def test_images_are_compared_in_their_range():
    trials = Trials(
        lambda x, t, cond=None: torch.full_like(x, 9.0),
        torch.zeros(2, 3),
        reference=AB3(steps=4),
        clamp=True,
    )
    assert trials.error(Euler(steps=1)) == 0


def test_the_table_names_the_choice_and_the_baselines():
    tuned = tune(GaussianFlow(), draws(12, 1), 4, budget=1_000)
    text = as_table(tuned)
    assert "| chosen " in text
    assert "1.00x" in text
    assert text.count("| uniform ") >= 2
    assert "over 4 samples that nothing was decided by" in text
