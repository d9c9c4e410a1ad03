"""`flowmatch edit`: images restored and varied by a run's model, and one sentence a mistake."""

import json

import numpy as np
import pytest
import torch
from PIL import Image

import flowmatch as fm
from flowmatch.editing import Inpaint, Projection, interpolate, sdedit
from flowmatch.edits.job import ROUNDING
from flowmatch.metrics.psnr import psnr
from flowmatch.tensors import from_uint8, to_uint8

BOX = ("--box", "2,2,4,3")


def save(path, pixels):
    Image.fromarray(np.asarray(pixels, dtype=np.uint8)).save(path)
    return path


def read(path):
    return torch.from_numpy(np.array(Image.open(path)))


@pytest.fixture
def digits(tmp_path):
    """Three held-out digits as PNG files."""
    x1 = fm.data.Digits().build("test").plain(torch.arange(3)).x1
    for name, image in zip(("eight", "nine", "ten"), to_uint8(x1), strict=True):
        save(tmp_path / f"{name}.png", image[0])
    return [tmp_path / f"{name}.png" for name in ("eight", "nine", "ten")]


def test_images_are_inpainted_as_the_library_does_it(flowmatch, trained, digits, tmp_path):
    out = tmp_path / "out"
    code, said, err = flowmatch("edit", "inpaint", trained, *digits, *BOX, "-o", out, "--seed", 5)
    assert (code, err) == (0, "")
    assert "3 images" in said
    assert "100 evaluations an image" in said
    assert "PSNR" not in said
    known = torch.ones(8, 8, dtype=torch.bool)
    known[2:6, 2:5] = False
    operator, flow = Inpaint(known), fm.load(trained)
    y = operator(torch.stack([from_uint8(read(path))[None] for path in digits]))
    x1 = Projection(sigma_y=ROUNDING)(flow, y, operator, seeds=range(3), stream=5)
    for path, image in zip(digits, to_uint8(x1), strict=True):
        result = read(out / path.name)
        assert (result.int() - image[0].int()).abs().max() <= 1
        assert (result.int() - read(path).int())[known].abs().max() <= 2
    record = json.loads((out / "edit.json").read_text())
    assert (record["task"], record["seed"], record["nfe"]) == ("inpaint", 5, 100)
    assert record["options"] == {"box": [2, 2, 4, 3]}
    assert record["settings"]["method"]["kind"] == "projection"
    assert len(record["model"]["hash"]) > 8
    assert [image["name"] for image in record["images"]] == ["eight", "nine", "ten"]
    sheet = Image.open(out / "contact-sheet.png")
    assert sheet.width == 3 * 58 + 2  # measured, naive, result: 8 pixels enlarged to 56


def test_a_mask_is_white_where_pixels_are_unknown(flowmatch, trained, digits, tmp_path):
    mask = np.zeros((8, 8))
    mask[:, 4:] = 255
    save(tmp_path / "mask.png", mask)
    out = ("--mask", tmp_path / "mask.png", "-o", tmp_path / "out")
    assert flowmatch("edit", "inpaint", trained, digits[0], *out)[0] == 0
    change = (read(tmp_path / "out/eight.png").int() - read(digits[0]).int()).abs()
    assert change[:, :4].max() <= 2
    assert change[:, 4:].max() > 20


def test_a_result_does_not_depend_on_the_batch(flowmatch, trained, digits, tmp_path):
    for name, batch in (("a", 3), ("b", 1)):
        arguments = (*digits, *BOX, "-o", tmp_path / name, "--bspp", batch)
        assert flowmatch("edit", "inpaint", trained, *arguments)[0] == 0
    for path in digits:
        pair = [read(tmp_path / name / path.name).int() for name in "ab"]
        assert (pair[0] - pair[1]).abs().max() <= 1


