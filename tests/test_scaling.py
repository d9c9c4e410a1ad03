"""The plan for many GPUs is the arithmetic that it says, and its page says what it computes."""

import re
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.distributed as dist
from accelerate.commands.config.config_args import load_config_from_file
from torch.nn.attention import SDPBackend, sdpa_kernel

from flowmatch.config import parse_config
from flowmatch.flow import Flow
from flowmatch.networks import DiTConfig, EDM2Config, UNetConfig
from flowmatch.networks.transformer import swiglu_width
from flowmatch.training.cost import forward_flops
from test_processes import ROOT

sys.path.append(str(ROOT / "benchmarks"))
import arithmetic
import footprint
import plan

PAGE = (ROOT / "docs/scaling.md").read_text()
SMALL = DiTConfig(width=64, depth=3, heads=4, registers=4, num_classes=10)
SHAPE = (4, 16, 16)


@pytest.fixture(scope="module")
def small():
    return footprint.measure(SMALL, SHAPE)


def config(batch=64, **train):
    return parse_config(
        {
            "data": {"kind": "digits"},
            "network": {"kind": "dit"},
            "loss": {"kind": "flow_matching"},
            "train": {"images": 6400, "batch": batch, "precision": "bf16", **train},
        }
    )


# ---- what the network does


@pytest.mark.parametrize(
    "network",
    [
        SMALL,
        UNetConfig(channels=16, multipliers=[1, 2], blocks=1, attention_resolutions=[8], heads=2),
        EDM2Config(channels=16, multipliers=(1, 2), blocks=1, head_channels=16),
    ],
    ids=lambda c: c.kind,
)
def test_counting_without_values_is_counting(network):
    found = footprint.measure(network, SHAPE)
    real = network.build(SHAPE).train()
    assert found.sizes == tuple(p.numel() for p in real.parameters())
    x = torch.randn(3, *SHAPE)
    _, kept = footprint.kept_bytes(real, x, mixed=True)
    assert found.kept.at(3) == pytest.approx(kept, rel=0.01)
    with sdpa_kernel(SDPBackend.MATH):  # whose attention torch counts as the products it is
        forward = forward_flops(Flow(real.eval(), shape=SHAPE), x[:1])
    counted = found.flops.at(3)[: found.backward].sum()
    assert counted == pytest.approx(3 * forward, rel=0.01)


def test_a_transformer_keeps_what_its_formula_says(small):
    """What a block keeps of an image, each tensor once, however many kernels use it."""
    d, tokens, heads, hidden = 64, 8 * 8 + 4, 4, swiglu_width(64)
    token = 2 * (4 + 4) * d  # the stream and its norm, in float32, before attention and MLP
    token += 2 * 3 * d  # 16-bit inputs of the products that make qkv, attention's output, the MLP
    token += 2 * 3 * d + 2 * (4 + 4) * d  # qkv; queries and keys in float32, plain and normed
    token += 2 * 2 * d + 2 * d  # both after their rotation; attention's result
    token += 2 * 2 * d  # what the gates multiply
    token += 2 * 4 * hidden  # gate and up, silu(gate), and their product
    token += 4 * 2 + 4 * 3 * heads  # roots of the norms; sums of the softmax
    steering = 2 * (6 + 1 + 2) * d  # the modulation, what it is made of, and both 1 + scale
    deeper = footprint.measure(replace(SMALL, depth=4), SHAPE)
    found = deeper.kept.per_image - small.kept.per_image
    assert found == pytest.approx(tokens * token + steering, rel=1e-6)


def test_operations_of_a_transformer(small):
    """2 a weight and token, and 4 d for each pair of tokens; three times that with the gradient."""
    d, tokens, depth = 64, 8 * 8 + 4, 3
    block = 3 * d * d + d * d + 3 * d * swiglu_width(d)
    forward = depth * (2 * tokens * block + 4 * tokens**2 * d + 2 * 6 * d * d)
    ends = 2 * 64 * 2 * d * 16 + 2 * (256 * d + d * d) + 2 * 2 * d * d
    counted = small.flops.per_image[: small.backward].sum()
    assert counted == pytest.approx(forward + ends, rel=0.01)
    again = depth * 2 * tokens**2 * d  # attention computes its products q k^T once more
    assert small.flops.per_image.sum() == pytest.approx(3 * counted + again, rel=0.01)


# ---- communication


