"""Restorations of a correlated Gaussian, whose posterior under `y = A x1` is known exactly."""

import pytest
import torch
from correlated_gaussian import CorrelatedGaussian, matrix_of

import flowmatch as fm
from flowmatch.editing import (
    Blur,
    DFlow,
    Downsample,
    FromFunction,
    Inpaint,
    LinearOperator,
    PnPFlow,
    Projection,
)
from flowmatch.editing.d_flow import Recomputed
from flowmatch.editing.projection import back
from flowmatch.paths import VP, Linear, Polynomial, Trig
from flowmatch.solvers import DDIM, Dopri5, Euler, EulerMaruyama, Heun

HALF = Inpaint(torch.arange(16).view(4, 4) < 8)
COLUMN = Inpaint(torch.arange(16).view(4, 4) % 4 != 1)
OPERATORS = {"half": HALF, "column": COLUMN, "downsample": Downsample(2)}
PATHS = (Linear(), Trig(), VP(), Polynomial())
METHODS = {
    "projection": Projection(),
    "posterior": Projection(noise="ancestral"),
    "without new noise": Projection(fresh=0.0),
    "resampled": Projection(steps=25, resample=2, jump=5),
    "pnp": PnPFlow(draws=1),
    "pnp mean of 4": PnPFlow(draws=4),
}


def rms(x):
    return x.square().mean().sqrt().item()


def restore(method, field, y, operator, **changes):
    return method(field, y, operator, **{"seeds": range(len(y)), **changes})


@pytest.mark.parametrize("operator", OPERATORS.values(), ids=OPERATORS.keys())
@pytest.mark.parametrize("path", PATHS, ids=lambda p: p.kind)
@pytest.mark.parametrize("method", METHODS.values(), ids=METHODS.keys())
def test_restorations_lie_about_the_posterior_mean(method, path, operator):
    field = CorrelatedGaussian(path=path)
    y = operator(field.draw(1)).expand(60, *operator(field.draw(1)).shape[1:])
    mean, covariance = field.posterior(y[:1], operator)
    x1 = restore(method, field, y, operator)
    naive = rms(operator.naive(y[:1]) - mean)
    assert rms(x1.mean(0) - mean[0]) < 0.25 * naive
    spread = (x1 - x1.mean(0)).square().mean().item()
    assert spread < 1.4 * covariance.diag().mean().item()


@pytest.mark.parametrize("fresh", [0.0, 0.7, 1.0])
@pytest.mark.parametrize("path", PATHS, ids=lambda p: p.kind)
def test_a_projection_spreads_as_the_posterior(path, fresh):
    field = CorrelatedGaussian(path=path)
    y = HALF(field.draw(1)).expand(300, -1, -1, -1)
    _, covariance = field.posterior(y[:1], HALF)
    x1 = restore(Projection(noise="ancestral", fresh=fresh), field, y, HALF)
    found = torch.cov(x1.flatten(1).T)
    assert found.diag().mean().item() == pytest.approx(covariance.diag().mean().item(), rel=0.15)


@pytest.mark.parametrize("operator", OPERATORS.values(), ids=OPERATORS.keys())
@pytest.mark.parametrize("noise", [0.1, 0.5])
def test_a_projection_of_a_noisy_measurement_spreads_about_as_the_posterior(operator, noise):
    field = CorrelatedGaussian()
    generator = torch.Generator().manual_seed(5)
    y = operator(field.draw(1, seed=3))
    y = y + noise * torch.randn(y.shape, dtype=y.dtype, generator=generator)
    if operator is not OPERATORS["downsample"]:
        y = operator(y)  # nothing is measured where nothing is known
    _, covariance = field.posterior(y, operator, noise)
    method = Projection(sigma_y=noise, noise="ancestral")
    x1 = restore(method, field, y.expand(300, *y.shape[1:]), operator)
    found = torch.cov(x1.flatten(1).T).diag().mean() / covariance.diag().mean()
    assert 0.5 < found < 1.4


