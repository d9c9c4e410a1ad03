"""A field under several conditions: one network call, the same velocities, the same count."""

import pytest
import torch
from guided_fields import Classes, ClassesNet, points

from flowmatch.flow import Flow
from flowmatch.guidance import CountNFE, Guided, under
from flowmatch.networks import MLP, UNetConfig

SAME = {"rtol": 1e-12, "atol": 1e-12}


def test_one_call_gives_the_velocities_of_separate_calls():
    x, t, cond = points()
    flow, other = Flow(ClassesNet()), {"label": torch.tensor([2, 2, 0, 0, 1, 1])}
    found = flow.under(x, t, [cond, None, other])
    assert flow.network.batches == [18]
    for v, c in zip(found, [cond, None, other], strict=True):
        torch.testing.assert_close(v, Classes()(x, t, c), **SAME)


@pytest.mark.parametrize("predict", ["velocity", "x1"])
def test_networks_agree_with_themselves(predict):
    unet = UNetConfig(
        channels=8,
        multipliers=(1, 2),
        blocks=1,
        attention_resolutions=(4,),
        num_classes=3,
        scale_shift=True,  # norms with one channel a group take out again what is only added
    )
    for network, shape in ((MLP(5, num_classes=3), (5,)), (unet.build((1, 8, 8)), (1, 8, 8))):
        for weights in network.parameters():
            torch.nn.init.normal_(weights, std=0.1)
        flow = Flow(network, predict=predict).double()
        x, (_, t, cond) = torch.randn(6, *shape, dtype=torch.float64), points()
        found = flow.under(x, t, [cond, None])
        torch.testing.assert_close(found[0], flow(x, t, cond), **SAME)
        torch.testing.assert_close(found[1], flow(x, t, None), **SAME)
        assert not torch.allclose(found[0], found[1])


def test_bare_labels_one_time_and_no_samples():
    x, _, cond = points()
    flow = Flow(ClassesNet())
    v_cond, v_null = flow.under(x, 0.5, [cond["label"], None])
    time = torch.full((6,), 0.5, dtype=torch.float64)
    torch.testing.assert_close(v_cond, Classes()(x, time, cond), **SAME)
    torch.testing.assert_close(v_null, Classes()(x, time), **SAME)
    empty = flow.under(x[:0], 0.5, [cond["label"][:0], None])
    assert [v.shape for v in empty] == [(0, 4), (0, 4)]


def test_channels_last_survives_the_stacking():
    seen = []

    class Spy(ClassesNet):
        def forward(self, x, t, cond=None):
            seen.append(x.is_contiguous(memory_format=torch.channels_last))
            return x

    x = torch.randn(2, 3, 4, 4).to(memory_format=torch.channels_last)
    Flow(Spy()).under(x, 0.5, [torch.zeros(2, dtype=torch.int64), None])
    assert seen == [True]


def test_what_does_not_fit_is_evaluated_one_by_one_from_then_on():
    x, t, cond = points()
    flow = Flow(ClassesNet(room=6))
    for _ in range(2):
        v_cond, v_null = flow.under(x, t, [cond, None])
        torch.testing.assert_close(v_cond, Classes()(x, t, cond), **SAME)
        torch.testing.assert_close(v_null, Classes()(x, t), **SAME)
    assert flow.network.batches == [12, 6, 6, 6, 6]
    flow.under(x[:3], t[:3], [{"label": cond["label"][:3]}, None])
    assert flow.network.batches[5:] == [6]  # half the batch: two copies of it may well fit


def test_what_does_not_fit_even_once_is_an_error():
    x, t, cond = points()
    with pytest.raises(torch.OutOfMemoryError):
        Flow(ClassesNet(room=5)).under(x, t, [cond, None])


@pytest.mark.parametrize("room", [6, 12])
def test_the_count_is_the_same_whether_or_not_it_fits(room):
    x, t, cond = points()
    flow = Flow(ClassesNet(room=room))
    counted = CountNFE(flow)
    guided = Guided(counted, 1.5)
    guided(x, t, cond)
    guided(x, t, cond)
    assert counted.nfe == 4
    assert flow.network.batches == ([12, 12] if room == 12 else [12, 6, 6, 6, 6])


def test_a_field_without_the_method_is_called_once_for_each():
    x, t, cond = points()
    calls = []

    def foreign(x, t, cond=None):
        calls.append(cond)
        return Classes()(x, t, cond)

    counted = CountNFE(foreign)
    for field in (foreign, counted):
        v_cond, v_null = under(field, x, t, [cond, None])
        torch.testing.assert_close(v_cond, Classes()(x, t, cond), **SAME)
        torch.testing.assert_close(v_null, Classes()(x, t), **SAME)
    assert calls == [cond, None, cond, None]
    assert counted.nfe == 2


def test_conditions_without_a_known_null_are_evaluated_apart():
    seen = []

    class Texts(torch.nn.Module):
        def forward(self, x, t, cond=None):
            seen.append(cond)
            return x

    x, t, _ = points()
    text = {"text": torch.randn(6, 2)}
    Flow(Texts()).under(x, t, [text, None])
    assert seen == [text, None]
    Flow(Texts()).under(x, t, [text, text])
    assert len(seen) == 3
    torch.testing.assert_close(seen[2]["text"], text["text"].repeat(2, 1))


def test_the_null_of_a_label_is_the_class_after_the_last():
    flow = Flow(ClassesNet())
    null = flow.null({"label": torch.tensor([0, 2])})
    assert null["label"].tolist() == [3, 3]
    assert null["label"].dtype == torch.int64
    with pytest.raises(ValueError, match=r"'text'.*known: label"):
        flow.null({"text": torch.zeros(2)})
    with pytest.raises(ValueError, match="known: none"):
        Flow(MLP(4)).null({"label": torch.zeros(2)})


def test_an_unconditional_network_says_so():
    x, t, cond = points()
    with pytest.raises(ValueError, match="this network is unconditional"):
        Guided(Flow(MLP(4).double()), 2.0)(x, t, cond)


def test_compiled_networks_keep_working():
    x, t, cond = points()
    plain = MLP(4, width=16, num_classes=3).double()
    expected = Guided(Flow(plain), 1.5)(x, t, cond)
    in_place = Flow(plain)
    in_place.network.compile(backend="eager")
    wrapped = Flow(torch.compile(plain, backend="eager"))
    for flow in (in_place, wrapped):
        torch.testing.assert_close(Guided(flow, 1.5)(x, t, cond), expected, **SAME)


def test_gradients_pass_through():
    x, t, cond = points()
    x.requires_grad_()
    together = torch.autograd.grad(Guided(Flow(ClassesNet()), 2.0)(x, t, cond).sum(), x)[0]
    apart = torch.autograd.grad(Guided(Classes(), 2.0)(x, t, cond).sum(), x)[0]
    torch.testing.assert_close(together, apart, **SAME)


def test_two_counters_add_up():
    x, t, _ = points()
    main = CountNFE(Classes())
    weak = CountNFE(Classes(), into=main)
    main(x, t)
    weak(x, t)
    weak.under(x, t, [None, None])
    assert (main.nfe, weak.nfe) == (4, 0)
