"""Files as they lie about in real data sets: each loads as RGB, in silence, or is named."""

import io
import os
import pickle
import struct
import subprocess
import sys
import warnings

import numpy as np
import pytest
from PIL import Image

from toe_train.data import load_rgb
from toe_train.errors import NoMemory, UserError

RAMP = np.tile(np.arange(0, 256, 4, dtype=np.uint8), (64, 1))  # 64 x 64, left black, right nearly white


@pytest.fixture
def load():
    def quietly(path):
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            image = load_rgb(path)
        assert image.mode == "RGB"
        return np.asarray(image)

    return quietly


def test_greyscale_jpeg(tmp_path, load):
    Image.fromarray(RAMP).save(tmp_path / "grey.jpg", quality=95)
    pixels = load(tmp_path / "grey.jpg")
    assert pixels.shape == (64, 64, 3)
    assert np.abs(pixels.astype(int) - RAMP[..., None]).max() < 8


def test_cmyk_jpeg(tmp_path, load):
    Image.new("RGB", (32, 32), (200, 40, 40)).convert("CMYK").save(tmp_path / "cmyk.jpg", quality=95)
    assert Image.open(tmp_path / "cmyk.jpg").mode == "CMYK"
    assert np.abs(load(tmp_path / "cmyk.jpg").mean(axis=(0, 1)) - (200, 40, 40)).max() < 5


def test_palette_with_transparency(tmp_path, load):
    image = Image.fromarray(np.tile(np.arange(4, dtype=np.uint8), (16, 4)), mode="P")
    image.putpalette([255, 0, 0, 0, 255, 0, 0, 0, 255, 9, 9, 9])
    image.save(tmp_path / "palette.png", transparency=bytes([0, 128, 255, 255]))
    with pytest.warns(UserWarning, match="Transparency"), Image.open(tmp_path / "palette.png") as opened:
        opened.convert("RGB")  # what Pillow would say on the console
    assert load(tmp_path / "palette.png")[0, :4].tolist() == [[255, 0, 0], [0, 255, 0], [0, 0, 255], [9, 9, 9]]


def test_transparency_is_dropped(tmp_path, load):
    Image.new("RGBA", (8, 8), (10, 20, 30, 0)).save(tmp_path / "rgba.png")
    assert load(tmp_path / "rgba.png")[0, 0].tolist() == [10, 20, 30]
    Image.new("LA", (8, 8), (77, 0)).save(tmp_path / "la.png")
    assert load(tmp_path / "la.png")[0, 0].tolist() == [77, 77, 77]


@pytest.mark.parametrize("suffix", ["png", "tif"])
def test_sixteen_bits_keep_their_greys(tmp_path, load, suffix):
    Image.fromarray(RAMP.astype(np.uint16) * 257).save(tmp_path / f"deep.{suffix}")
    assert Image.open(tmp_path / f"deep.{suffix}").mode.startswith("I;16")
    assert np.array_equal(load(tmp_path / f"deep.{suffix}"), np.repeat(RAMP[..., None], 3, axis=-1))


def test_thirty_two_bit_integers(tmp_path, load):
    Image.fromarray(RAMP.astype(np.int32) * 257).save(tmp_path / "deep.tif")
    assert Image.open(tmp_path / "deep.tif").mode == "I"
    assert np.array_equal(load(tmp_path / "deep.tif")[..., 0], RAMP)


def test_thirty_two_bit_integers_of_a_byte(tmp_path, load):
    Image.fromarray(RAMP.astype(np.int32)).save(tmp_path / "byte.tif")
    assert np.array_equal(load(tmp_path / "byte.tif")[..., 0], RAMP)


def test_a_dark_image_of_16_bits_stays_dark(tmp_path, load):
    """Pillow opens it in the mode of 32 bits."""
    dark = np.full((8, 8), 200, np.int32)
    Image.fromarray(dark).save(tmp_path / "dark.pgm")
    assert Image.open(tmp_path / "dark.pgm").mode == "I"
    assert load(tmp_path / "dark.pgm").max() == 0
    Image.fromarray(dark.astype(np.uint16)).save(tmp_path / "dark.tif")
    assert load(tmp_path / "dark.tif").max() == 0


def test_twelve_bits_keep_their_greys(tmp_path, load):
    """A file that says so, by hand: Pillow writes none. Two pixels lie in three bytes."""
    tags = {256: 2, 257: 1, 258: 12, 259: 1, 262: 1, 273: 8, 277: 1, 278: 1, 279: 3}  # width, height, bits, ...
    entries = b"".join(struct.pack("<HHII", tag, 4 if tag == 273 else 3, 1, value) for tag, value in tags.items())
    pixels = bytes([0xFF, 0xF7, 0xF0])  # 4095 and 2032
    directory = struct.pack("<H", len(tags)) + entries + bytes(4)
    (tmp_path / "deep.tif").write_bytes(struct.pack("<2sHI", b"II", 42, 12) + pixels + bytes(1) + directory)
    assert load(tmp_path / "deep.tif")[0, :, 0].tolist() == [255, 127]


@pytest.mark.parametrize("scale", [1, 255])
def test_floats(tmp_path, load, scale):
    """Of 0..1 and of 0..255; rounded, not cut off."""
    values = (RAMP / np.float32(255) if scale == 1 else RAMP + np.float32(0.4)).astype(np.float32)
    Image.fromarray(values).save(tmp_path / "float.tif")
    assert np.array_equal(load(tmp_path / "float.tif"), np.repeat(RAMP[..., None], 3, axis=-1))
    assert load(tmp_path / "float.tif").max() == RAMP.max()


