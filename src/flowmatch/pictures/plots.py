"""Plots: points in the plane, and any figure as a picture."""

from __future__ import annotations

from typing import Any

import numpy as np
from PIL import Image
from torch import Tensor

Limits = tuple[float, float, float, float]
"""What a plot shows: left, right, bottom, top."""


def scatter(
    points: Tensor,
    *,
    labels: Tensor | None = None,
    size: int = 512,
    limits: Limits | None = None,
    area: float = 2.0,
) -> Image.Image:
    """Points [N, D] as a square picture of their first two coordinates.

    Args:
        points: [N, D], D >= 2.
        labels: classes [N], shown as colours; None is one colour.
        size: width and height in pixels.
        limits: what is shown; None shows all points. Give the same to pictures to be compared.
        area: of a point, in square typographic points.
    """
    import matplotlib.pyplot as plt

    figure = plt.figure(figsize=(size / 100, size / 100), dpi=100)
    axes = figure.add_axes((0.02, 0.02, 0.96, 0.96), xticks=[], yticks=[])
    xy = points.float().cpu().numpy()
    style = {} if labels is None else {"c": labels.cpu().numpy(), "cmap": "tab10"}
    axes.scatter(xy[:, 0], xy[:, 1], s=area, alpha=0.5, **style)
    if limits is None:
        axes.set_aspect("equal", adjustable="datalim")
    else:
        axes.set(xlim=limits[:2], ylim=limits[2:])
    picture = figure_image(figure)
    plt.close(figure)
    return picture


def square_around(points: Tensor) -> Limits:
    """The square about the first two coordinates of points [..., D], with a small margin."""
    xy = points.float().reshape(-1, points.shape[-1])[:, :2]
    low, high = xy.amin(0), xy.amax(0)
    x, y = ((low + high) / 2).tolist()
    half = max(float((high - low).max()), 1e-6) * 0.53
    return x - half, x + half, y - half, y + half


def figure_image(figure: Any) -> Image.Image:
    """A matplotlib figure as a picture, whatever the display."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return Image.fromarray(np.asarray(canvas.buffer_rgba())).convert("RGB")
