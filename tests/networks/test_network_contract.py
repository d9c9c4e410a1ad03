"""What every network of the union promises."""

from typing import get_args

import pytest
import torch
from pydantic import TypeAdapter, ValidationError
from torch import nn

from flowmatch.networks import (
    DDPMPPConfig,
    DiTConfig,
    EDM2Config,
    MLPConfig,
    NetworkConfig,
    UNetConfig,
)

MEMBERS = get_args(get_args(NetworkConfig)[0])
SHAPE = (3, 8, 8)
CLASSES = 5
SMALL_UNET = {"channels": 48, "multipliers": (1, 2), "blocks": 1, "attention_resolutions": (4,)}
SMALL_DIT = {"width": 32, "depth": 2, "heads": 2}
SMALL_EDM2 = {**SMALL_UNET, "head_channels": 16}
CONDITIONAL = {
    "ddpmpp-classes": DDPMPPConfig(**SMALL_UNET, num_classes=CLASSES),
    "dit-classes": DiTConfig(**SMALL_DIT, num_classes=CLASSES, registers=2, dropout=0.2),
    "edm2-classes": EDM2Config(**SMALL_EDM2, num_classes=CLASSES),
    "mlp-classes": MLPConfig(width=32, depth=2, num_classes=CLASSES),
    "unet-classes": UNetConfig(
        **SMALL_UNET, num_classes=CLASSES, scale_shift=True, head_channels=16
    ),
}
UNCONDITIONAL = {
    "ddpmpp": DDPMPPConfig(**SMALL_UNET, scale_shift=True),
    "ddpmpp-ncsnpp": DDPMPPConfig(**SMALL_UNET, size="ncsnpp-cifar10"),
    "dit": DiTConfig(**SMALL_DIT, patch=4, patch_rank=8),
    "dit-plain": DiTConfig(**SMALL_DIT, patch=1, qk_norm=False),
    "edm2": EDM2Config(**SMALL_EDM2, dropout=0.2),
    "mlp": MLPConfig(width=32, depth=2),
    "unet": UNetConfig(**SMALL_UNET),
    "unet-legacy": UNetConfig(**SMALL_UNET, conv_resample=False, dropout=0.2, qkv_order="legacy"),
}
CONFIGS = CONDITIONAL | UNCONDITIONAL


def each(configs):
    return pytest.mark.parametrize("config", configs.values(), ids=configs.keys())


def perturbed(config, shape=SHAPE):
    """A network away from its zero-initialised start, in eval mode."""
    torch.manual_seed(0)
    net = config.build(shape).eval()
    for parameter in net.parameters():
        nn.init.normal_(parameter, std=0.1) if parameter.ndim > 1 else parameter.data.add_(0.1)
    return net


def batch(size=4, dtype=torch.float32):
    g = torch.Generator().manual_seed(1)
    x = torch.randn(size, *SHAPE, generator=g, dtype=dtype)
    return x, torch.linspace(0.05, 0.95, size, dtype=dtype)


def a_condition(config, size=4):
    return None if config.num_classes is None else {"label": torch.arange(size) % CLASSES}


@pytest.mark.parametrize("member", MEMBERS)
def test_every_member_of_the_union_is_tested_here(member):
    tested = [config for config in CONFIGS.values() if isinstance(config, member)]
    assert tested, f"add small {member.__name__}s to CONFIGS"


@each(CONFIGS)
def test_config_survives_a_round_trip_through_plain_values(config):
    adapter = TypeAdapter(NetworkConfig)
    assert adapter.validate_json(adapter.dump_json(config)) == config


@pytest.mark.parametrize("member", MEMBERS)
def test_config_refuses_unknown_keys(member):
    with pytest.raises(ValidationError, match="widht"):
        TypeAdapter(NetworkConfig).validate_python({"kind": member.kind, "widht": 3})


@each(CONFIGS)
def test_output_has_shape_and_dtype_of_x(config):
    x, t = batch()
    out = perturbed(config)(x, t, a_condition(config))
    assert out.shape == x.shape
    assert out.dtype == x.dtype
    assert out.isfinite().all()


@each(CONFIGS)
def test_num_classes_is_that_of_the_config(config):
    assert config.build(SHAPE).num_classes == config.num_classes


@each(CONFIGS)
def test_every_parameter_gets_a_finite_gradient(config):
    net, (x, t) = perturbed(config), batch()
    net(x, t, a_condition(config)).square().mean().backward()
    for name, parameter in net.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name
        assert parameter.grad.abs().max() > 0, name


@each(CONFIGS)
def test_output_depends_on_time(config):
    net, (x, t) = perturbed(config), batch()
    assert not torch.allclose(net(x, t), net(x, 1 - t), atol=1e-4)


@each(CONFIGS)
def test_samples_do_not_see_each_other(config):
    net, (x, t) = perturbed(config), batch()
    one_by_one = torch.cat([net(x[i : i + 1], t[i : i + 1]) for i in range(len(x))])
    torch.testing.assert_close(net(x, t), one_by_one, rtol=1e-4, atol=1e-5)


@each(CONDITIONAL)
@pytest.mark.parametrize("missing", [None, {}], ids=["None", "empty"])
def test_no_label_is_the_null_class(config, missing):
    net, (x, t) = perturbed(config), batch()
    null = {"label": torch.full((len(x),), CLASSES)}
    assert torch.equal(net(x, t, missing), net(x, t, null))


@each(CONDITIONAL)
def test_output_depends_on_the_label(config):
    net, (x, t) = perturbed(config), batch(1)
    outs = [net(x, t, {"label": torch.tensor([label])}) for label in range(CLASSES + 1)]
    assert torch.unique(torch.stack(outs).flatten(1), dim=0).shape[0] == CLASSES + 1


@each(CONDITIONAL)
def test_unknown_condition_is_refused(config):
    net, (x, t) = perturbed(config), batch()
    with pytest.raises(ValueError, match=r"\['text'\].*only 'label'"):
        net(x, t, {**a_condition(config), "text": x})


@each(UNCONDITIONAL)
def test_label_for_an_unconditional_network_is_refused(config):
    x, t = batch()
    with pytest.raises(ValueError, match=r"unconditional.*num_classes"):
        config.build(SHAPE)(x, t, {"label": torch.zeros(4, dtype=torch.long)})


@pytest.mark.parametrize("member", MEMBERS)
def test_num_classes_below_one_is_refused(member):
    with pytest.raises(ValueError, match="num_classes is 0"):
        member(num_classes=0)


@each(CONFIGS)
def test_bf16_autocast_is_close(config):
    net, (x, t) = perturbed(config), batch()
    exact = net(x, t, a_condition(config))
    with torch.autocast("cpu", torch.bfloat16):
        rough = net(x, t, a_condition(config))
    assert rough.dtype == torch.float32
    assert (rough - exact).norm() < 0.03 * exact.norm()


@each(CONFIGS)
def test_float64_end_to_end(config):
    net, (x, t) = perturbed(config), batch()
    single = net(x, t, a_condition(config))
    double = net.double()(x.double(), t.double(), a_condition(config))
    assert double.dtype == torch.float64
    torch.testing.assert_close(single, double.float(), rtol=1e-3, atol=1e-3)


@each(CONFIGS)
def test_state_dict_round_trip_and_determinism_in_eval_mode(config):
    net, (x, t) = perturbed(config), batch()
    copy = config.build(SHAPE).eval()
    copy.load_state_dict(net.state_dict())
    assert torch.equal(net(x, t, a_condition(config)), copy(x, t, a_condition(config)))
