"""Streamed sets: what memory gives, whoever reads it, each piece once, and clear about damage."""

from __future__ import annotations

import io
import os
import tarfile
from concurrent.futures import wait
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import datasets
import fsspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from fsspec.implementations.asyn_wrapper import AsyncFileSystemWrapper

from flowmatch.data import (
    Hub,
    Latent,
    MemoryImages,
    Shards,
    StreamedImages,
    Streaming,
    hubfiles,
    pieces,
    stream,
    tarsource,
)
from flowmatch.data.tar import write_tar
from flowmatch.training.draws import Split, requests
from made_data import encoded, picture

COUNT, CLASSES, SIZE = 64, 5, 8
STREAM = Streaming(lanes=4, buffer=6)
BATCH = 8


pytestmark = pytest.mark.filterwarnings("ignore:This DataLoader will create 3 worker")


@pytest.fixture(autouse=True)
def _cache(tmp_path, monkeypatch):
    monkeypatch.setenv("FLOWMATCH_CACHE", str(tmp_path / "cache"))


def made(count: int = COUNT) -> list[bytes]:
    return [encoded(picture(SIZE, SIZE, key=k)) for k in range(count)]


def table(images: list[bytes], *, classes: int | None = CLASSES) -> pa.Table:
    features = {"image": datasets.Image(), "label": datasets.Value("int64")}
    if classes is not None:
        features["label"] = datasets.ClassLabel(num_classes=classes)
    rows = {
        "image": [{"bytes": b, "path": None} for b in images],
        "label": [k % CLASSES for k in range(len(images))],
    }
    schema = datasets.Features(features).arrow_schema
    return pa.table(rows, schema=schema)


def write_parquet(folder: Path, **options) -> str:
    """Two files of 33 and 31 rows, in row groups of 7 and what is left."""
    folder.mkdir(parents=True, exist_ok=True)
    rows = table(made(), **options)
    for k, part in enumerate((rows.slice(0, 33), rows.slice(33))):
        pq.write_table(part, folder / f"train-{k:05d}.parquet", row_group_size=7)
    return str(folder)


def write_shards(folder: Path) -> str:
    """Foreign shards, without an index: 25, 25 and 14 images."""
    folder.mkdir(parents=True, exist_ok=True)
    images = made()
    for k in range(3):
        own = range(25 * k, min(25 * k + 25, COUNT))
        samples = ((f"a/{i:04d}", {"png": images[i], "cls": b"%d" % (i % CLASSES)}) for i in own)
        write_tar(folder / f"some-{k}.tar", samples)
    return str(folder)


def hub(path: str, **options) -> Hub:
    options = {"stream": STREAM, "label_column": "label", **options}
    return Hub(path=path, image_size=SIZE, flip=True, **options)


def shards(root: str, **options) -> Shards:
    return Shards(root=root, image_size=SIZE, flip=True, memory_gib=0, stream=STREAM, **options)


@pytest.fixture(params=["parquet", "tar"])
def config(request, tmp_path):
    if request.param == "parquet":
        return hub(write_parquet(tmp_path / "data"))
    return shards(write_shards(tmp_path / "data"))


@pytest.fixture
def small_pieces(monkeypatch):
    """Pieces of tar files as small as the row groups above."""
    monkeypatch.setattr(tarsource, "NEIGHBOURS", 7)


def wanted(dataset, steps, *, images=0, processes=1, rank=0, accumulate=1):
    """The requests of some steps, and the lanes of their rows."""
    order = dataset.order(0, batch=BATCH, processes=processes)
    split = Split(BATCH, accumulate, processes, rank)
    lanes = [order.lanes(part.start, part.stop) for part in split.parts(0, 0)]
    step = images // BATCH
    endless = requests(order, split, seed=0, step=step, images=images)
    return [next(endless) for _ in range(steps * accumulate)], lanes


def labels_of(batches) -> torch.Tensor:
    return torch.cat([batch.cond["label"] for batch in batches])


def test_a_stream_has_the_pixels_and_labels_of_memory(config):
    streamed = config.build()
    assert isinstance(streamed, StreamedImages)
    held = replace(config, memory_gib=2.0, stream=None).build()
    assert isinstance(held, MemoryImages)
    indices, uniforms = torch.randperm(COUNT), torch.rand(COUNT, 4)
    ours, theirs = streamed.batch(indices, uniforms), held.batch(indices, uniforms)
    assert torch.equal(ours.x1, theirs.x1)
    assert torch.equal(ours.cond["label"], theirs.cond["label"])
    assert torch.equal(streamed.plain(indices).x1, held.plain(indices).x1)
    assert (len(streamed), streamed.num_classes, streamed.shape) == (COUNT, CLASSES, (3, 8, 8))