@pytest.mark.parametrize("operator", OPERATORS.values(), ids=OPERATORS.keys())
def test_projections_agree_with_an_exact_measurement_exactly(operator):
    field = CorrelatedGaussian()
    y = operator(field.draw(5))
    for method in (Projection(steps=10), Projection(steps=10, resample=3, jump=4, fresh=0.5)):
        torch.testing.assert_close(operator(restore(method, field, y, operator)), y)


def test_plug_and_play_agrees_better_the_longer_it_trusts():
    field = CorrelatedGaussian()
    y = COLUMN(field.draw(20))
    methods = [PnPFlow(decay=decay) for decay in (0.0, 0.1, 1.0)]
    misfits = [rms(COLUMN(restore(method, field, y, COLUMN)) - y) for method in methods]
    assert misfits == sorted(misfits)
    assert misfits[1] < 0.03 < misfits[2]


def test_plug_and_play_averages_noise_away():
    field = CorrelatedGaussian()
    y = HALF(field.draw(1)).expand(100, -1, -1, -1)
    mean, _ = field.posterior(y[:1], HALF)
    few, many = (rms(restore(PnPFlow(draws=n), field, y, HALF) - mean) for n in (1, 8))
    assert many < 0.55 * few


@pytest.mark.parametrize("path", PATHS, ids=lambda p: p.kind)
@pytest.mark.parametrize("operator", OPERATORS.values(), ids=OPERATORS.keys())
def test_dflow_draws_from_the_posterior_of_a_gaussian_exactly(path, operator):
    """The solution nearest to the noise n is `n + B^+ (y - A Phi(0) - B n)` with B = A Phi', which
    is a draw from the posterior (Matheron's rule)."""
    field, solver = CorrelatedGaussian(path=path), Heun(steps=3)
    y = operator(field.draw(2))
    x1 = restore(DFlow(iterations=60, solver=solver, blend=0), field, y, operator)
    origin = fm.sample(field, torch.zeros(1, 1, 4, 4).double(), solver)
    basis = torch.eye(16).double().view(16, 1, 4, 4)
    phi = (fm.sample(field, basis, solver) - origin).flatten(1).T
    b = matrix_of(operator, field.shape) @ phi
    x0 = fm.noise(range(2), (1, 4, 4)).double().flatten(1)
    misfit = (y - operator(origin)).flatten(1) - x0 @ b.T
    x0 = x0 + misfit @ torch.linalg.pinv(b, rtol=1e-12).T
    exact = origin + (x0 @ phi.T).view_as(x1)
    torch.testing.assert_close(x1, exact, rtol=0, atol=1e-4)


def test_dflow_from_the_naive_estimate_beats_it():
    field = CorrelatedGaussian()
    y = COLUMN(field.draw(2))
    mean, _ = field.posterior(y, COLUMN)
    for solver in (Heun(steps=4), Euler(steps=6), Dopri5(rtol=1e-2, atol=1e-2), DDIM(steps=4)):
        x1 = restore(DFlow(solver=solver, blend=0.5), field, y, COLUMN)
        assert rms(COLUMN(x1) - y) < 0.02
        assert rms(x1 - mean) < 0.75 * rms(COLUMN.naive(y) - mean)


@pytest.mark.parametrize("noise", [0.3, 1.0])
def test_a_noisy_measurement_is_not_followed_into_its_noise(noise):
    field = CorrelatedGaussian()
    x = field.draw(1, seed=3).expand(40, -1, -1, -1)
    generator = torch.Generator().manual_seed(5)
    error = noise * torch.randn(1, 1, 4, 4, dtype=torch.float64, generator=generator)
    y = COLUMN(x + error)
    mean, _ = field.posterior(y[:1], COLUMN, noise)
    told = restore(Projection(sigma_y=noise), field, y, COLUMN).mean(0) - mean[0]
    untold = restore(Projection(), field, y, COLUMN).mean(0) - mean[0]
    assert rms(told) < 0.6 * rms(untold)
    sampled = restore(Projection(sigma_y=noise, noise="ancestral"), field, y, COLUMN)
    assert rms(COLUMN(sampled) - y) > 0.3 * noise
    x1 = restore(DFlow(sigma_y=noise), field, y[:3], COLUMN)
    known = (COLUMN(x1) - y[:3]).square().sum((1, 2, 3)) / 12
    assert known.max() <= noise**2
    assert known.min() > 0.1 * noise**2