@pytest.mark.parametrize("gpus", [2, 5, 8])
def test_a_ring_sends_what_the_formula_says(gpus):
    """A ring all-reduce, played with arrays."""
    rng = np.random.default_rng(0)
    data = rng.integers(0, 100, (gpus, gpus, 6))  # of each process, in as many chunks
    total, sent = data.sum(0), np.zeros(gpus)
    for turn in range(2 * (gpus - 1)):
        chunks = [(rank - turn) % gpus for rank in range(gpus)]
        moving = [data[rank, chunk].copy() for rank, chunk in enumerate(chunks)]
        for rank, chunk in enumerate(chunks):
            target = (rank + 1) % gpus
            adds = data[target, chunk] if turn < gpus - 1 else 0
            data[target, chunk] = moving[rank] + adds
            sent[rank] += moving[rank].nbytes
    assert (data == total).all()
    assert sent == pytest.approx(arithmetic.ring_bytes(data[0].nbytes, gpus))


def test_buckets_are_those_of_torch():
    sizes = [300, 10_000_000, 5, 2_000_000, 2_000_000, 7_000_000, 40, 100_000, 300_000]
    tensors = [torch.empty(n, device="meta") for n in reversed(sizes)]
    limits = [arithmetic.FIRST_BUCKET, arithmetic.BUCKET]
    theirs, _ = dist._compute_bucket_assignment_by_size(tensors, limits)
    assert arithmetic.buckets([4 * n for n in sizes]) == [
        sum(4 * tensors[i].numel() for i in bucket) for bucket in theirs
    ]


def test_ports_of_a_node_share_the_rings():
    plain = arithmetic.Plan(config(), footprint_of(1000), arithmetic.DEVICES["h100"], 16)
    assert plain.rate == pytest.approx(0.8 * 8 * 50e9)
    assert replace(plain, gpus=8).rate == pytest.approx(0.8 * 450e9)
    assert plain.latency == pytest.approx(2 * (7 * 1.2e-6 + 8.5e-6))


# ---- a plan


def footprint_of(parameters, *, flops=0.0, traffic=0.0, kept=0.0):
    """A network of one kernel forward and one backward, each of half of all work."""
    half = [0.5, 0.5]
    zero = np.zeros(2)
    return footprint.Footprint(
        (parameters,),
        footprint.Line(0.0, kept),
        footprint.Line(zero, flops * np.array(half)),
        footprint.Line(zero, traffic * np.array(half)),
        1,
    )


def test_a_step_is_the_sum_of_its_parts():
    """989 TFLOP/s at 70%, 3.35 TB/s at 80%; 19 float32 a parameter: 3 + 7 + 3 + 3 averages, 4."""
    network = footprint_of(10**9, flops=7e12, traffic=1e9)
    train = {"ema": [{"decay": 0.9}, {"decay": 0.99}]}
    found = arithmetic.Plan(config(**train), network, arithmetic.DEVICES["h100"], 8)
    assert found.compute == pytest.approx(8 * 7e12 / (0.7 * 989e12))
    assert found.update == pytest.approx(4 * (3 + 7 + 6 + 4) * 1e9 / (0.8 * 3.35e12))
    one_bucket = 2 * 7 / 8 * 4e9 / (0.8 * 450e9) + 2 * 7 * 1.2e-6
    assert found.exposed == pytest.approx(one_bucket)
    assert found.step == pytest.approx(found.compute + found.update + found.exposed)
    assert found.rate_of_images == pytest.approx(64 / found.step)
    alone = 64 * 7e12 / (0.7 * 989e12) + 4 * (3 + 7 + 6) * 1e9 / (0.8 * 3.35e12)
    assert found.efficiency == pytest.approx(alone / (8 * found.step))
    assert found.seconds == pytest.approx(100 * found.step + found.checkpoint / 2e9)
    assert found.checkpoint == 4e9 * 5


def test_bytes_and_the_host_bound_a_step_too():
    plans = [
        arithmetic.Plan(config(), network, arithmetic.DEVICES["h100"], 1, compiled=False)
        for network in (footprint_of(10, traffic=1e9), footprint_of(10, traffic=1.0))
    ]
    assert plans[0].compute == pytest.approx(64e9 / (0.8 * 3.35e12))
    assert plans[1].compute == pytest.approx(2 * arithmetic.HOST_SECONDS)