def test_degraded_images_are_compared_with(flowmatch, trained, digits, tmp_path):
    out = tmp_path / "out"
    arguments = ("--factor", 2, "--degrade", "--method", "pnp", "--steps", 6, "-o", out)
    code, said, _ = flowmatch("edit", "superresolve", trained, *digits, *arguments)
    assert code == 0
    record = json.loads((out / "edit.json").read_text())
    assert record["nfe"] == 12
    assert record["settings"]["degraded"]
    values = []
    for path, image in zip(digits, record["images"], strict=True):
        pair = [from_uint8(read(p))[None] for p in (out / path.name, path)]
        values.append(psnr(*pair).item())
        assert image["psnr"] == pytest.approx(values[-1])
    assert record["means"]["psnr"] == pytest.approx(sum(values) / 3)
    assert f"result {sum(values) / 3:.2f} dB" in said


def test_small_images_are_enlarged(flowmatch, trained, digits, tmp_path):
    small = read(digits[0]).float().view(4, 2, 4, 2).mean((1, 3)).round()
    save(tmp_path / "small.png", small)
    arguments = (tmp_path / "small.png", "--factor", 2, "-o", tmp_path / "out")
    assert flowmatch("edit", "superresolve", trained, *arguments)[0] == 0
    result = read(tmp_path / "out/small.png").float()
    assert result.shape == (8, 8)
    # not exactly: an untrained model's pixels lie beyond black, where the file cuts them
    assert (result.view(4, 2, 4, 2).mean((1, 3)) - small).abs().mean() < 8


@pytest.mark.parametrize("task", [("deblur", "--sigma", 0.8), ("inpaint", *BOX)])
def test_the_run_s_own_data(flowmatch, trained, tmp_path, task):
    own = ("--data", "test", "--count", 2, "--method", "dflow", "--steps", 2, "--noise", 0.1)
    code, said, _ = flowmatch("edit", task[0], trained, *task[1:], *own, "-o", tmp_path / "out")
    assert code == 0
    assert "mean PSNR" in said
    record = json.loads((tmp_path / "out/edit.json").read_text())
    assert record["source"] == {"data": "test"}
    assert record["settings"]["sigma_y"] == pytest.approx(0.1, rel=1e-2)
    assert record["nfe"] > 20
    names = sorted(p.name for p in (tmp_path / "out").glob("test-*.png"))
    assert names == ["test-00000.png", "test-00001.png"]


def test_sdedit(flowmatch, trained, digits, tmp_path):
    arguments = (*digits, "--strength", 0.5, "--steps", 4, "--class", 3, "-o", tmp_path / "out")
    assert flowmatch("edit", "sdedit", trained, *arguments)[0] == 0
    x = torch.stack([from_uint8(read(path))[None] for path in digits])
    labels, solver = torch.full((3,), 3), fm.solvers.Heun(steps=4)
    x1 = sdedit(fm.load(trained), x, 0.5, solver, labels, seeds=range(3))
    for path, image in zip(digits, to_uint8(x1), strict=True):
        assert (read(tmp_path / "out" / path.name).int() - image[0].int()).abs().max() <= 1
    still = (digits[0], "--strength", 0, "-o", tmp_path / "still")
    assert flowmatch("edit", "sdedit", trained, *still)[0] == 0
    assert torch.equal(read(tmp_path / "still/eight.png"), read(digits[0]))


def test_interpolation(flowmatch, trained, digits, tmp_path):
    arguments = (*digits[:2], "--frames", 4, "--steps", 10, "-o", tmp_path / "out")
    code, said, _ = flowmatch("edit", "interpolate", trained, *arguments)
    assert code == 0
    assert said.splitlines()[-2].startswith("4 frames between two images in ")
    assert said.splitlines()[-1].startswith("the ends come back")
    names = [f"eight-nine-{i:02d}.png" for i in range(4)]
    x = torch.stack([from_uint8(read(path))[None] for path in digits[:2]])
    row = interpolate(fm.load(trained), x[:1], x[1:], 4, fm.solvers.Heun(steps=10))[0]
    for name, image in zip(names, to_uint8(row), strict=True):
        assert (read(tmp_path / "out" / name).int() - image[0].int()).abs().max() <= 1
    assert Image.open(tmp_path / "out/contact-sheet.png").width == 4 * 58 + 2