def test_what_is_not_linear_is_refused():
    field = CorrelatedGaussian()
    y = torch.ones(1, 1, 4, 4).double()
    for bent in (torch.square, torch.abs, torch.tanh, torch.relu):
        with pytest.raises(ValueError, match="does not give -2 times as much"):
            restore(Projection(steps=2), field, y, FromFunction(bent, (1, 4, 4)))
    shifted = FromFunction(lambda x: x + 1, (1, 4, 4))
    with pytest.raises(ValueError, match="maps 0 to something else"):
        restore(Projection(steps=2), field, torch.ones(1, 1, 4, 4).double(), shifted)


EVERY = [*METHODS.values(), DFlow(iterations=4, solver=Heun(steps=2))]


@pytest.mark.parametrize("method", EVERY, ids=[*METHODS, "dflow"])
def test_a_restoration_depends_on_its_seed_and_measurement_alone(method):
    field, operator = CorrelatedGaussian(), Downsample(2)
    y = operator(field.draw(4))
    together = restore(method, field, y, operator, seeds=(7, 3, 9, 5), stream=1)
    alone = restore(method, field, y[2:3], operator, seeds=(9,), stream=1)
    torch.testing.assert_close(together[2:3], alone, rtol=1e-9, atol=1e-9)
    other = restore(method, field, y[2:3], operator, seeds=(9,), stream=2)
    assert not torch.allclose(other, alone, atol=1e-2)
    assert torch.equal(restore(method, field, y[2:3], operator, seeds=(9,), stream=1), alone)


@pytest.mark.parametrize("method", EVERY[:-1], ids=METHODS)
def test_the_number_of_evaluations_is_the_one_stated(method):
    counted = fm.CountNFE(CorrelatedGaussian())
    restore(method, counted, HALF(CorrelatedGaussian().draw(2)), HALF)
    assert counted.nfe == method.nfe


@pytest.mark.parametrize("method", EVERY, ids=[*METHODS, "dflow"])
def test_any_linear_function_does(method):
    field = CorrelatedGaussian()
    weights = torch.randn(5, 16, dtype=torch.float64)
    operator = FromFunction(lambda x: x.flatten(1) @ weights.T, field.shape)
    y = operator(field.draw(2))
    x1 = restore(method, field, y, operator)
    assert rms(operator(x1) - y) < 0.5 * rms(operator(torch.full_like(x1, field.mean)) - y)


def test_blur_with_the_noise_of_rounding():
    field, operator = CorrelatedGaussian((1, 8, 8)), Blur.gaussian(1.0)
    x = field.draw(4)
    y = operator(x) + 0.0023 * torch.randn_like(x)
    x1 = restore(Projection(sigma_y=0.0023), field, y, operator)
    assert rms(x1 - x) < 0.5 * rms(y - x)
    wild = operator.pinv(y)
    assert rms(x1 - x) < 0.5 * rms(wild - x)


def labelled(x, t, cond=None):
    """To N(-2, 1/4) and N(2, 1/4) by label, to N(0, 1/4) without."""
    mean = 0.0 if cond is None else torch.tensor([-2.0, 2.0])[cond["label"]].view(-1, 1, 1, 1)
    t = t.view(-1, 1, 1, 1)
    rate = (t / 4 - (1 - t)) / (t**2 / 4 + (1 - t) ** 2)
    return mean + rate * (x - t * mean)


