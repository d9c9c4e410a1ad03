"""Folders of files: layouts, splits, classes, and everything that can be wrong with them."""

from __future__ import annotations

import re
from dataclasses import replace

import pytest
import torch
from PIL import Image

from flowmatch.data import FFHQ, CelebA, ImageFolder, ImageNet
from made_data import (
    make_celeba,
    make_ffhq,
    make_folder,
    make_imagenet,
    picture,
    save,
)


def folder(path, **settings) -> ImageFolder:
    return ImageFolder(root=str(path), **{"image_size": 16, **settings})


def labels(dataset) -> list[int]:
    return dataset.raw(torch.arange(len(dataset)), None).cond["label"].tolist()


def refused(build, *parts: str) -> str:
    """The one sentence in which `build` refuses; each of `parts` occurs in it."""
    with pytest.raises(ValueError) as caught:  # noqa: PT011  the parts are the match
        build()
    message = str(caught.value)
    assert "\n" not in message
    for part in parts:
        assert re.search(part, message), f"{part!r} not in {message!r}"
    return message


# --- any folder -----------------------------------------------------------------------------


def test_classes_are_the_sorted_folders(tmp_path):
    for name, count in (("zebra", 1), ("Ant", 2), ("bee", 1), (".cache", 3)):
        for k in range(count):
            save(tmp_path / name / f"deep/{k}.jpg", picture(20, 16))
    (tmp_path / "bee" / "notes.txt").write_text("not an image")
    dataset = folder(tmp_path).build()
    assert (dataset.num_classes, labels(dataset)) == (3, [0, 0, 1, 2])


def test_a_flat_folder_and_labels_false_have_no_labels(tmp_path):
    make_folder(tmp_path)
    dataset = folder(tmp_path, labels=False).build()
    assert (len(dataset), dataset.num_classes) == (8, None)
    flat = folder(tmp_path / "train/cat").build()
    assert (len(flat), flat.num_classes, flat.plain(torch.tensor([0])).cond) == (4, None, {})


def test_the_test_split_is_numbered_as_the_training_split(tmp_path):
    for place in ("train/a", "train/b", "train/c", "val/c", "val/a"):
        save(tmp_path / place / "0.png", picture(16, 16))
    test = folder(tmp_path).build("test")
    assert (test.num_classes, labels(test)) == (3, [0, 2])
    save(tmp_path / "val/new/0.png", picture(16, 16))
    refused(lambda: folder(tmp_path).build("test"), "class folders that .* lack: new;")


@pytest.mark.parametrize(
    "ending", ["png", "jpg", "JPEG", "webp", "bmp", "tif", "tiff", "gif", "ppm"]
)
def test_each_format(tmp_path, ending):
    save(tmp_path / f"0.{ending}", picture(20, 16))
    assert folder(tmp_path).build().shape == (3, 16, 16)
    assert folder(tmp_path, channels=1).build().shape == (1, 16, 16)


def test_photographs_are_turned_upright(tmp_path):
    image = picture(20, 16)
    exif = image.getexif()
    exif[0x0112] = 6  # to be shown turned by 90 degrees
    image.save(tmp_path / "0.png", exif=exif)
    save(tmp_path / "1.png", image.transpose(Image.Transpose.ROTATE_270))
    turned, upright = folder(tmp_path).build().plain(torch.arange(2)).x1
    assert torch.equal(turned, upright)


def test_a_missing_or_empty_folder(tmp_path):
    refused(lambda: folder(tmp_path / "no").build(), f"root {tmp_path}/no is not a folder; set it")
    refused(lambda: folder(tmp_path).build(), f"{tmp_path} holds no images .*png.*; set root")
    refused(lambda: folder(tmp_path).build("test"), "neither a folder test nor a folder val; add")
    save(tmp_path / "test/0.png", picture(16, 16))
    refused(lambda: folder(tmp_path).build(), "no folder train; move the images to train on")


def test_folders_that_mean_two_things(tmp_path):
    save(tmp_path / "cat/0.png", picture(16, 16))
    (tmp_path / "dog").mkdir()
    refused(lambda: folder(tmp_path).build(), "class folders of .* hold no images: dog; remove")
    save(tmp_path / "loose.png", picture(16, 16))
    refused(lambda: folder(tmp_path).build(), "images outside class folders; .* labels: false")


