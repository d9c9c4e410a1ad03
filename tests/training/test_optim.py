"""Optimizers against singular value decompositions and against torch's own, bit for bit."""

import copy
import io
import itertools
from typing import get_args

import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from torch import nn

from flowmatch.config import parse_config
from flowmatch.flow import Flow
from flowmatch.networks import (
    DDPMPPConfig,
    DiTConfig,
    EDM2Config,
    MLPConfig,
    NetworkConfig,
    UNetConfig,
)
from flowmatch.training.muon import MuonAndAdamW, as_matrix
from flowmatch.training.optim import AdamW, Muon, OptimizerConfig

LEVELS = {"channels": 32, "multipliers": (1, 2), "blocks": 1, "attention_resolutions": (4,)}
NETWORKS = {
    "ddpmpp": DDPMPPConfig(**LEVELS, num_classes=5),
    "ddpmpp-residual": DDPMPPConfig(**LEVELS, encoder="residual"),
    "dit": DiTConfig(width=32, depth=2, heads=2, num_classes=5, registers=2),
    "dit-rank": DiTConfig(width=32, depth=2, heads=2, patch_rank=8),
    "edm2": EDM2Config(**LEVELS, num_classes=5, head_channels=16),
    "mlp": MLPConfig(width=32, num_classes=5),
    "unet": UNetConfig(**LEVELS, num_classes=5),
}
SHAPE = (3, 8, 8)
OPTIMIZERS = [kind() for kind in get_args(get_args(OptimizerConfig)[0])]
each_optimizer = pytest.mark.parametrize("config", OPTIMIZERS, ids=lambda c: c.kind)
each_network = pytest.mark.parametrize("network", NETWORKS.values(), ids=NETWORKS.keys())


def layers():
    """A layer of each kind that networks are made of."""
    torch.manual_seed(0)
    return nn.ModuleDict(
        {
            "inp": nn.Conv2d(3, 8, 3),
            "conv": nn.Conv2d(8, 16, 3),
            "pointwise": nn.Conv2d(16, 16, 1),
            "norm": nn.GroupNorm(4, 16),
            "linear": nn.Linear(16, 24),
            "square": nn.Linear(16, 16),  # as a matrix of the shape of the pointwise kernel
            "table": nn.Embedding(5, 16),
            "out": nn.Conv2d(16, 3, 3),
        }
    )


def gradients(parameters, seed):
    """A gradient for each parameter, the same in whatever memory format it lies."""
    g = torch.Generator().manual_seed(seed)
    for p in parameters:
        p.grad = torch.empty_like(p).copy_(torch.randn(p.shape, generator=g))


def steps(optimizer, parameters, numbers):
    for number in numbers:
        gradients(parameters, number)
        optimizer.step()


def update(weight, gradient):
    """What one step of Muon at learning rate 1 takes off a weight."""
    p = nn.Parameter(weight.clone())
    p.grad = gradient
    MuonAndAdamW([p], [], config=Muon(), lr=1.0).step()
    return weight - p.detach()


@each_network
def test_adamw_has_the_ends_and_what_is_no_matrix_muon_the_rest(network):
    """The first layer is the first that sees x, the last the last that runs."""
    net = network.build(SHAPE).eval()
    flow = Flow(net)
    names = {p: name for name, p in flow.named_parameters()}
    seen, called = [], []

    def watch(layer, inputs, _):
        called.append(layer.weight)
        if inputs[0].isnan().any():
            seen.append(layer.weight)

    for layer in net.modules():
        if isinstance(getattr(layer, "weight", None), nn.Parameter) and layer.weight.ndim > 1:
            layer.register_forward_hook(watch)
    net(torch.full((2, *SHAPE), torch.nan), torch.rand(2))
    tables = ("label_emb.weight", "embedding.label.weight", "registers")

    kernels, others = Muon().split(flow)
    assert len(kernels) + len(others) == len(names)
    assert {*kernels} | {*others} == {*names}
    kept = [p for p in others if p.ndim > 1 and not names[p].endswith(tables)]
    ends = {seen[0], called[-1]}
    assert ends <= {*kept}
    assert {names[p] for p in {*kept} - ends} <= {
        "network.pyramid.0.weight",  # sees x too
        "network.patch_embed.1.weight",  # the second half of a first layer
    }
    assert all(p.ndim > 1 for p in kernels)


def test_a_network_of_every_kind_is_split_here():
    kinds = {member.kind for member in get_args(get_args(NetworkConfig)[0])}
    assert {network.kind for network in NETWORKS.values()} == kinds


