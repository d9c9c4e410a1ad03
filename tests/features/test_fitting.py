"""Fitting: deterministic, accurate, and sensitive to what and to how, on real images."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn.functional import conv2d, pad
from torch_fidelity.metric_fid import fid_features_to_statistics, fid_statistics_to_metric

from flowmatch.data import MNIST, ImageFolder, MemoryArrays, MemoryImages
from flowmatch.features import fit, fitting
from flowmatch.features.fitting import turned
from flowmatch.randomness import keyed_generator
from flowmatch.tensors import from_uint8, to_uint8
from made_data import make_folder


@pytest.fixture
def quick(monkeypatch):
    """The recipe cut to ten batches, where only its form matters."""
    monkeypatch.setattr(fitting, "LEAST_IMAGES", 1_280)
    monkeypatch.setattr(fitting, "MOST_IMAGES", 1_280)


def images(count=40, shape=(1, 8, 8), classes=None, key=0) -> MemoryImages:
    generator = keyed_generator("made images", key)
    x = torch.randint(256, (count, *shape), generator=generator, dtype=torch.uint8)
    labels = None if classes is None else torch.arange(count) % classes
    return MemoryImages(x, labels, num_classes=classes)


def distance(net, a: Tensor, b: Tensor) -> float:
    """torch-fidelity's Frechet distance in the features of a net."""
    found = [fid_features_to_statistics(net(x).vectors) for x in (a, b)]
    return fid_statistics_to_metric(*found, verbose=False)["frechet_inception_distance"]


def test_a_net_fitted_to_the_digits_reads_them(digits, digits_net):
    facts = digits_net.facts
    assert facts.task == "labels"
    assert facts.accuracy >= 0.95
    assert facts.accuracy_on == 360
    batch = digits[1].raw(torch.arange(360), None)
    right = digits_net(batch.x1).logits.argmax(1) == batch.cond["label"]
    assert right.float().mean().item() == pytest.approx(facts.accuracy, abs=1e-6)


def blur(x: Tensor) -> Tensor:
    """Images smoothed by a Gaussian of 0.58 pixels along both sides."""
    weights = torch.tensor([1 / 6, 4 / 6, 1 / 6])
    kernel = torch.outer(weights, weights).expand(1, 1, 3, 3)
    return conv2d(pad(x, (1, 1, 1, 1), mode="replicate"), kernel)


def test_damage_of_each_kind_is_further_from_the_digits_than_held_out_ones(digits, digits_net):
    train, held_out = (d.raw(torch.arange(len(d)), None) for d in digits)
    x, generator = from_uint8(held_out.x1), keyed_generator("damage to the digits")
    noise = torch.randn(x.shape, generator=generator)
    order = torch.stack([torch.randperm(64, generator=generator) for _ in x])
    shuffled = held_out.x1.flatten(1).gather(1, order).reshape(x.shape)
    found = {
        "real": held_out.x1,
        "noise 0.05": to_uint8(x + 0.05 * noise),
        "noise 0.1": to_uint8(x + 0.1 * noise),
        "noise 0.2": to_uint8(x + 0.2 * noise),
        "blur": to_uint8(blur(x)),
        "shuffled": shuffled,
        "no threes": held_out.x1[held_out.cond["label"] != 3],
    }
    far = {name: distance(digits_net, train.x1, some) for name, some in found.items()}
    assert far["noise 0.05"] > 1.1 * far["real"]
    assert far["noise 0.1"] > 1.3 * far["noise 0.05"]
    assert far["noise 0.2"] > 1.5 * far["noise 0.1"]
    assert far["no threes"] > 2 * far["real"]  # a missing class weighs more than noise hard to see
    assert far["no threes"] > 1.2 * far["noise 0.1"]
    assert far["blur"] > 10 * far["real"]
    assert far["shuffled"] > 20 * far["real"]


def test_features_over_what_was_fitted_to_are_on_one_scale(digits, digits_net):
    vectors = digits_net(digits[0].raw(torch.arange(1_437), None).x1).vectors
    assert vectors.shape == (1_437, 112)
    for stage in vectors.split([16, 32, 64], dim=1):
        assert 0.8 < stage.std(0).square().mean().sqrt() < 1.2


def test_digits_without_labels_are_fitted_by_their_turns(digits):
    train, held_out = (MemoryImages(d.x) for d in digits)
    net = fit(train, held_out)
    assert net.facts.task == "rotations"
    assert net.facts.architecture.outputs == 4
    assert net.facts.accuracy > 0.9
    x = from_uint8(held_out.x)
    noisy = to_uint8(x + 0.1 * torch.randn(x.shape, generator=keyed_generator("noise")))
    real = distance(net, train.x, held_out.x)
    assert distance(net, train.x, noisy) > 1.3 * real
    assert distance(net, train.x, to_uint8(blur(x))) > 10 * real
    extracted = net(held_out.x)
    assert extracted.logits is None
    assert net.num_classes is None
    assert net.describe()["classes"] == 4