@pytest.mark.parametrize("memory_gib", [0, 2])
def test_all_bad_files_are_named_at_once(tmp_path, memory_gib):
    for k in range(10):
        save(tmp_path / f"{k}.png", picture(64, 64, key=k))
    (tmp_path / "0.png").write_bytes(b"")
    (tmp_path / "1.png").write_bytes(b"no image")
    whole = (tmp_path / "2.png").read_bytes()
    (tmp_path / "2.png").write_bytes(whole[: len(whole) // 2])
    save(tmp_path / "3.png", picture(30, 12))
    build = folder(tmp_path, memory_gib=memory_gib).build
    if memory_gib:
        small = r"1 image is smaller than image_size 16: \S+/3.png \(30x12\); lower image_size"
        refused(build, "3 images are unreadable: ", r"/0.png \(0 bytes\), ", r"/2.png \(", small)
    else:
        refused(build, r"1 image is unreadable: \S+/0.png \(0 bytes\); replace or delete it")
        (tmp_path / "0.png").unlink()
        refused(build, r"1 image is unreadable: \S+/1.png \(not an image\)", r"3.png \(30x12\)")


def test_a_long_list_of_bad_files_is_cut_short(tmp_path):
    for k in range(9):
        (tmp_path / f"{k}.png").write_bytes(b"")
    message = refused(folder(tmp_path).build, "9 images are unreadable", "and 4 more; replace")
    assert message.count(".png") == 5


# --- CelebA ---------------------------------------------------------------------------------


@pytest.mark.parametrize("above", ["celeba", "CelebA/Img"])
def test_celeba_is_found_below_root(tmp_path, above):
    make_celeba(tmp_path / above)
    assert len(CelebA(root=str(tmp_path)).build()) == 5


def test_celeba_as_nested_archive_with_csv(tmp_path):
    make_celeba(tmp_path)
    outer = tmp_path / "img_align_celeba"
    outer.rename(tmp_path / "inner")
    outer.mkdir()
    (tmp_path / "inner").rename(outer / "img_align_celeba")
    lines = (tmp_path / "list_eval_partition.txt").read_text().replace(" ", ",")
    (tmp_path / "list_eval_partition.txt").unlink()
    (tmp_path / "list_eval_partition.csv").write_text("image_id,partition\n" + lines)
    assert len(CelebA(root=str(tmp_path)).build("test")) == 3


def test_celeba_refusals(tmp_path):
    refused(CelebA(root=str(tmp_path)).build, str(tmp_path), "FLOWMATCH_DATA", "img_align_celeba")
    config = make_celeba(tmp_path)
    save(tmp_path / "img_align_celeba/000002.jpg", picture(100, 100))
    refused(config.build, r"1 image is not 178x218 .*000002.jpg \(100x100\); use the aligned")
    (tmp_path / "img_align_celeba/000002.jpg").unlink()
    refused(config.build, "lacks 1 of the 5 images of the train split: 000002.jpg; unpack")
    (tmp_path / "list_eval_partition.txt").write_text("")
    refused(config.build, "lists no image of part 0; expected lines such as")
    (tmp_path / "list_eval_partition.txt").unlink()
    refused(config.build, "list_eval_partition.txt is missing.*; download it")


# --- FFHQ -----------------------------------------------------------------------------------


def test_ffhq_prefers_the_full_size_and_ignores_other_files(tmp_path):
    config = make_ffhq(tmp_path / "ffhq")
    assert len(replace(config, root=str(tmp_path)).build()) == 6
    save(tmp_path / "ffhq/images1024x1024/00000/00007.png", picture(64, 64))
    save(tmp_path / "ffhq/images1024x1024/preview.png", picture(64, 64))
    assert len(replace(config, root=str(tmp_path)).build()) == 1
    refused(lambda: replace(config, root=str(tmp_path)).build("test"), "none of the test images")


def test_ffhq_is_not_any_folder_of_images(tmp_path):
    save(tmp_path / "cat.png", picture(64, 64))
    refused(FFHQ(root=str(tmp_path)).build, "no FFHQ found in .*; set root", "FLOWMATCH_DATA")


# --- ImageNet -------------------------------------------------------------------------------


def test_imagenet_random_crops_stream_and_follow_the_uniforms(tmp_path):
    dataset = replace(make_imagenet(tmp_path), crop="random").build()
    assert not dataset.in_memory
    index = torch.tensor([1, 1])
    one, other = dataset.batch(index, torch.tensor([[0.9, 0.9, 0.0, 0.0], [0.9, 0.9, 0.9, 0.9]])).x1
    assert not torch.equal(one, other)
    centred = replace(make_imagenet(tmp_path), crop="center").build()
    assert torch.equal(dataset.plain(index).x1, centred.plain(index).x1)


def test_imagenet_refusals(tmp_path):
    refused(ImageNet(root=str(tmp_path)).build, "no ImageNet found in ", "train/WNID")
    refused(lambda: ImageNet(crop="left"), "crop must be 'center' or 'random'")
    make_imagenet(tmp_path)
    save(tmp_path / "val/ILSVRC2012_val_00000001.JPEG", picture(80, 80))
    refused(lambda: ImageNet(root=str(tmp_path)).build("test"), "outside class folders; sort them")
