"""The Fréchet distance: closed forms on Gaussians, torch-fidelity, and the floor of a sample."""

import pytest
import torch
from torch_fidelity.metric_fid import fid_features_to_statistics, fid_statistics_to_metric

from flowmatch.metrics import Moments, frechet_distance, frechet_floor


def gaussian(mean, covariance):
    """Moments that are exactly these."""
    return Moments(2, torch.tensor(mean, dtype=torch.float64), torch.as_tensor(covariance).double())


def test_diagonal_covariances_have_a_closed_form():
    a = gaussian([1.0, -2.0, 0.5], torch.diag(torch.tensor([1.0, 4.0, 0.25])))
    b = gaussian([0.0, 1.0, 0.5], torch.diag(torch.tensor([9.0, 4.0, 1.0])))
    # |m_a - m_b|^2 + sum (s_a - s_b)^2
    assert frechet_distance(a, b) == pytest.approx(1 + 9 + 4 + 0 + 0.25, rel=1e-12)
    assert frechet_distance(b, a) == pytest.approx(14.25, rel=1e-12)


def test_covariances_that_do_not_commute():
    a = torch.tensor([[2.0, 1.0], [1.0, 3.0]])
    b = torch.tensor([[1.0, -0.5], [-0.5, 2.0]])
    # in two dimensions tr (AB)^(1/2) = (tr AB + 2 (det AB)^(1/2))^(1/2)
    product = a @ b
    root = (product.trace() + 2 * product.det().sqrt()).sqrt()
    expected = float(a.trace() + b.trace() - 2 * root)
    found = frechet_distance(gaussian([0.0, 0.0], a), gaussian([0.0, 0.0], b))
    assert found == pytest.approx(expected, rel=1e-6)


def test_a_set_is_no_distance_from_itself():
    moments = Moments.of(torch.randn(500, 8))
    assert frechet_distance(moments, moments) == pytest.approx(0, abs=1e-9)


@pytest.mark.parametrize("dims", [1, 3, 40])
def test_equal_to_torch_fidelity(dims):
    a = torch.randn(200, dims, dtype=torch.float64)
    b = torch.randn(300, dims, dtype=torch.float64) * 1.5 + 0.2
    ours = frechet_distance(Moments.of(a), Moments.of(b))
    if dims == 1:  # numpy's covariance of one feature is a number, which theirs refuses
        theirs = (a.mean() - b.mean()) ** 2 + (a.std() - b.std()) ** 2
        assert ours == pytest.approx(float(theirs), rel=1e-10)
        return
    statistics = (fid_features_to_statistics(x) for x in (a, b))
    theirs = fid_statistics_to_metric(*statistics, verbose=False)
    assert ours == pytest.approx(theirs["frechet_inception_distance"], rel=1e-6)


def test_the_floor_of_the_unit_covariance():
    dims, count = 6, 400
    floor = frechet_floor(gaussian([3.0] * dims, torch.eye(dims)), count, draws=40)
    assert floor == pytest.approx((dims + dims * (dims + 1) / 4) / count, rel=0.1)


def test_the_floor_is_what_real_samples_get_and_falls_like_one_over_their_number():
    mix = torch.randn(10, 10, dtype=torch.float64)
    reference = gaussian([1.0] * 10, mix @ mix.T)

    def real(count):
        samples = 1 + torch.randn(count, 10, dtype=torch.float64) @ mix.T
        return frechet_distance(Moments.of(samples), reference)

    floors = [frechet_floor(reference, count, draws=20) for count in (250, 1000, 4000)]
    actual = sum(real(1000) for _ in range(20)) / 20
    assert floors[1] == pytest.approx(actual, rel=0.2)
    assert floors[0] / floors[1] == pytest.approx(4, rel=0.25)
    assert floors[1] / floors[2] == pytest.approx(4, rel=0.25)


def test_the_floor_is_the_same_at_every_call_and_needs_no_full_rank():
    reference = Moments.of(torch.randn(4, 9))
    assert frechet_floor(reference, 50) == frechet_floor(reference, 50) > 0


def test_mistakes_are_named():
    with pytest.raises(ValueError, match="of 2 and of 3 features"):
        frechet_distance(Moments.of(torch.randn(9, 2)), Moments.of(torch.randn(9, 3)))
    with pytest.raises(ValueError, match="count=1 and draws=1"):
        frechet_floor(gaussian([0.0], [[1.0]]), 1)
