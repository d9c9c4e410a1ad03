"""Stored samples: what can be read, and one sentence about what cannot."""

import json

import numpy as np
import pytest
import torch
from PIL import Image

from flowmatch.evaluation.stored import load_stored
from made_data import encoded, picture, save, write_parquet


def folder_of(path, count=3, *, size=(8, 8), mode="RGB"):
    for k in range(count):
        save(path / f"{k:05d}.png", picture(*size, key=k, mode=mode))
    return path


def test_a_folder_of_images_comes_in_the_order_of_its_names(tmp_path):
    stored = load_stored(folder_of(tmp_path / "a"))
    assert stored.x.shape == (3, 3, 8, 8)
    assert stored.x.dtype == torch.uint8
    expected = np.asarray(picture(8, 8, key=1)).transpose(2, 0, 1)
    assert (stored.x[1].numpy() == expected).all()


def test_class_folders_give_labels(tmp_path):
    folder_of(tmp_path / "a/cat", 2)
    folder_of(tmp_path / "a/dog", 1)
    assert load_stored(tmp_path / "a").labels.tolist() == [0, 0, 1]


def test_our_own_folders_hold_a_contact_sheet_that_is_no_sample(tmp_path):
    folder = folder_of(tmp_path / "a")
    save(folder / "contact-sheet.png", picture(40, 40))
    record = folder / "sampling.json"
    record.write_text(json.dumps({"seed": 5}))
    stored = load_stored(folder)
    assert len(stored.x) == 3
    assert stored.record == {"seed": 5}
    assert stored.labels is None
    record.write_text(json.dumps({"classes": 2, "label": None}))
    assert load_stored(folder).labels.tolist() == [0, 1, 0]
    record.write_text(json.dumps({"classes": 10, "label": 7}))
    assert load_stored(folder).labels.tolist() == [7, 7, 7]


def test_grey_and_colour_together_become_colour(tmp_path):
    folder = folder_of(tmp_path / "a")
    save(folder / "grey.png", picture(8, 8, mode="L"))
    x = load_stored(folder).x
    assert x.shape == (4, 3, 8, 8)
    assert (x[3, 0] == x[3, 2]).all()
    assert load_stored(folder_of(tmp_path / "b", mode="L")).x.shape == (3, 1, 8, 8)


def test_a_parquet_file(tmp_path):
    images = [encoded(picture(8, 8, key=k)) for k in range(4)]
    stored = load_stored(write_parquet(tmp_path / "a.parquet", images, label=[0, 1, 0, 1]))
    assert stored.x.shape == (4, 3, 8, 8)
    assert stored.labels.tolist() == [0, 1, 0, 1]


@pytest.mark.parametrize("key", ["samples", "arr_0", "images"])
def test_npz_of_uint8_images(tmp_path, key):
    pixels = np.random.default_rng(0).integers(0, 256, (5, 8, 6, 3), dtype=np.uint8)
    np.savez(tmp_path / "a.npz", **{key: pixels})
    x = load_stored(tmp_path / "a.npz").x
    assert (x.permute(0, 2, 3, 1).numpy() == pixels).all()


def test_float_images_may_hold_nan_but_serve_as_no_reference(tmp_path):
    pixels = np.random.default_rng(0).uniform(-1, 1, (5, 8, 8, 1)).astype(np.float32)
    pixels[2, 0, 0, 0] = np.nan
    np.savez(tmp_path / "a.npz", samples=pixels)
    stored = load_stored(tmp_path / "a.npz")
    assert not stored.x[2].isfinite().all()
    with pytest.raises(ValueError, match="1 of 5 samples of the reference"):
        stored.dataset()


def test_points(tmp_path):
    np.savez(tmp_path / "a.npz", samples=np.zeros((7, 2)))
    assert load_stored(tmp_path / "a.npz").dataset().shape == (2,)


def write_npz(path, **arrays):
    np.savez(path, **arrays)
    return path


BAD = {
    "nothing there": (lambda p: p / "none", "there is no folder or file"),
    "an empty folder": (lambda p: (p / "a").mkdir() or p / "a", "it is empty"),
    "text alone": (
        lambda p: (p / "notes.txt").write_text("x") and p,
        "no images in .*notes.txt",
    ),
    "a text file": (
        lambda p: (p / "a.txt").write_text("x") and p / "a.txt",
        "no folder of images",
    ),
    "an image that is none": (
        lambda p: (folder_of(p) / "00009.png").write_text("not an image") and p,
        "00009.png.*not an image",
    ),
    "a cut image": (
        lambda p: (folder_of(p) / "00009.png").write_bytes(encoded(picture(64, 64))[:300]) and p,
        "00009.png",
    ),
    "mixed sizes": (
        lambda p: save(folder_of(p) / "z.png", picture(9, 8)).parent,
        "differ in size.*3 of 8x8, 1 of 9x8.*z.png",
    ),
    "transparency": (
        lambda p: save(p / "z.png", picture(8, 8).convert("RGBA")).parent,
        "partly transparent",
    ),
    "pixels as float 0..255": (
        lambda p: write_npz(p / "a.npz", samples=np.full((2, 8, 8, 3), 255.0)),
        r"run from 255 to 255, but float images are in \[-1, 1\]",
    ),
    "pixels as float 0..1": (
        lambda p: write_npz(p / "a.npz", samples=np.random.default_rng(0).random((2, 8, 8, 3))),
        r"but float images are in \[-1, 1\]",
    ),
    "four channels": (
        lambda p: write_npz(p / "a.npz", samples=np.zeros((2, 8, 8, 4), np.uint8)),
        "1 channel",
    ),
    "int64 pixels": (
        lambda p: write_npz(p / "a.npz", samples=np.zeros((2, 8, 8, 3), np.int64)),
        "holds int64",
    ),
    "another key": (lambda p: write_npz(p / "a.npz", x=np.zeros((2, 2))), "holds x; expected"),
    "no samples": (lambda p: write_npz(p / "a.npz", samples=np.zeros((0, 2))), "shape"),
    "labels of another length": (
        lambda p: write_npz(p / "a.npz", samples=np.zeros((2, 2)), labels=np.zeros(3, np.int64)),
        "labels of",
    ),
    "a pickle": (
        lambda p: write_npz(p / "a.npz", samples=np.array([{}], dtype=object)),
        "cannot be read as npz",
    ),
    "no npz": (lambda p: (p / "a.npz").write_text("x") and p / "a.npz", "cannot be read as npz"),
    "a torn record": (
        lambda p: (folder_of(p) / "sampling.json").write_text("{") and p,
        "sampling.json is damaged",
    ),
}


@pytest.mark.parametrize(("make", "sentence"), BAD.values(), ids=BAD.keys())
def test_one_sentence_about_what_cannot_be_read(tmp_path, make, sentence):
    with pytest.raises(ValueError, match=sentence):
        load_stored(make(tmp_path))


def test_photographs_are_turned_upright(tmp_path):
    image = picture(8, 6)
    exif = Image.Exif()
    exif[0x0112] = 6  # held sideways
    for k in range(2):
        image.save(tmp_path / f"{k}.jpg", exif=exif)
    assert load_stored(tmp_path).x.shape == (2, 3, 8, 6)
