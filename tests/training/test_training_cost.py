"""What a run costs: operations counted by hand, and the record of a start."""

import pytest
import torch
import torch.nn.functional as F
from test_trainer import train
from torch import nn

import flowmatch
from flowmatch.flow import Flow
from flowmatch.networks import UNetConfig
from flowmatch.training.cost import device_name, forward_flops, matmul_rate
from flowmatch.training.tracking import read_metrics


class Layered(nn.Module):
    """A convolution, attention over its 36 pixels, and a linear layer."""

    num_classes = 10

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(2, 8, 3, padding=1)
        self.linear = nn.Linear(8, 2)

    def forward(self, x, t, cond=None):
        assert cond["label"].tolist() == [0]
        tokens = self.conv(x).flatten(2).mT[:, None]
        tokens = nn.functional.scaled_dot_product_attention(tokens, tokens, tokens)
        return self.linear(tokens)[:, 0].mT.reshape(x.shape)


def test_operations_counted_by_hand():
    conv = 36 * 8 * 2 * 9
    attention = 2 * 36 * 36 * 8
    linear = 36 * 8 * 2
    flow = Flow(Layered()).eval()
    state = torch.get_rng_state()
    assert forward_flops(flow, torch.zeros(1, 2, 6, 6), {"label": torch.zeros(1)}) == 2 * (
        conv + attention + linear
    )
    assert torch.equal(torch.get_rng_state(), state)


class Attention(nn.Module):
    """Attention of 16 tokens of 8 numbers to each other, in 2 heads."""

    def forward(self, x, t, cond=None):
        heads = x.reshape(len(x), 16, 2, 4).transpose(1, 2)
        out = F.scaled_dot_product_attention(heads, heads, heads)
        return out.transpose(1, 2).reshape(x.shape)


def test_attention_is_counted_on_a_cpu_too():
    assert forward_flops(Flow(Attention()).eval(), torch.zeros(1, 128)) == 2 * (2 * 2 * 16 * 16 * 4)


def test_a_unet_of_twice_the_channels_does_nearly_four_times_the_work():
    def flops(channels):
        config = UNetConfig(channels=channels, multipliers=(1, 2), attention_resolutions=())
        return forward_flops(Flow(config.build((1, 16, 16))).eval(), torch.zeros(1, 1, 16, 16))

    assert 3.7 < flops(64) / flops(32) < 4


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_the_rate_of_the_device_is_a_rate(precision):
    state = torch.get_rng_state()
    assert 1e8 < matmul_rate(torch.device("cpu"), precision) < 1e14
    assert torch.equal(torch.get_rng_state(), state)


def test_each_start_is_told(tiny, tmp_path):
    train(tiny, tmp_path / "run", "train.steps=3")
    train(tiny, tmp_path / "run", "train.precision=bf16", resume="latest")
    trainer, _ = train(tiny, tmp_path / "run", resume="latest")  # has nothing left to do
    starts = [r for r in read_metrics(tmp_path / "run/metrics.jsonl") if "started" in r]
    assert [(r["step"], r["images"]) for r in starts] == [(0, 0), (3, 48)]
    facts = [r["started"] for r in starts]
    assert [f["precision"] for f in facts] == ["fp32", "bf16"]
    for f in facts:
        assert f["device"] == device_name(torch.device("cpu")) != ""
        assert (f["processes"], f["threads"]) == (1, torch.get_num_threads())
        assert (f["torch"], f["flowmatch"]) == (torch.__version__, flowmatch.__version__)
        assert f["forward_flops_per_image"] == forward_flops(
            trainer.averages.own, torch.zeros(1, 1, 8, 8)
        )
        assert f["matmul_flops_per_second"] > 1e8
