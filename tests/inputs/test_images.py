"""Images: what every odd but good one turns into, pixel by pixel, and what every bad one says."""

import base64
import io
import mmap
import os
import random
import struct
import subprocess
import sys
import tempfile
import threading
import time
import tracemalloc
import warnings
import zipfile
import zlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from vlmprobe.errors import ImageError
from vlmprobe.inputs.images import ImageNotFoundError, Limits, data_uri, load_image, thumbnail
from vlmprobe.inputs.messages import Conversation

RED, GREEN, BLUE, WHITE = (255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 255)
# Five by two pixels, all different: every turn, flip and mixed-up axis shows.
PICTURE = np.array(
    [[RED, GREEN, BLUE, (9, 8, 7), (1, 1, 1)], [(0, 0, 0), (10, 20, 30), WHITE, (99, 0, 3), (0, 0, 77)]], np.uint8
)


def encoded(image: Image.Image | np.ndarray, file_format: str = "PNG", **options: object) -> bytes:
    file = io.BytesIO()
    (image if isinstance(image, Image.Image) else Image.fromarray(image)).save(file, file_format, **options)
    return file.getvalue()


def png(width: int, height: int, bits: int, colour: int, rows: bytes, *extra: tuple[bytes, bytes]) -> bytes:
    """A PNG written by hand: for bit depths and chunks that Pillow does not write."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, bits, colour, 0, 0, 0))
    chunks = [header, *(chunk(*each) for each in extra), chunk(b"IDAT", zlib.compress(rows)), chunk(b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunks)


def pixels(source: object) -> list:
    image = load_image(source)
    assert image.mode == "RGB"
    return np.asarray(image).tolist()


def grey(*levels: int) -> list:
    """One row of grey pixels, as :func:`pixels` shows it."""
    return [[[level] * 3 for level in levels]]


# Sources


def test_every_source_gives_the_same_pixels(tmp_path):
    data = encoded(PICTURE)
    path = tmp_path / "picture.png"
    path.write_bytes(data)
    sources = [
        path,
        str(path),
        data,
        bytearray(data),
        memoryview(data),
        "data:image/png;base64," + base64.b64encode(data).decode(),
        Image.fromarray(PICTURE),
        Image.open(path),
        PICTURE,
        PICTURE.transpose(2, 0, 1),
        torch.from_numpy(PICTURE.transpose(2, 0, 1).copy()),
    ]
    for source in sources:
        assert pixels(source) == PICTURE.tolist(), type(source)


class Unbuffered(io.RawIOBase):
    """Gives seven bytes at a time, as a pipe or a socket may."""

    def __init__(self, data: bytes, seekable: bool) -> None:
        self.held, self.can_seek = io.BytesIO(data), seekable

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return self.can_seek

    def seek(self, offset: int, whence: int = 0) -> int:
        if not self.can_seek:
            raise io.UnsupportedOperation("seek")
        return self.held.seek(offset, whence)

    def tell(self) -> int:
        return self.seek(0, 1)

    def read(self, size: int = -1) -> bytes:
        return self.held.read(7)


class Bare:
    """Has ``read`` and nothing else, as wrappers of other libraries have."""

    def __init__(self, data: bytes) -> None:
        self.read = io.BytesIO(data).read


def open_files(folder: Path) -> dict[str, object]:
    path, archive = folder / "picture.png", folder / "pictures.zip"
    path.write_bytes(encoded(PICTURE))
    with zipfile.ZipFile(archive, "w") as file:
        file.write(path, "picture.png")
    temporary, spooled = tempfile.NamedTemporaryFile(), tempfile.SpooledTemporaryFile()  # noqa: SIM115 - given back open
    mapped = mmap.mmap(-1, len(encoded(PICTURE)))
    for file in (temporary, spooled, mapped):
        file.write(encoded(PICTURE))  # and stands at its end
    return {
        "buffered": path.open("rb"),
        "raw": path.open("rb", buffering=0),
        "BytesIO": io.BytesIO(encoded(PICTURE)),
        "random access": io.BufferedRandom(path.open("r+b", buffering=0)),
        "in an archive": zipfile.ZipFile(archive).open("picture.png"),
        "mapped": mapped,
        "temporary": temporary,
        "spooled": spooled,
        "a few bytes at a time": Unbuffered(encoded(PICTURE), seekable=True),
    }


def test_an_open_file_gives_the_same_image_each_time_and_stays_where_it_was(tmp_path):
    """It used to be iterated over, line by line, as a list of images."""
    for name, file in open_files(tmp_path).items():
        for place in (0, 5, file.tell()):
            file.seek(place)
            assert pixels(file) == PICTURE.tolist(), name
            assert pixels(file) == PICTURE.tolist(), name
            assert file.tell() == place, name


def test_a_stream_is_read_once_and_said_so():
    for stream in (Unbuffered(encoded(PICTURE), seekable=False), Bare(encoded(PICTURE))):
        assert pixels(stream) == PICTURE.tolist()
        with pytest.raises(
            ImageError, match=rf"\({type(stream).__name__}\) is empty or was read before.*pass the bytes"
        ):
            load_image(stream)


async def coroutine(size: int) -> bytes:
    return b""


def test_files_that_give_no_image(tmp_path):
    path = tmp_path / "picture.png"
    path.write_bytes(encoded(PICTURE))
    closed, words = path.open("rb"), tmp_path / "words.txt"
    closed.close()
    words.write_text("words")
    gone = io.BytesIO(encoded(PICTURE))
    gone.close()
    waiting = Bare(b"")
    waiting.read = coroutine
    cases = [
        (closed, r"'.*picture\.png' is closed: open it again"),
        (gone, r"open file \(BytesIO\) is closed"),
        (io.BytesIO(), r"open file \(BytesIO\): it is empty \(0 bytes\)"),
        (io.BytesIO(b"<html></html>"), r"open file \(BytesIO\) is not an image .* web page"),
        (io.BytesIO(encoded(PICTURE)[:40]), r"open file \(BytesIO\) is"),
        (io.StringIO("words"), r"open file \(StringIO\) does not give bytes \(its read\(\) returns str\): .*'rb'"),
        (words.open(), r"'.*words\.txt' does not give bytes .*'rb'"),
        (path.open(), r"'.*picture\.png' cannot be read .*'rb'"),
        ((tmp_path / "new.png").open("wb"), r"'.*new\.png' cannot be read .*'rb'"),
        (waiting, r"open file \(Bare\) does not give bytes \(its read\(\) returns coroutine\)"),
    ]
    for file, message in cases:
        with pytest.raises(ImageError, match=message):
            load_image(file)


def test_an_open_file_is_limited_like_a_path():
    file = io.BytesIO(encoded(PICTURE) + bytes(1000))
    with pytest.raises(ImageError, match="more than 500 bytes"):
        load_image(file, Limits(max_bytes=500))
    assert file.tell() == 0


def test_threads_may_share_one_open_file(tmp_path):
    noise = np.random.default_rng(0).integers(0, 256, (60, 60, 3), dtype=np.uint8)
    for file in (Unbuffered(encoded(noise), seekable=True), io.BytesIO(encoded(noise))):
        with ThreadPoolExecutor(8) as pool:
            found = list(pool.map(load_image, [file] * 24))
        assert all((np.asarray(each) == noise).all() for each in found)


def test_home_is_expanded(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "picture.png").write_bytes(encoded(PICTURE))
    assert pixels("~/picture.png") == PICTURE.tolist()


@pytest.mark.parametrize("header", ["image/png;base64", "image/*;base64", ";base64", "image/png;charset=x;BASE64"])
def test_data_url_headers(header):
    text = base64.encodebytes(encoded(PICTURE)).decode()  # with line breaks
    assert pixels(f"data:{header},{text}") == PICTURE.tolist()


def test_data_url_without_padding_and_percent_encoded():
    text = base64.b64encode(encoded(PICTURE)).decode()
    assert pixels("data:image/png;base64," + text.rstrip("=")) == PICTURE.tolist()
    escaped = text.replace("+", "%2B").replace("/", "%2F").replace("=", "%3D")
    assert pixels("data:image/png;base64," + escaped) == PICTURE.tolist()


def test_the_result_is_independent_of_its_source(tmp_path):
    path = tmp_path / "picture.png"
    path.write_bytes(encoded(PICTURE))
    image = load_image(path)
    path.unlink()
    assert np.asarray(image).tolist() == PICTURE.tolist()
    held = Image.fromarray(PICTURE)
    copy = load_image(held)
    held.putpixel((0, 0), (9, 9, 9))
    array = PICTURE.copy()
    of_array = load_image(array)
    array[:] = 9
    assert copy.getpixel((0, 0)) == of_array.getpixel((0, 0)) == RED


# Odd but good files


def test_rgba_is_composed_onto_white():
    rgba = np.array([[(255, 0, 0, 255), (255, 0, 0, 0), (0, 0, 0, 51), (200, 100, 0, 204)]], np.uint8)
    # 0.2 x 0 + 0.8 x 255 = 204; 0.8 x (200, 100, 0) + 0.2 x 255 = (211, 131, 51)
    expected = [[list(RED), list(WHITE), [204, 204, 204], [211, 131, 51]]]
    assert pixels(encoded(rgba)) == expected
    assert pixels(rgba) == expected
    assert pixels(Image.fromarray(rgba)) == expected
    premultiplied = Image.fromarray(rgba[:, :3]).convert("RGBa")
    assert pixels(premultiplied) == [expected[0][:3]]


def test_grey_with_alpha():
    image = Image.new("LA", (3, 1))
    image.putdata([(0, 255), (0, 0), (100, 51)])  # 0.2 x 100 + 0.8 x 255 = 224
    assert pixels(encoded(image)) == grey(0, 255, 224)


@pytest.mark.parametrize(("file_format", "transparency"), [("PNG", 1), ("PNG", bytes([255, 0, 255])), ("GIF", 1)])
def test_palette_with_transparency(file_format, transparency):
    image = Image.new("P", (3, 1))
    image.putpalette([*RED, *GREEN, *BLUE])
    image.putdata([0, 1, 2])
    assert pixels(encoded(image, file_format, transparency=transparency)) == [[list(RED), list(WHITE), list(BLUE)]]


def test_palette_without_transparency():
    image = Image.new("P", (2, 1))
    image.putpalette([*RED, *GREEN])
    image.putdata([0, 1])
    assert pixels(encoded(image)) == [[list(RED), list(GREEN)]]


def test_a_transparent_colour_of_grey_and_rgb_png():
    assert pixels(encoded(np.uint8([[7, 8]]), transparency=7)) == grey(255, 8)
    assert pixels(encoded(np.uint8([[RED, BLUE]]), transparency=RED)) == [[list(WHITE), list(BLUE)]]
    sixteen = png(3, 1, 16, 0, b"\0" + struct.pack(">3H", 0, 1000, 65535), (b"tRNS", struct.pack(">H", 1000)))
    assert pixels(sixteen) == grey(0, 255, 255)


# 65535 is white and 257 is one level of 256; 385 / 257 = 1.498 and 386 / 257 = 1.502
SIXTEEN, OF_SIXTEEN = np.uint16([[0, 257, 385, 386, 32768, 65535]]), (0, 1, 1, 2, 128, 255)


@pytest.mark.parametrize("file_format", ["PNG", "TIFF", "PPM"])
def test_16_bit_grey_is_scaled_and_not_clipped(file_format):
    assert pixels(encoded(SIXTEEN, file_format)) == grey(*OF_SIXTEEN)


def test_16_bit_grey_of_every_byte_order():
    for kind in ("<u2", ">u2"):
        assert pixels(SIXTEEN.astype(kind)) == grey(*OF_SIXTEEN)
    big = Image.frombytes("I;16B", (6, 1), SIXTEEN.astype(">u2").tobytes())
    assert pixels(big) == grey(*OF_SIXTEEN)


def test_16_bit_tiff_whose_zero_is_white():
    assert pixels(encoded(SIXTEEN, "TIFF", tiffinfo={262: 0})) == grey(*(255 - level for level in OF_SIXTEEN))


def test_a_dark_16_bit_file_stays_dark():
    dark = b"P5 2 1 65535\n" + struct.pack(">2H", 0, 255)  # Pillow reads it as mode I
    assert pixels(dark) == grey(0, 1)


def test_one_bit():
    image = Image.fromarray(np.array([[True, False, True]]))
    assert image.mode == "1"
    assert pixels(encoded(image)) == grey(255, 0, 255)


def test_cmyk():
    image = Image.new("CMYK", (16, 8), (0, 255, 255, 0))  # no cyan, all magenta and yellow: red
    assert pixels(encoded(image, "TIFF"))[0][0] == list(RED)
    for plain in (image, Image.new("CMYK", (8, 8), (0, 0, 0, 0))):  # Pillow writes them inverted, as Adobe does
        got = np.asarray(load_image(encoded(plain, "JPEG", quality=100))).astype(int)
        assert np.abs(got - np.asarray(plain.convert("RGB"))).max() <= 2


def test_exif_orientation_of_every_value():
    turns = {
        1: PICTURE,
        2: PICTURE[:, ::-1],
        3: PICTURE[::-1, ::-1],
        4: PICTURE[::-1],
        5: PICTURE.transpose(1, 0, 2),
        6: np.rot90(PICTURE, -1),  # the camera was turned so that the picture must go a quarter clockwise
        7: PICTURE[::-1, ::-1].transpose(1, 0, 2),
        8: np.rot90(PICTURE),
    }
    for value, upright in turns.items():
        exif = Image.Exif()
        exif[0x0112] = value
        for file_format in ("PNG", "TIFF"):
            data = encoded(PICTURE, file_format, exif=exif)
            assert pixels(data) == upright.tolist(), (file_format, value)
            assert pixels(Image.open(io.BytesIO(data))) == upright.tolist(), (file_format, value)
        wide = PICTURE[:, :, 0].astype(np.uint16) * 257
        assert np.asarray(load_image(encoded(wide, exif=exif)))[:, :, 0].tolist() == upright[:, :, 0].tolist()


def test_exif_orientation_of_jpeg():
    exif = Image.Exif()
    exif[0x0112] = 6
    image = load_image(encoded(np.repeat(np.repeat(PICTURE, 16, 0), 16, 1), "JPEG", quality=95, exif=exif))
    assert image.size == (32, 80)
    assert np.abs(np.subtract(image.getpixel((24, 8)), RED)).max() < 8  # the upper left has gone to the upper right
    assert image.getexif().get(0x0112, 1) == 1


@pytest.mark.parametrize("file_format", ["GIF", "PNG", "WEBP", "TIFF"])
def test_the_first_frame_of_an_animation(file_format):
    frames = [Image.new("RGB", (4, 3), colour) for colour in (RED, GREEN, BLUE)]
    options = {"lossless": True} if file_format == "WEBP" else {}
    data = encoded(frames[0], file_format, save_all=True, append_images=frames[1:], **options)
    assert Image.open(io.BytesIO(data)).n_frames == 3
    assert pixels(data) == np.full((3, 4, 3), RED).tolist()


def test_a_pillow_image_keeps_the_frame_at_which_it_stands():
    frames = [Image.new("RGB", (4, 3), colour) for colour in (RED, GREEN)]
    image = Image.open(io.BytesIO(encoded(frames[0], "GIF", save_all=True, append_images=frames[1:])))
    image.seek(1)
    assert pixels(image)[0][0] == list(GREEN)


@pytest.mark.parametrize("size", [(1, 1), (500, 1), (1, 500)])
def test_one_pixel_high_or_wide(size):
    assert load_image(encoded(Image.new("RGB", size, RED))).size == size
    array = np.full((size[1], size[0], 3), 7, np.uint8)
    assert load_image(array).size == size


@pytest.mark.parametrize("file_format", ["PNG", "BMP", "TIFF", "PPM", "GIF"])
def test_lossless_formats(file_format):
    assert pixels(encoded(PICTURE, file_format)) == PICTURE.tolist()


@pytest.mark.parametrize("file_format", ["JPEG", "WEBP", "AVIF"])
def test_lossy_formats(file_format):
    if file_format not in Image.SAVE and not (Image.init() and file_format in Image.SAVE):
        pytest.skip(f"this Pillow cannot write {file_format}")
    got = load_image(encoded(Image.new("RGB", (32, 32), (200, 100, 50)), file_format, quality=95))
    assert np.abs(np.asarray(got).astype(int) - (200, 100, 50)).max() <= 4


# Wide modes of Pillow


def test_mode_f():
    assert pixels(Image.fromarray(np.float32([[0, 0.25, 0.5, 1]]))) == grey(0, 64, 128, 255)
    assert pixels(Image.fromarray(np.uint8([[0, 100, 255]])).convert("F")) == grey(0, 100, 255)
    assert pixels(encoded(np.float32([[0, 0.25, 1]]), "TIFF")) == grey(0, 64, 255)
    for values in ([[0, 300]], [[-1, 1]]):
        with pytest.raises(ImageError, match=r"mode F.*scale them to 0\.\.255"):
            load_image(Image.fromarray(np.float32(values)))
    with pytest.raises(ImageError, match=r"1 values that are NaN or infinite, the first at \[0, 1\]"):
        load_image(Image.fromarray(np.float32([[0, np.nan]])))


def test_mode_i():
    assert pixels(Image.fromarray(np.int32([[0, 100, 255]]))) == grey(0, 100, 255)
    assert pixels(Image.fromarray(np.int32([[0, 257, 65535]]))) == grey(0, 1, 255)
    for values in ([[0, 65536]], [[-1, 1]]):
        with pytest.raises(ImageError, match=r"mode I.*scale them to 0\.\.255"):
            load_image(Image.fromarray(np.int32(values)))


@pytest.mark.parametrize("mode", ["HSV", "YCbCr"])
def test_other_colour_spaces(mode):
    got = np.asarray(load_image(Image.fromarray(PICTURE).convert(mode))).astype(int)
    assert np.abs(got - PICTURE).max() <= 3


def test_lab():
    levels = pixels(Image.new("LAB", (1, 1), (137, 128, 128)))[0][0]  # L* = 100 x 137 / 255 = 53.7: mid grey, 128
    assert np.abs(np.subtract(levels, 128)).max() <= 2


# Arrays


@pytest.mark.parametrize(
    ("array", "levels"),
    [
        (np.uint8([[0, 7, 255]]), (0, 7, 255)),
        (np.array([[True, False]]), (255, 0)),
        (np.int64([[0, 7, 255]]), (0, 7, 255)),
        (SIXTEEN, OF_SIXTEEN),
        (np.float32([[0, 0.25, 0.5, 1]]), (0, 64, 128, 255)),  # 63.75 and 127.5, halves upwards
        (np.float64([[0, 0.1, 1]]), (0, 26, 255)),  # 25.5
        (np.float16([[0, 0.25, 1]]), (0, 64, 255)),
        (np.float32([[-0.0005, 1.0005]]), (0, 255)),
        (torch.tensor([[0, 0.25, 1]], dtype=torch.bfloat16), (0, 64, 255)),
        (torch.tensor([[0.0, 1.0]], requires_grad=True), (0, 255)),
    ],
)
def test_types_of_samples(array, levels):
    wide = array.repeat(6, 5) if isinstance(array, torch.Tensor) else np.tile(array, (6, 5))
    expected = grey(*levels * 5) * 6
    assert pixels(wide) == expected
    assert pixels(wide[:, :, None]) == expected
    assert pixels(wide[None]) == expected


def test_layouts():
    colour = PICTURE.astype(np.float32) / 255
    assert pixels(colour) == pixels(colour.transpose(2, 0, 1)) == PICTURE.tolist()
    assert pixels(PICTURE[:, ::-1]) == PICTURE[:, ::-1].tolist()  # not contiguous
    both = np.arange(27, dtype=np.uint8).reshape(3, 3, 3)
    assert pixels(both) == both.tolist()
    assert pixels(torch.from_numpy(both)) == both.transpose(1, 2, 0).tolist()


def test_anything_with_an_array_interface():
    class Frame:
        def __array__(self, dtype=None, copy=None):
            return PICTURE

    assert pixels(Frame()) == PICTURE.tolist()


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (np.zeros((0, 5, 3)), r"empty \(shape \[0, 5, 3\]\)"),
        (np.zeros((5, 0)), "empty"),
        (np.zeros(5), r"shape \[5\]: pass \[H, W\]"),
        (np.float64(3), r"shape \[\]"),
        (np.zeros((5, 5, 2)), r"shape \[5, 5, 2\].*C = 1, 3 or 4"),
        (np.zeros((7, 8, 9)), r"shape \[7, 8, 9\]"),
        (np.zeros((2, 4, 4, 3)), r"a batch: pass a list of its images, list\(array\)"),
        (np.full((2, 2, 3), np.nan), r"12 values that are NaN or infinite, the first at \[0, 0, 0\].*nan_to_num"),
        (np.float32([[0, np.inf]]), r"1 values .* \[0, 1\]"),
        (np.float32([[0, 255]]), "from 0 to 255; floats must be from 0 to 1: divide"),
        (np.float32([[-2.1, 2.6]]), "before normalisation"),
        (np.int32([[-1, 5]]), r"from -1 to 5: scale them to 0\.\.255"),
        (np.int32([[0, 4095]]), "from 0 to 4095"),
        (np.zeros((2, 2), complex), "type complex128: pass uint8"),
        (np.array([["a", "b"]]), "type <U1"),
        (np.array([[object()]]), "type object"),
        (torch.zeros(3, 4, 4, device="meta"), "cannot be converted to a NumPy array"),
    ],
)
def test_wrong_arrays(array, message):
    with pytest.raises(ImageError, match=message):
        load_image(array)


# Bad files and addresses


def test_missing_file(tmp_path):
    (tmp_path / "tiger.jpeg").write_bytes(b"")
    with pytest.raises(
        ImageNotFoundError, match=r"There is no file .*tiger\.jpg.*Did you mean tiger\.jpeg\?"
    ) as caught:
        load_image(tmp_path / "tiger.jpg")
    assert isinstance(caught.value, (ImageError, FileNotFoundError))
    with pytest.raises(FileNotFoundError, match=r"folder .*nowhere' does not exist"):
        load_image(tmp_path / "nowhere" / "tiger.jpg")
    with pytest.raises(ImageNotFoundError):
        load_image(tmp_path / "tiger.jpeg" / "below-a-file.png")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", r"it is empty \(0 bytes\)"),
        (b"just some text", "not an image.*save it as PNG"),
        (b"<!DOCTYPE html><html></html>", "web page; use the address of the image"),
        (b'<?xml version="1.0"?><svg xmlns="http://www.w3.org/2000/svg"/>', "SVG.*render it to PNG"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "git lfs pull"),
        (b"%PDF-1.7", "PDF or PostScript.*render"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 2 2\n", "PDF or PostScript"),
        (b"\0\0\0\x18ftypheic" + bytes(40), "HEIC; convert"),
        (base64.b64encode(encoded(PICTURE)), "base64.b64decode"),
        (encoded(PICTURE)[:20], "damaged.* again"),
        (b"GIF8" + bytes(40), "cut off or damaged; save or download it again"),
    ],
)
def test_files_that_are_no_pictures(tmp_path, content, message):
    path = tmp_path / "picture.png"
    path.write_bytes(content)
    with pytest.raises(ImageError, match=message) as caught:
        load_image(path)
    assert "picture.png" in str(caught.value)
    with pytest.raises(ImageError, match=message):
        load_image(content)


def test_postscript_never_reaches_pillow_s_plugin(monkeypatch):
    from PIL import EpsImagePlugin

    def run(*_, **__):
        raise AssertionError("Ghostscript was started")

    monkeypatch.setattr(EpsImagePlugin, "Ghostscript", run)
    eps = encoded(PICTURE, "EPS")
    with pytest.raises(ImageError, match="PostScript"):
        load_image(eps)


@pytest.mark.parametrize("file_format", ["PNG", "JPEG", "GIF", "BMP", "TIFF", "WEBP", "PPM"])
def test_truncated(file_format):
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    data = encoded(noise, file_format)
    load_image(data)
    for part in (0.9, 0.5):
        with pytest.raises(ImageError, match="again"):
            load_image(data[: int(len(data) * part)])


def test_damaged_files_raise_nothing_but_image_errors():
    noise = np.random.default_rng(0).integers(0, 256, (16, 16, 3), dtype=np.uint8)
    chance = random.Random(0)
    read = refused = 0
    for file_format in ("PNG", "JPEG", "GIF", "BMP", "WEBP", "PPM", "TIFF"):
        whole = encoded(noise, file_format)
        for _ in range(40):
            damaged = bytearray(whole)
            for _ in range(chance.choice((1, 3, 9))):
                damaged[chance.randrange(min(len(damaged), 200))] = chance.randrange(256)
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                try:
                    assert load_image(bytes(damaged)).mode == "RGB"
                    read += 1
                except ImageError:
                    refused += 1
    assert read > 20
    assert refused > 20


def test_a_bomb_is_refused_from_its_header():
    row = b"\0" + bytes(30_000 // 8)
    squeezer = zlib.compressobj(9)
    rows = b"".join(squeezer.compress(row) for _ in range(30_000)) + squeezer.flush()
    assert len(rows) < 200_000
    bomb = png(30_000, 30_000, 1, 0, b"").replace(zlib.compress(b""), rows)
    before = Image.MAX_IMAGE_PIXELS
    start = time.perf_counter()
    with pytest.raises(ImageError, match=r"900000000 pixels.*shrink it"):
        load_image(bomb)
    assert time.perf_counter() - start < 1
    assert before == Image.MAX_IMAGE_PIXELS


def test_pixel_limit_below_pillow_s_own():
    data = encoded(Image.new("RGB", (30, 20)))
    assert load_image(data, Limits(max_pixels=600)).size == (30, 20)
    with pytest.raises(ImageError, match=r"30 x 20 pixels, more than 599: shrink it.*Limits\(max_pixels"):
        load_image(data, Limits(max_pixels=599))
    # A picture that was loaded with other limits passes afterwards.
    assert load_image(load_image(data), Limits(max_pixels=1)).size == (30, 20)


class Huge:
    """What is used of an array before it is read: its shape. Reading it would take gigabytes."""

    def __init__(self, *shape):
        self.shape, self.dtype, self.ndim = shape, np.dtype(np.uint8), len(shape)

    def __array__(self, dtype=None, copy=None):
        return np.broadcast_to(np.uint8(7), self.shape)


def test_an_image_in_memory_has_the_limit_of_a_file(monkeypatch):
    """20,000 x 20,000 pixels are refused before they are converted, whatever holds them."""
    held = [Image.new("1", (20_000, 20_000)), Huge(20_000, 20_000), Huge(20_000, 20_000, 3), Huge(3, 20_000, 20_000)]
    monkeypatch.setattr("vlmprobe.inputs.pixels.from_pil", None)
    monkeypatch.setattr("vlmprobe.inputs.pixels.from_array", None)
    for source in held:
        with pytest.raises(ImageError, match=r"is 20000 x 20000 pixels, more than 89,478,485: shrink it.*Limits"):
            load_image(source)


def test_an_image_loaded_under_a_greater_limit_keeps_it(monkeypatch):
    monkeypatch.setattr("vlmprobe.inputs.limits.DEFAULT_LIMITS", Limits(max_pixels=500))
    monkeypatch.setattr("vlmprobe.inputs.images.DEFAULT_LIMITS", Limits(max_pixels=500))
    image = Image.new("RGB", (30, 20))
    with pytest.raises(ImageError, match="30 x 20 pixels, more than 500"):
        load_image(image, Limits(max_pixels=500))
    trusted = load_image(image, Limits(max_pixels=600))
    assert load_image(load_image(trusted, Limits(max_pixels=500)), Limits(max_pixels=500)).size == (30, 20)
    with pytest.raises(ImageError, match="60 x 40"):
        load_image(trusted.resize((60, 40)), Limits(max_pixels=500))


def test_byte_limit(tmp_path):
    data = encoded(PICTURE)
    path = tmp_path / "picture.png"
    path.write_bytes(data)
    uri = "data:;base64," + base64.b64encode(data).decode()
    for source in (data, path, uri):
        assert load_image(source, Limits(max_bytes=len(data))).size == (5, 2)
        with pytest.raises(ImageError, match=r"more than .* bytes\. Shrink"):
            load_image(source, Limits(max_bytes=len(data) - 3))


def test_a_huge_file_is_not_read_to_its_end(tmp_path):
    path = tmp_path / "huge.png"
    with path.open("wb") as file:
        file.truncate(2**30)  # sparse: takes no room on the disk
    tracemalloc.start()
    try:
        with pytest.raises(ImageError, match=r"more than 1,000 bytes"):
            load_image(path, Limits(max_bytes=1000))
        assert tracemalloc.get_traced_memory()[1] < 10_000_000
    finally:
        tracemalloc.stop()


def test_pillow_s_warning_of_bombs_as_an_error(monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 500)
    data = encoded(Image.new("RGB", (30, 20)))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(ImageError, match="more pixels than Pillow decodes"):
            load_image(data)


def test_folders_and_devices(tmp_path):
    with pytest.raises(ImageError, match="is a folder: pass the path of one image"):
        load_image(tmp_path)
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(ImageError, match="not a regular file"):  # reading it would wait for ever
        load_image(tmp_path / "pipe")


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("file:///etc/passwd", "pass the path without file://"),
        ("FILE:/etc/passwd", "pass the path without file://"),
        ("ftp://host/a.png", "only http"),
        ("s3://bucket/a.png", "download the file and pass its path"),
        ("", "path is empty"),
        ("  ", "path is empty"),
        (b"", "0 bytes"),
        ("a\0b.png", "cannot be read"),
        ("x " * 5000, "cannot be read"),
        (base64.b64encode(encoded(PICTURE)).decode(), "looks like base64: put 'data:image/png;base64,' before"),
        (base64.b64encode(bytes(9000)).decode(), "looks like base64"),
        ("data:image/png,rawdata", "not base64"),
        ("data:image/png;base64", "not base64"),
        ("data:image/png;base64,", "0 bytes"),
        ("data:image/png;base64,@@@@", "not valid base64"),
        ("data:image/png;base64,iVBOR", "not valid base64"),
        ("data:image/png;base64,é", "not valid base64"),
        ("data:text/html;base64," + base64.b64encode(b"<html></html>").decode(), "web page"),
        (None, "cannot be None: .* leave the image out"),
        (3, "type int"),
        ({"file": "x"}, "type dict"),
        ({"path": "none.png"}, "no file"),
        ({"bytes": None, "path": None}, "cannot be None"),
        ([PICTURE], "one image at a time"),
        (Image.new("RGB", (0, 4)), "image is empty"),
    ],
    ids=lambda value: value[:30] if isinstance(value, str) else type(value).__name__,
)
def test_wrong_sources(source, message):
    with pytest.raises(ImageError, match=message) as caught:
        load_image(source)
    assert len(str(caught.value)) < 500


def test_a_url_as_a_path():
    with pytest.raises(ImageNotFoundError, match="looks like a URL: pass it as a string"):
        load_image(Path("https://host/a.png"))


def test_a_pillow_image_whose_file_is_broken_or_closed():
    data = encoded(np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8))
    with pytest.raises(ImageError, match="intact and open"):
        load_image(Image.open(io.BytesIO(data[: len(data) // 2])))
    closed = Image.open(io.BytesIO(data))
    closed.close()
    with pytest.raises(ImageError, match="intact and open"):
        load_image(closed)


# Threads and cost


def test_threads_may_share_one_lazily_opened_image(tmp_path):
    noise = np.random.default_rng(0).integers(0, 256, (300, 300, 3), dtype=np.uint8)
    path = tmp_path / "noise.png"
    path.write_bytes(encoded(noise))
    barrier = threading.Barrier(8)

    def load(image: Image.Image) -> bool:
        barrier.wait()
        return bool((np.asarray(load_image(image)) == noise).all())

    with ThreadPoolExecutor(8) as pool:
        for _ in range(5):
            assert all(pool.map(load, [Image.open(path)] * 8))


def test_import_is_light():
    heavy = "'torch', 'transformers', 'urllib.request'"
    code = f"import sys, vlmprobe.inputs.images; print(*(name for name in ({heavy}) if name in sys.modules))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "\n"


# Helpers


def test_thumbnail():
    image = Image.new("RGB", (400, 100), RED)
    assert thumbnail(image, 200).size == (200, 50)
    assert thumbnail(image, 1000).size == (400, 100)
    assert thumbnail(Image.new("RGB", (5000, 1)), 50).size == (50, 1)
    assert image.size == (400, 100)
    assert thumbnail(image, 200).getpixel((100, 25)) == RED


def test_data_uri_comes_back():
    uri = data_uri(Image.fromarray(PICTURE))
    assert uri.startswith("data:image/png;base64,")
    assert pixels(uri) == PICTURE.tolist()


def test_an_image_as_datasets_stores_it(tmp_path):
    (tmp_path / "a.png").write_bytes(encoded(PICTURE))
    held = encoded(PICTURE[:, ::-1])
    assert np.array_equal(load_image({"bytes": held, "path": "lost.png"}), PICTURE[:, ::-1])
    for source in ({"bytes": None, "path": str(tmp_path / "a.png")}, {"path": tmp_path / "a.png"}):
        assert np.array_equal(load_image(source), PICTURE)
    one = Conversation.build("Hi", {"bytes": held})
    part = {"type": "image", "image": {"bytes": held, "path": None}}
    assert one.images == Conversation.build([{"role": "user", "content": [part]}]).images