def test_which_parameters_go_where_in_numbers():
    unet = UNetConfig(channels=64, num_classes=10).build((3, 32, 32))
    counts = [sum(p.numel() for p in part) for part in Muon().split(unet)]
    assert counts == [8_921_088, 33_795]
    mlp = MLPConfig(width=256, depth=3).build((2,))
    counts = [sum(p.numel() for p in part) for part in Muon().split(mlp)]
    assert counts == [3 * 256**2, 3 * 256 + (2 + 64 + 1) * 256 + (256 + 1) * 2]


def test_a_network_without_the_names_of_its_ends_is_refused_and_told():
    hidden = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    net = nn.ModuleDict({"stem": nn.Linear(2, 4), "body": hidden, "head": nn.Linear(4, 2)})
    with pytest.raises(ValueError, match=r"first layer.*name it in train\.optimizer\.first"):
        Muon().split(net)
    kernels, others = Muon(first=("stem",), last=("head",)).split(net)
    assert [len(kernels), len(others)] == [2, 6]
    with pytest.raises(ValueError, match=r"last layer"):
        Muon(first=("stem",)).split(net)
    with pytest.raises(ValueError, match=r"has none; use adamw"):
        Muon(first=("stem", "body"), last=("head",)).split(net)


def test_a_grouped_convolution_is_no_matrix():
    net = nn.ModuleDict({"inp": nn.Linear(2, 4), "out": nn.Linear(4, 2)})
    net["mix"], net["deep"] = nn.Conv2d(4, 4, 3, groups=4), nn.Conv2d(4, 4, 3)
    assert Muon().split(net)[0] == [net["deep"].weight]


@pytest.mark.parametrize("shape", [(64, 48), (32, 96), (40, 16, 3, 3), (24, 16, 3)])
def test_the_update_is_the_orthogonal_part_of_the_gradient(shape):
    """The same singular vectors; singular values near those of U V^T."""
    torch.manual_seed(0)
    u, s, vt = torch.linalg.svd(torch.randn(shape).flatten(1), full_matrices=False)
    gradient = (u * s.clamp_min(s[0] / 50) @ vt).view(shape)
    rows, columns = u.shape[0], vt.shape[1]
    found = update(torch.randn(shape), gradient).flatten(1) / (0.2 * max(rows, columns) ** 0.5)
    inner = u.T @ found @ vt.T
    values = inner.diagonal()
    assert 0.6 < values.min() <= values.max() < 1.3
    assert (inner - values.diag()).norm() < 0.03 * values.norm()
    assert (found - u @ inner @ vt).norm() < 0.03 * values.norm()


def test_the_update_is_about_as_large_as_adamws_whatever_the_shape():
    torch.manual_seed(0)
    for shape in ((16, 512), (128, 128), (256, 32, 3, 3)):
        rms = update(torch.zeros(shape), torch.randn(shape)).square().mean().sqrt()
        assert 0.15 < rms < 0.22


@pytest.mark.parametrize(("nesterov", "at_once"), [(True, 2**24), (False, 2**24), (True, 1)])
def test_matrices_are_trained_as_by_torchs_muon_bit_for_bit(nesterov, at_once, monkeypatch):
    """Kernels as their flattened matrices, those of one shape together or not."""
    monkeypatch.setattr("flowmatch.training.muon._AT_ONCE", at_once)
    net = layers()
    config = Muon(nesterov=nesterov, momentum=0.9, weight_decay=0.1)
    kernels = config.split(net)[0]
    twins = [p.detach().flatten(1).clone() for p in kernels]
    optimizer = config.build(net, 0.01)
    theirs = torch.optim.Muon(
        twins,
        lr=0.01,
        momentum=0.9,
        nesterov=nesterov,
        weight_decay=0.1,
        adjust_lr_fn="match_rms_adamw",
    )
    for number in range(5):
        gradients(net.parameters(), number)
        for p, twin in zip(kernels, twins, strict=True):
            twin.grad = p.grad.flatten(1)
        optimizer.step()
        theirs.step()
    assert len(twins) == 4
    for p, twin in zip(kernels, twins, strict=True):
        assert torch.equal(p.flatten(1), twin)