@pytest.mark.parametrize(
    ("values", "said"),
    [
        (np.array([[0, 70_000]], np.int32), "0 .. 70000, and integers must lie in 0..65535"),
        (np.array([[-5, 70]], np.int32), "-5 .. 70, and integers"),
        (np.array([[-5, 70]], np.int16), "-5 .. 70, and integers"),
        (np.array([[0, 300]], np.float32), "0 .. 300, and floats must lie in 0..1 or 0..255"),
        (np.array([[0, 300]], np.int32), "0 .. 300: a little more than 8 bits hold, and as 16 bits black"),
        (np.array([[0, 1.01]], np.float32), "0 .. 1.01: a little beyond 0..1, and of 0..255 black"),
        (np.array([[-0.1, 1]], np.float32), "-0.1 .. 1, and floats"),
        (np.array([[0.5, np.nan]], np.float32), "nan .. nan, and floats"),
        (np.array([[0, np.inf]], np.float32), "0 .. inf, and floats"),
    ],
    ids=[
        "above 16 bits",
        "negative",
        "negative 16 bits",
        "floats above 255",
        "above 8 bits",
        "floats above 1",
        "negative floats",
        "nan",
        "infinite",
    ],
)
def test_values_that_no_rule_is_right_for_are_refused(tmp_path, values, said):
    if values.dtype == np.int16:  # which Pillow reads, and does not write
        image = Image.fromarray(values.view(np.uint16))
        image.save(tmp_path / "odd.tif", tiffinfo={339: 2})
    else:
        Image.fromarray(values).save(tmp_path / "odd.tif")
    with pytest.raises(UserError) as fault:
        load_rgb(tmp_path / "odd.tif")
    assert str(fault.value).startswith(f"{tmp_path / 'odd.tif'} cannot be read as an image (its values are {said}")


def test_an_image_that_the_memory_does_not_hold_is_named(tmp_path, monkeypatch):
    Image.fromarray(RAMP).save(tmp_path / "large.png")

    def full(image):
        raise MemoryError

    monkeypatch.setattr("toe_train.data.sources.images.to_rgb", full)
    with pytest.raises(NoMemory, match=r"does not hold .*large\.png") as fault:
        load_rgb(tmp_path / "large.png")
    assert "; give" not in str(fault.value)
    assert fault.value.told("it").endswith("; give the process more, or make the file smaller")
    assert str(pickle.loads(pickle.dumps(fault.value))) == str(fault.value)  # as a process sends it


def test_one_bit(tmp_path, load):
    Image.fromarray(RAMP > 127).save(tmp_path / "bits.png")
    assert np.unique(load(tmp_path / "bits.png")).tolist() == [0, 255]


def damaged_exif():
    """A JPEG whose EXIF block promises more than it holds."""
    exif = Image.Exif()
    exif[0x010F] = "a maker with a name too long to stand inside its tag"
    exif[0x0131] = "software"
    return exif.tobytes()[:-30]


def test_damaged_exif(tmp_path, load):
    path = tmp_path / "exif.jpg"
    Image.fromarray(RAMP).save(path, exif=damaged_exif(), quality=95)
    with (
        pytest.warns(UserWarning, match="Truncated|EXIF|Tag data"),
        Image.open(path),
    ):  # what Pillow would say on the console
        pass
    assert np.abs(load(path).astype(int) - RAMP[..., None]).max() < 8


def test_nothing_reaches_the_console(tmp_path):
    Image.fromarray(RAMP).save(tmp_path / "exif.jpg", exif=damaged_exif())
    image = Image.fromarray(np.zeros((8, 8), dtype=np.uint8), mode="P")
    image.putpalette([1, 2, 3])
    image.save(tmp_path / "palette.png", transparency=b"\x00")
    program = (
        "import sys; from toe_train.data.sources.images import load_rgb; [load_rgb(path) for path in sys.argv[1:]]"
    )
    command = [sys.executable, "-c", program, tmp_path / "exif.jpg", tmp_path / "palette.png"]
    ended = subprocess.run(command, capture_output=True, text=True, check=True)
    assert (ended.stdout, ended.stderr) == ("", "")


def truncated_jpeg():
    buffer = io.BytesIO()
    Image.fromarray(RAMP).save(buffer, "JPEG")
    return buffer.getvalue()[:-200]


def truncated_png():
    buffer = io.BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64), dtype=np.uint8)).save(buffer, "PNG")
    return buffer.getvalue()[:2000]


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (truncated_jpeg(), "truncated"),
        (truncated_png(), ""),
        (b"Not an image.\n", "cannot identify"),
        (b"", "identify"),
    ],
    ids=["truncated jpeg", "truncated png", "text", "empty"],
)
def test_broken_files_are_named(tmp_path, content, reason):
    path = tmp_path / "broken.jpg"
    path.write_bytes(content)
    with pytest.raises(UserError) as fault:
        load_rgb(path)
    assert str(fault.value).startswith(f"{path} cannot be read as an image (")
    assert reason in str(fault.value)
    assert str(fault.value).count("broken.jpg") == 1
    assert "toe-tools doctor --config FILE" in str(fault.value)


def test_missing_file(tmp_path):
    with pytest.raises(UserError, match=r"image .*gone\.jpg does not exist"):
        load_rgb(tmp_path / "gone.jpg")


def test_a_heic_file_under_another_name_is_said_to_be_one(tmp_path):
    (tmp_path / "phone.jpg").write_bytes(b"\0\0\0\x18ftypheic" + bytes(64))
    with pytest.raises(UserError, match=r"phone\.jpg cannot be read as an image \(it is of the kind HEIC.*convert it"):
        load_rgb(tmp_path / "phone.jpg")


def test_a_pipe_among_the_images_is_named_and_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "a.png")
    with pytest.raises(
        UserError, match=r"a.png cannot be read as an image \(a pipe, a device or a folder, and no file\)"
    ):
        load_rgb(tmp_path / "a.png")
