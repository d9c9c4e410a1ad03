"""Scores of image sets and of point sets: their order, their bias, what they say of copies."""

import math

import pytest
import torch

from flowmatch import metrics
from flowmatch.data import Digits, MemoryArrays, Toy
from flowmatch.evaluation.anchors import add_anchors, shuffled
from flowmatch.evaluation.extraction import SampleSet, local_set
from flowmatch.evaluation.scores import ImageScores, PointScores
from flowmatch.evaluation.statistics import compute_statistics
from flowmatch.features import fitted
from flowmatch.tensors import from_uint8, to_uint8


@pytest.fixture(scope="module")
def scores(tmp_path_factory, fitted_cache):
    from accelerate import Accelerator
    from accelerate.state import AcceleratorState

    AcceleratorState._reset_state(reset_partial_state=True)
    train, test = Digits().build("train"), Digits().build("test")
    net = fitted(train, test, cache=fitted_cache)
    statistics = compute_statistics(train, net, Accelerator(cpu=True), name="digits train")
    return ImageScores(net, statistics, train, test, conditional=True)


def measured(scores, images, labels=None):
    made = local_set(images.split(100), scores.net)
    return scores.measure(SampleSet(**{**made.__dict__, "labels": labels}))


def test_real_images_are_best_noise_shows_and_shuffled_pixels_are_far_worse(scores):
    real = scores.held_out.x
    noise = torch.randn(real.shape, generator=torch.Generator().manual_seed(0))
    sets = {
        "real": real,
        "a little noise": to_uint8(from_uint8(real) + 0.1 * noise),
        "more noise": to_uint8(from_uint8(real) + 0.3 * noise),
        "shuffled": shuffled(real),
    }
    found = {name: measured(scores, x) for name, x in sets.items()}
    for metric in ("fd_data", "kd_data"):
        values = [found[name][metric] for name in sets]
        assert values == sorted(values), metric
    distance = {name: f["fd_data_excess"] for name, f in found.items()}
    assert distance["a little noise"] > 3 * abs(distance["real"])
    assert distance["shuffled"] > 5 * distance["a little noise"]
    assert found["real"]["coverage"] > 5 * found["shuffled"]["coverage"]
    assert found["real"]["recall"] > 0.8


def test_the_excess_takes_the_bias_of_a_small_set_away(scores):
    real = scores.held_out.x
    few, many = measured(scores, real[:150]), measured(scores, real)
    assert few["fd_data"] > 2 * many["fd_data"]
    assert abs(few["fd_data_excess"]) < 0.4 * few["fd_data"]


def test_copies_of_the_training_data_are_caught(scores):
    copies = measured(scores, scores.train.x[:300])
    assert copies["nn_samples"] == 0
    assert copies["nn_ratio"] == 0
    assert copies["authentic"] == 0
    assert copies["authentic_held_out"] > 0.3
    unseen = measured(scores, scores.held_out.x[:300])
    assert unseen["nn_ratio"] == pytest.approx(1, abs=0.05)


def test_whether_a_class_looks_like_itself(scores):
    x, labels = scores.held_out.x, scores.held_out.labels
    right = measured(scores, x, labels)
    assert right["class_agreement"] == pytest.approx(scores.net.facts.accuracy, abs=0.01)
    swapped = torch.where(labels == 3, 7, labels)
    samples = SampleSet(**{**local_set([x], scores.net).__dict__, "labels": swapped})
    classes = scores.classes(samples)
    assert classes["recognised_share"][7] < 0.6  # half of its images are threes
    assert classes["requested"][3] == 0
    assert sum(classes["predicted_counts"]) == len(x)
    assert "class_agreement" not in measured(scores, x)  # nobody asked for classes


def test_anchors_and_floor(scores):
    document = {"protocol": {"samples": {"count": 200}}}
    add_anchors(document, scores)
    real, wrong = document["anchors"].values()
    assert real["count"] == wrong["count"] == 200
    assert wrong["metrics"]["fd_data"] > 20 * real["metrics"]["fd_data"]
    assert document["floor"]["fd_data"] == scores.floor(200)


def test_shuffling_keeps_the_pixels_of_each_image():
    x = torch.randint(0, 256, (4, 3, 5, 5), dtype=torch.uint8)
    y = shuffled(x)
    assert not torch.equal(x, y)
    together = x.flatten(2).int() * torch.tensor([1, 256, 65536])[None, :, None]
    again = y.flatten(2).int() * torch.tensor([1, 256, 65536])[None, :, None]
    assert torch.equal(together.sum(1).sort(1).values, again.sum(1).sort(1).values)


def test_few_samples_are_warned_about_with_their_bias(scores):
    with pytest.warns(UserWarning, match=r"50 samples for \d+ features.*biased upwards.*score"):
        scores.warn_about(50)


def point_set(x, nonfinite=0):
    return SampleSet(x, None, x, None, nonfinite, None, 0, 0.0)


def test_points_against_their_own_law_and_another():
    moons = PointScores(Toy(name="moons", samples=1000).build("train"), "moons train")
    same = moons.measure(point_set(Toy(name="moons", samples=600, seed=1).build("test").x))
    other = moons.measure(point_set(Toy(name="spirals", samples=600).build("test").x))
    for name in ("w2", "sliced_w2", "mmd2", "energy"):
        assert abs(same[name]) < 0.5 * other[name], name
    assert same["c2st"] == pytest.approx(0.5, abs=0.05)
    assert other["c2st"] > 0.6


def test_a_shift_is_measured_exactly():
    x = torch.randn(300, 2)
    scores = PointScores(MemoryArrays(x), "made")
    order = scores._draw(300)
    assert scores.measure(point_set(order + 0.5))["w2"] == pytest.approx(math.sqrt(0.5), rel=1e-5)


def test_points_that_are_not_finite_give_no_number():
    scores = PointScores(MemoryArrays(torch.randn(50, 2)), "made")
    assert all(math.isnan(v) for v in scores.measure(point_set(torch.randn(50, 2), 3)).values())


def test_the_numbers_are_those_of_the_metrics_room(scores):
    made = local_set([scores.held_out.x], scores.net)
    found = scores.measure(made)
    moments = metrics.Moments.of(made.vectors)
    assert found["fd_data"] == metrics.frechet_distance(moments, scores.statistics.moments)
    kernel = metrics.kernel_distance(made.vectors, scores.statistics.vectors)
    assert found["kd_data"] == kernel.mean
