"""`train.ema` and `train.post_hoc` in YAML: every form that is meant, a sentence for the rest."""

import pytest

from flowmatch.config import load_config, parse_config, to_plain
from flowmatch.training.ema import Exponential, Power
from flowmatch.training.snapshots import PostHoc


@pytest.fixture
def parse(tiny):
    """The train node of the tiny config with changes."""
    return lambda *changes: load_config(tiny, changes).train


SEVERAL = "train.ema=[{kind: power, std: 0.05}, {decay: 0.999}]"


@pytest.mark.parametrize(
    ("change", "profiles"),
    [
        ("train.ema={decay: 0.99}", [Exponential(decay=0.99)]),
        ("train.ema.decay=0.99", [Exponential(decay=0.99)]),
        (
            "train.ema={kind: exponential, decay: null, halflife_images: 500000}",
            [Exponential(halflife_images=500_000)],
        ),
        ("train.ema={kind: power, std: 0.05}", [Power(std=0.05)]),
        (SEVERAL, [Power(std=0.05), Exponential(decay=0.999)]),
        ("train.post_hoc.every_steps=1", [Exponential(decay=0.9), Power(std=0.05), Power(std=0.1)]),
    ],
)
def test_the_forms(tiny, change, profiles):
    config = load_config(tiny, [change])
    assert config.train.profiles == tuple(profiles)
    assert parse_config(to_plain(config)) == config


def test_the_kind_and_its_std_may_come_one_by_one(parse):
    train = parse("train.ema.kind=power", "train.ema.std=0.1")
    assert train.ema == Power(std=0.1)


def test_one_of_several_is_changed_by_its_number(parse):
    assert parse(SEVERAL, "train.ema.1.decay=0.5").profiles[1] == Exponential(decay=0.5)
    other = parse(SEVERAL, "train.ema.1.kind=power", "train.ema.1.std=0.2")
    assert other.profiles[1] == Power(std=0.2)
    assert parse(SEVERAL, "train.ema={decay: 0.3}").profiles == (Exponential(decay=0.3),)


def test_a_width_that_is_tracked_already_is_not_tracked_twice(parse):
    train = parse(SEVERAL, "train.post_hoc={stds: [0.05, 0.1], every_steps: 1}")
    assert [p.name for p in train.profiles] == ["std0.05", "decay0.999", "std0.1"]
    assert train.post_hoc == PostHoc(stds=(0.05, 0.1), every_steps=1)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (["train.ema.std=0.1"], r"train\.ema: has a std but no kind; std is of kind: power"),
        (["train.ema.kind=powr"], r"train\.ema\.kind: unknown kind 'powr'; did you mean power\?"),
        (["train.ema.kind=power"], r"train\.ema\.std: is missing"),
        (["train.ema={kind: power, std: 0.4}"], r"train\.ema: the relative std .* got 0\.4"),
        (["train.ema={kind: power, std: wide}"], r"train\.ema\.std: .*number.* got 'wide'"),
        (["train.ema.dcay=0.1"], r"train\.ema\.dcay: unknown key; did you mean decay\?"),
        (
            ["train.ema={kind: power, std: 0.1, decay: 0.1}"],
            r"\.decay: unknown key; known of kind p",
        ),
        (
            ["train.ema={halflife_images: 9}"],
            r"train\.ema: give decay or halflife_images, not both",
        ),
        (["train.ema=[]"], "empty list"),
        (["train.ema=[{decay: 0.1}, {decay: 0.1}]"], r"train\.ema has decay0\.1 twice"),
        (["train.ema=[{decay: 0.1}, {kind: power}]"], r"train\.ema\.1\.std: is missing"),
        (
            ["train.ema=[{dcay: 0.1}]"],
            r"train\.ema\.0\.dcay: .*mean decay\?; known of kind exp.*decay,",
        ),
        (["train.ema=[{kind: pwr}]"], r"train\.ema\.0\.kind: unknown kind 'pwr'"),
        ([SEVERAL, "train.ema.decay=0.5"], r"train\.ema is a list; .* e\.g\. train\.ema\.0\.decay"),
        (["train.post_hoc.stds=[0.05]"], r"train\.post_hoc: give every_steps or every_images"),
        (["train.post_hoc={every_steps: 1, every_images: 9}"], r"train\.post_hoc: .*exactly one"),
        (["train.post_hoc.every_images=0"], r"train\.post_hoc: every_images must be at least 1"),
        (["train.post_hoc={stds: [0.1, 0.1], every_steps: 1}"], r"post_hoc: .*all different"),
        (["train.post_hoc={stds: [], every_steps: 1}"], r"train\.post_hoc: stds are one or more"),
        (
            ["train.post_hoc={stds: [0.5], every_steps: 1}"],
            r"post_hoc: the relative std .* got 0\.5",
        ),
        (["train.post_hoc={stds: [x], every_steps: 1}"], r"train\.post_hoc\.stds\.0: .* got 'x'"),
        (["train.post_hoc={std: [0.1], every_steps: 1}"], r"std: unknown key; did you mean stds\?"),
        (
            ["train.post_hoc={every_steps: 1, precision: bf16}"],
            r"post_hoc\.precision: .*known: fp32, fp16",
        ),
    ],
)
def test_mistakes(parse, changes, message):
    with pytest.raises(ValueError, match=message):
        parse(*changes)
