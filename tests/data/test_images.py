"""Every kind of picture comes out as the same eight-bit RGB, upright, on white; what is no picture is named."""

import io
import pickle
import zlib

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps

from crosspair.data import images
from crosspair.data.images import (
    ImageError,
    decode_image,
    encode_jpeg,
    jpeg_header,
    load_image,
    read_image,
    resize_shorter_side,
)
from crosspair.errors import UserError


def as_array(image: torch.Tensor) -> np.ndarray:
    assert image.dtype == torch.uint8
    return image.permute(1, 2, 0).numpy().astype(int)


def difference(found: torch.Tensor, expected: np.ndarray) -> float:
    assert as_array(found).shape == expected.shape
    return float(np.abs(as_array(found) - expected).mean())


def with_orientation(orientation: int, little_endian: bool = True) -> bytes:
    exif = Image.Exif()
    exif[0x0112] = orientation
    exif.endian = "<" if little_endian else ">"
    return exif.tobytes()


class TestJpeg:
    @pytest.mark.parametrize("options", [{}, {"progressive": True}, {"subsampling": "4:4:4"}, {"subsampling": "4:2:2"}])
    def test_a_plain_jpeg_is_what_pillow_reads(self, pixels, encode, options):
        data = encode(pixels(60, 90), **options)
        assert difference(decode_image(data), np.asarray(Image.open(io.BytesIO(data)))) < 0.5

    def test_a_grey_jpeg_has_three_equal_channels(self, pixels, encode):
        grey = Image.fromarray(pixels(60, 90)).convert("L")
        image = decode_image(encode(grey))
        assert torch.equal(image, image[:1].expand(3, -1, -1))
        assert difference(image, np.repeat(np.asarray(grey)[..., None], 3, 2)) < 1

    def test_an_inverted_cmyk_jpeg_shows_its_colours(self, pixels, encode):
        data = encode(Image.fromarray(pixels(60, 90)).convert("CMYK"))
        assert b"Adobe" in data  # which says that the values are stored inverted
        assert difference(decode_image(data), pixels(60, 90)) < 3

    @pytest.mark.parametrize("orientation", range(1, 9))
    @pytest.mark.parametrize("little_endian", [True, False])
    def test_an_exif_rotated_jpeg_comes_out_upright(self, pixels, encode, orientation, little_endian):
        data = encode(pixels(60, 90), exif=with_orientation(orientation, little_endian))
        expected = ImageOps.exif_transpose(Image.open(io.BytesIO(data)))
        assert difference(decode_image(data), np.asarray(expected)) < 0.5
        assert jpeg_header(data).upright == (orientation == 1)

    def test_the_header_is_read_behind_other_segments(self, pixels, encode):
        data = encode(pixels(60, 90), comment=b"\xff\xc0 not a frame", icc_profile=b"x" * 70_000, progressive=True)
        assert jpeg_header(data) == images.JpegHeader(90, 60, upright=True)

    def test_a_cmyk_jpeg_is_left_to_pillow(self, pixels, encode):
        assert jpeg_header(encode(Image.fromarray(pixels(60, 90)).convert("CMYK"))) is None

    @pytest.mark.filterwarnings("ignore:Corrupt EXIF")
    def test_a_header_cut_anywhere_is_an_error_and_no_crash(self, pixels, encode):
        data = encode(pixels(60, 90), exif=with_orientation(6))
        for cut in range(0, data.index(b"\xff\xda"), 5):
            assert jpeg_header(data[:cut]) is None
            with pytest.raises(ImageError):
                decode_image(data[:cut])

    @pytest.mark.filterwarnings("ignore")
    def test_damaged_exif_does_not_lose_the_picture(self, pixels, encode):
        data = bytearray(encode(pixels(60, 90), exif=with_orientation(6)))
        start = data.index(b"Exif\0\0") + 6
        data[start : start + 8] = b"\xff" * 8
        assert decode_image(bytes(data)).shape == (3, 60, 90)


