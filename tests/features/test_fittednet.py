"""A fitted net: its vectors, its file, and files that are none."""

from __future__ import annotations

import json
import math

import pytest
import torch
from safetensors.torch import load_file, save_file

from flowmatch.features import FittedNet
from flowmatch.features.fittednet import RECIPE

X = torch.arange(256, dtype=torch.uint8).reshape(4, 1, 8, 8)


def changed(net, **changes):
    """Metadata of a net with some facts replaced."""
    _, metadata = net.to_tensors()
    facts = json.loads(metadata["flowmatch_features"]) | changes
    return {"flowmatch_features": json.dumps(facts)}


def test_a_file_gives_back_exactly_the_same_net(digits_net, tmp_path):
    digits_net.save(tmp_path / "net.safetensors")
    again = FittedNet.load(tmp_path / "net.safetensors")
    assert again.hash == digits_net.hash
    assert again.facts == digits_net.facts
    for before, after in zip(digits_net(X), again(X), strict=True):
        assert torch.equal(before, after)


def test_a_net_can_travel_inside_another_file(digits_net, tmp_path):
    tensors, metadata = digits_net.to_tensors()
    path = tmp_path / "reference.safetensors"
    save_file({f"net.{k}": v for k, v in tensors.items()}, path, {"other": "x"} | metadata)
    inside = {k.removeprefix("net."): v for k, v in load_file(path).items()}
    assert FittedNet.from_tensors(inside, {"other": "x"} | metadata).hash == digits_net.hash


def test_reading_a_net_draws_no_random_number(digits_net):
    before = torch.random.get_rng_state()
    FittedNet.from_tensors(*digits_net.to_tensors())
    assert torch.equal(torch.random.get_rng_state(), before)


def test_weights_and_facts_decide_the_hash(digits_net):
    tensors, metadata = digits_net.to_tensors()
    bent = dict(tensors, scale=tensors["scale"] * 1.0001)
    others = [
        FittedNet.from_tensors(bent, metadata).hash,
        FittedNet.from_tensors(tensors, changed(digits_net, seed=7)).hash,
        FittedNet.from_tensors(tensors, changed(digits_net, task="rotations")).hash,
    ]
    assert len({digits_net.hash, *others}) == 4


def test_a_protocol_can_be_printed(digits, digits_net):
    told = json.loads(json.dumps(digits_net.describe()))
    accuracy, digest = told.pop("accuracy"), told.pop("hash")
    assert 0.95 < accuracy <= 1
    assert len(digest) == 12
    assert told == {
        "kind": "data", "dims": 112, "recipe": RECIPE, "task": "labels", "classes": 10,
        "accuracy_on": 360, "data": digits[0].identity(), "shape": [1, 8, 8], "seed": 0,
    }  # fmt: skip


def test_vectors_do_not_depend_on_the_batch_and_carry_no_gradient(digits_net):
    vectors, logits = digits_net(X)
    assert vectors.shape == (4, digits_net.dims)
    assert logits.shape == (4, digits_net.num_classes) == (4, 10)
    assert not vectors.requires_grad
    assert not logits.requires_grad
    torch.testing.assert_close(digits_net(X[2:3]).vectors[0], vectors[2], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("images", "message"),
    [
        (X.float(), r"uint8 images \[B, C, H, W\] with 1 or 3 channels, but got \(4, 1, 8, 8\)"),
        (X[:, 0], "1 or 3 channels"),
        (X.expand(4, 2, 8, 8), "1 or 3 channels"),
        (X.expand(4, 3, 8, 8), "fitted to images of 1x8x8 .* but got 3x8x8"),
        (X[..., :7], "but got 1x8x7"),
    ],
)
def test_other_images_are_refused(digits_net, images, message):
    with pytest.raises(ValueError, match=message):
        digits_net(images)


def test_truncated_foreign_and_missing_files_say_so_in_a_sentence(digits_net, tmp_path):
    whole, cut, text, other = (tmp_path / n for n in ("whole", "cut", "text", "other"))
    digits_net.save(whole)
    cut.write_bytes(whole.read_bytes()[:-100])
    text.write_text("no weights at all")
    save_file({"x": torch.zeros(2)}, other)
    for path, reason in (
        (cut, "cut holds no features that can be used"),
        (text, "text holds no features that can be used"),
        (other, "metadata have no entry flowmatch_features"),
        (tmp_path / "nowhere", "nowhere"),
    ):
        with pytest.raises(ValueError, match=reason) as caught:
            FittedNet.load(path)
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"recipe": RECIPE + 1}, f"recipe {RECIPE + 1}, but this version .* recipe {RECIPE}"),
        ({"task": "poetry"}, "metadata of the fitted features are damaged"),
        ({"accuracy": math.nan}, "damaged"),
        ({"unknown": 1}, "damaged"),
        ({"architecture": {"shape": [1, 8, 8], "outputs": 11}}, "weights do not fit"),
        ({"architecture": {"shape": [1, 2, 8], "outputs": 10}}, "damaged"),
        ({"architecture": {"shape": [1, 8, 8], "outputs": 10, "widths": [10_000]}}, "do not fit"),
    ],
)
def test_metadata_of_something_else_are_refused(digits_net, changes, message):
    tensors, _ = digits_net.to_tensors()
    with pytest.raises(ValueError, match=message) as caught:
        FittedNet.from_tensors(tensors, changed(digits_net, **changes))
    assert "\n" not in str(caught.value)


def test_weights_of_another_type_or_name_are_refused(digits_net):
    tensors, metadata = digits_net.to_tensors()
    for wrong in ({**tensors, "scale": tensors["scale"].double()}, {**tensors, "more": X}, {}):
        with pytest.raises(ValueError, match="weights do not fit"):
            FittedNet.from_tensors(wrong, metadata)