def test_images_of_one_name_are_interpolated(flowmatch, trained, digits, tmp_path):
    for path, folder in zip(digits[:2], ("a", "b"), strict=True):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "same.png").write_bytes(path.read_bytes())
    images = (tmp_path / "a/same.png", tmp_path / "b/same.png")
    out = ("--frames", 2, "--steps", 2, "-o", tmp_path / "out")
    assert flowmatch("edit", "interpolate", trained, *images, *out)[0] == 0
    assert (tmp_path / "out/same-same-01.png").exists()


def test_folders_and_grey_images_saved_as_colour(flowmatch, trained, digits, tmp_path):
    (tmp_path / "folder").mkdir()
    for path in digits:
        Image.open(path).convert("RGB").save(tmp_path / "folder" / path.name)
    arguments = (tmp_path / "folder", *BOX, "-o", tmp_path / "out", "--steps", 2)
    assert flowmatch("edit", "inpaint", trained, *arguments)[0] == 0
    assert len(list((tmp_path / "out").glob("*.png"))) == 4


OPTIONS = {
    "foreign": (("inpaint", *BOX, "--factor", 2), "inpaint has no use for --factor"),
    "foreign degrade": (("sdedit", "--strength", 0.5, "--degrade"), "no use for --degrade"),
    "no mask": (("inpaint",), "give --mask FILE or --box"),
    "mask and box": (("inpaint", *BOX, "--mask", "x.png"), "one of the two"),
    "no factor": (("superresolve",), "superresolve needs --factor"),
    "no sigma": (("deblur",), "deblur needs --sigma"),
    "no strength": (("sdedit",), "sdedit needs --strength"),
    "box text": (("inpaint", "--box", "1,2,3"), "cannot read the box '1,2,3'"),
    "box": (("inpaint", "--box", "6,6,4,4"), "does not lie within images of 8x8 pixels"),
    "mask file": (("inpaint", "--mask", "nothing.png"), "there is no image file nothing.png"),
    "all unknown": (("inpaint", "--box", "0,0,8,8"), "nothing to start from"),
    "factor": (("superresolve", "--factor", 3), "does not divide images of 8x8"),
    "factor 0": (("superresolve", "--factor", 0), "factor must be at least 1"),
    "sigma": (("deblur", "--sigma", -1), "positive number of pixels"),
    "strength": (("sdedit", "--strength", 1.5), "--strength must be in [0, 1]"),
    "grey": (("colourise",), "needs a model of colour images"),
    "steps": (("inpaint", *BOX, "--steps", 0), "--steps must be at least 1"),
    "noise": (("inpaint", *BOX, "--noise", -1), "--noise must be at least 0"),
    "batch": (("inpaint", *BOX, "--bspp", 0), "--bspp must be at least 1"),
    "class": (("inpaint", *BOX, "--class", 10), "outside the model's classes 0 to 9"),
    "three": (("interpolate",), "between two images, got 3"),
    "frames": (("interpolate", "--frames", 1), "at least 2: 1"),
    "count": (("inpaint", *BOX, "--count", 2), "--count is for --data"),
    "both": (("inpaint", *BOX, "--data", "test"), "one of the two"),
}


@pytest.mark.parametrize(("words", "expected"), OPTIONS.values(), ids=OPTIONS.keys())
def test_a_mistake_is_one_sentence_and_writes_nothing(
    flowmatch, trained, digits, tmp_path, words, expected
):
    arguments = (words[0], trained, *digits, *words[1:], "-o", tmp_path / "out")
    code, _, err = flowmatch("edit", *arguments)
    assert code == 2
    assert expected in err
    assert err.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_images_that_do_not_fit(flowmatch, trained, digits, tmp_path):
    def refused(*paths, words=("inpaint", *BOX)):
        arguments = (words[0], trained, *paths, *words[1:], "-o", tmp_path / "out")
        code, _, err = flowmatch("edit", *arguments)
        assert code == 2
        assert not (tmp_path / "out").exists()
        return err

    large = save(tmp_path / "large.png", np.zeros((9, 8)))
    assert "is 9x8 pixels, but 8x8 are needed here" in refused(large)
    assert "8x8 pixels, but 4x4" in refused(digits[0], words=("superresolve", "--factor", 2))
    red = save(tmp_path / "red.png", np.eye(8)[..., None] * [255, 0, 0])
    assert "is in colour, but grey images are needed" in refused(red)
    (tmp_path / "empty.png").touch()
    assert "empty.png is unreadable (0 bytes)" in refused(tmp_path / "empty.png")
    (tmp_path / "text.png").write_text("no image at all")
    assert "text.png is unreadable (not an image)" in refused(tmp_path / "text.png")
    assert "there is no image file" in refused(tmp_path / "nothing.png")
    assert "give images, or --data" in refused()
    (tmp_path / "bare").mkdir()
    assert "there are no images to edit" in refused(tmp_path / "bare")
    assert "two images are called eight" in refused(digits[0], digits[0])
    black = save(tmp_path / "black.png", np.zeros((8, 8)))
    assert "is all black" in refused(digits[0], words=("inpaint", "--mask", black))
    wrong = ("inpaint", "--mask", large)
    assert "the mask" in (err := refused(digits[0], words=wrong))
    assert "is 9x8 pixels, but the model's images are 8x8" in err
    sheet = save(tmp_path / "contact-sheet.png", np.zeros((8, 8)))
    assert "as the sheet of all is" in refused(sheet)
    many = ("inpaint", *BOX, "--data", "test", "--count", 100_000)
    assert "choose from 1 to as many" in refused(words=many)