class TestOtherFormats:
    @pytest.mark.parametrize("format", ["PNG", "BMP", "TIFF", "WEBP"])
    def test_rgb(self, pixels, encode, format):
        options = {"lossless": True} if format == "WEBP" else {}
        assert difference(decode_image(encode(pixels(60, 90), format, **options)), pixels(60, 90)) == 0

    @pytest.mark.parametrize("mode", ["L", "P", "1"])
    def test_grey_palette_and_black_and_white(self, pixels, encode, mode):
        image = Image.fromarray(pixels(60, 90)).convert(mode)
        assert difference(decode_image(encode(image, "PNG")), np.asarray(image.convert("RGB"))) == 0

    @pytest.mark.parametrize("mode", ["LA", "RGBA"])
    def test_transparency_lies_over_white(self, encode, mode):
        image = Image.new("RGBA", (3, 1), (0, 0, 0, 255))
        image.putalpha(Image.frombytes("L", (3, 1), bytes([0, 128, 255])))
        decoded = decode_image(encode(image.convert(mode), "PNG"))
        assert as_array(decoded)[0, :, 0].tolist() == [255, 127, 0]

    def test_a_transparent_palette_entry_lies_over_white(self, encode):
        image = Image.new("P", (2, 1))
        image.putpalette([10, 20, 30, 200, 100, 50])
        image.putdata([0, 1])
        decoded = decode_image(encode(image, "PNG", transparency=0))
        assert as_array(decoded)[0].tolist() == [[255, 255, 255], [200, 100, 50]]

    def test_a_transparent_colour_of_an_rgb_picture_lies_over_white(self, encode):
        image = Image.new("RGB", (2, 1), (1, 2, 3))
        image.putpixel((1, 0), (9, 9, 9))
        decoded = decode_image(encode(image, "PNG", transparency=(1, 2, 3)))
        assert as_array(decoded)[0].tolist() == [[255, 255, 255], [9, 9, 9]]

    @pytest.mark.parametrize("format", ["PNG", "TIFF"])
    def test_sixteen_bit_grey_is_scaled_and_not_cut(self, encode, format):
        values = np.array([[0, 255, 256, 32768, 65535]], dtype=np.uint16)
        image = decode_image(encode(Image.fromarray(values), format))
        assert as_array(image)[0, :, 0].tolist() == [0, 1, 1, 128, 255]

    def test_a_transparent_value_of_sixteen_bit_grey_lies_over_white(self, encode):
        values = np.array([[0, 1000]], dtype=np.uint16)
        image = decode_image(encode(Image.fromarray(values), "PNG", transparency=0))
        assert as_array(image)[0, :, 0].tolist() == [255, 4]

    def test_pixels_of_32_bits_are_refused_because_white_is_unknown(self, encode):
        with pytest.raises(ImageError, match=r"^x\.tif has 32 bits a pixel.*save it with 8 or 16"):
            decode_image(encode(Image.fromarray(np.full((2, 2), 0.5, dtype=np.float32)), "TIFF"), "x.tif")

    def test_a_cmyk_tiff_shows_its_colours(self, pixels, encode):
        data = encode(Image.fromarray(pixels(60, 90)).convert("CMYK"), "TIFF")
        assert difference(decode_image(data), pixels(60, 90)) < 1

    @pytest.mark.parametrize("format", ["GIF", "PNG", "WEBP"])
    def test_of_an_animation_the_first_frame(self, encode, format):
        frames = [Image.new("RGB", (4, 4), colour) for colour in ("red", "blue")]
        options = {"lossless": True} if format == "WEBP" else {}
        data = encode(frames[0], format, save_all=True, append_images=frames[1:], **options)
        assert as_array(decode_image(data))[0, 0].tolist() == [255, 0, 0]

    def test_a_png_with_an_orientation_comes_out_upright(self, pixels, encode):
        data = encode(pixels(60, 90), "PNG", exif=with_orientation(6))
        assert difference(decode_image(data), np.rot90(pixels(60, 90), -1)) == 0