@pytest.mark.parametrize("workers", [1, 2, 3])
def test_batches_do_not_depend_on_the_workers(config, workers, small_pieces):
    dataset = config.build()
    asked, lanes = wanted(dataset, 9)
    here = list(stream(dataset, asked, workers=0, device="cpu", lanes=lanes))
    there = list(stream(dataset, asked, workers=workers, device="cpu", lanes=lanes))
    assert len(here) == len(there) == 9
    for ours, theirs in zip(here, there, strict=True):
        assert torch.equal(ours.x1, theirs.x1)
        assert torch.equal(ours.cond["label"], theirs.cond["label"])


@pytest.mark.parametrize(("processes", "accumulate"), [(2, 1), (1, 2), (2, 2)])
def test_two_or_more_processes_read_the_batch_of_one(config, processes, accumulate):
    dataset = config.build()
    asked, lanes = wanted(dataset, 3)
    whole = torch.cat([b.x1 for b in stream(dataset, asked, workers=0, device="cpu", lanes=lanes)])
    found = torch.empty_like(whole).view(3, BATCH, 3, 8, 8)
    for rank in range(processes):
        asked, lanes = wanted(dataset, 3, processes=processes, rank=rank, accumulate=accumulate)
        parts = Split(BATCH, accumulate, processes, rank).parts(0, 0) * 3
        batches = stream(dataset, asked, workers=2, device="cpu", lanes=lanes)
        for k, (batch, part) in enumerate(zip(batches, parts, strict=True)):
            found[k // accumulate, part.start : part.stop] = batch.x1
    assert torch.equal(found.view_as(whole), whole)


def test_a_stream_resumed_in_the_middle_of_an_epoch_gives_each_sample_once(config):
    dataset = config.build()
    keys = {dataset.plain(torch.tensor([k])).x1.numpy().tobytes(): k for k in range(COUNT)}
    assert len(keys) == COUNT
    seen = []
    for start, steps in ((0, 3), (24, 4), (56, 1)):  # stopped twice
        order = config.build().order(0, batch=BATCH, processes=1)
        again = requests(order, Split(BATCH, 1, 1, 0), seed=0, step=start // BATCH, images=start)
        plain = ((next(again)[0], torch.ones(BATCH, 4)) for _ in range(steps))
        lanes = [order.lanes(0, BATCH)]
        for batch in stream(dataset, plain, workers=2, device="cpu", lanes=lanes):
            seen += [keys[x.numpy().tobytes()] for x in batch.x1]
    assert sorted(seen) == list(range(COUNT))


@pytest.fixture
def opened(monkeypatch, tmp_path):
    """Which process opened which piece, workers included: pairs, in the order of opening."""
    log = tmp_path / "opened"
    real = pieces.PieceSource._opened

    def logged(self, piece):
        if piece not in self._open_now:
            with log.open("a") as file:
                file.write(f"{os.getpid()} {piece}\n")
        return real(self, piece)

    monkeypatch.setattr(pieces.PieceSource, "_opened", logged)

    def read() -> list[tuple[int, int]]:
        lines = log.read_text().splitlines()
        log.unlink()
        return [tuple(map(int, line.split())) for line in lines]

    return read


@pytest.mark.parametrize("workers", [0, 2])
def test_each_piece_is_opened_by_one_worker_once(config, opened, workers, small_pieces):
    """But for those that a border between lanes cuts: of 4 lanes, at most 3."""
    dataset = config.build()
    dataset.source._forget()  # the first piece was looked into
    opened()
    asked, lanes = wanted(dataset, 8)  # an epoch
    list(stream(dataset, asked, workers=workers, device="cpu", lanes=lanes))
    found = opened()
    count = len(dataset.source.counts)
    assert len({piece for _, piece in found}) == count
    assert len(found) == len(set(found)) <= count + (3 if workers else 0)
    assert len({process for process, _ in found}) == max(workers, 1)


def test_without_lanes_to_go_by_every_worker_opens_nearly_every_piece(config, opened, small_pieces):
    """What dealing by lanes saves."""
    dataset = config.build()
    opened()
    asked, _ = wanted(dataset, 8)
    list(stream(dataset, asked, workers=2, device="cpu"))
    assert len(set(opened())) > 1.5 * len(dataset.source.counts)


def test_a_piece_is_closed_when_its_last_sample_was_read(config, small_pieces):
    dataset = config.build()
    asked, lanes = wanted(dataset, 60)
    most = 0
    for _ in stream(dataset, asked, workers=0, device="cpu", lanes=lanes):
        most = max(most, len(dataset.source._open_now))
    assert most <= 4 * 3  # a window of 6 lies in at most 3 pieces of a lane, of which it has 4


def test_a_rest_that_nobody_needs_is_closed(config, small_pieces):
    """As of the pieces that a border between lanes cuts: another worker reads the rest."""
    dataset = config.build()
    dataset.source._forget()
    dataset.source.fetch(torch.tensor([0]))
    kept_for = dataset.source.kept_for
    assert kept_for == 2 * 4 * 6
    dataset.source.fetch(torch.arange(8, 8 + kept_for))
    assert 0 in dataset.source._open_now
    dataset.source.fetch(torch.tensor([63]))
    assert 0 not in dataset.source._open_now


def test_pieces_beyond_the_most_are_closed(config, small_pieces):
    source = config.build().source
    source.most_open = 2
    for index in (0, 10, 20, 30, 0):
        source.fetch(torch.tensor([index]))
    assert len(source._open_now) == 2


@pytest.mark.parametrize("kind", ["parquet", "tar"])
def test_a_store_by_its_url(kind, tmp_path):
    """Here the memory of fsspec; s3:// and hf:// are read by the same calls."""
    write = write_parquet if kind == "parquet" else write_shards
    local = write(tmp_path / "data")
    memory = fsspec.filesystem("memory")
    memory.put(local, f"/bucket-{kind}", recursive=True)
    at = hub if kind == "parquet" else shards
    there, here = at(f"memory://bucket-{kind}").build(), at(local).build()
    assert not there.random_access
    indices = torch.randperm(COUNT)
    ours, theirs = there.plain(indices), here.plain(indices)
    assert torch.equal(ours.x1, theirs.x1)
    assert torch.equal(ours.cond["label"], theirs.cond["label"])
    asked, lanes = wanted(there, 7)
    (first, *_) = stream(there, asked, workers=2, device="cpu", lanes=lanes)
    assert torch.equal(first.x1, there.batch(*asked[0]).x1)


@pytest.fixture
def distant(tmp_path):
    """Shards in the memory of fsspec, and the pieces that are opened of them."""
    local = write_shards(tmp_path / "data")
    memory = fsspec.filesystem("memory")
    memory.put(local, "/distant", recursive=True)
    dataset = shards("memory://distant").build()
    dataset.source._forget()
    real, calls = dataset.source.open, []
    dataset.source.open = lambda piece: calls.append(piece) or real(piece)
    yield dataset, calls
    memory.rm("/distant", recursive=True)


def test_pieces_of_a_distant_store_are_opened_before_they_are_needed(distant):
    dataset, calls = distant
    indices = torch.tensor([0, 30, 1])
    dataset.expect(indices)
    dataset.expect(indices)
    wait(dataset.source._coming.values(), timeout=10)
    assert sorted(calls) == [0, 1]
    plain = dataset.plain(indices).x1
    assert sorted(calls) == [0, 1]
    assert not dataset.source._coming
    assert torch.equal(plain[2], dataset.plain(torch.tensor([1])).x1[0])


def test_damage_that_is_met_ahead_of_time_is_told_when_it_is_needed(distant):
    dataset, _ = distant
    fsspec.filesystem("memory").pipe("/distant/some-1.tar", b"cut")
    dataset.expect(torch.tensor([0, 30]))
    dataset.plain(torch.tensor([0]))
    with pytest.raises(ValueError, match=r"some-1\.tar is damaged \(it is cut short\)"):
        dataset.plain(torch.tensor([30]))


def test_a_store_that_fails_is_told_in_one_sentence(distant):
    dataset, _ = distant

    def broken(path, start, end):
        raise RuntimeError("the connection\nbroke")

    dataset.source._fs = SimpleNamespace(protocol="memory", cat_file=broken)
    with pytest.raises(ValueError, match=r"some-0\.tar cannot be read \(the connection\); if"):
        dataset.plain(torch.tensor([0]))


def test_of_a_local_disk_nothing_is_opened_ahead(config):
    dataset = config.build()
    dataset.expect(torch.arange(COUNT))
    assert not dataset.source._coming


def test_connections_of_the_parent_are_not_used_by_a_worker(tmp_path):
    """An asynchronous store refuses to be used after a fork; each worker makes its own."""
    config = shards(write_shards(tmp_path / "data"))
    index = tarsource.read_index(fsspec.filesystem("file"), str(tmp_path / "data"))
    store = AsyncFileSystemWrapper(fsspec.filesystem("file"))
    distant = config.build()
    distant.source = distant._pieces = tarsource.TarSource(store, index, labelled=True)
    indices, uniforms = torch.arange(COUNT), torch.rand(COUNT, 4)
    here = distant.batch(indices, uniforms)
    (there,) = stream(distant, [(indices, uniforms)], workers=1, device="cpu")
    assert torch.equal(here.x1, there.x1)
    assert torch.equal(here.x1, config.build().batch(indices, uniforms).x1)


def test_files_of_a_hub_set_are_found_by_datasets(tmp_path):
    """A local folder stands for the hub: the same builder resolves both."""
    path = write_parquet(tmp_path / "set/data")
    fs, files = hubfiles._of_hub(str(tmp_path / "set"), None, "train")
    assert [os.path.basename(f) for f in files] == ["train-00000.parquet", "train-00001.parquet"]
    assert files == hubfiles.find_files(path, None, "train", alone=True)[1]
    assert fs.exists(files[0])
    with pytest.raises(ValueError, match=r"has no split 'nonsense' on the hub; it has train"):
        hubfiles._of_hub(str(tmp_path / "set"), None, "nonsense")


def test_foreign_shards_are_looked_through_once(tmp_path, monkeypatch):
    config = shards(write_shards(tmp_path / "data"))
    first = config.build()
    monkeypatch.setattr(tarsource, "headers_of", None)
    assert config.build().identity() == first.identity()
    os.utime(tmp_path / "data/some-1.tar", ns=(1, 1))
    with pytest.raises(TypeError):
        config.build()


def test_a_webdataset_may_have_folders_other_files_and_no_classes(tmp_path):
    images = made(3)
    with tarfile.open(tmp_path / "a.tar", "w") as tar:
        folder = tarfile.TarInfo("photos")
        folder.type = tarfile.DIRTYPE
        tar.addfile(folder)
        for k, content in enumerate(images):
            for suffix, data in (("txt", b"a caption"), ("PNG", content), ("seg.npy", b"123")):
                member = tarfile.TarInfo(f"photos/v1.0/{k}.{suffix}")
                member.size = len(data)
                tar.addfile(member, io.BytesIO(data))
    dataset = Shards(root=str(tmp_path), image_size=SIZE).build()
    assert (len(dataset), dataset.num_classes) == (3, None)
    assert np.array_equal(dataset.x[2], np.asarray(picture(SIZE, SIZE, key=2)).transpose(2, 0, 1))


def fails(config, match: str) -> None:
    """Building it, or reading any of it, ends in this one sentence."""

    def everything():
        dataset = config.build()
        every = torch.arange(len(dataset)).split(8)
        asked = [(index, torch.rand(len(index), 4)) for index in every]
        list(stream(dataset, asked, workers=1, device="cpu"))

    with pytest.raises(ValueError, match=match) as caught:
        everything()
    assert "\n" not in str(caught.value)


def cut(path: Path, size: int) -> None:
    path.write_bytes(path.read_bytes()[:size])


def spoil(path: Path, content: bytes) -> None:
    """Overwrite what follows on the first of the images' bytes that occurs in a file."""
    whole = path.read_bytes()
    at = whole.index(made(40)[39])
    path.write_bytes(whole[:at] + content + whole[at + len(content) :])


class TestDamage:
    def test_a_shard_that_was_cut(self, tmp_path):
        config = shards(write_shards(tmp_path))
        cut(tmp_path / "some-1.tar", 9000)
        fails(config, r"the shard .*some-1\.tar is damaged \(unexpected end of data\); replace it")

    def test_a_shard_that_shrinks_after_it_was_indexed(self, tmp_path):
        config = shards(write_shards(tmp_path))
        dataset = config.build()
        cut(tmp_path / "some-1.tar", 9000)
        with pytest.raises(ValueError, match=r"some-1\.tar is damaged \(it is cut short\)"):
            dataset.plain(torch.arange(COUNT))

    def test_an_image_in_a_shard(self, tmp_path):
        config = shards(write_shards(tmp_path))
        spoil(tmp_path / "some-1.tar", b"no longer a PNG")
        fails(config, r"image 14 of .*some-1\.tar is unreadable \(not an image\); replace or dele")

    def test_no_tar(self, tmp_path):
        (tmp_path / "a.tar").write_bytes(b"not a tar" * 1000)
        fails(shards(str(tmp_path)), r"the shard .*a\.tar is damaged")

    def test_parquet_that_was_cut(self, tmp_path):
        config = hub(write_parquet(tmp_path))
        cut(tmp_path / "train-00001.parquet", 5000)
        fails(config, r"cannot read .*train-00001\.parquet as parquet \(.*\); replace the file")

    def test_a_row_group(self, tmp_path):
        config = hub(write_parquet(tmp_path))
        path = tmp_path / "train-00001.parquet"
        whole = path.read_bytes()
        path.write_bytes(whole[:4] + b"\xff" * 4000 + whole[4004:])
        fails(config, r"cannot read .*train-00001\.parquet as parquet \(.*\); replace the file")

    def test_an_image_in_a_row(self, tmp_path):
        images = made()
        images[40] = b""
        pq.write_table(table(images), tmp_path / "train.parquet", row_group_size=7)
        fails(hub(str(tmp_path)), r"row 40 of .*train\.parquet is unreadable \(0 bytes\); replace")

    def test_files_that_differ_in_their_columns(self, tmp_path):
        config = hub(write_parquet(tmp_path))
        rows = table(made(7)).rename_columns(["picture", "label"])
        pq.write_table(rows, tmp_path / "train-00009.parquet")
        fails(config, r"train-00009\.parquet as parquet \(its rows or columns are not those of")


class TestMistakes:
    def test_labels_beyond_the_classes(self, tmp_path):
        config = hub(write_parquet(tmp_path), num_classes=4)
        fails(config, r"row 4 of .* has the label 4; with 4 classes labels lie in 0 \.\.\. 3: ren")

    def test_a_column_that_does_not_say_how_many_classes(self, tmp_path):
        path = write_parquet(tmp_path, classes=None)
        fails(hub(path), r"does not say how many classes there are, .*; set num_classes")
        assert hub(path, num_classes=5).build().num_classes == 5
        assert hub(path, label_column=None).build().num_classes is None

    @pytest.mark.parametrize(
        ("options", "match"),
        [
            ({"image_column": "pixels"}, "image_column is 'pixels', but .* image, label"),
            ({"label_column": "fine"}, "label_column is 'fine', but .* image, label"),
            ({"label_column": "image"}, "label column 'image' .* holds no integers"),
            ({"train_split": "validation"}, None),
            ({"path": "/nowhere/at/all"}, "path /nowhere/at/all does not exist"),
            ({"path": "memory://nowhere"}, r"memory://nowhere has no train\*\.parquet; add it"),
            ({"path": "nosuch://place"}, "cannot open nosuch://place: "),
            ({"image_size": 64}, "smaller than image_size 64"),
        ],
    )
    def test_in_a_config_of_parquet(self, tmp_path, options, match):
        config = replace(hub(write_parquet(tmp_path)), **options)
        if match is None:
            assert len(config.build()) == COUNT  # a folder whose files name no such split
            return
        fails(config, match)

    def test_no_test_split(self, tmp_path):
        with pytest.raises(ValueError, match=r"has no test\*\.parquet; add it"):
            hub(write_parquet(tmp_path)).build("test")
        with pytest.raises(ValueError, match=r"no test images: .* has neither a folder test nor"):
            shards(write_shards(tmp_path)).build("test")

    def test_shards_that_are_not_there(self, tmp_path):
        fails(shards(str(tmp_path / "no")), r"root .*no is not a folder; set it to the folder")
        (tmp_path / "empty").mkdir()
        fails(shards(str(tmp_path / "empty")), r"holds no shards \(\*\.tar\); make them with")

    @pytest.mark.parametrize(
        ("samples", "options", "match"),
        [
            ([{"txt": b"a"}], {}, "a sample has no image"),
            ([{"png": b"a", "jpg": b"b"}], {}, "0 has two images; a sample has one"),
            ([{"png": b"a", "cls": b"cat"}], {}, "holds b'cat', not the number of a class"),
            ([{"png": b"a", "cls": b"0"}, {"png": b"a"}], {}, "1 of 2 images .* have no class"),
            ([{"png": b"a", "cls": b"3"}], {}, "1 different labels from 3 to 3; renumber them"),
            ([{"png": b"a"}], {"num_classes": 3}, "num_classes is 3, but .* have no class"),
        ],
    )
    def test_in_shards(self, tmp_path, samples, options, match):
        write_tar(tmp_path / "a.tar", ((str(k), members) for k, members in enumerate(samples)))
        fails(shards(str(tmp_path), **options), match)

    def test_conditions_and_latents_are_refused(self, tmp_path):
        column = {"kind": "scalar", "column": "weight"}
        with pytest.raises(ValueError, match="nothing but the class is known; leave out cond"):
            hub("somewhere", conditions={"weight": column})
        with pytest.raises(ValueError, match=r"leave out images\.stream"):
            Latent(images=hub("somewhere"), autoencoder="somewhere")
