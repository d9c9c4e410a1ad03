"""The order of a streamed set: every sample once an epoch, whoever asks for what, from anywhere."""

from __future__ import annotations

import itertools

import pytest
import torch

from flowmatch.data import LaneOrder, Streaming
from flowmatch.training.draws import Split

UNEVEN = torch.tensor([5, 1, 12, 7, 3, 9, 8, 3])  # 48 samples
STREAM = Streaming(lanes=4, buffer=5)


def order(counts=UNEVEN, streaming=STREAM, *, seed=0, batch=8, processes=1) -> LaneOrder:
    return LaneOrder(counts, streaming, seed=seed, batch=batch, processes=processes)


def piece_of(indices: torch.Tensor) -> set[int]:
    return set(torch.searchsorted(UNEVEN.cumsum(0), indices, right=True).tolist())


def batches(made: LaneOrder, count: int, batch: int = 8, start: int = 0) -> torch.Tensor:
    return torch.cat([made.rows(start + k * batch, 0, batch) for k in range(count)])


@pytest.mark.parametrize("epoch", [0, 1, 2])
def test_an_epoch_holds_every_sample_once(epoch):
    seen = batches(order(), 18)[48 * epoch : 48 * (epoch + 1)]
    assert seen.sort().values.tolist() == list(range(48))


def test_epochs_and_seeds_differ_and_nothing_else_does():
    made = order()
    first, second = batches(made, 12).chunk(2)
    assert not torch.equal(first, second)
    assert torch.equal(batches(order(), 6), first)
    assert not torch.equal(batches(order(seed=1), 6), first)


@pytest.mark.parametrize(("length", "lanes", "buffer"), [(50, 4, 5), (13, 3, 100), (7, 7, 1)])
def test_each_lane_ends_its_epoch_before_the_next(length, lanes, buffer):
    """Of lanes that differ in length by one, too: each visits its own part of the line, whole."""
    counts = torch.tensor([length - length // 2, length // 2])
    made = order(counts, Streaming(lanes=lanes, buffer=buffer), batch=lanes)
    rows = torch.stack([made.rows(lanes * k, 0, lanes) for k in range(3 * length)])
    cuts = [lane * length // lanes for lane in range(lanes + 1)]
    for epoch in range(2):
        seen = []
        for lane, (a, b) in enumerate(itertools.pairwise(cuts)):
            seen.append(rows[epoch * (b - a) : (epoch + 1) * (b - a), lane])
        assert torch.cat(seen).sort().values.tolist() == list(range(length))


def test_any_position_is_found_without_those_before_it():
    whole = batches(order(), 40).view(40, 8)
    for step in (39, 7, 0, 23):
        assert torch.equal(order().rows(8 * step, 0, 8), whole[step])
        assert torch.equal(order().rows(8 * step, 3, 7), whole[step, 3:7])


def test_a_change_of_batch_leaves_no_sample_out():
    seen = [batches(order(batch=8), 3, 8), batches(order(batch=12), 2, 12, start=24)]
    assert torch.cat(seen).sort().values.tolist() == list(range(48))


@pytest.mark.parametrize(("processes", "accumulate"), [(1, 2), (2, 1), (2, 2), (4, 1), (1, 3)])
def test_processes_and_parts_only_decide_who_reads_a_row(processes, accumulate):
    batch = 24
    for step in range(6):
        whole = order(batch=batch).rows(batch * step, 0, batch)
        found = torch.full((batch,), -1)
        for rank in range(processes):
            mine = order(batch=batch, processes=processes)
            for part in Split(batch, accumulate, processes, rank).parts(0, step):
                found[part.start : part.stop] = mine.rows(batch * step, part.start, part.stop)
        assert torch.equal(found, whole)


def test_a_process_opens_the_pieces_of_its_lanes_alone():
    """Over an epoch, two processes share no piece but one that a border between lanes cuts."""
    counts = torch.full((32,), 6)
    ends = counts.cumsum(0)
    made = order(counts, Streaming(lanes=4, buffer=12), batch=8)
    opened = []
    for rank in range(2):
        (part,) = Split(8, 1, 2, rank).parts(0, 0)
        rows = torch.cat([made.rows(8 * k, part.start, part.stop) for k in range(192 // 8)])
        opened.append(set(torch.searchsorted(ends, rows, right=True).tolist()))
        assert len(rows) == 96
    assert not opened[0] & opened[1]
    assert len(opened[0]) == len(opened[1]) == 16


def test_few_pieces_are_open_at_a_time():
    """A window of 12 lies in 2 or 3 pieces of 6, so 4 lanes have at most 4 * 3 of 64 open."""
    counts = torch.full((64,), 6)
    made = order(counts, Streaming(lanes=4, buffer=12), batch=4)
    rows = torch.stack([made.rows(4 * k, 0, 4) for k in range(96)])
    pieces = torch.searchsorted(counts.cumsum(0), rows, right=True)
    for lane in range(4):
        first, last = {}, {}
        for k, piece in enumerate(pieces[:, lane].tolist()):
            first.setdefault(piece, k)
            last[piece] = k
        most = max(sum(first[p] <= k <= last[p] for p in first) for k in range(96))
        assert most <= 3


def test_neighbours_are_shuffled_and_windows_end_at_different_times():
    counts = torch.tensor([400])
    made = order(counts, Streaming(lanes=4, buffer=20), batch=4)
    rows = torch.stack([made.rows(4 * k, 0, 4) for k in range(100)])
    assert (rows.diff(dim=0) == 1).float().mean() < 0.15
    for lane in range(4):
        start, shift = 100 * lane, 5 * lane
        window = rows[: 20 - shift, lane].sort().values
        assert window.tolist() == list(range(start, start + 20 - shift))


def test_lanes_of_rows():
    assert order(batch=8).lanes(2, 7).tolist() == [1, 1, 2, 2, 3]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"batch": 10}, r"train\.batch=10 is no multiple of data\.stream\.lanes=4: .*; change"),
        ({"batch": 24, "processes": 3}, "lanes=4 cannot be dealt to 3 processes; make it a mult"),
        ({"counts": torch.tensor([3])}, r"3 samples do not fill data\.stream\.lanes=4; lower it"),
    ],
)
def test_what_does_not_go_together_is_refused(options, message):
    with pytest.raises(ValueError, match=message):
        order(**options)


@pytest.mark.parametrize("name", ["lanes", "buffer"])
def test_impossible_settings(name):
    with pytest.raises(ValueError, match=rf"stream\.{name} must be at least 1, got 0"):
        Streaming(**{name: 0})
