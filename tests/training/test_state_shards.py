"""Tensors in shards are the tensors of one file, whoever reads them and however many wrote them."""

import pytest
import torch
import torch.distributed.checkpoint as dcp
from safetensors.torch import load_file

from flowmatch.training.background import Writers
from flowmatch.training.files import write_tensors
from flowmatch.training.shards import Shard, Stored, files_of, is_stored, whole_file

TENSORS = {
    "kernel": torch.arange(42.0).view(7, 2, 3),
    "bias": torch.arange(3.0),
    "gain": torch.tensor(2.5),
    "count": torch.arange(5),
}
HEADER = {"format": "pt", "step": "3", "title": "EMA"}


@pytest.fixture
def path(tmp_path):
    """A file in three shards, as three processes divide it; what has no rows is the first's."""
    path = tmp_path / "model.safetensors"
    for rank in range(3):
        tensors, starts = {}, {}
        for name in ("kernel", "bias", "count"):
            size = -(-len(TENSORS[name]) // 3)
            rows = TENSORS[name][rank * size : (rank + 1) * size]
            if len(rows):
                tensors[name], starts[name] = rows.clone(), rank * size
        if rank == 0:
            tensors["gain"] = TENSORS["gain"]
        Shard(rank + 1, 3).write(path, tensors, starts, HEADER)
    return path


def test_shards_are_read_as_one_file(path, tmp_path):
    write_tensors(tmp_path / "whole.safetensors", TENSORS, HEADER)
    for stored in (Stored(path), Stored(tmp_path / "whole.safetensors")):
        assert stored.header == HEADER
        assert stored.shapes == {name: list(value.shape) for name, value in TENSORS.items()}
        for name, value in TENSORS.items():
            assert torch.equal(stored.read(name), value)
        for start in range(8):
            for stop in range(start, 8):
                rows = stored.read("kernel", slice(start, stop))
                assert torch.equal(rows, TENSORS["kernel"][start:stop])
    assert is_stored(path)
    assert not path.is_file()


def test_put_together_they_are_the_file_byte_for_byte(path, tmp_path):
    write_tensors(tmp_path / "whole.safetensors", TENSORS, HEADER)
    assert whole_file(path) == path
    assert path.read_bytes() == (tmp_path / "whole.safetensors").read_bytes()
    assert files_of(path) == [path]
    before = path.stat().st_mtime_ns
    assert whole_file(path).stat().st_mtime_ns == before
    assert [p.name for p in tmp_path.glob(".partial*")] == []


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_torch_reads_them_too(path):
    state = {name: torch.zeros_like(value) for name, value in TENSORS.items() if value.ndim}
    reader = dcp.HuggingFaceStorageReader(str(path.with_suffix("")))
    dcp.load(state, storage_reader=reader, no_dist=True)
    for name, value in state.items():
        assert torch.equal(value, TENSORS[name])


def test_shards_that_are_missing_or_damaged(path):
    shards = files_of(path)
    assert [p.name[:14] for p in shards] == ["shard-00001-of", "shard-00002-of", "shard-00003-of"]
    content = shards[1].read_bytes()
    shards[1].write_bytes(content[:-8])
    with pytest.raises(ValueError, match=r"shard-00002.* cannot be read as weights, it may be"):
        Stored(path)
    shards[1].unlink()
    with pytest.raises(ValueError, match=r"has 2 of 3 shards; a checkpoint needs all of them"):
        Stored(path)
    rows = {name: value for name, value in load_file(shards[2]).items() if name == "bias"}
    Shard(2, 3).write(path, rows, {"bias": 1}, HEADER)
    with pytest.raises(ValueError, match="lacks rows of count; it is damaged"):
        Stored(path)
    with pytest.raises(ValueError, match="there is no weights file"):
        Stored(path.with_name("other.safetensors"))


def test_one_writer_needs_no_group():
    done = []
    writers = Writers()
    writers.all(lambda: done.append(1))
    writers.first(lambda: done.append(2))
    assert done == [1, 2]
    assert writers.shard is None
