"""Shards: the same bytes whoever drew them and in however many goes, and never a broken one."""

import io
import json
import os
import tarfile

import numpy as np
import pytest
import torch
from PIL import Image

import flowmatch as fm
from flowmatch.generation import generate
from flowmatch.tensors import to_uint8


@pytest.fixture
def shard_job(job):
    def make(name="a", count=25, **options):
        return job(name, count, **{"format": "webdataset", "shard_size": 10, **options})

    return make


def test_a_shard_holds_its_samples(pull, shard_job, one):
    made = shard_job(classes=(7, 3))
    record = generate(pull, made, one)
    assert (record["seeds"], record["count"], record["shard_size"]) == ("0-24", 25, 10)
    with tarfile.open(made.save_dir / "shard-000001.tar") as tar:
        names = tar.getnames()
        assert names[:3] == ["00010.png", "00010.cls", "00010.json"]
        assert len(names) == 30
        assert {(m.mtime, m.uid, m.gid, m.uname) for m in tar} == {(0, 0, 0, "")}
        picture = np.asarray(Image.open(io.BytesIO(tar.extractfile("00013.png").read())))
        assert tar.extractfile("00013.cls").read() == b"3"
        facts = json.loads(tar.extractfile("00013.json").read())
        assert facts == {"seed": 13, "stream": 8888, "label": 3}
    x0 = fm.noise([13], (3, 8, 8), stream=8888)
    x1 = fm.sample(pull, x0, made.solver, torch.tensor([3]))
    assert np.array_equal(picture, to_uint8(x1)[0].permute(1, 2, 0).numpy())


def test_neither_batch_nor_processes_change_a_byte(pull, shard_job, one, in_processes, contents):
    generate(pull, shard_job("a", batch=7), one)
    expected = contents(shard_job("a").save_dir, "*.tar")
    assert sorted(expected) == [f"shard-00000{i}.tar" for i in range(3)]
    generate(pull, shard_job("b", batch=25), one)
    assert contents(shard_job("b").save_dir, "*.tar") == expected
    for processes in (2, 4):  # of four, one has nothing to do
        made = shard_job(f"of {processes}", batch=3)
        in_processes(lambda p, made=made: generate(pull, made, p), processes)
        assert contents(made.save_dir, "*.tar") == expected


def test_in_two_goes_it_is_the_same(pull, shard_job, one, contents):
    generate(pull, shard_job("a"), one)
    for seeds in ([3, 14], range(13), range(25)):
        record = generate(pull, shard_job("b", seeds=seeds), one)
    assert record["count"] == 25
    assert contents(shard_job("a").save_dir, "*.tar") == contents(shard_job("b").save_dir, "*.tar")


@pytest.mark.parametrize("moment", range(7))
def test_a_kill_at_any_moment_leaves_no_broken_shard(
    pull, shard_job, one, contents, monkeypatch, moment
):
    class Killed(BaseException):
        pass

    left = [moment]

    def deadly(real):
        def operation(*arguments, **options):
            if left[0] == 0:
                raise Killed
            left[0] -= 1
            return real(*arguments, **options)

        return operation

    generate(pull, shard_job("whole"), one)
    expected = contents(shard_job("whole").save_dir, "*.tar")
    made = shard_job("a")
    made.save_dir.mkdir()
    monkeypatch.setattr(tarfile.TarFile, "addfile", deadly(tarfile.TarFile.addfile))
    for name in ("fsync", "replace"):
        monkeypatch.setattr(os, name, deadly(getattr(os, name)))
    left[0] = 2 + 13 * moment  # the record takes two; a shard takes 33
    with pytest.raises(Killed):
        generate(pull, made, one)
    monkeypatch.undo()
    there = contents(made.save_dir, "*.tar")
    assert there.items() <= expected.items()
    generate(pull, made, one)
    assert contents(made.save_dir, "*.tar") == expected


def test_a_damaged_shard_is_named(pull, shard_job, one):
    made = shard_job()
    generate(pull, made, one)
    path = made.save_dir / "shard-000001.tar"
    with path.open("r+b") as file:
        file.truncate(700)
    with pytest.raises(ValueError, match=r"shard-000001.tar is damaged .*; remove it"):
        generate(pull, made, one)
    path.unlink()
    assert generate(pull, made, one)["count"] == 25


def test_points_are_arrays(pull, shard_job, one):
    flow = fm.Flow(pull.network, shape=(2,)).eval()
    made = shard_job(seeds=[4, 12], trajectory="gif")
    generate(flow, made, one)
    with tarfile.open(made.save_dir / "shard-000001.tar") as tar:
        stored = np.load(io.BytesIO(tar.extractfile("00012.npy").read()))
    x0 = fm.noise([12], (2,), stream=8888)
    assert np.array_equal(stored, fm.sample(flow, x0, made.solver, torch.tensor([2]))[0].numpy())
    assert (made.save_dir / "trajectory.gif").is_file()


def test_other_sizes_do_not_mix(pull, shard_job, one):
    generate(pull, shard_job(), one)
    with pytest.raises(ValueError, match="shard_size was 10, is 5"):
        generate(pull, shard_job(shard_size=5), one)
