"""What is stored for a picture, and that the worker processes neither hang nor stay."""

import io
import multiprocessing
import os
import signal
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from crosspair.data import conversion
from crosspair.data.conversion import convert_image, convert_images
from crosspair.data.images import decode_image
from crosspair.data.records import Record
from crosspair.errors import UserError


def records(images: list[bytes | Path]) -> list[Record]:
    return [Record(str(number), image, number, ("a dog",), "train") for number, image in enumerate(images)]


class TestWhatIsStored:
    @pytest.mark.parametrize("options", [{}, {"progressive": True}])
    def test_a_small_upright_jpeg_keeps_its_bytes(self, pixels, encode, options):
        data = encode(pixels(60, 90), **options)
        assert convert_image(data, 256).data == data
        assert convert_image(data, 60).data == data

    def test_a_small_grey_jpeg_keeps_its_bytes(self, pixels, encode):
        data = encode(Image.fromarray(pixels(60, 90)).convert("L"))
        assert convert_image(data, 256).data == data

    def test_a_small_rgb_png_keeps_its_bytes(self, pixels, encode):
        data = encode(pixels(60, 90), "PNG")
        assert convert_image(data, 256).data == data

    @pytest.mark.parametrize("mode", ["RGBA", "P", "LA", "I;16", "L"])
    def test_any_other_png_becomes_a_jpeg(self, pixels, encode, mode):
        image = Image.fromarray(pixels(60, 90))
        image = Image.fromarray(np.zeros((60, 90), np.uint16)) if mode == "I;16" else image.convert(mode)
        stored = Image.open(io.BytesIO(convert_image(encode(image, "PNG"), 256).data))
        assert (stored.format, stored.mode, stored.size) == ("JPEG", "RGB", (90, 60))

    def test_a_png_with_a_transparent_colour_becomes_a_jpeg(self, pixels, encode):
        data = encode(pixels(60, 90), "PNG", transparency=(10, 20, 90))
        assert Image.open(io.BytesIO(convert_image(data, 256).data)).format == "JPEG"

    def test_a_rotated_jpeg_is_stored_upright(self, pixels, encode):
        exif = Image.Exif()
        exif[0x0112] = 6
        stored = Image.open(io.BytesIO(convert_image(encode(pixels(60, 90), exif=exif), 256).data))
        assert stored.size == (60, 90)
        assert 0x0112 not in stored.getexif()

    def test_a_large_picture_is_stored_with_its_shorter_side_at_the_size(self, pixels, encode):
        data = encode(pixels(375, 500))
        converted = convert_image(data, 256)
        assert Image.open(io.BytesIO(converted.data)).size == (341, 256)
        assert converted.source_bytes == len(data)

    @pytest.mark.parametrize("format", ["JPEG", "PNG", "GIF", "TIFF"])
    def test_size_0_keeps_every_byte(self, pixels, encode, format):
        data = encode(Image.fromarray(pixels(375, 500)), format)
        assert convert_image(data, 0).data == data

    @pytest.mark.parametrize("size", [0, 256])
    def test_a_broken_picture_is_found_at_any_size(self, pixels, encode, size):
        data = encode(pixels(60, 90))
        assert "is broken or cut off" in convert_image(data[:-200], size).problem

    def test_encoding_anew_costs_nothing_one_could_see(self, pixels, encode):
        """At least 40 dB of signal to noise, on a picture with texture."""
        texture = np.random.default_rng(0).normal(0, 15, (96, 128, 1))
        coarse = (pixels(96, 128) + texture).clip(0, 255).astype(np.uint8)
        image = Image.fromarray(coarse).resize((640, 480), Image.Resampling.BICUBIC)
        large = encode(image, "PNG")
        exact = np.asarray(image.resize((341, 256), Image.Resampling.BILINEAR)).astype(float)
        stored = decode_image(convert_image(large, 256).data).permute(1, 2, 0).numpy()
        assert 10 * np.log10(255**2 / np.mean((stored - exact) ** 2)) > 40


