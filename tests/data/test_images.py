import numpy as np
import pytest
import torch

from ucgm.data.pixels import from_uint8, grid, to_uint8
from ucgm.generation.writers import NpzSink, PngSink
from ucgm.runtime.files import write_atomic


def test_uint8_rounds_to_nearest_and_inverts():
    levels = torch.arange(256, dtype=torch.uint8)
    assert torch.equal(to_uint8(from_uint8(levels)), levels)
    x = torch.linspace(-1.2, 1.2, 10_001, dtype=torch.float64)
    exact = (127.5 * (x + 1)).clamp(0, 255)
    assert (to_uint8(x).double() - exact).abs().max() <= 0.5 + 1e-4
    assert to_uint8(torch.tensor([-1.0, 1.0, 7.0, -7.0])).tolist() == [0, 255, 255, 0]
    with pytest.raises(ValueError, match="1 of 3 pixel values are not finite"):
        to_uint8(torch.tensor([0.0, torch.nan, 1.0]))


def test_grid_places_images_in_reading_order():
    images = torch.arange(6, dtype=torch.uint8).view(6, 1, 1, 1).expand(6, 1, 2, 3).clone()
    sheet = np.asarray(grid(images, columns=3, upscale=2))
    assert sheet.shape == (2 * 5 + 1, 3 * 7 + 1)
    assert [int(sheet[r, c]) for r in (1, 6) for c in (1, 8, 15)] == [0, 1, 2, 3, 4, 5]
    assert (sheet[0] == 255).all() and (sheet[:, 0] == 255).all() and (sheet[5] == 255).all()
    assert grid(images[:1].expand(1, 3, 2, 3), upscale=1).mode == "RGB"
    with pytest.raises(ValueError, match="uint8"):
        grid(images.float())


def test_npz_is_in_index_order_whatever_the_order_of_writing(tmp_path):
    images = torch.randint(0, 256, (10, 3, 4, 5), dtype=torch.uint8)
    labels = torch.arange(10) % 4
    sink = NpzSink(tmp_path)
    for part in (torch.arange(7, 10), torch.arange(0, 4), torch.arange(4, 7)):
        sink.write(part, images[part])
    with np.load(sink.close(labels), allow_pickle=False) as file:
        assert np.array_equal(file["arr_0"], images.permute(0, 2, 3, 1).numpy())
        assert np.array_equal(file["arr_1"], labels.numpy())
    assert [path.name for path in tmp_path.iterdir()] == ["samples.npz"]


def test_png_folder(tmp_path):
    from PIL import Image

    images = torch.randint(0, 256, (3, 3, 4, 5), dtype=torch.uint8)
    sink = PngSink(tmp_path)
    sink.write(torch.tensor([2]), images[2:])
    sink.write(torch.tensor([0, 1]), images[:2])
    sink.close(torch.tensor([7, 8, 9]))
    back = np.stack([np.asarray(Image.open(tmp_path / f"{i:06d}.png")) for i in range(3)])
    assert np.array_equal(back, images.permute(0, 2, 3, 1).numpy())
    lines = (tmp_path / "labels.csv").read_text().splitlines()
    assert lines == ["file,label", "000000.png,7", "000001.png,8", "000002.png,9"]


def test_write_atomic_leaves_the_old_file_when_writing_fails(tmp_path):
    path, inodes = tmp_path / "report.json", []
    write_atomic(path, lambda p: p.write_text("old") and inodes.append(p.stat().st_ino))
    assert path.stat().st_ino == inodes[0]  # renamed, not copied

    def fail(p):
        p.write_text("half")
        raise OSError(28, "No space left on device")

    with pytest.raises(ValueError, match="report.json could not be written: .* No space left"):
        write_atomic(path, fail)
    assert path.read_text() == "old" and list(tmp_path.iterdir()) == [path]
