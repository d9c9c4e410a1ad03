"""Whatever part of a recipe is used: a resumed run is the straight run, a split changes nothing."""

import pytest
import torch
from accelerate.state import AcceleratorState
from test_trainer import assert_same_bits, weights

from flowmatch.config import load_config
from flowmatch.runs import build_trainer
from flowmatch.training.checkpoint import read_state

TOLD = "network.conditions={augment: {kind: vector, dim: 9, when_absent: zero}}"
PARTS = {
    "adaptive": ["loss.time={kind: stratified, of: {kind: adaptive, bins: 4}}"],
    "uncertainty": ["loss.weighting.kind=uncertainty"],
    "stratified": ["loss.time={kind: stratified, of: {kind: log_normal}}"],
    "augmented": ["train.augment={kind: geometric, probability: 0.5}", TOLD],
    "muon": ["train.optimizer.kind=muon"],
    "averages": ["train.ema=[{kind: power, std: 0.2}, {decay: 0.5}]"],
    "preconditioned": ["predict={kind: edm}", "loss.space=prediction"],
    "pseudo-huber": ["loss.distance.kind=pseudo_huber", "predict=x1"],
}
each = pytest.mark.parametrize("options", PARTS.values(), ids=PARTS.keys())


def train(config, run_dir, *options, resume=None):
    AcceleratorState._reset_state(reset_partial_state=True)
    return build_trainer(load_config(config, options), run_dir, resume=resume).run()


@each
def test_a_resumed_run_is_the_straight_run_bit_for_bit(tiny, tmp_path, options):
    straight = train(tiny, tmp_path / "run", *options).checkpoint
    kept = straight.rename(tmp_path / "straight")
    again = train(tiny, tmp_path / "run", *options, resume="latest").checkpoint
    assert_same_bits(again, kept)
    ours, theirs = read_state(again)["learned"], read_state(kept)["learned"]
    assert (ours is None) == (theirs is None)
    for name, value in (theirs or {}).items():
        assert torch.equal(ours[name], value), name


@each
def test_accumulated_parts_give_the_same_run(tiny, tmp_path, options):
    same = ("network.dropout=0.3", "train.batch=32", "train.steps=3", *options)
    whole = train(tiny, tmp_path / "whole", *same).checkpoint
    split = train(tiny, tmp_path / "split", *same, "train.accumulate=4").checkpoint
    ours, theirs = weights(whole), weights(split)
    # what Muon orthogonalises has small singular values, which rounding moves
    atol = 2e-4 if "train.optimizer.kind=muon" in options else 1e-5
    for name in ours:
        torch.testing.assert_close(ours[name], theirs[name], rtol=1e-3, atol=atol)