def test_two_thousand_images_of_mnist_are_learnt_in_four_passes(data_root, monkeypatch):
    monkeypatch.setattr(fitting, "PASSES", 4)
    monkeypatch.setattr(fitting, "LEAST_IMAGES", 1)
    mnist = MNIST(root=str(data_root)).build("test")  # quicker to decode than the training split
    some, others = (
        MemoryImages(mnist.x[rows], mnist.labels[rows], num_classes=10)
        for rows in (slice(2_000), slice(2_000, 3_000))
    )
    assert fit(some, others).facts.accuracy > 0.9


def test_the_seed_decides_alone(quick):
    data = images(classes=3)
    with torch.random.fork_rng():
        torch.manual_seed(5)
        first, before = fit(data, None), torch.random.get_rng_state()
        torch.manual_seed(6)
        again, other = fit(data, None), fit(data, None, seed=1)
        torch.manual_seed(5)
        assert torch.equal(torch.random.get_rng_state(), before)  # nothing drew from it
    assert first.hash == again.hash != other.hash
    x = data.x[:5]
    assert torch.equal(first(x).vectors, again(x).vectors)
    assert first.facts.data == data.identity()


def test_without_held_out_images_a_tenth_is_kept_apart(quick):
    net = fit(images(57, classes=2), None)
    assert net.facts.accuracy_on == 5


def test_kept_images_are_never_fitted_to(quick, monkeypatch):
    seen: list[Tensor] = []
    data = images(57, classes=2)
    plain = MemoryImages.raw

    def watched(self, indices, uniforms):
        assert uniforms is None
        seen.append(indices)
        return plain(self, indices, uniforms)

    monkeypatch.setattr(MemoryImages, "raw", watched)
    fit(data, None)
    fitted_to, measured_on = torch.cat(seen[:-1]).unique(), seen[-1].unique()
    assert len(measured_on) == 5
    assert set(fitted_to.tolist()) | set(measured_on.tolist()) == set(range(57))
    assert len(fitted_to) + len(measured_on) == 57


@pytest.mark.parametrize(
    ("shape", "outputs"), [((3, 8, 8), 4), ((1, 8, 6), 2), ((1, 4, 4), 4), ((3, 40, 36), 2)]
)
def test_grey_and_colour_square_and_oblong_images_are_fitted(quick, shape, outputs):
    net = fit(images(shape=shape), images(12, shape=shape, key=1))
    assert net.facts.architecture.outputs == outputs
    assert net.facts.accuracy_on == 12
    vectors = net(images(shape=shape).x).vectors
    assert vectors.dtype == torch.float32
    assert vectors.isfinite().all()


def test_one_class_counts_as_no_labels(quick):
    assert fit(images(classes=1), None).facts.task == "rotations"


def test_images_decoded_by_workers_give_what_images_in_memory_give(quick, tmp_path, monkeypatch):
    monkeypatch.setattr(fitting, "threads", lambda: 2)
    make_folder(tmp_path)
    for k in range(8):  # three times as many
        (tmp_path / f"train/cat/more{k}.png").hardlink_to(tmp_path / f"train/dog/{k % 4}.png")
    configs = [ImageFolder(root=str(tmp_path), image_size=32, memory_gib=g) for g in (1, 0)]
    held, streamed = (fit(c.build("train"), c.build("test")) for c in configs)
    x = configs[0].build("test").x
    assert torch.equal(held(x).vectors, streamed(x).vectors)
    assert held.facts.accuracy == streamed.facts.accuracy


def test_progress_ends_at_its_goal(quick):
    told = []
    fit(images(), None, progress=lambda done, goal: told.append((done, goal)))
    assert told == [(128 * k, 1_280) for k in range(1, 11)]


def test_turns_are_quarters_to_the_left_and_halves():
    x = torch.arange(6.0).reshape(1, 1, 2, 3)
    turned_by = turned(x.expand(2, 1, 2, 3), torch.tensor([0, 1]), 2)
    assert torch.equal(turned_by, torch.cat([x, x.flip(-1, -2)]))
    square = torch.arange(4.0).reshape(1, 1, 2, 2)
    four = turned(square.expand(4, 1, 2, 2), torch.arange(4), 4)
    assert [t.flatten().tolist() for t in four] == [
        [0, 1, 2, 3], [1, 3, 0, 2], [3, 2, 1, 0], [2, 0, 3, 1],
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("train", "held_out", "message"),
    [
        (MemoryArrays(torch.rand(50, 2)), None, "images of 1 or 3 channels"),
        (images(9), None, "10 images or more, but this data set has 9"),
        (images(), images(shape=(3, 8, 8)), r"like those to fit to \(shape \(1, 8, 8\), None"),
        (images(classes=3), images(classes=4), "3 classes.* 4 classes"),
    ],
)
def test_data_that_cannot_be_fitted_are_refused(train, held_out, message):
    with pytest.raises(ValueError, match=message):
        fit(train, held_out)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_fitting_on_the_gpu_reads_the_digits_too(digits):
    net = fit(*digits, device="cuda")
    assert net.facts.accuracy >= 0.95
    x = digits[1].x[:50]
    there, here = net(x).vectors, net.to("cpu")(x).vectors
    torch.testing.assert_close(there.cpu(), here, rtol=1e-3, atol=1e-2)
