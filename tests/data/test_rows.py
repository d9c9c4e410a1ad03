"""Tables of images: which column, which labels, which split."""

from __future__ import annotations

from dataclasses import replace

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from flowmatch.data import Hub
from made_data import encoded, make_hub, picture, write_parquet

IMAGES = [encoded(picture(16, 16, key=k)) for k in range(4)]


def hub(path, **settings) -> Hub:
    return Hub(path=str(path), **{"image_size": 16, **settings})


def test_a_single_file_is_the_training_split(tmp_path):
    path = write_parquet(tmp_path / "all.parquet", IMAGES, image="img", label=[0, 1, 1, 0])
    dataset = hub(path, label_column="label").build()
    assert dataset.raw(torch.arange(4), None).cond["label"].tolist() == [0, 1, 1, 0]
    assert hub(path).build().num_classes is None
    assert len(hub(tmp_path).build()) == 4  # a folder of files that no split is named in
    with pytest.raises(ValueError, match=r"is one file.*to have a split 'test', set path"):
        hub(path).build("test")
    with pytest.raises(ValueError, match=r"has no test\*.parquet; add it"):
        hub(tmp_path).build("test")


def test_a_plain_column_of_bytes_and_split_names(tmp_path):
    pq.write_table(pa.table({"jpg": IMAGES, "id": [1, 2, 3, 4]}), tmp_path / "validation.parquet")
    config = hub(tmp_path, image_column="jpg", test_split="validation", channels=1)
    assert config.build("test").shape == (1, 16, 16)


@pytest.mark.parametrize("memory_gib", [0, 2])
def test_bad_rows_are_named(tmp_path, memory_gib):
    images = [IMAGES[0], b"no image", None, IMAGES[1]]
    path = write_parquet(tmp_path / "train.parquet", images)
    with pytest.raises(ValueError, match="2 images are unreadable") as caught:
        hub(path, memory_gib=memory_gib).build()
    assert f"row 1 of {path} (not an image), row 2 of {path} (0 bytes)" in str(caught.value)


def test_unknown_columns_are_answered_with_the_known(tmp_path):
    config = make_hub(tmp_path)
    with pytest.raises(ValueError, match=r"label_column is 'label', but .* columns image, fine;"):
        replace(config, label_column="label").build()
    with pytest.raises(ValueError, match=r"image_column is 'pic', but .* columns image, fine;"):
        replace(config, image_column="pic").build()
    write_parquet(tmp_path / "train.parquet", IMAGES, image="photo")
    with pytest.raises(ValueError, match="no column of images; set image_column to one of photo"):
        replace(config, label_column=None).build()


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        ([0, -1, 1, 2], "runs from -1 to 2; labels must count from 0 up; renumber"),
        ([0, 1, 4, 2], "has 4 different labels between 0 and 4; .* set num_classes: 5"),
        (["a", "b", "c", "a"], r"holds no integers \(string\)"),
        ([0, None, 1, 2], "holds 1 empty cells"),
    ],
)
def test_labels_must_count_from_zero(tmp_path, labels, message):
    path = write_parquet(tmp_path / "train.parquet", IMAGES, y=labels)
    with pytest.raises(ValueError, match=message):
        hub(path, label_column="y").build()


def test_the_number_of_classes_can_be_given(tmp_path):
    path = write_parquet(tmp_path / "train.parquet", IMAGES, y=[0, 1, 4, 2])
    assert hub(path, label_column="y", num_classes=6).build().num_classes == 6
    with pytest.raises(ValueError, match="from 0 to 4; labels must count from 0 to 3"):
        hub(path, label_column="y", num_classes=4).build()


def test_paths_that_lead_nowhere(tmp_path, monkeypatch):
    with pytest.raises(ValueError, match=r"path .*no.parquet does not exist; set it"):
        hub(tmp_path / "no.parquet").build()
    path = write_parquet(tmp_path / "train.parquet", [])
    with pytest.raises(ValueError, match="holds no rows"):
        hub(path).build()

    def offline(path, name, split):
        raise ConnectionError("no route to host")

    monkeypatch.setattr("datasets.load_dataset", offline)
    with pytest.raises(ValueError, match=r"'train' of 'some/set' .*\(no route to host\); check"):
        hub("some/set").build()
