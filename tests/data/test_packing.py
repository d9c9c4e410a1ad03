"""Shards: the files as they are, whole or not at all, and the same however often it was killed."""

from __future__ import annotations

import json
import os
import tarfile
from pathlib import Path

import pytest
import torch

from flowmatch.data import ImageFolder, Shards
from flowmatch.data.packing import Files, Pixels, pack
from made_data import make_cifar10, make_folder


@pytest.fixture
def folder(tmp_path) -> ImageFolder:
    return make_folder(tmp_path / "images")


def files(folder: ImageFolder) -> Files:
    return Files(*folder.source("train"))


def contents(folder: Path) -> dict[str, bytes]:
    return {p.name: p.read_bytes() for p in folder.iterdir() if not p.name.startswith(".")}


def test_a_shard_holds_files_classes_and_names(folder, tmp_path):
    assert pack(files(folder), tmp_path / "a", shard_size=3, workers=2) == 3
    index = json.loads((tmp_path / "a/shards.json").read_text())
    assert (index["count"], index["classes"]) == (8, ["cat", "dog"])
    assert [shard["count"] for shard in index["shards"]] == [3, 3, 2]
    found = {}
    for shard in index["shards"]:
        with tarfile.open(tmp_path / "a" / shard["name"]) as tar:
            members = {m.name: tar.extractfile(m).read() for m in tar}
        for name in (n for n in members if n.endswith(".json")):
            facts = json.loads(members[name])
            found[facts["name"]] = members[name.replace("json", "png")]
            label = int(members[name.replace("json", "cls")])
            assert facts["label"] == label == ["cat", "dog"].index(facts["name"][:3])
    source = folder.source("train")[0]
    assert found == {f: (source.folder / f).read_bytes() for f in source.files}
    assert list(found) != sorted(found)  # shuffled


def test_what_is_read_back_is_the_folder(folder, tmp_path):
    pack(files(folder), tmp_path / "a", shard_size=3, workers=2)
    ours = Shards(root=str(tmp_path / "a"), image_size=32).build()
    theirs = folder.build()

    def known(dataset):
        batch = dataset.plain(torch.arange(8))
        labels = batch.cond["label"].tolist()
        return {x.numpy().tobytes() + bytes([k]) for x, k in zip(batch.x1, labels, strict=True)}

    assert known(ours) == known(theirs)
    assert len(known(ours)) == 8


def test_neither_workers_nor_a_second_go_change_a_byte(folder, tmp_path):
    for name, workers in (("a", 1), ("b", 3)):
        pack(files(folder), tmp_path / name, shard_size=3, workers=workers)
    assert contents(tmp_path / "a") == contents(tmp_path / "b")
    before = (tmp_path / "a/shard-000001.tar").stat().st_mtime_ns
    pack(files(folder), tmp_path / "a", shard_size=3, workers=1)
    assert (tmp_path / "a/shard-000001.tar").stat().st_mtime_ns == before
    assert contents(tmp_path / "a") == contents(tmp_path / "b")


def test_a_damaged_shard_is_made_anew(folder, tmp_path):
    for name in ("whole", "cut"):
        pack(files(folder), tmp_path / name, shard_size=3, workers=1)
    shard, other = tmp_path / "cut/shard-000001.tar", tmp_path / "cut/shard-000002.tar"
    for spoiled in (shard.read_bytes()[:700], b"x" * 2048, other.read_bytes()):
        shard.write_bytes(spoiled)
        pack(files(folder), tmp_path / "cut", shard_size=3, workers=1)
        assert contents(tmp_path / "cut") == contents(tmp_path / "whole")


class Killed(BaseException):
    """Stands for kill -9: nothing in the program catches it or cleans up after it."""


