"""Conditions in the columns of tables, beside image files, and in memory."""

from __future__ import annotations

import math
from dataclasses import replace

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from pydantic import TypeAdapter

from flowmatch.data import (
    DataConfig,
    DecodedImages,
    Hub,
    MemoryArrays,
    MemoryImages,
    ScalarColumn,
    TextColumn,
    VectorColumn,
    rows_of,
    shape_of,
    stream,
)
from flowmatch.data.conditions import stamp_of
from flowmatch.data.dataset import digest
from made_data import encoded, make_folder, picture, write_parquet
from made_texts import (
    AGES,
    CLIPS,
    LABELS,
    columns,
    make_captioned,
    make_encoder,
    make_metadata,
    same,
)

IMAGES = [encoded(picture(8, 8, key=k)) for k in range(4)]


@pytest.fixture(scope="module")
def encoder(tmp_path_factory):
    return make_encoder(tmp_path_factory.mktemp("encoder"))


@pytest.fixture(autouse=True)
def _cache(tmp_path, monkeypatch):
    monkeypatch.setenv("FLOWMATCH_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def captioned(tmp_path, encoder) -> Hub:
    node = {"kind": "hub", "path": str(make_captioned(tmp_path / "set")), "image_size": 8}
    node |= {"label_column": "fine", "conditions": columns(encoder)}
    return TypeAdapter(DataConfig).validate_python(node)


def hub(path, **conditions) -> Hub:
    return Hub(path=str(path), image_size=8, conditions=conditions)


@pytest.mark.parametrize("memory_gib", [0, 2])
def test_columns_become_conditions_and_empty_cells_nan(captioned, memory_gib):
    dataset = replace(captioned, memory_gib=memory_gib).build()
    assert isinstance(dataset, DecodedImages if memory_gib == 0 else MemoryImages)
    cond = dataset.plain(torch.arange(6)).cond
    assert cond["label"].tolist() == LABELS
    ages = torch.tensor([math.nan if a is None else a for a in AGES])
    assert same(cond["age"], ages)
    clips = torch.tensor([[math.nan] * 3 if c is None else c for c in CLIPS])
    assert same(cond["clip"], clips)
    assert {name: v.dtype for name, v in cond.items() if name != "label"} == dict.fromkeys(
        ("age", "clip", "caption"), torch.float32
    )
    caption = cond["caption"]
    assert caption.shape == (6, 8, 16)  # the longest has six words between two marks
    assert caption.isnan().all(2).sum(1).tolist() == [3, 0, 8, 3, 5, 3]
    assert same(caption[0], caption[3])
    shapes = {name: shape_of(v) for name, v in dataset.values.items()}
    assert shapes == {"label": (), "age": (), "clip": (3,), "caption": (None, 16)}


def test_a_row_has_the_same_conditions_in_any_batch_and_from_any_worker(captioned):
    dataset = replace(captioned, memory_gib=0).build()
    whole = dataset.plain(torch.arange(6)).cond
    requests = [(torch.tensor([4, 1]), torch.zeros(2, 4)), (torch.tensor([2]), torch.zeros(1, 4))]
    batches = list(stream(dataset, requests, workers=2, device="cpu"))
    for (rows, _), batch in zip(requests, batches, strict=True):
        assert all(same(batch.cond[name], whole[name][rows]) for name in whole)


def test_they_are_read_without_the_images(captioned):
    dataset, values = captioned.build(), captioned.values()
    at = torch.tensor([5, 0, 2])
    found, expected = rows_of(values, at), dataset.plain(at).cond
    assert found.keys() == expected.keys()
    assert all(same(found[name], expected[name]) for name in found)
    few = captioned.values("test", first=2)
    assert {name: len(v) for name, v in few.items()} == dict.fromkeys(found, 2)
    assert same(rows_of(few, at[1:2])["clip"], found["clip"][1:2])


def test_their_stamps_change_with_what_they_are_and_embed_nothing(tmp_path, encoder, monkeypatch):
    def refuse(*arguments, **options):
        raise AssertionError("texts were embedded")

    monkeypatch.setattr("flowmatch.data.columns.embedded", refuse)
    text = TextColumn(column="caption", encoder=str(encoder), max_tokens=12)

    def stamps(age=(1.0, None), caption=("a dog", None), text=text, **options):
        path = write_parquet(tmp_path / "a.parquet", IMAGES[:2], age=age, caption=caption)
        columns = {"age": ScalarColumn(column="age"), "caption": text}
        return replace(hub(path, **columns), **options).stamps()

    plain = stamps()
    assert plain.keys() == {"age", "caption"}
    assert stamps(memory_gib=0, image_size=4) == plain
    changed = {
        "age": [stamps(age=(1.0, 2.0)), stamps(age=(None, 1.0))],
        "caption": [
            stamps(caption=("a dog", "")),
            stamps(caption=("a bird", None)),
            stamps(text=replace(text, max_tokens=4)),
        ],
    }
    for name, found in changed.items():
        others = plain.keys() - {name}
        assert len({plain[name], *(s[name] for s in found)}) == 1 + len(found)
        assert all(s[other] == plain[other] for s in found for other in others)


@pytest.mark.parametrize("memory_gib", [0, 2])
def test_they_change_no_image(captioned, encoder, memory_gib):
    def built(**conditions):
        return replace(captioned, memory_gib=memory_gib, conditions=conditions).build()

    text = TextColumn(column="caption", encoder=str(encoder), max_tokens=12)
    sets = [
        built(),
        built(age=ScalarColumn(column="age")),
        built(year=ScalarColumn(column="age")),
        built(age=ScalarColumn(column="fine")),
        built(clip=VectorColumn(column="emb")),
        built(caption=text),
        built(caption=replace(text, max_tokens=4)),
    ]
    assert len({dataset.identity() for dataset in sets}) == 1
    stamps = [digest(*stamp_of(dataset.conditions)) for dataset in sets]
    assert len(set(stamps)) == len(stamps)
    assert digest(*stamp_of(built(caption=text).conditions)) == stamps[5]


def test_numbers_of_any_type_are_scalars(tmp_path):
    path = write_parquet(
        tmp_path / "a.parquet", IMAGES, i=[1, None, 3, 4], b=[True, False, None, True]
    )
    cond = hub(path, i=ScalarColumn(column="i"), b=ScalarColumn(column="b")).build()
    cond = cond.plain(torch.arange(4)).cond
    assert same(cond["i"], torch.tensor([1.0, math.nan, 3.0, 4.0]))
    assert same(cond["b"], torch.tensor([1.0, 0.0, math.nan, 1.0]))


def test_vectors_of_fixed_size_with_empty_rows(tmp_path):
    cells = pa.array([[1.0, 2.0], None, [3.0, 4.0], None], pa.list_(pa.float32(), 2))
    path = write_parquet(tmp_path / "a.parquet", IMAGES, v=cells)
    cond = hub(path, v=VectorColumn(column="v")).build().plain(torch.arange(4)).cond
    nan = [math.nan] * 2
    assert same(cond["v"], torch.tensor([[1.0, 2.0], nan, [3.0, 4.0], nan]))


BAD = {
    "words": (["a", "b", "c", "d"], ScalarColumn, r"holds no scalars \(it is of type .*string"),
    "infinite": ([1.0, math.inf, 0.0, 1.0], ScalarColumn, "infinite values"),
    "numbers": ([1, 2, 3, 4], VectorColumn, r"holds no vectors \(it is of type int64"),
    "lengths": ([[1.0], [1.0, 2.0], [], [1.0]], VectorColumn, "lists have the lengths 0, 1, 2"),
    "holes": ([[1.0], [None], [2.0], [1.0]], VectorColumn, "empty entries"),
    "nothing": (
        pa.array([None] * 4, pa.list_(pa.float32())),
        VectorColumn,
        "have the lengths none",
    ),
}


@pytest.mark.parametrize("name", BAD)
def test_columns_of_another_kind_are_refused_in_a_sentence(name, tmp_path):
    cells, kind, message = BAD[name]
    path = write_parquet(tmp_path / "a.parquet", IMAGES, c=cells)
    with pytest.raises(ValueError, match=message) as caught:
        hub(path, age=kind(column="c")).build()
    assert "column 'c' of" in str(caught.value)
    assert "conditions.age" in str(caught.value)


def test_unknown_columns_and_names_are_refused(tmp_path):
    path = write_parquet(tmp_path / "a.parquet", IMAGES, c=[1, 2, 3, 4])
    with pytest.raises(ValueError, match=r"conditions.age.column is 'year', but .* image, c; name"):
        hub(path, age=ScalarColumn(column="year")).build()
    with pytest.raises(ValueError, match="the class is no entry of conditions"):
        hub(path, label=ScalarColumn(column="c"))
    with pytest.raises(ValueError, match="names like variables"):
        hub(path, **{"my age": ScalarColumn(column="c")})


def test_a_folder_takes_them_from_metadata(tmp_path, encoder):
    config = make_folder(tmp_path)
    text = TextColumn(column="caption", encoder=str(encoder), max_tokens=12)
    config = replace(config, conditions={"age": ScalarColumn(column="age"), "caption": text})
    with pytest.raises(ValueError, match=r"there is no .*train/metadata.jsonl, which should give"):
        config.build()
    make_metadata(tmp_path / "train")
    dataset = config.build()
    cond = dataset.plain(torch.arange(8)).cond
    assert cond["age"][:7].tolist() == pytest.approx([k / 10 for k in range(7)])
    assert cond["age"][7].isnan()
    assert cond["caption"][7].isnan().all()
    assert same(cond["caption"][1], cond["caption"][3])
    assert same(rows_of(config.values(first=3), torch.tensor([2]))["age"], cond["age"][2:3])
    assert config.stamps().keys() == config.values().keys()
    path = tmp_path / "train/metadata.jsonl"
    windows = path.read_text().replace("red", "red\u2028or\u2029pink\x85").replace("\n", "\r\n")
    path.write_bytes(("\ufeff" + windows).encode())
    assert same(config.build().plain(torch.arange(8)).cond["age"], cond["age"])
    make_metadata(tmp_path / "train")
    path.write_text(path.read_text() + '{"caption": "of nothing"}\n')
    with pytest.raises(ValueError, match=r"line 8 of .*metadata.jsonl is no JSON mapping with a"):
        config.build()


def test_tensors_in_memory():
    x = torch.randn(5, 2)
    values = {"age": torch.arange(5.0), "clip": torch.randn(5, 3), "words": torch.randn(5, 4, 6)}
    dataset = MemoryArrays(x, conditions=values).to("cpu")
    at = torch.tensor([4, 0])
    cond = dataset.batch(at, torch.zeros(2, 4)).cond
    assert cond.keys() == values.keys()
    assert all(torch.equal(cond[name], values[name][at]) for name in values)
    assert MemoryArrays(x).identity() == dataset.identity()
    images = torch.zeros(5, 1, 4, 4, dtype=torch.uint8)
    flipped = MemoryImages(images, conditions=values, flip=True).to("cpu")
    assert torch.equal(flipped.batch(at, torch.zeros(2, 4)).cond["clip"], values["clip"][at])
    for bad, message in (
        ({"age": torch.zeros(4)}, "'age' has 4 values for 5 samples"),
        ({"age": torch.zeros(5, dtype=torch.int64)}, r"is a torch.int64 tensor .*expected float32"),
        ({"label": torch.zeros(5)}, "the class is no entry"),
    ):
        with pytest.raises(ValueError, match=message):
            MemoryArrays(x, conditions=bad)


def test_parquet_in_several_row_groups(tmp_path):
    path = write_parquet(tmp_path / "a.parquet", IMAGES, v=[[1.0], None, [2.0], [3.0]])
    pq.write_table(pq.read_table(path), path, row_group_size=1)
    cond = hub(path, v=VectorColumn(column="v")).build().plain(torch.arange(4)).cond
    assert same(cond["v"], torch.tensor([[1.0], [math.nan], [2.0], [3.0]]))
