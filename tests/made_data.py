"""Small data sets in the layout of the real ones, written to a folder."""

from __future__ import annotations

import io
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from PIL import Image

from flowmatch import data
from flowmatch.data.packing import Files, pack


def picture(width: int, height: int, *, key: int = 0, mode: str = "RGB") -> Image.Image:
    """An image of smooth random colours, without symmetry."""
    noise = np.random.default_rng(key).integers(0, 256, (4, 4, 3), dtype=np.uint8)
    return Image.fromarray(noise).resize((width, height)).convert(mode)


def save(path: Path, image: Image.Image) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    image.save(path)
    return path


def encoded(image: Image.Image) -> bytes:
    stream = io.BytesIO()
    image.save(stream, "PNG")
    return stream.getvalue()


def write_parquet(
    path: Path, images: list[bytes | None], *, image: str = "image", **columns: list[Any]
) -> Path:
    """A table in the hub's form: a struct of bytes and path, and other columns."""
    path.parent.mkdir(parents=True, exist_ok=True)
    cells = pa.array([{"bytes": b, "path": None} for b in images], IMAGE_TYPE)
    pq.write_table(pa.table({image: cells, **columns}), path)
    return path


IMAGE_TYPE = pa.struct([("bytes", pa.binary()), ("path", pa.string())])


def make_mnist(root: Path) -> data.MNIST:
    for split, count in (("train", 20), ("test", 10)):
        images = [encoded(picture(28, 28, key=k, mode="L")) for k in range(count)]
        write_parquet(root / f"mnist/{split}.parquet", images, label=[k % 10 for k in range(count)])
    return data.MNIST(root=str(root))


def make_cifar10(root: Path) -> data.CIFAR10:
    for split, count in (("train", 20), ("test", 10)):
        images = [encoded(picture(32, 32, key=k)) for k in range(count)]
        labels = [k % 10 for k in range(count)]
        path = root / f"data/{split}-00000-of-00001.parquet"
        write_parquet(path, images, image="img", label=labels)
    return data.CIFAR10(root=str(root))


def make_unpacked_mnist(root: Path) -> np.ndarray:
    """The four files of MNIST/raw, with 12 images each; returns the training images."""
    folder = root / "MNIST/raw"
    folder.mkdir(parents=True)
    for part in ("t10k", "train"):
        images = np.stack([np.asarray(picture(28, 28, key=k, mode="L")) for k in range(12)])
        labels = np.arange(12, dtype=np.uint8) % 10
        head = b"".join(n.to_bytes(4, "big") for n in (2051, 12, 28, 28))
        (folder / f"{part}-images-idx3-ubyte").write_bytes(head + images.tobytes())
        head = b"".join(n.to_bytes(4, "big") for n in (2049, 12))
        (folder / f"{part}-labels-idx1-ubyte").write_bytes(head + labels.tobytes())
    return images


def make_unpacked_cifar10(root: Path) -> np.ndarray:
    """The batches of cifar-10-batches-py, with 4 images each; returns the training images."""
    folder = root / "cifar-10-batches-py"
    folder.mkdir(parents=True)
    images = np.stack([np.asarray(picture(32, 32, key=k)) for k in range(20)])
    rows = images.transpose(0, 3, 1, 2).reshape(20, -1)
    for k, name in enumerate([f"data_batch_{k}" for k in range(1, 6)] + ["test_batch"]):
        part = slice(4 * (k % 5), 4 * (k % 5) + 4)
        batch = {"data": rows[part], "labels": [0, 1, 2, 9]}
        (folder / name).write_bytes(pickle.dumps(batch))
    (folder / "batches.meta").write_bytes(pickle.dumps({"label_names": list("abcdefghij")}))
    return images


def make_celeba(root: Path) -> data.CelebA:
    lines = []
    for k in range(1, 10):
        save(root / f"img_align_celeba/{k:06}.jpg", picture(178, 218, key=k))
        lines.append(f"{k:06}.jpg {0 if k < 6 else 1 if k < 7 else 2}")
    (root / "list_eval_partition.txt").write_text("\n".join(lines) + "\n")
    return data.CelebA(root=str(root), image_size=32)


def make_ffhq(root: Path) -> data.FFHQ:
    for k in (0, 1, 1000, 59_999, 60_000, 69_999):
        folder = root / f"thumbnails128x128/{k // 1000 * 1000:05}"
        save(folder / f"{k:05}.png", picture(128, 128, key=k))
    return data.FFHQ(root=str(root), image_size=32)


def make_imagenet(root: Path) -> data.ImageNet:
    for part, count in (("train", 4), ("val", 2)):
        for wnid in ("n01440764", "n01443537", "n01484850"):
            for k in range(count):
                image = picture(90 + 5 * k, 80, key=k)
                save(root / part / wnid / f"{wnid}_{k}.JPEG", image)
    return data.ImageNet(root=str(root), image_size=32)


def make_folder(root: Path) -> data.ImageFolder:
    for part, count in (("train", 4), ("test", 2)):
        for name in ("cat", "dog"):
            for k in range(count):
                save(root / part / name / f"{k}.png", picture(48, 40, key=k))
    return data.ImageFolder(root=str(root), image_size=32, flip=True)


def make_hub(root: Path) -> data.Hub:
    for split in ("train", "test"):
        images = [encoded(picture(48, 40, key=k)) for k in range(6)]
        write_parquet(root / f"{split}.parquet", images, fine=[0, 1, 2, 0, 1, 2])
    return data.Hub(path=str(root), label_column="fine", image_size=32)


def make_shards(root: Path) -> data.Shards:
    folder = make_folder(root / "images")
    for split in ("train", "test"):
        images = Files(*folder.source(split))
        pack(images, root / "shards" / split, shard_size=3, workers=2)
    return data.Shards(root=str(root / "shards"), image_size=32)


def make_autoencoder(folder: Path, *, channels: int = 3, key: int = 0) -> Path:
    """An untrained AutoencoderKL that halves the sides and has 2 latent channels, as a folder."""
    from diffusers import AutoencoderKL

    torch.manual_seed(key)
    AutoencoderKL(
        in_channels=channels,
        out_channels=channels,
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        block_out_channels=(4, 4),
        latent_channels=2,
        norm_num_groups=2,
    ).save_pretrained(folder)
    return folder


def make_latent(root: Path) -> data.Latent:
    autoencoder = make_autoencoder(root / "autoencoder")
    return data.Latent(
        images=make_imagenet(root / "images"),
        autoencoder=str(autoencoder),
        cache=str(root / "cache"),
    )


MAKERS: dict[str, Callable[[Path], Any]] = {
    "celeba": make_celeba,
    "cifar10": make_cifar10,
    "digits": lambda root: data.Digits(),
    "ffhq": make_ffhq,
    "folder": make_folder,
    "hub": make_hub,
    "imagenet": make_imagenet,
    "latent": make_latent,
    "mnist": make_mnist,
    "shards": make_shards,
    "toy": lambda root: data.Toy(name="moons", samples=100),
}
"""For each kind a function that writes a small set and returns the config that reads it."""
