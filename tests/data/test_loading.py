"""Streaming: the same batches whatever the workers, read lazily, failing in one sentence."""

from __future__ import annotations

import itertools
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace

import pytest
import torch

from flowmatch.data import ImageFolder, MemoryArrays, ShuffledOrder, stream
from flowmatch.data.loading import _with_later, shares
from made_data import make_imagenet


@pytest.fixture
def dataset(tmp_path):
    return replace(make_imagenet(tmp_path), crop="random").build()


def endless(length: int, size: int = 4):
    """Requests in shuffled order, for ever."""
    order = ShuffledOrder(length, seed=0)
    for step in itertools.count():
        uniforms = torch.rand(size, 4, generator=torch.Generator().manual_seed(step))
        yield order.indices(step * size, (step + 1) * size), uniforms


@pytest.mark.parametrize("workers", [1, 2])
def test_batches_do_not_depend_on_the_workers(dataset, workers):
    requests = list(itertools.islice(endless(len(dataset)), 7))
    here = list(stream(dataset, requests, workers=0, device="cpu"))
    there = list(stream(dataset, requests, workers=workers, device="cpu"))
    assert len(here) == len(there) == 7
    for one, other, request in zip(here, there, requests, strict=True):
        assert torch.equal(one.x1, other.x1)
        assert torch.equal(one.cond["label"], other.cond["label"])
        assert torch.equal(one.x1, dataset.batch(*request).x1)


@pytest.mark.parametrize(("workers", "most"), [(0, 3), (2, 3 + 4)])
def test_requests_are_read_only_as_far_as_needed(dataset, workers, most):
    read = 0

    def counted():
        nonlocal read
        for request in endless(len(dataset)):
            read += 1
            yield request

    batches = stream(dataset, counted(), workers=workers, device="cpu")
    assert read == 0
    for _ in range(3):
        next(batches)
    assert 3 <= read <= most
    batches.close()


def test_a_set_in_memory_needs_no_workers():
    points = torch.randn(10, 2)
    batches = stream(MemoryArrays(points), endless(10), workers=4, device="cpu")
    first = next(batches)
    assert not multiprocessing.active_children()
    assert torch.equal(first.x1, points[ShuffledOrder(10, seed=0).indices(0, 4)])


def test_the_global_generator_is_left_alone(dataset):
    before = torch.get_rng_state()
    next(stream(dataset, endless(len(dataset)), workers=1, device="cpu"))
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("workers", [0, 1])
def test_a_bad_file_ends_in_its_sentence(tmp_path, workers):
    config = replace(make_imagenet(tmp_path), memory_gib=0)
    dataset = config.build()
    bad = tmp_path / "train/n01443537/n01443537_2.JPEG"
    bad.write_bytes(bad.read_bytes()[:700])
    requests = [(torch.arange(12), torch.rand(12, 4))]
    with pytest.raises(ValueError, match="unreadable") as caught:
        list(stream(dataset, requests, workers=workers, device="cpu"))
    message = str(caught.value)
    assert message.startswith(str(bad))
    assert message.endswith("; replace or delete it")
    assert "\n" not in message


@pytest.mark.parametrize("count", [1, 2, 5])
def test_requests_know_of_later_ones(count):
    """Two later; the last ones, of which nobody knows what follows, of themselves."""
    asked = [(torch.tensor([k]), torch.rand(1, 4)) for k in range(count)]
    found = list(_with_later(asked, 2))
    assert [request[:2] for request in found] == asked
    later = [int(request[2]) for request in found]
    assert later == [k + 2 if k + 2 < count else k for k in range(count)]


def test_lanes_keep_their_worker_in_all_parts():
    """Of two parts with lanes 0 to 3 and 8 to 11, each of 3 workers has the same ones each time."""
    parts = [torch.arange(4).repeat_interleave(2), torch.arange(8, 12).repeat_interleave(2)]
    assert shares(parts, 3) == [[6, 2, 0], [0, 4, 4]]
    assert shares(parts, 8) == [[2, 2, 2, 2, 0, 0, 0, 0], [0, 0, 0, 0, 2, 2, 2, 2]]
    assert shares(parts[:1], 99) == [[2, 2, 2, 2]]


def test_negative_workers_are_refused():
    with pytest.raises(ValueError, match="workers is -1; pass 0"):
        stream(MemoryArrays(torch.zeros(1, 2)), [], workers=-1, device="cpu")


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere the sender of a signal is unknown")
def test_workers_outlive_signals_to_the_group_but_obey_their_parent(dataset):
    batches = stream(dataset, endless(len(dataset)), workers=1, device="cpu")
    next(batches)
    (worker,) = multiprocessing.active_children()
    os.kill(worker.pid, signal.SIGINT)
    subprocess.run(["kill", "-TERM", str(worker.pid)], check=True)  # not from its parent
    for _ in range(8):
        next(batches)
    assert worker.is_alive()
    worker.terminate()
    worker.join(5)
    assert worker.exitcode == 0


def test_workers_end_with_the_stream(dataset):
    batches = stream(dataset, endless(len(dataset)), workers=2, device="cpu")
    next(batches)
    started = multiprocessing.active_children()
    assert len(started) == 2
    batches.close()
    deadline = time.monotonic() + 10
    while any(worker.is_alive() for worker in started) and time.monotonic() < deadline:
        time.sleep(0.02)
    assert not any(worker.is_alive() for worker in started)


def test_a_folder_may_shrink_while_streaming(tmp_path):
    make_imagenet(tmp_path)
    config = ImageFolder(root=str(tmp_path / "train"), image_size=32, memory_gib=0)
    dataset = config.build()
    (tmp_path / "train/n01440764/n01440764_0.JPEG").unlink()
    with pytest.raises(ValueError, match=r"n01440764_0.JPEG is unreadable \(No such file"):
        dataset.plain(torch.tensor([0]))
