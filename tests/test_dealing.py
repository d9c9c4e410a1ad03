"""Conditions dealt in turn: sample i has value i mod N."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from flowmatch.data import Digits, ImageFolder, ScalarColumn, Texts
from flowmatch.dealing import Dealt, classes_dealt, in_turn, others_of, usual_conditions
from flowmatch.flow import Flow


class Told(nn.Module):
    """A network that knows these conditions."""

    def __init__(self, **nulls: float) -> None:
        super().__init__()
        self.nulls = nulls
        self.num_classes = int(nulls["label"]) if "label" in nulls else None


def test_a_sample_has_the_same_values_whatever_it_is_drawn_with():
    words = Texts(torch.randn(5, 2).half(), torch.tensor([0, 2, 5]), torch.tensor([1, -1, 0]), "k")
    dealt = Dealt({"age": torch.tensor([0.1, 0.2]), "words": words, "label": torch.arange(4)})
    whole, some = dealt(range(12)), dealt([3, 10])
    assert whole["age"].tolist() == pytest.approx([0.1, 0.2] * 6)
    assert whole["label"].tolist() == [0, 1, 2, 3] * 3
    assert whole["words"].shape == (12, 3, 2)
    assert whole["words"].isnan().all(2).sum(1).tolist() == [0, 3, 1] * 4
    for name, value in some.items():
        assert torch.equal(value.nan_to_num(-9), whole[name][[3, 10]].nan_to_num(-9))
    assert dealt.turn is None
    assert Dealt({"age": torch.rand(3), "label": torch.arange(3)}).turn == 3


def test_nothing_to_deal_is_none():
    assert Dealt({})(range(3)) is None
    assert (classes_dealt(None)(range(3)), classes_dealt(None).title) == (None, None)


def test_classes_unless_the_flow_knows_more():
    values = {"label": torch.tensor([2, 0]), "age": torch.rand(2), "height": torch.rand(2)}
    classes = Flow(Told(label=3))
    assert in_turn(classes, values)(range(5))["label"].tolist() == [0, 1, 2, 0, 1]
    assert in_turn(classes, values).title == "3 classes in turn"
    both = Flow(Told(label=3, age=float("nan"), augment=0.0))
    assert others_of(both) == ["age"]
    dealt = in_turn(both, values)
    assert dealt(range(3))["label"].tolist() == [2, 0, 2]
    assert dealt.values.keys() == {"label", "age"}
    assert dealt.title == "label, age of the training data in turn"
    augmented = Flow(Told(label=3, augment=0.0))
    assert in_turn(augmented, values).title == "3 classes in turn"


def test_data_without_such_conditions_are_not_read(monkeypatch):
    monkeypatch.setattr(Digits, "build", lambda *_: pytest.fail("the data were read"))
    assert usual_conditions(Flow(Told(label=10)), Digits(), 5).title == "10 classes in turn"
    assert usual_conditions(Flow(Told(age=0.0)), Digits(), 5).title is None


def test_data_that_are_missed_are_missed_for_their_conditions(tmp_path):
    gone = ImageFolder(
        root=str(tmp_path / "gone"), image_size=8, conditions={"age": ScalarColumn(column="age")}
    )
    said = "this model is given the conditions of the training data: root .*gone is not a folder"
    with pytest.raises(ValueError, match=said):
        usual_conditions(Flow(Told(age=0.0)), gone, 5)
    assert usual_conditions(Flow(Told(label=2)), gone, 5).title == "2 classes in turn"
