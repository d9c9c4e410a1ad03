"""The page says what the run directory holds, needs nothing beside it, and is whole HTML."""

import base64
import json
import os
import re
import shutil
import subprocess
from html.parser import HTMLParser
from importlib import resources

import pytest

from flowmatch import __version__
from flowmatch.cli.report import report
from flowmatch.report import write_report

EMPTY = {"img", "meta", "link", "br", "hr", "input"}
SECTIONS = ["samples", "evaluation", "training", "cost", "memorisation", "config"]


class Page(HTMLParser):
    """Checks that tags are balanced; collects text, attributes and ids."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.words: list[str] = []
        self.attributes: list[tuple[str, str, str]] = []
        self.feed(text)
        self.close()
        assert self.open == []
        self.text = " ".join("".join(self.words).split())

    def handle_starttag(self, tag, attrs):
        self.attributes += [(tag, name, value or "") for name, value in attrs]
        if tag not in EMPTY:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if "style" not in self.open:
            self.words.append(data + (" " if self.open[-1:] != ["b"] else ""))

    def values(self, name):
        return [value for _, key, value in self.attributes if key == name]


def page(folder) -> Page:
    return Page(write_report(folder).read_text(encoding="utf-8"))


def test_a_full_run_is_told(full):
    found = page(full)
    for words in (
        "digits, 1 × 8 × 8, 10 classes",
        "step 6 of 6, 96 images",
        "fd_data ↓ 1.750 ± 0.050",  # the best row, with its protocol and what it is held against
        "heun, 50 steps, 100 network evaluations a sample, the best of 4",
        "For comparison: held-out data 1.250",
        "5,000 samples against digits train (1,437 images); EMA weights; seed 0; heun 50 steps",
        "step 1, 16 images",
        "step 3, 48 images",
        "held-out data (360)",
        "best 1.500",  # of the evaluations during training, at step 4
        "reduced: 100 samples",
        "fd_data on 100 samples (reduced)",
        "best 4 64 1.500 0.5000 last 6 96 5.500 0.5000",
        "Not drawn: 1 lines whose loss was not finite.",
        "t (0 noise, 1 data)",
        "16 images",
        "made-up GPU",
        "nn_ratio",
        "0.9800",
        "80.0%",
        "Trained with flowmatch 0.1.0 and torch 2.15.0.",
        "kind: logit_normal",
        f"Made by flowmatch {__version__}",
    ):
        assert words in found.text, words
    assert "step 2, 32 images" not in found.text  # of five grids the first, the middle, the last
    assert found.values("src")[0].startswith("data:image/png;base64,")


def test_what_stands_beside_the_rows_is_told(full):
    path = full / "evaluation/data-5000.json"
    held = json.loads(path.read_text())
    classes = held.pop("classes")
    for row in held["rows"]:
        row["classes"] = {**classes, "agreement": 0.9} if row["nfe"] == 100 else None
    held["floor"] = {"count": 5000, "fd_data": 0.125}
    held["transport"] = {"curvature": 0.0625}
    path.write_text(json.dumps(held))
    text = page(full).text
    assert "Of each fd_data, about 0.1250 is the bias of 5,000 samples" in text
    assert "Of the flow itself: curvature 0.06250." in text
    assert "that a classifier recognises as it (heun, 50 steps)" in text
    assert "80.0%" in text


def test_only_the_newest_evaluation_shows_its_grids(full):
    older = full / "evaluation/older.json"
    older.write_text((full / "evaluation/data-5000.json").read_text())
    os.utime(older, (1, 1))
    found = page(full)
    assert len(found.values("src")) == 3 + 2
    headings = found.text
    assert headings.index("data-5000 solver") < headings.index("older solver")


def test_pictures_are_the_files(full):
    sources = page(full).values("src")
    files = [full / f"samples/step{step:07d}.png" for step in (1, 3, 5)]
    grid = full / "evaluation/data-5000-heun-50.png"
    held = [base64.b64decode(source.partition(",")[2]) for source in sources]
    assert held == [path.read_bytes() for path in (*files, grid, grid)]
    assert all(page(full).values("alt"))


def test_cost_is_arithmetic(full):
    text = page(full).text
    assert "training time 12 s" in text
    assert "mean rate 8.0 images/s" in text
    assert "training (estimate) 576 GFLOP" in text  # 3 x 2 GFLOP x 96 images
    assert "achieved (estimate) 48 GFLOP/s" in text
    assert "utilisation 2.4% of a measured matrix multiplication (2 × 1 TFLOP/s)" in text
    assert "starts 2" in text


def test_a_utilisation_of_two_devices_is_not_claimed(full):
    path = full / "metrics.jsonl"
    path.write_text(path.read_text().replace("made-up GPU", "other GPU", 1))
    text = page(full).text
    assert "not all on the same device" in text
    assert "of a measured matrix multiplication" not in text


def test_a_bare_run_says_what_would_fill_each_part(bare):
    found = page(bare)
    assert [v for v in found.values("id") if v in SECTIONS] == SECTIONS
    for words in (
        "No number yet",
        "No sample grids were drawn",
        "has not been evaluated",
        "has no metrics.jsonl",
        "Nothing is known of this run's cost",
        "No evaluation compares samples with the training data",
        f"flowmatch evaluate '{bare}'",
    ):
        assert words in found.text, words
    assert found.values("src") == []


@pytest.mark.parametrize("kept", ["loss", "started", "evaluation", "grad_norm_t", "curvature"])
def test_any_part_of_the_metrics_may_be_missing(full, kept):
    path = full / "metrics.jsonl"
    lines = [line for line in path.read_text().splitlines() if f'"{kept}"' in line]
    path.write_text("\n".join([*lines, "7", "[]", '{"step": null, "images": "x", "loss": "y"}']))
    shutil.rmtree(full / "evaluation")
    page(full)


def test_values_of_the_wrong_kind_are_passed_over(full):
    odd = [
        {"step": 1, "images": 2, "loss": [], "loss_t": 3, "grad_norm_t": "x", "curvature": {}},
        {"step": 1, "images": None, "started": 5, "evaluation": []},
        {"step": 1, "images": 3, "started": {}, "evaluation": {"metrics": 4, "primary": None}},
    ]
    (full / "metrics.jsonl").write_text("\n".join(json.dumps(r) for r in odd))
    page(full)


def test_without_an_evaluation_the_reduced_one_is_the_number(full):
    shutil.rmtree(full / "evaluation")
    text = page(full).text
    assert "fd_data ↓ 1.500 reduced: 100 samples, at step 4, the best of 6" in text
    assert "Protocol : fd_data on 100 samples (reduced)" in text.replace("Protocol:", "Protocol :")


def test_damaged_files_are_named(full):
    (full / "evaluation/broken.json").write_text("{")
    (full / "samples/step0000005.png").write_bytes(b"no picture")
    (full / "evaluation/data-5000-heun-50.png").unlink()
    text = page(full).text
    assert "broken.json cannot be read as an evaluation: Expecting property name" in text
    assert "step0000005.png cannot be shown: it is no picture." in text
    assert "data-5000-heun-50.png cannot be shown: No such file or directory." in text


def test_large_pictures_are_reduced(full):
    import torch
    from torchvision.transforms.functional import to_pil_image

    noise = torch.randint(0, 255, (3, 1000, 2000), dtype=torch.uint8)
    to_pil_image(noise).save(full / "samples/step0000006.png")
    assert (full / "samples/step0000006.png").stat().st_size > 5_000_000
    found = page(full)
    assert any(s.startswith("data:image/webp") for s in found.values("src"))
    assert (full / "report.html").stat().st_size < 3_000_000


def test_the_page_needs_nothing_beside_it(full):
    text = write_report(full).read_text()
    found = Page(text)
    assert all(value.startswith("data:") for value in found.values("src"))
    assert found.values("href") == []
    assert "url(" not in text
    assert "@import" not in text
    assert "<script" not in text
    assert "http:" not in text
    assert "https:" not in text


def test_names_and_protocols_are_data(full):
    evil = "<script>alert(1)</script>"
    run = full.with_name("<script>alert(1)<!--")
    full.rename(run)
    path = run / "evaluation/data-5000.json"
    path.write_text(path.read_text().replace("EMA weights", evil).replace("held-out data", evil))
    metrics = run / "metrics.jsonl"
    metrics.write_text(metrics.read_text().replace("made-up GPU", evil).replace("fd_data", evil))
    text = write_report(run, run / "page.html").read_text()
    assert "<script" not in text
    assert "<!--" not in text
    found = Page(text)
    assert "<script>alert(1)<!--" in found.text
    assert f"images); {evil}; seed 0" in found.text


def test_where_the_page_goes(full, tmp_path, capsys):
    report(full)
    assert capsys.readouterr().out == f"{full}/report.html\n"
    deep = tmp_path / "a/b/page.html"
    report(full, deep)
    assert capsys.readouterr().out == f"{deep}\n"
    assert f"flowmatch report {full} -o {deep}" in Page(deep.read_text()).text
    assert [p.name for p in deep.parent.iterdir()] == ["page.html"]
    with pytest.raises(ValueError, match="is a folder; give -o the name of a file in it"):
        report(full, tmp_path)
    with pytest.raises(ValueError, match="cannot write to"):
        report(full, deep / "below-a-file.html")


def test_a_run_of_points(flowmatch, tmp_path):
    (tmp_path / "toy.yaml").write_text(
        "{data: {kind: toy, name: moons, samples: 100}, network: {kind: mlp, width: 8},"
        " train: {steps: 2, batch: 8, log_every_steps: 1, sample_every_steps: 1}}"
    )
    flowmatch("train", "-c", tmp_path / "toy.yaml", "-e", tmp_path / "run")
    found = page(tmp_path / "run")
    assert "toy, 2" in found.text
    assert "loss (log)" in found.text
    assert len(found.values("src")) == 2


def test_the_style_is_whole():
    style = (resources.files("flowmatch.report") / "style.css").read_text()
    assert style.count("{") == style.count("}")
    used = set(re.findall(r"var\((--[a-z0-9]+)", style))
    assert used - {"--series"} <= set(re.findall(r"(--[a-z0-9]+):", style))


@pytest.mark.skipif(not shutil.which("chromium"), reason="needs chromium")
def test_a_browser_shows_it_without_complaint(full, tmp_path):
    path = write_report(full)
    words = ["chromium", "--headless", "--no-sandbox", "--disable-gpu", "--enable-logging=stderr"]
    home = f"--user-data-dir={tmp_path / 'profile'}"
    done = subprocess.run(
        [*words, home, "--dump-dom", path.as_uri()], capture_output=True, text=True, timeout=120
    )
    assert "CONSOLE" not in done.stderr
    shown = re.sub(r"\s+", "", done.stdout)
    assert shown.count("<svg") == path.read_text().count("<svg") > 8
    assert "Madebyflowmatch" in shown