class TestFilesThatAreNone:
    def problem(self, path: Path, folder: Path) -> str | None:
        return convert_image(path, 256, folder).problem

    def test_a_link_that_leaves_the_folder_is_a_problem_and_one_that_stays_is_none(self, encode, tmp_path):
        data = encode(np.zeros((8, 8, 3), np.uint8))
        images = tmp_path / "images"
        (images / "c").mkdir(parents=True)
        (tmp_path / "secret.jpg").write_bytes(data)
        (images / "a.jpg").write_bytes(data)
        (images / "file.jpg").symlink_to(tmp_path / "secret.jpg")
        (images / "folder").symlink_to(tmp_path)
        (images / "c" / "inside.jpg").symlink_to(images / "a.jpg")
        (tmp_path / "other").symlink_to(images)  # the folder itself may be one
        assert "leads out of the folder of pictures" in self.problem(images / "file.jpg", images)
        assert "leads out of the folder of pictures" in self.problem(images / "folder" / "secret.jpg", images)
        assert self.problem(images / "c" / "inside.jpg", images) is None
        assert self.problem(tmp_path / "other" / "a.jpg", tmp_path / "other") is None

    def test_a_pipe_a_folder_and_an_impossible_name_are_problems(self, tmp_path):
        os.mkfifo(tmp_path / "pipe.jpg")
        for path in (tmp_path / "pipe.jpg", tmp_path, Path("/dev/zero")):
            assert self.problem(path, tmp_path) == "is a folder, a device or a pipe, not a file"
        assert "can't be read" in self.problem(tmp_path / ("x" * 5000), tmp_path)
        assert self.problem(tmp_path / "a\0b", tmp_path) == "has a name that no file can have"

    def test_a_picture_of_gigabytes_is_not_read(self, tmp_path):
        with (tmp_path / "large.jpg").open("wb") as file:
            file.truncate(1 << 40)
        assert "is too large (1,099,511,627,776 bytes)" in self.problem(tmp_path / "large.jpg", tmp_path)


class TestWorkers:
    @pytest.mark.parametrize("workers", [1, 2, 3])
    @pytest.mark.parametrize("count", [0, 1, 7, 100])
    def test_every_record_comes_back_once_and_in_order(self, encode, workers, count):
        images = [encode(np.full((8, 8, 3), number, np.uint8), "PNG") for number in range(count)]
        results = list(convert_images(records(images), 256, workers))
        assert [record.label for record, _ in results] == list(range(count))
        assert [converted.data for _, converted in results] == images

    def test_only_a_few_pictures_are_in_memory_at_once(self, encode):
        drawn = 0

        def endless():
            nonlocal drawn
            data = encode(np.zeros((8, 8, 3), np.uint8))
            while True:
                drawn += 1
                yield Record(str(drawn), data, drawn, ("a dog",), "train")

        results = convert_images(endless(), 256, 2)
        for _ in range(200):
            next(results)
        results.close()
        assert drawn <= 200 + 2 * conversion.CHUNK * (conversion.TASKS_WAITING + 1)

    def test_leaving_early_ends_the_processes(self, encode):
        results = convert_images(records([encode(np.zeros((8, 8, 3), np.uint8))] * 200), 256, 2)
        next(results)
        assert multiprocessing.active_children()
        results.close()
        assert not multiprocessing.active_children()

    def test_the_workers_compute_with_one_thread_each(self, encode, monkeypatch):
        monkeypatch.setattr(conversion, "encode_jpeg", lambda *_: str(torch.get_num_threads()).encode())
        large = encode(np.zeros((300, 300, 3), np.uint8))
        assert [converted.data for _, converted in convert_images(records([large]), 256, 1)] == [b"1"]

    def test_a_worker_that_is_killed_is_an_error_and_no_hang(self, encode, monkeypatch):
        monkeypatch.setattr(conversion, "decode_image", lambda data: os.kill(os.getpid(), signal.SIGKILL))
        with pytest.raises(UserError, match=r"a worker process was killed .* from 0 on .*fewer --processes"):
            list(convert_images(records([encode(np.zeros((8, 8, 3), np.uint8))] * 40), 256, 2))
        assert not multiprocessing.active_children()
