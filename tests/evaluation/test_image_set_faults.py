"""Image sets and references of strangers: right, or one line that names what was found."""

import pickle
import warnings
import zipfile

import numpy as np
import pytest
import torch
from PIL import Image

from ucgm.evaluation.evaluate import evaluate, make_reference
from ucgm.evaluation.extractors import open_extractor
from ucgm.evaluation.image_sets import open_images
from ucgm.evaluation.metrics import load_reference
from ucgm.evaluation.scoring import MetricConfig

RGB = np.arange(4 * 6 * 6 * 3, dtype=np.uint8).reshape(4, 6, 6, 3)


@pytest.mark.parametrize(
    "arrays, message",
    [
        ({"arr_0": RGB.transpose(0, 3, 1, 2)}, "move the channels to the end"),
        ({"arr_0": np.concatenate([RGB, RGB[..., :1]], 3)}, "convert to grey or RGB"),
        ({"arr_0": RGB.astype(np.float32)}, "float32, need .* uint8"),
        ({"arr_0": RGB[:0]}, r"\(0, 6, 6, 3\)"),
        ({"arr_0": RGB, "arr_1": np.arange(3)}, "a label for each of 4 images"),
        ({"arr_0": RGB, "arr_1": np.array([0, 1, 0.5, 1])}, r"image 0 of .*x.npz has label 0.0"),
        ({"arr_0": RGB, "arr_1": np.array([0, 1, -1, 1])}, "image 2 of .* has label -1"),
        (
            {"arr_0": RGB, "arr_1": np.array([0, 10**12, 0, 1])},
            "image 1 of .* has label 1000000000000",
        ),
        (
            {"arr_0": RGB, "arr_1": np.array([True, False, True, True])},
            "image 0 of .* has label True",
        ),
        ({"images": RGB}, "no images under arr_0"),
    ],
)
def test_an_npz_that_is_no_image_set(tmp_path, arrays, message):
    np.savez(tmp_path / "x.npz", **arrays)
    with pytest.raises(ValueError, match=message) as caught:
        open_images(str(tmp_path / "x.npz"), None)
    assert "x.npz" in str(caught.value) and "\n" not in str(caught.value)


def test_grey_and_colour_npz_are_read(tmp_path):
    for pixels in (RGB, RGB[..., :1]):
        np.savez(tmp_path / "x.npz", arr_0=pixels, arr_1=np.array([3, 1, 0, 2]))
        images = open_images(str(tmp_path / "x.npz"), None)
        found = images.images(torch.tensor([2, 0]))
        assert np.array_equal(found.numpy(), pixels[[2, 0]].transpose(0, 3, 1, 2))
        assert images.labels_at(torch.tensor([2, 0])).tolist() == [0, 3]


def test_damaged_bytes_of_an_npz(tmp_path):
    path = tmp_path / "x.npz"
    np.savez_compressed(path, arr_0=RGB)
    with zipfile.ZipFile(path) as archive:
        start = archive.getinfo("arr_0.npy").header_offset + 60
    content = bytearray(path.read_bytes())
    content[start : start + 8] = b"\xff" * 8
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"x\.npz holds no images under arr_0"):
        open_images(str(path), None)


@pytest.fixture
def folder(tmp_path):
    folder = tmp_path / "images"
    folder.mkdir()
    for i in range(3):
        Image.new("L", (8, 8), 60 * i).save(folder / f"{i}.png")
    return folder


@pytest.mark.parametrize("damaged", ["0.png", "1.png"])
def test_a_damaged_file_is_named(folder, damaged):
    (folder / damaged).write_bytes(b"")
    with pytest.raises(ValueError, match=f"{damaged} in .*images cannot be read") as caught:
        open_images(str(folder), None).images(torch.arange(3))
    assert "0x" not in str(caught.value)


def test_colour_after_grey_is_named(folder):
    Image.new("RGB", (8, 8), (9, 0, 0)).save(folder / "2.png")
    with pytest.raises(ValueError, match="2.png in .* is in colour, the first image is grey"):
        open_images(str(folder), None).images(torch.arange(3))


@pytest.mark.parametrize(
    "table, message",
    [
        ("name,class\n0.png,1\n", "labels.csv is no list file,label: line 2"),
        ("file,label\n0.png,1\n1.png,0\n2.png,x\n", "2.png in labels.csv has label 'x'"),
        (
            "file,label\n0.png,1\n0.png,0\n1.png,0\n2.png,1\n",
            r"labels.csv names 0.png twice, in line 2 \(class 1\) and line 3 \(class 0\)",
        ),
        ("file,label\n0.png,1\n1.png\n2.png,1\n", "1.png in labels.csv has label None"),
        ("file,label\n0.png,-1\n1.png,0\n2.png,1\n", "0.png in labels.csv has label '-1'"),
        ("file,label\n0.png,1\n1.png,0\n", "holds 2.png, which labels.csv does not list"),
    ],
)
def test_a_table_of_labels_that_is_none(folder, table, message):
    (folder / "labels.csv").write_text(table)
    with pytest.raises(ValueError, match=message):
        open_images(str(folder), None)


def test_what_three_images_can_give_is_computed(folder, tmp_path):
    reference = make_reference("digits", tmp_path / "ref.npz", num_rows=50)
    with pytest.warns(
        UserWarning, match="3 images are too few for precision, recall, inception_score"
    ):
        result = evaluate(str(folder), MetricConfig(reference=str(reference)), device="cpu")
    assert {"fid", "kid"} <= result["scores"].keys()
    assert not {"precision", "recall", "inception_score"} & result["scores"].keys()


class Forged:
    """An array whose dtype claims to hold objects without a flag that says so."""

    def __init__(self, state):
        self.state = state

    def __reduce__(self):
        return np.dtype, ("V8", False, True), self.state


def test_a_pickle_cannot_forge_a_dtype(tmp_path):
    class Array:
        def __reduce__(self):
            fields = {"f": (np.dtype("O"), 0)}
            dtype = Forged((3, "|", None, ("f",), fields, 8, 1, 0))
            make = np.zeros(1).__reduce__()[0]
            return make, (np.ndarray, (0,), b"b"), (1, (1,), dtype, False, b"\1" * 8)

    path = tmp_path / "reference.pkl"
    path.write_bytes(pickle.dumps({"fid": {"mu": Array(), "sigma": Array()}}))
    with pytest.raises(ValueError, match=r"reference\.pkl"):
        load_reference(path, "fid")


def test_a_pickled_reference_is_read(tmp_path):
    mu, sigma = np.random.default_rng(0).normal(size=(2, 8, 8))
    sigma = sigma @ sigma.T
    path = tmp_path / "reference.pkl"
    for protocol in (2, 4, 5):
        path.write_bytes(pickle.dumps({"fid": {"mu": mu[0], "sigma": sigma}}, protocol))
        found = load_reference(path, "fid")
        assert np.array_equal(found.gaussian.mean, mu[0])
        assert np.array_equal(found.gaussian.covariance, sigma)


def test_the_extractor_that_needs_no_download():
    extractor = open_extractor("random", None, "cpu")
    assert extractor.digest == open_extractor("random", None, "cpu").digest
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for size, channels in ((8, 1), (33, 3)):
            images = torch.randint(0, 256, (5, channels, size, size), dtype=torch.uint8)
            features = extractor(images, torch.arange(5))["features"]
            assert features.shape == (5, extractor.dimensions["features"])
            assert features.std(0).min() > 0
