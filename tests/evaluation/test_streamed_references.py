"""A streamed set as a reference: its statistics are those of its images."""

from dataclasses import replace

import pytest
import torch

from flowmatch.data import Streaming
from flowmatch.evaluation.references import Reference, fit_resolution
from flowmatch.evaluation.statistics import compute_statistics
from flowmatch.features import fitting
from made_data import MAKERS


@pytest.fixture(params=["hub", "shards"])
def config(request, tmp_path, monkeypatch):
    monkeypatch.setenv("FLOWMATCH_CACHE", str(tmp_path / "cache"))
    changes = {"hub": {"num_classes": 3}, "shards": {"memory_gib": 0.0}}[request.param]
    made = MAKERS[request.param](tmp_path)
    return replace(made, stream=Streaming(lanes=2, buffer=3), **changes)


def test_statistics_of_a_stream_are_those_of_memory(config, accelerator, projection):
    streamed, net = config.build(), projection((3, 32, 32))
    assert not streamed.in_memory
    held = replace(config, stream=None, memory_gib=1.0).build()
    assert held.in_memory
    ours, theirs = (
        compute_statistics(d, net, accelerator, name="made", batch=4) for d in (streamed, held)
    )
    assert ours.count == theirs.count == len(held)
    torch.testing.assert_close(ours.moments.mean, theirs.moments.mean)
    torch.testing.assert_close(ours.moments.scatter, theirs.moments.scatter)
    torch.testing.assert_close(ours.vectors, theirs.vectors)


def test_features_are_not_fitted_to_what_cannot_be_read_here_and_there(config, monkeypatch):
    monkeypatch.setattr(fitting, "LEAST_SET", 1)
    streamed = config.build()
    assert streamed.random_access == (config.kind == "shards")
    streamed.random_access = False  # as of shards in a distant store
    resized = fit_resolution(Reference("made", streamed, train=streamed), (3, 8, 8), resize=True)
    for train in (streamed, resized.train):
        with pytest.raises(ValueError, match="too slow for when they are streamed; use published"):
            fitting.fit(train, None)
