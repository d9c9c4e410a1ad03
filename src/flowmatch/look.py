"""Pictures of a trained run: samples by class, their nearest training images, a GIF, the loss."""

from __future__ import annotations

from pathlib import Path

import torch
from PIL import Image
from torch import Tensor

from flowmatch.config import Config
from flowmatch.data import Dataset, decoded_data
from flowmatch.dealing import classes_dealt, others_of, usual_conditions
from flowmatch.pictures import (
    figure_image,
    image_frames,
    image_grid,
    save_animation,
    states_over_time,
)
from flowmatch.runs import load, open_run
from flowmatch.sampling import bind, noise, sample
from flowmatch.tensors import sum_flat, to_uint8
from flowmatch.training.tracking import read_metrics

_CELL = 40
_MOST_NEIGHBOURS = 60_000
"""Training images compared with; of a larger set, the first so many."""


def look(run_dir: Path, out_dir: Path, *, seed: int = 0, rows: int = 8) -> list[Path]:
    """Draw the pictures of a run of images; the paths written.

    Args:
        run_dir: a run directory with a checkpoint.
        out_dir: where `samples.png`, `nearest.png`, `trajectory.gif` and `loss.png` go.
        seed: of the samples.
        rows: images of each of the first ten classes, or rows of ten without classes. A model with
            other conditions is given those of the training data in turn.
    Raises:
        ValueError: no run, no checkpoint, or no images.
    """
    config, _ = open_run(run_dir)
    flow = load(run_dir)
    if flow.shape is None or len(flow.shape) != 3:
        raise ValueError(f"{run_dir} makes no images; draw its samples with --format npz")
    columns = min(flow.num_classes or 10, 10)  # of many classes, the first ten
    dealt = usual_conditions(flow, config.data, rows * columns)
    if not others_of(flow):
        dealt = classes_dealt(columns if flow.num_classes else None)
    cond = dealt(range(rows * columns))
    x0 = noise(range(rows * columns), flow.shape, stream=seed)
    x1 = flow.decode(sample(flow, x0, config.sample.solver, cond))
    out_dir.mkdir(parents=True, exist_ok=True)
    pictures = {
        "samples.png": image_grid(to_uint8(x1), columns=columns, smallest=_CELL),
        "nearest.png": _nearest(x1, config, columns),
        "loss.png": _loss_curve(run_dir),
    }
    paths = []
    for name, picture in pictures.items():
        if picture is not None:
            picture.save(out_dir / name)
            paths.append(out_dir / name)
    states = states_over_time(config.sample.solver, bind(flow, cond), x0)
    frames = image_frames(map(flow.decode, states), columns=columns, smallest=_CELL)
    save_animation(frames, out_dir / "trajectory.gif")
    return [*paths, out_dir / "trajectory.gif"]


def _nearest(samples: Tensor, config: Config, shown: int) -> Image.Image:
    """The first samples above the training images nearest to them in pixels.

    A memorising model shows twins. The title compares with unseen images: samples that lie much
    nearer to the training set than held-out images do are copies.
    """
    data = decoded_data(config.data)
    train = _all_images(data.build("train"))
    distance, index = _distances(samples, train)
    title = f"RMS pixel distance to the nearest training image: samples {distance.median():.3f}"
    try:
        held_out = _all_images(data.build("test"))[:200]
    except ValueError:  # no held-out part: the pictures alone must do
        pass
    else:
        title += f", held-out images {_distances(held_out, train)[0].median():.3f} (medians)"
    pairs = torch.cat([samples[:shown], train[index[:shown]]])
    grid = image_grid(to_uint8(pairs), columns=shown, smallest=3 * _CELL)
    import matplotlib.pyplot as plt

    figure = plt.figure(figsize=(11, 11 * grid.height / grid.width + 0.5), dpi=100)
    axes = figure.add_axes((0.09, 0.02, 0.9, 0.83))
    axes.imshow(grid)
    axes.set_xticks([])
    axes.set_yticks([grid.height * 0.25, grid.height * 0.75], ["samples", "nearest\nin training"])
    axes.set_title(title, fontsize=10)
    picture = figure_image(figure)
    plt.close(figure)
    return picture


def _all_images(dataset: Dataset) -> Tensor:
    chunks = torch.split(torch.arange(min(len(dataset), _MOST_NEIGHBOURS)), 1000)
    return torch.cat([dataset.plain(chunk).x1 for chunk in chunks])


def _distances(x: Tensor, train: Tensor) -> tuple[Tensor, Tensor]:
    """RMS pixel distance to the nearest row of `train`, and which it is."""
    a, b = x.flatten(1), train.flatten(1)
    squared = sum_flat(a**2)[:, None] - 2 * a @ b.T + sum_flat(b**2)[None]
    nearest, index = squared.clamp(min=0).min(1)
    return (nearest / a.shape[1]).sqrt(), index


def _loss_curve(run_dir: Path) -> Image.Image | None:
    path = run_dir / "metrics.jsonl"
    records = [r for r in read_metrics(path) if "loss" in r] if path.exists() else []
    if not records:
        return None
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(7, 4), dpi=100)
    axes.plot([r["images"] for r in records], [r["loss"] for r in records], lw=1)
    axes.set_xlabel("training images seen")
    axes.set_ylabel("loss (mean since the last point)")
    axes.set_yscale("log")
    axes.grid(alpha=0.3, which="both")
    figure.tight_layout()
    picture = figure_image(figure)
    plt.close(figure)
    return picture