def test_compiled_at_best_only_products_and_what_lies_between_them_cost():
    """A product of 1 GB, ten kernels of 1 GB around it, forward and backward; 2 GB are kept."""
    flops, traffic = np.zeros(22), np.full(22, 1e9)
    flops[[5, 16]] = 1.0
    network = footprint.Footprint(
        (10,),
        footprint.Line(0.0, 2e9),
        *(footprint.Line(np.zeros(22), per_image) for per_image in (flops, traffic)),
        11,
    )
    eager = arithmetic.Plan(config(batch=1), network, arithmetic.DEVICES["h100"], 1, compiled=False)
    assert eager.compute == pytest.approx(22e9 / (0.8 * 3.35e12))
    at_best = replace(eager, compiled=True)
    assert at_best.compute == pytest.approx(2 * (1e9 + 1e9 + 2e9) / (0.8 * 3.35e12))


def test_parts_are_the_fewest_that_fit():
    """States of 7 float32 a parameter and 3 GB; 64 images of 2.5 GB fit in parts of 16."""
    network = footprint_of(10**9, kept=2.5e9)
    found = arithmetic.Plan(config(), network, arithmetic.DEVICES["h100"], 1)
    assert sum(found.states().values()) == 4e9 * 6
    assert found.parts == 4
    assert found.memory(4) == pytest.approx(24e9 + 40e9 + 3e9)
    assert replace(found, gpus=64).sharded_memory(1) < 0.2 * found.memory(4)


def test_gpus_that_do_not_divide_the_batch_are_refused():
    with pytest.raises(ValueError, match="cannot be dealt to 7 GPUs"):
        arithmetic.Plan(config(), footprint_of(10), arithmetic.DEVICES["h100"], 7)


def test_scaling_stops_where_doubling_is_not_worth_it():
    compute = footprint_of(1, flops=1e15)
    plain = arithmetic.Plan(config(), compute, arithmetic.DEVICES["h100"], 1)
    assert arithmetic.limit_of(plain).gpus == 64  # no more than images
    host = replace(plain, network=footprint_of(1, traffic=1.0), compiled=False)
    assert arithmetic.limit_of(host).gpus == 1


# ---- the page


def cells(text):
    """Its words and its numbers."""
    numbers = re.findall(r"\d[\d,]*\.?\d*", text)
    words = re.sub(r"\d[\d,]*\.?\d*", "#", text)
    return re.sub(r"[ -]+", " ", words), [float(n.replace(",", "")) for n in numbers]


def test_the_tables_of_the_page_are_what_the_script_computes():
    """Within what another version of torch, with a few other kernels, makes of them."""
    (words, numbers), (ours, found) = (
        cells(text) for text in (PAGE, plan.with_tables(PAGE, plan.page_tables()))
    )
    assert words == ours, "run benchmarks/plan.py --table"
    assert numbers == pytest.approx(found, rel=0.05, abs=0.1), "run benchmarks/plan.py --table"


def test_what_the_page_says_of_its_tables():
    lines = [line[1:-1].split("|") for line in PAGE.splitlines() if line.startswith("|")]
    rows = {line[0].strip("* "): [cell.strip() for cell in line[1:]] for line in lines}
    compiled, eager = (float(n.replace(",", "")) for n in rows["images a second"][0].split(" – "))
    lightning = 64 * 1_281_167 / 36_000  # 64 epochs in 10 hours
    assert lightning == pytest.approx(2300, rel=0.02)
    assert eager < lightning < compiled
    assert rows["1,024"][0] == "64 – 128"
    for i in (0, 1):
        cost, much = (float(cell.split(" – ")[i]) for cell in rows["GPU hours"][1:])
        slow, fast = (
            float(cell.split(" – ")[i].replace(",", "")) for cell in rows["images a second"][1:]
        )
        assert much / cost > 5
        assert fast / slow < 1.6


def test_the_files_of_the_page_are_what_they_should_be(tmp_path):
    (text,) = re.findall(r"```yaml\n(.*?)```", PAGE, re.DOTALL)
    (tmp_path / "cluster.yaml").write_text(text)
    cluster = load_config_from_file(str(tmp_path / "cluster.yaml"))
    assert (cluster.num_machines, cluster.num_processes, cluster.mixed_precision) == (2, 16, "bf16")
    for block in re.findall(r"```sh\n(.*?)```", PAGE, re.DOTALL):
        checked = subprocess.run(["bash", "-n"], input=block, text=True, check=False)
        assert checked.returncode == 0, block