def test_the_rest_is_trained_as_by_torchs_adamw_bit_for_bit():
    net, twin = layers(), layers()
    config = Muon(betas=(0.8, 0.95), eps=1e-6, weight_decay=0.1)
    theirs = torch.optim.AdamW(
        config.split(twin)[1],
        lr=0.01,
        betas=config.betas,
        eps=config.eps,
        weight_decay=0.1,
        fused=True,
    )
    steps(config.build(net, 0.01), list(net.parameters()), range(5))
    steps(theirs, list(twin.parameters()), range(5))
    for ours, other in zip(config.split(net)[1], config.split(twin)[1], strict=True):
        assert torch.equal(ours, other)


@pytest.mark.parametrize("kernel", [1, 3])
def test_channels_last_is_trained_alike(kernel):
    torch.manual_seed(0)
    weight, gradient = torch.randn(2, 24, 16, kernel, kernel)
    last = {"memory_format": torch.channels_last}
    plain = update(weight, gradient)
    for other in (gradient, gradient.contiguous(**last)):
        found = update(weight.contiguous(**last), other)
        assert (found - plain).norm() < 0.02 * plain.norm()  # bf16 sums in another order


def test_a_kernel_as_a_matrix_shares_its_memory_in_every_format():
    for shape in (
        (6, 5),
        (6, 5, 1),
        (6, 5, 3),
        (6, 5, 3, 3),
        (6, 1, 3, 3),
        (6, 5, 1, 1),
        (1, 5, 3, 3),
    ):
        weight = torch.randn(shape)
        layouts = [weight]
        if weight.ndim == 4:
            layouts.append(weight.contiguous(memory_format=torch.channels_last))
        for layout in layouts:
            matrix = as_matrix(layout, like=layout)
            assert matrix.shape == (shape[0], layout[0].numel())
            assert matrix.data_ptr() == layout.data_ptr()
            torch.testing.assert_close(matrix.sort(1)[0], weight.flatten(1).sort(1)[0])


def saved_and_loaded(optimizer):
    """Its state through a file of plain data, as in a checkpoint."""
    file = io.BytesIO()
    torch.save(optimizer.state_dict(), file)
    file.seek(0)
    return torch.load(file, weights_only=True)


def assert_same_state(a, b):
    assert a["param_groups"] == b["param_groups"]
    assert a["state"].keys() == b["state"].keys()
    for ours, theirs in zip(a["state"].values(), b["state"].values(), strict=True):
        assert ours.keys() == theirs.keys()
        assert all(torch.equal(ours[name], theirs[name]) for name in ours)


@each_optimizer
@pytest.mark.parametrize("form", [torch.contiguous_format, torch.channels_last])
def test_a_resumed_optimizer_is_the_straight_one_bit_for_bit(config, form):
    straight, halves = layers().to(memory_format=form), layers().to(memory_format=form)
    optimizer = config.build(straight, 1e-3)
    steps(optimizer, list(straight.parameters()), range(10))

    first = config.build(halves, 1e-3)
    steps(first, list(halves.parameters()), range(5))
    state = saved_and_loaded(first)
    assert_same_state(state, first.state_dict())
    again = copy.deepcopy(halves)
    second = config.build(again, 1e-3)
    second.load_state_dict(state)
    steps(second, list(again.parameters()), range(5, 10))

    for ours, theirs in zip(straight.parameters(), again.parameters(), strict=True):
        assert torch.equal(ours, theirs)
    assert_same_state(optimizer.state_dict(), second.state_dict())


@each_optimizer
def test_a_run_goes_on_in_another_memory_format(config):
    net = layers()
    optimizer = config.build(net, 1e-3)
    steps(optimizer, list(net.parameters()), range(3))
    moved = copy.deepcopy(net).to(memory_format=torch.channels_last)
    other = config.build(moved, 1e-3)
    other.load_state_dict(saved_and_loaded(optimizer))
    steps(optimizer, list(net.parameters()), range(3, 5))
    steps(other, list(moved.parameters()), range(3, 5))
    for (name, ours), theirs in zip(net.named_parameters(), moved.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-4, msg=name)


def test_the_state_of_another_optimizer_is_refused():
    net = layers()
    narrow = Muon(first=("inp", "conv"))
    saved = [AdamW().build(net, 1.0), Muon().build(net, 1.0), narrow.build(net, 1.0)]
    for mine, other in itertools.permutations(saved, 2):
        with pytest.raises(ValueError, match=r"groups of \[.*\] parameters, this run's of"):
            mine.load_state_dict(other.state_dict())


