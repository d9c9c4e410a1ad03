"""Conditions: their embeddings, their nulls, and one mapping for all."""

import math

import pytest
import torch

from flowmatch.flow import Flow
from flowmatch.losses import Draws, FlowMatching
from flowmatch.networks import MLP, MLPConfig, UNetConfig
from flowmatch.networks.conditions import ConditionEmbedding, Scalar, Text, Vector

ALL = {
    "age": Scalar(low=0, high=100),
    "image": Vector(dim=5),
    "augment": Vector(dim=3, when_absent="zero"),
    "caption": Text(dim=4),
}


def values(n=6):
    g = torch.Generator().manual_seed(1)
    return {
        "age": torch.rand(n, generator=g) * 100,
        "image": torch.randn(n, 5, generator=g),
        "augment": torch.randn(n, 3, generator=g),
        "caption": torch.randn(n, 7, 4, generator=g),
    }


def embedding(names=tuple(ALL)):
    torch.manual_seed(0)
    return ConditionEmbedding({name: ALL[name] for name in names}, 16)


@pytest.mark.parametrize("name", ALL)
def test_what_is_missing_is_absent(name):
    layer, x = embedding([name]), torch.randn(6, 2)
    absent = torch.full_like(values()[name], ALL[name].absent)
    torch.testing.assert_close(layer({}, x), layer({name: absent}, x))
    torch.testing.assert_close(layer(None, x), layer({name: absent}, x))
    assert not torch.allclose(layer(values(), x), layer({}, x))


@pytest.mark.parametrize("name", ALL)
def test_absent_and_given_values_share_a_batch_and_all_gradients_are_finite(name):
    layer, given = embedding([name]), values()[name]
    mixed = given.clone()
    mixed[::2] = ALL[name].absent
    x = torch.randn(6, 2)
    out = layer({name: mixed}, x)
    torch.testing.assert_close(out[1::2], layer({name: given}, x)[1::2])
    torch.testing.assert_close(out[::2], layer({}, x)[::2])
    out.square().sum().backward()
    assert all(p.grad.isfinite().all() for p in layer.parameters())


def test_zeros_are_the_null_of_augmentation_and_add_nothing():
    layer = embedding(["augment"])
    assert torch.equal(layer({"augment": torch.zeros(2, 3)}, torch.zeros(2, 1)), torch.zeros(2, 16))


def test_padding_of_a_text_does_not_count():
    layer, x = embedding(["caption"]), torch.randn(2, 2)
    text = torch.randn(2, 3, 4)
    padded = torch.cat([text, torch.full((2, 5, 4), math.nan)], 1)
    torch.testing.assert_close(layer({"caption": padded}, x), layer({"caption": text}, x))


@pytest.mark.parametrize(
    ("name", "value", "shape"),
    [("age", (6, 1), r"\[6\]"), ("image", (6, 4), "6, 5"), ("caption", (6, 4), "6, any, 4")],
)
def test_a_value_of_another_shape_is_refused(name, value, shape):
    with pytest.raises(ValueError, match=f"condition '{name}'.*{shape}"):
        embedding()({name: torch.randn(*value)}, torch.randn(6, 2))


@pytest.mark.parametrize(
    "config", [MLPConfig(conditions=ALL, num_classes=3), MLPConfig(conditions=ALL)]
)
def test_float64_and_nulls_reach_the_flow(config):
    flow = Flow(config.build((2,)).double())
    x, t = torch.randn(6, 2, dtype=torch.float64), torch.rand(6, dtype=torch.float64)
    assert flow(x, t, values()).isfinite().all()
    null = flow.null(values())
    torch.testing.assert_close(flow(x, t, null), flow(x, t))
    given, absent = flow.under(x, t, [values(), None])
    torch.testing.assert_close(given, flow(x, t, values()))
    torch.testing.assert_close(absent, flow(x, t))


def test_dropout_takes_all_conditions_of_a_sample_but_the_augmentation():
    seen = []

    class Spy(MLP):
        def forward(self, x, t, cond=None):
            seen.append(cond)
            return x

    flow = Flow(Spy(2, num_classes=3, conditions=ALL))
    x1, cond = torch.randn(6, 2), {**values(), "label": torch.arange(6) % 3}
    draws = Draws.like(x1)._replace(drop=torch.tensor([0.0, 0.9, 0.0, 0.9, 0.0, 0.9]))
    FlowMatching(label_dropout=0.5)(flow, x1, cond, draws=draws)
    (found,) = seen
    assert found["label"].tolist() == [3, 1, 3, 0, 3, 2]
    assert found["age"].isnan().tolist() == [True, False] * 3
    assert found["caption"].isnan().all((1, 2)).tolist() == [True, False] * 3
    assert torch.equal(found["augment"], cond["augment"])
    torch.testing.assert_close(found["image"][1::2], cond["image"][1::2])


@pytest.mark.parametrize("name", ["label", "not a name", "keys", "config"])
def test_names_that_cannot_be_are_refused(name):
    with pytest.raises(ValueError, match=name):
        UNetConfig(conditions={name: Scalar()})


def test_bad_options_are_refused():
    with pytest.raises(ValueError, match="low must be below"):
        Scalar(low=1, high=1)
    for kind in (Vector, Text):
        with pytest.raises(ValueError, match="at least 1"):
            kind(dim=0)


def test_an_empty_value_of_a_zero_null_counts_as_zeros():
    empty = {"augment": torch.full((2, 3), math.nan)}
    found = embedding(["augment"])(empty, torch.zeros(2, 1))
    assert torch.equal(found, torch.zeros(2, 16))


def test_texts_of_other_lengths_are_evaluated_one_by_one():
    flow = Flow(MLP(2, conditions={"caption": ALL["caption"]}))
    x, t = torch.randn(3, 2), torch.rand(3)
    long, short = ({"caption": torch.randn(3, n, 4)} for n in (5, 2))
    for found, cond in zip(flow.under(x, t, [long, short]), (long, short), strict=True):
        torch.testing.assert_close(found, flow(x, t, cond))