def test_nothing_is_overwritten(flowmatch, trained, digits, tmp_path):
    before = digits[0].read_bytes()
    code, _, err = flowmatch("edit", "inpaint", trained, digits[0], *BOX, "-o", tmp_path)
    assert code == 2
    assert "eight.png exists, and nothing is overwritten" in err
    assert digits[0].read_bytes() == before


def test_a_run_of_points_is_refused(flowmatch, digits, tmp_path):
    (tmp_path / "toy.yaml").write_text(
        "{data: {kind: toy, name: moons, samples: 100}, network: {kind: mlp, width: 8},"
        " train: {steps: 1, batch: 8}}"
    )
    assert flowmatch("train", "-c", tmp_path / "toy.yaml", "-e", tmp_path / "run")[0] == 0
    out = ("-o", tmp_path / "out")
    code, _, err = flowmatch("edit", "inpaint", tmp_path / "run", digits[0], *BOX, *out)
    assert code == 2
    assert "which are no images" in err
    arguments = ("--strength", 0.5, "--class", 0, *out)
    assert "no images" in flowmatch("edit", "sdedit", tmp_path / "run", digits[0], *arguments)[2]


COLOUR = """
data: {kind: folder, root: ROOT, image_size: 8}
network: {kind: unet, channels: 8, multipliers: [1, 2], blocks: 1, attention_resolutions: [],
  heads: 1}
train: {steps: 1, batch: 4}
"""


def test_colourise(flowmatch, tmp_path):
    (tmp_path / "data").mkdir()
    colours = np.random.default_rng(0).integers(0, 256, (4, 8, 8, 3))
    for i, image in enumerate(colours):
        save(tmp_path / f"data/{i}.png", image)
    (tmp_path / "c.yaml").write_text(COLOUR.replace("ROOT", str(tmp_path / "data")))
    assert flowmatch("train", "-c", tmp_path / "c.yaml", "-e", tmp_path / "run")[0] == 0
    code, said, _ = flowmatch(
        *("edit", "colourise", tmp_path / "run", tmp_path / "data", "--degrade", "--steps", 5),
        *("-o", tmp_path / "out"),
    )
    assert code == 0
    assert "mean PSNR" in said
    grey = Image.open(tmp_path / "data/0.png").convert("L")
    grey.save(tmp_path / "grey.png")
    arguments = (tmp_path / "run", tmp_path / "grey.png", "--steps", 50, "-o", tmp_path / "b")
    assert flowmatch("edit", "colourise", *arguments)[0] == 0
    again = Image.open(tmp_path / "b/grey.png")
    assert again.mode == "RGB"
    apart = np.asarray(again.convert("L")).astype(int) - np.asarray(grey).astype(int)
    assert abs(apart).mean() < 25  # beyond [-1, 1] the projection is cut
    code, _, err = flowmatch(
        "edit", "sdedit", *arguments[:2], "--strength", 0, "--class", 1, "-o", tmp_path / "c"
    )
    assert code == 2
    assert "takes no class label" in err
