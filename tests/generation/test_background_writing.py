"""Writing beside the sampling: bounded, complete at the end, and its errors are heard."""

import threading
import time

import pytest
from PIL import Image

from flowmatch.generation import generate, images
from flowmatch.generation.writing import AHEAD, BackgroundWriter


def test_all_is_written_at_the_end():
    done = []
    with BackgroundWriter(done.append, threads=3) as writer:
        for i in range(100):
            writer.put(i)
    assert sorted(done) == list(range(100))


def test_it_runs_beside_the_caller_and_no_further_ahead_than_its_bound():
    gate, begun = threading.Event(), []

    def slow(piece):
        begun.append(piece)
        gate.wait(10)

    with BackgroundWriter(slow, threads=2) as writer:
        for i in range(2 * (1 + AHEAD)):  # nobody waits for these
            writer.put(i)
        assert writer.waited < 1
        threading.Timer(0.2, gate.set).start()
        writer.put("one too many")
        assert gate.is_set()  # put waited until a thread was free
        assert writer.waited > 0.1


def test_an_error_ends_the_job_with_its_message():
    def full(piece):
        if piece == 3:
            raise OSError(28, "No space left on device")

    def job(pieces):
        with BackgroundWriter(full) as writer:
            for i in range(pieces):
                writer.put(i)
                time.sleep(0.001)

    for pieces in (4, 10_000):  # heard at the end, or on the way
        with pytest.raises(OSError, match="No space left"):
            job(pieces)


def test_an_interrupt_drops_what_waits():
    done, gate = [], threading.Event()

    def write(piece):
        gate.wait(10)
        done.append(piece)

    def job():
        with BackgroundWriter(write, threads=1) as writer:
            for i in range(4):
                writer.put(i)
            threading.Timer(0.2, gate.set).start()
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        job()
    assert done == [0]


def test_a_job_that_fails_in_the_middle_leaves_whole_files(pull, job, one, contents, monkeypatch):
    real, calls = images.encode_png, []

    def encode(image):
        calls.append(None)
        if len(calls) > 11:
            raise OSError(28, "No space left on device")
        return real(image)

    monkeypatch.setattr(images, "encode_png", encode)
    made = job(count=100, batch=20)
    with pytest.raises(OSError, match="No space left"):
        generate(pull, made, one)
    monkeypatch.undo()
    there = contents(made.save_dir, "0*.png")
    assert 5 <= len(there) < 100
    for name in there:
        Image.open(made.save_dir / name).verify()
    assert generate(pull, made, one)["count"] == 100
    generate(pull, job("b", count=100), one)
    assert contents(made.save_dir, "0*.png") == contents(job("b").save_dir, "0*.png")