class TestWhatIsNoImage:
    @pytest.mark.parametrize(
        ("data", "reason"),
        [
            (b"", "is empty"),
            (b"These are words.\n", "is not a picture in a known format"),
            (b"\xff\xd8\xff\xe0 no jpeg at all", "is (broken|not a picture)"),
            (b"\x89PNG\r\n\x1a\n", "is (broken|not a picture)"),
        ],
    )
    def test_is_an_error_of_one_sentence_that_names_it(self, data, reason):
        with pytest.raises(ImageError, match=f"^holiday.jpg {reason}") as caught:
            decode_image(data, "holiday.jpg")
        assert "\n" not in str(caught.value)
        assert isinstance(caught.value, UserError)

    @pytest.mark.parametrize("format", ["JPEG", "PNG", "GIF", "TIFF", "WEBP", "BMP"])
    @pytest.mark.parametrize("part", [0.3, 0.6, 0.9])
    def test_a_picture_cut_off_is_broken(self, encode, format, part):
        noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
        data = encode(noise, format)
        with pytest.raises(ImageError, match=r"^cut\.x is (broken|not a picture)"):
            decode_image(data[: int(len(data) * part)], "cut.x")

    def test_a_missing_file_and_a_folder_are_named(self, tmp_path):
        with pytest.raises(ImageError, match=r"gone\.jpg is missing"):
            read_image(tmp_path / "gone.jpg")
        with pytest.raises(ImageError, match="can't be read"):
            read_image(tmp_path)

    def test_a_name_with_a_newline_stays_on_one_line(self):
        with pytest.raises(ImageError, match=r"^'a\\nb\.jpg' is empty$"):
            decode_image(b"", "a\nb.jpg")

    def test_a_pixel_bomb_is_refused_before_it_is_decoded(self, encode):
        jpeg = bytearray(encode(np.zeros((8, 8, 3), dtype=np.uint8)))
        frame = jpeg.index(b"\xff\xc0")
        jpeg[frame + 5 : frame + 9] = b"\xff\xff\xff\xff"  # 65535 x 65535 pixels
        with pytest.raises(ImageError, match=r"bomb is too large .*at most 178,956,970 pixels"):
            decode_image(bytes(jpeg), "bomb")
        png = bytearray(encode(np.zeros((8, 8, 3), dtype=np.uint8), "PNG"))
        png[16:24] = (60_000).to_bytes(4) * 2
        png[29:33] = zlib.crc32(png[12:29]).to_bytes(4)
        with pytest.raises(ImageError, match=r"bomb is too large.*at most 178,956,970"):
            decode_image(bytes(png), "bomb")

    def test_an_error_survives_the_way_out_of_a_process(self):
        error = pickle.loads(pickle.dumps(ImageError("a.jpg", "is empty")))
        assert (str(error), error.reason) == ("a.jpg is empty", "is empty")


class TestLoadImage:
    def test_every_form_of_a_picture_gives_the_same_pixels(self, pixels, encode, tmp_path):
        array = pixels(20, 30)
        file = tmp_path / "a.png"
        file.write_bytes(encode(array, "PNG"))
        tensor = torch.from_numpy(array).permute(2, 0, 1)
        rgba = np.dstack([array, np.full((20, 30), 255, dtype=np.uint8)])
        for form in (file, str(file), file.read_bytes(), Image.fromarray(array), array, rgba, tensor):
            assert torch.equal(load_image(form), tensor)

    @pytest.mark.parametrize(
        "wrong", [np.zeros((4, 4, 3)), np.zeros((3, 4, 5), dtype=np.uint8), torch.zeros(4, 4, 3), None]
    )
    def test_another_shape_says_what_is_expected(self, wrong):
        with pytest.raises(UserError, match=r"found .* as a picture; expected a path.*uint8 \[h, w, 3\]"):
            load_image(wrong)

    @pytest.mark.parametrize(
        "empty",
        [np.zeros((0, 4, 3), np.uint8), torch.zeros(3, 4, 0, dtype=torch.uint8), Image.new("RGB", (0, 4))],
    )
    def test_a_picture_without_pixels_is_refused(self, empty):
        with pytest.raises(ImageError, match="the picture has no pixels"):
            load_image(empty)

    def test_a_lazily_opened_broken_picture_is_a_picture_error(self, encode):
        noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
        data = encode(noise, "PNG")
        with pytest.raises(ImageError, match=r"^the picture is broken or cut off"):
            load_image(Image.open(io.BytesIO(data[: len(data) // 2])))


class TestResize:
    @pytest.mark.parametrize(("shape", "expected"), [((300, 500), (256, 426)), ((500, 300), (426, 256))])
    def test_the_shorter_side_gets_the_size_and_the_other_keeps_the_ratio(self, shape, expected):
        assert resize_shorter_side(torch.zeros(3, *shape, dtype=torch.uint8), 256).shape == (3, *expected)

    @pytest.mark.parametrize("shape", [(256, 300), (100, 4000), (1, 1)])
    def test_a_picture_is_never_enlarged(self, shape):
        image = torch.zeros(3, *shape, dtype=torch.uint8)
        assert resize_shorter_side(image, 256) is image

    def test_fine_stripes_become_grey_instead_of_a_pattern(self):
        stripes = torch.zeros(3, 512, 512, dtype=torch.uint8)
        stripes[:, :, ::3] = 255
        assert resize_shorter_side(stripes, 128).float().std() < 8


def test_an_encoded_picture_comes_back_nearly_the_same(pixels):
    image = torch.from_numpy(pixels(60, 90)).permute(2, 0, 1)
    assert difference(decode_image(encode_jpeg(image, 92)), pixels(60, 90)) < 2.5