@pytest.mark.parametrize("moment", [0, 1, 5, 13, 27, 30, 37, 40])
def test_a_kill_at_any_moment_leaves_whole_shards_and_the_next_go_ends_it(
    folder, tmp_path, monkeypatch, moment
):
    pack(files(folder), tmp_path / "whole", shard_size=3, workers=1)
    left = [moment]

    def deadly(real):
        def operation(*arguments, **options):
            if left[0] == 0:
                raise Killed
            left[0] -= 1
            return real(*arguments, **options)

        return operation

    monkeypatch.setattr(tarfile.TarFile, "addfile", deadly(tarfile.TarFile.addfile))
    for name in ("fsync", "replace"):
        monkeypatch.setattr(os, name, deadly(getattr(os, name)))
    # the note takes 3 operations, three shards 12, 12 and 9 (with the folder), the index 3 and 3
    with pytest.raises(Killed):
        pack(files(folder), tmp_path / "killed", shard_size=3, workers=1)
    monkeypatch.undo()
    there = contents(tmp_path / "killed")
    assert there.items() <= contents(tmp_path / "whole").items()
    assert "shards.json" not in there or moment > 38
    pack(files(folder), tmp_path / "killed", shard_size=3, workers=1)
    assert contents(tmp_path / "killed") == contents(tmp_path / "whole")


def test_a_data_config_gives_its_pixels(tmp_path):
    made = make_cifar10(tmp_path)
    pack(Pixels(made.build()), tmp_path / "a", shard_size=8, workers=1)
    ours = Shards(root=str(tmp_path / "a"), image_size=32).build()
    assert ours.num_classes == 10
    first = {x.numpy().tobytes() for x in ours.x}
    assert first == {x.numpy().tobytes() for x in made.build().x}


def test_another_folder_or_job_is_left_alone(folder, tmp_path):
    (tmp_path / "full").mkdir()
    (tmp_path / "full/thesis.tex").write_text("years of work")
    with pytest.raises(ValueError, match="full is not empty; choose another folder"):
        pack(files(folder), tmp_path / "full", shard_size=3, workers=1)
    pack(files(folder), tmp_path / "a", shard_size=3, workers=1)
    with pytest.raises(ValueError, match="holds shards of other images or of another size"):
        pack(files(folder), tmp_path / "a", shard_size=4, workers=1)
    os.utime(folder.source("train")[0].name(0), ns=(1, 1))
    with pytest.raises(ValueError, match="or those images changed since; choose another folder"):
        pack(files(folder), tmp_path / "a", shard_size=3, workers=1)


def test_an_empty_file_is_named(folder, tmp_path):
    source, classes = folder.source("train")
    Path(source.name(5)).write_bytes(b"")
    with pytest.raises(ValueError, match=r"dog/1\.png is unreadable \(0 bytes\); replace or"):
        pack(Files(source, classes), tmp_path / "a", shard_size=3, workers=2)


@pytest.mark.parametrize(
    ("spoil", "match"),
    [
        (lambda f: (f / "shard-000001.tar").unlink(), r"shard-000001\.tar is missing, but .* says"),
        (
            lambda f: (f / "shard-000001.tar").write_bytes(b"ab"),
            r"shard-000001\.tar has 2 bytes, but shards\.json says [\d,]+ bytes; copy it anew, or",
        ),
        (
            lambda f: (f / "members.npy").write_bytes(b"ab"),
            r"shards\.json cannot be read \(.*; rem",
        ),
        (
            lambda f: (f / "shards.json").write_text("{"),
            r"shards\.json cannot be read \(.*; rem",
        ),
        (lambda f: (f / "shards.json").write_text("{}"), r"shards\.json cannot be read \('format'"),
    ],
)
def test_damage_is_seen_before_the_training(folder, tmp_path, spoil, match):
    pack(files(folder), tmp_path / "a", shard_size=3, workers=1)
    spoil(tmp_path / "a")
    with pytest.raises(ValueError, match=match) as caught:
        Shards(root=str(tmp_path / "a"), image_size=32).build()
    assert "\n" not in str(caught.value)


def test_random_crops_are_those_of_imagenet(folder, tmp_path):
    pack(files(folder), tmp_path / "a", shard_size=3, workers=1)
    config = Shards(root=str(tmp_path / "a"), image_size=32, crop="adm_random")
    dataset = config.build()
    assert not dataset.in_memory
    index, low, high = torch.tensor([0]), torch.full((1, 4), 0.1), torch.full((1, 4), 0.9)
    assert not torch.equal(dataset.batch(index, low).x1, dataset.batch(index, high).x1)