@pytest.mark.parametrize("method", EVERY, ids=[*METHODS, "dflow"])
def test_labels_reach_the_field(method):
    y = torch.zeros(2, 1, 4, 4)
    labels = torch.tensor([0, 1])
    x1 = restore(method, labelled, y, COLUMN, cond=labels, path=Linear())
    hidden = x1[:, 0, :, 1].mean(1)
    assert hidden[0] < -1 < 1 < hidden[1]
    guided = fm.Guided(labelled, 1.5)
    again = restore(method, guided, y, COLUMN, cond={"label": labels}, path=Linear())
    assert again[1, 0, :, 1].mean() > hidden[1]


@pytest.mark.parametrize("path", [*PATHS, Polynomial(n=4.0)], ids=repr)
def test_walking_back_keeps_the_law_of_the_path(path):
    x1 = torch.full((200_000, 1), 2.0, dtype=torch.float64)
    for t, s in ((0.7, 0.3), (1.0, 0.6)):
        xt = path.xt(torch.randn_like(x1), x1, torch.full((len(x1),), t, dtype=torch.float64))
        xs = back(path, xt, t, s, torch.randn_like(x1))
        alpha, sigma = (float(c(torch.tensor(s).double())) for c in (path.alpha, path.sigma))
        assert xs.mean().item() == pytest.approx(2 * alpha, abs=0.01)
        assert xs.std().item() == pytest.approx(sigma, rel=0.01)


def test_dflow_keeps_the_states_alone_and_touches_no_parameter():
    flow = fm.Flow(fm.networks.MLP(dim=2, width=64))
    x, kept = torch.zeros(1, 2, requires_grad=True), []

    def keep(saved):
        kept.append(saved)
        return saved

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda saved: saved):
        Recomputed(flow)(x, torch.tensor([0.5])).sum()
        inside = len(kept)
        flow(x, torch.tensor([0.5])).sum()
    assert inside < 0.3 * (len(kept) - inside)
    operator = FromFunction(lambda x: x[:, :1], (2,))
    DFlow(iterations=2)(flow, torch.ones(1, 1), operator, seeds=[0])
    assert all(p.grad is None and p.requires_grad for p in flow.parameters())


class Wrong(LinearOperator):
    def __call__(self, x):
        return x.sum(-1)

    def adjoint(self, y):
        return y


def test_mistakes_are_named():
    field = CorrelatedGaussian()
    y = HALF(field.draw(2))
    with pytest.raises(ValueError, match="1 seeds for 2 measurements"):
        restore(Projection(), field, y, HALF, seeds=[0])
    with pytest.raises(ValueError, match="does not say which path"):
        restore(Projection(), lambda x, t, cond=None: x, y, HALF)
    with pytest.raises(ValueError, match="not linear"):
        restore(Projection(), field, y, FromFunction(lambda x: x + 1, field.shape))
    with pytest.raises(ValueError, match=r"gives measurements of shape \(1, 2, 2\)"):
        restore(Projection(), field, y, FromFunction(Downsample(2), field.shape))
    with pytest.raises(ValueError, match=r"gives measurements of shape \(1, 4\), but y has"):
        restore(Projection(), field, y, Wrong())


@pytest.mark.parametrize(
    ("method", "values", "message"),
    [
        (Projection, {"steps": 0}, "steps must be at least 1"),
        (Projection, {"resample": 0}, "resample must be at least 1"),
        (Projection, {"fresh": 1.5}, r"share in \[0, 1\], got 1.5"),
        (Projection, {"sigma_y": float("nan")}, "sigma_y must be at least 0"),
        (PnPFlow, {"draws": 0}, "draws must be at least 1"),
        (PnPFlow, {"decay": -1}, "decay must be at least 0"),
        (DFlow, {"iterations": 0}, "iterations must be at least 1"),
        (DFlow, {"blend": -0.1}, r"share in \[0, 1\]"),
        (DFlow, {"sigma_y": -1}, "sigma_y must be at least 0"),
        (DFlow, {"data_time": 0}, "data_time must be in"),
        (DFlow, {"solver": EulerMaruyama(steps=5)}, "adds noise on the way"),
    ],
)
def test_a_value_out_of_range(method, values, message):
    with pytest.raises(ValueError, match=message):
        method(**values)