@each_optimizer
def test_the_rate_of_a_step_is_that_of_its_groups(config):
    net = layers()
    before = [p.clone() for p in net.parameters()]
    optimizer = config.build(net, 1e-3)
    for group in optimizer.param_groups:
        group["lr"] = 0.0
    steps(optimizer, list(net.parameters()), range(2))
    assert all(torch.equal(p, q) for p, q in zip(net.parameters(), before, strict=True))
    for group in optimizer.param_groups:
        group["lr"] = 1e-3
    steps(optimizer, list(net.parameters()), range(1))
    assert not any(torch.equal(p, q) for p, q in zip(net.parameters(), before, strict=True))


@each_optimizer
def test_parameters_without_gradients_stay(config):
    net = layers()
    before = [p.clone() for p in net.parameters()]
    optimizer = config.build(net, 1e-3)
    optimizer.step()
    net["conv"].weight.grad = torch.ones_like(net["conv"].weight)
    optimizer.step()
    changed = [not torch.equal(p, q) for p, q in zip(net.parameters(), before, strict=True)]
    assert sum(changed) == 1


@each_optimizer
def test_accelerate_clips_scales_and_steps_it(config):
    """Gradients that overflowed in fp16 are seen, wherever they are, and their step is left out."""
    AcceleratorState._reset_state(reset_partial_state=True)
    accelerator = Accelerator(cpu=True)
    net = layers()
    optimizer = accelerator.prepare(config.build(net, 1e-2))
    gradients(net.parameters(), 0)
    accelerator.clip_grad_norm_(net.parameters(), 1e-3)
    assert sum(p.grad.square().sum() for p in net.parameters()).sqrt() == pytest.approx(1e-3)
    optimizer.step()
    optimizer.zero_grad()
    assert all(p.grad is None for p in net.parameters())

    inner, scaler = optimizer.optimizer, torch.amp.GradScaler("cpu", init_scale=8.0)
    for bad in (net["conv"].weight, net["inp"].bias):
        before = [p.clone() for p in net.parameters()]
        gradients(net.parameters(), 1)
        scaler.scale(torch.ones(()))
        bad.grad[0] = torch.inf
        scaler.step(inner)
        scaler.update()
        assert all(torch.equal(p, q) for p, q in zip(net.parameters(), before, strict=True))
    gradients(net.parameters(), 2)
    expected = [p.grad / scaler.get_scale() for p in net.parameters()]
    scaler.unscale_(inner)
    for p, gradient in zip(net.parameters(), expected, strict=True):
        torch.testing.assert_close(p.grad, gradient)


@each_optimizer
def test_least_squares_goes_down(config):
    torch.manual_seed(0)
    net = MLPConfig(width=16, depth=2).build((4,))
    x, t = torch.randn(256, 4), torch.zeros(256)
    target = x @ torch.randn(4, 4)
    optimizer = config.build(net, 3e-3)

    def loss():
        optimizer.zero_grad()
        value = (net(x, t) - target).square().mean()
        value.backward()
        return value.detach()

    losses = [float(optimizer.step(loss)) for _ in range(150)]
    assert losses[-1] < 0.05 * losses[0]
    assert all(late < early for early, late in itertools.pairwise(losses[::50]))


def a_config(*overrides):
    content = {"data": {"kind": "digits"}, "network": {"kind": "mlp"}, "train": {"steps": 1}}
    return parse_config(content, overrides).train.optimizer


def test_configs_name_an_optimizer_and_mean_adamw_if_they_do_not():
    assert a_config() == AdamW()
    assert a_config("train.optimizer.weight_decay=0.1") == AdamW(weight_decay=0.1)
    assert a_config("train.optimizer.kind=adamw") == AdamW()
    assert a_config("train.optimizer.kind=muon", "train.optimizer.first=[stem]") == Muon(
        first=("stem",)
    )
    for override, message in (
        ("train.optimizer.kind=moun", "unknown kind 'moun'; did you mean muon.*adamw, muon"),
        ("train.optimizer={kind: muon, momentun: 1}", "momentun: unknown key; did you mean mom"),
        ("train.optimizer.wieght_decay=1", "wieght_decay: unknown key; did you mean weight_d"),
        ("train.optimizer.eps=0", "train.optimizer: eps must be positive"),
        ("train.optimizer.weight_decay=-1", "weight_decay cannot be negative"),
        ("train.optimizer={kind: muon, momentum: 1}", r"momentum lies in \[0, 1\)"),
        ("train.optimizer={kind: muon, betas: [1, 0]}", r"betas lie in \[0, 1\)"),
    ):
        with pytest.raises(ValueError, match=message):
            a_config(override)
