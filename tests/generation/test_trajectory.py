"""Animations: states at even times, whatever the solver's own; files that play."""

import shutil
import subprocess
import sys

import numpy as np
import pytest
import torch
from PIL import Image

import flowmatch as fm
from closed_form import GaussianFlow
from flowmatch.generation import generate
from flowmatch.pictures import check_animation, point_frames, save_animation, states_over_time
from flowmatch.sampling import bind


def test_an_adaptive_solver_is_asked_for_even_times():
    field = GaussianFlow()
    x0 = torch.randn(5, 2, dtype=torch.float64)
    solver = fm.solvers.Dopri5(rtol=1e-8, atol=1e-8, safe_end=False)
    states = states_over_time(solver, bind(field), x0, frames=9)
    for k, x in enumerate(states):
        torch.testing.assert_close(x, field.solution(x0, k / 8), rtol=1e-5, atol=1e-5)


def test_a_fixed_grid_shows_the_latest_state():
    field, x0 = GaussianFlow(), torch.randn(5, 2, dtype=torch.float64)
    solver = fm.solvers.RK4(steps=4, safe_end=False)
    states = states_over_time(solver, bind(field), x0, frames=9)
    reached = [x0, *(x for _, x in solver.trajectory(bind(field), x0))]
    assert len(states) == 9
    for k, x in enumerate(states):
        assert torch.equal(x, reached[k // 2])


def test_points_move_before_fixed_axes():
    still = torch.tensor([[0.0, 0.0], [1.0, 0.5]])
    frames = point_frames([still, torch.cat([still[:1], still[1:] + 3])], size=200)
    assert [f.size for f in frames] == [(200, 200)] * 2
    dark = [np.argwhere(np.asarray(f.convert("L")) < 250) for f in frames]
    in_corner = [points[points[:, 1] < 60] for points in dark]  # the point that stays
    assert len(in_corner[0])
    assert np.array_equal(in_corner[0].mean(0).round(), in_corner[0].mean(0).round())
    assert set(map(tuple, in_corner[1])) <= set(map(tuple, in_corner[0]))


def test_a_gif_rests_on_its_last_frame(pull, job, one):
    made = job(trajectory="gif", solver=fm.solvers.Euler(steps=40))
    generate(pull, made, one)
    with Image.open(made.save_dir / "trajectory.gif") as movie:
        times = []
        for frame in range(movie.n_frames):
            movie.seek(frame)
            times.append(movie.info["duration"])
        assert sum(times) == 39 * 60 + 1500
        assert times[-1] >= 1500
        assert movie.n_frames > 30
        last = np.asarray(movie.convert("RGB")).astype(int)
    first = np.asarray(Image.open(made.save_dir / "00000.png")).astype(int)
    cell = last[2:42:5, 2:42:5]  # ten columns of 8x8 images, five times as large
    assert abs(cell - first).max() <= 40  # a GIF has 256 colours


def test_an_mp4_plays(pull, job, one):
    if shutil.which("ffmpeg") is None:
        pytest.skip("no ffmpeg on this machine")
    made = job(trajectory="mp4", count=3, solver=fm.solvers.Euler(steps=5))
    generate(pull, made, one)
    movie = str(made.save_dir / "trajectory.mp4")
    last = ["ffmpeg", "-loglevel", "error", "-sseof", "-0.5", "-i", movie, "-vframes", "1"]
    subprocess.run([*last, str(made.save_dir / "last.bmp")], check=True)
    frame = np.asarray(Image.open(made.save_dir / "last.bmp")).astype(int)
    assert frame.shape[0] % 2 == frame.shape[1] % 2 == 0
    first = np.asarray(Image.open(made.save_dir / "00000.png")).astype(int)
    assert abs(frame[4:44:5, 4:44:5].mean() - first.mean()) < 10
    assert not list(made.save_dir.glob(".*partial"))


def test_what_ffmpeg_is_given(tmp_path, monkeypatch):
    """A stand-in keeps its arguments and what it was fed."""
    program = tmp_path / "ffmpeg"
    program.write_text(f"""#!{sys.executable}
import pathlib, sys
pathlib.Path(sys.argv[-1]).write_bytes(sys.stdin.buffer.read())
pathlib.Path(sys.argv[-1] + ".arguments").write_text(" ".join(sys.argv))
""")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    save_animation([Image.new("RGB", (3, 5), c) for c in ("red", "blue")], tmp_path / "a.mp4")
    pixels = np.frombuffer((tmp_path / "a.mp4").read_bytes(), np.uint8).reshape(-1, 6, 4, 3)
    assert len(pixels) == 3 + 75  # 60 ms and 1.5 s at 50 frames a second
    assert pixels[2, 0, 0].tolist() == [255, 0, 0]
    assert pixels[-1, 4, 2].tolist() == [0, 0, 255]
    assert pixels[-1, 5, 3].tolist() == [255, 255, 255]
    assert "-s 4x6" in (tmp_path / ".a.mp4.partial.arguments").read_text()
    program.write_text(f"#!{sys.executable}\nraise SystemExit('it is broken')\n")
    with pytest.raises(OSError, match="it is broken"):
        save_animation([Image.new("RGB", (3, 5))], tmp_path / "b.mp4")
    assert not (tmp_path / "b.mp4").exists()


def test_mp4_without_ffmpeg_is_one_sentence(pull, job, one, monkeypatch):
    monkeypatch.setenv("PATH", "")
    with pytest.raises(ValueError, match="ffmpeg, which is not on the PATH"):
        generate(pull, job(trajectory="mp4"), one)
    assert not job().save_dir.exists()
    check_animation("gif")


def test_one_frame_is_enough(tmp_path):
    save_animation([Image.new("RGB", (3, 3))], tmp_path / "a.gif")
    assert Image.open(tmp_path / "a.gif").n_frames == 1
