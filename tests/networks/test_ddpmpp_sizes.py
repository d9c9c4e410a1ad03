from dataclasses import replace

import pytest
import torch
from pydantic import TypeAdapter

from flowmatch.networks import DDPMPPConfig, NetworkConfig
from flowmatch.networks.conditions import Vector
from flowmatch.networks.ddpmpp_sizes import SIZES


def count(config, height):
    with torch.device("meta"):
        net = config.build((3, height, height))
    return sum(parameter.numel() for parameter in net.parameters())


def conv(inputs, outputs, size=3):
    return size * size * inputs * outputs + outputs


def block(inputs, outputs, *, embedding, resampled=False, attention=False):
    skip = conv(inputs, outputs, 1) if inputs != outputs or resampled else 0
    attended = 2 * outputs + conv(outputs, 3 * outputs, 1) + conv(outputs, outputs, 1)
    return (
        2 * inputs
        + conv(inputs, outputs)
        + conv(embedding, outputs, 1)
        + 2 * outputs
        + conv(outputs, outputs)
        + skip
        + attention * attended
    )


def counted_by_hand(widths, attention_level, *, features, residual, blocks=4, channels=128):
    """Parameters of a network for RGB images, level by level."""
    e = 4 * channels
    total = conv(features, e, 1) + conv(e, e, 1) + conv(3, channels)
    skips, h = [channels], channels
    for level, width in enumerate(widths):
        if level > 0:
            total += block(h, h, embedding=e, resampled=True)
            total += residual * conv(3 if level == 1 else widths[level - 2], h)
            skips.append(h)
        for _ in range(blocks):
            total += block(h, width, embedding=e, attention=level == attention_level)
            skips.append(h := width)
    total += block(h, h, embedding=e, attention=True) + block(h, h, embedding=e)
    for level, width in reversed(list(enumerate(widths))):
        if level < len(widths) - 1:
            total += block(h, h, embedding=e, resampled=True)
        for last in [False] * blocks + [True]:
            attention = last and level == attention_level
            total += block(h + skips.pop(), width, embedding=e, attention=attention)
            h = width
    assert not skips
    return total + 2 * h + conv(h, 3)


@pytest.mark.parametrize(
    ("size", "height", "millions"),
    [
        ("cifar10", 32, 55.7),
        ("ffhq64", 64, 61.8),
        ("afhq64", 64, 61.8),
        ("ncsnpp-cifar10", 32, 56.4),
        ("ncsnpp-ffhq64", 64, 62.8),
        ("ncsnpp-afhq64", 64, 62.8),
    ],
)
def test_parameters_of_the_published_sizes(size, height, millions):
    """55.7 million is published by Karras et al.; the others rest on the count by hand alone."""
    ncsnpp = size.startswith("ncsnpp")
    widths, level = ([256] * 3, 1) if height == 32 else ([128, 256, 256, 256], 2)
    expected = counted_by_hand(widths, level, features=128 * (1 + ncsnpp), residual=ncsnpp)
    assert count(DDPMPPConfig(size=size), height) == expected
    assert round(expected / 1e6, 1) == millions


def test_classes_and_augmentation_add_their_vectors():
    augment = {"augment": Vector(dim=9, when_absent="zero")}
    plain = count(DDPMPPConfig(), 32)
    augmented = count(DDPMPPConfig(conditions=augment), 32)
    assert augmented == plain + 9 * 128 == 55_733_891
    both = count(DDPMPPConfig(conditions=augment, num_classes=10), 32)
    assert both == augmented + (10 + 1) * 128


def test_size_fills_in_what_is_not_given():
    config = DDPMPPConfig(size="ncsnpp-ffhq64", dropout=0.3, resample="box")
    assert (config.dropout, config.resample) == (0.3, "box")
    assert (config.embedding, config.encoder) == ("fourier", "residual")
    assert config.multipliers == (1, 2, 2, 2)
    assert config.time_scale == 16
    given = {name: getattr(DDPMPPConfig(), name) for name in SIZES["cifar10"]}
    assert given == SIZES["cifar10"]
    assert replace(config, channels=64).dropout == 0.3


def test_size_from_plain_values_and_back():
    adapter = TypeAdapter(NetworkConfig)
    plain = {"kind": "ddpmpp", "size": "ncsnpp-cifar10", "encoder": "standard"}
    config = adapter.validate_python(plain)
    assert config == DDPMPPConfig(size="ncsnpp-cifar10", encoder="standard")
    assert adapter.dump_python(config)["resample"] == "fir"
    assert adapter.validate_python(adapter.dump_python(config)) == config


def test_time_scale_is_that_of_the_embedding_unless_given():
    assert DDPMPPConfig().time_scale == 1000
    assert DDPMPPConfig(embedding="fourier").time_scale == 16
    assert DDPMPPConfig(embedding="fourier", time_scale=2.0).time_scale == 2
