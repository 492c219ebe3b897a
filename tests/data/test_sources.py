"""Every source lists the same items in the same order, or says what is wrong."""

import io
import json
import zipfile

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from tests.data import toys
from ucgm.data.encoding.encoder import read_batch, read_moments
from ucgm.data.pixels import UnreadableImage, center_crop, read_image
from ucgm.data.sources.listing import HubSource, open_source


def names(source):
    return [source.entry(i) for i in range(len(source))]


def zipped(folder, path, prefix=""):
    with zipfile.ZipFile(path, "w") as archive:
        for file in sorted(folder.rglob("*")):
            if file.is_file():
                archive.write(file, prefix + file.relative_to(folder).as_posix())
    return path


@pytest.fixture
def tree(tmp_path):
    return toys.image_tree(tmp_path / "tree", 3, 4)


def test_folder_and_zip_are_one_list(tree, tmp_path):
    folder = open_source(str(tree))
    assert folder.classes == ("n0", "n1", "n2") and folder.content == "images"
    assert folder.labels.tolist() == [0] * 4 + [1] * 4 + [2] * 4
    assert names(folder)[5] == "n1/001.JPEG"
    assert folder.content_of(5) == (tree / "n1" / "001.JPEG").read_bytes()
    for prefix in ("", "train/"):
        archive = open_source(str(zipped(tree, tmp_path / "a.zip", prefix)))
        assert archive.classes == folder.classes
        assert archive.labels.tolist() == folder.labels.tolist()
        assert names(archive) == [prefix + name for name in names(folder)]
        assert archive.content_of(5) == folder.content_of(5)
    (tree / "n1" / "001.JPEG").rename(tree / "n1" / "0001.JPEG")
    assert open_source(str(tree)).names_digest() != folder.names_digest()


def test_flat_folder_has_no_classes(tree):
    flat = open_source(str(tree / "n0"))
    assert flat.unlabelled and flat.labels.tolist() == [0] * 4 and flat.classes == ()


def test_empty_class(tree, tmp_path):
    (tree / "n1b").mkdir()
    with pytest.raises(ValueError, match="class folder n1b of .* holds no images"):
        open_source(str(tree))
    (tree / "n1b" / "readme.txt").write_text("none")
    with pytest.raises(ValueError, match="class folder n1b of .* holds no images"):
        open_source(str(zipped(tree, tmp_path / "a.zip")))


def test_trees_that_are_not_class_folders(tree, tmp_path):
    toys.image_tree(tmp_path / "root" / "train", 2, 2)
    toys.image_tree(tmp_path / "root" / "val", 2, 2)
    with pytest.raises(ValueError, match="train, val with folders inside: .*root/train"):
        open_source(str(tmp_path / "root"))
    (tree / "stray.png").write_bytes(toys.jpeg(0))
    with pytest.raises(ValueError, match="stray.png in .* lies in no class folder"):
        open_source(str(tree))
    (tmp_path / "none").mkdir()
    with pytest.raises(ValueError, match="holds no images"):
        open_source(str(tmp_path / "none"))
    with pytest.raises(ValueError, match="neither a folder nor a .zip; .*hub:"):
        open_source("ILSVRC/imagenet-1k")


def test_dataset_json(tmp_path):
    """The EDM2 layout, in a folder and in a zip: labels by name, not by folder."""
    folder = tmp_path / "edm2" / "00000"
    folder.mkdir(parents=True)
    labels = []
    for number in range(5):
        (folder / f"img{number}.png").write_bytes(toys.jpeg(number))
        labels.append([f"00000/img{number}.png", (7 * number) % 5])
    listing = folder.parent / "dataset.json"
    listing.write_text(json.dumps({"labels": labels[::-1]}))
    for where in (folder.parent, zipped(folder.parent, tmp_path / "edm2.zip")):
        source = open_source(str(where))
        assert source.labels.tolist() == [0, 2, 4, 1, 3]
        assert names(source) == [name for name, _ in labels]
    before = open_source(str(folder.parent)).names_digest()
    listing.write_text(json.dumps({"labels": [*labels[:4], [labels[4][0], 4]]}))
    assert open_source(str(folder.parent)).names_digest() != before
    listing.write_text(json.dumps({"labels": None}))
    assert open_source(str(folder.parent)).unlabelled
    listing.write_text(json.dumps({"labels": labels[:4]}))
    with pytest.raises(ValueError, match="holds 00000/img4.png, which dataset.json does not list"):
        open_source(str(folder.parent))
    listing.write_text(json.dumps({"labels": [*labels, ["00000/img9.png", 1]]}))
    with pytest.raises(ValueError, match="dataset.json lists 00000/img9.png, which"):
        open_source(str(folder.parent))
    listing.write_text("[]")
    with pytest.raises(ValueError, match="is no list {"):
        open_source(str(folder.parent))


def test_repa_moments(tmp_path):
    """images/ beside vae-sd/, each with its dataset.json: one of them has to be named."""
    for place in ("images", "vae-sd"):
        (tmp_path / place / "00000").mkdir(parents=True)
    array = np.arange(8 * 4 * 4, dtype=np.float32).reshape(8, 4, 4)
    np.save(tmp_path / "vae-sd" / "00000" / "img-mean-std-00000000.npy", array)
    (tmp_path / "images" / "00000" / "img00000000.png").write_bytes(toys.jpeg(0))
    for place, name in (("images", "img00000000.png"), ("vae-sd", "img-mean-std-00000000.npy")):
        listing = {"labels": [[f"00000/{name}", 3]]}
        (tmp_path / place / "dataset.json").write_text(json.dumps(listing))
    with pytest.raises(ValueError, match="images/dataset.json and vae-sd/dataset.json: give one"):
        open_source(str(tmp_path))
    source = open_source(str(tmp_path / "vae-sd"))
    assert source.content == "moments" and source.labels.tolist() == [3]
    batch = read_batch(source, [0], 32, 8)
    assert torch.equal(batch.values[0], torch.from_numpy(array))


def test_moments_of_another_autoencoder():
    def saved(array):
        file = io.BytesIO()
        np.save(file, array, allow_pickle=True)
        return file.getvalue()

    assert read_moments(saved(np.ones((1, 8, 2, 2))), 8).shape == (8, 2, 2)
    with pytest.raises(ValueError, match=r"array \(4, 2, 2\) cannot be moments .* \(8, h, w\)"):
        read_moments(saved(np.ones((4, 2, 2))), 8)
    with pytest.raises(UnreadableImage):
        read_moments(saved(np.ones((8, 2, 2)))[:-9], 8)
    with pytest.raises(UnreadableImage, match="Object arrays"):
        read_moments(saved(np.array([{}], dtype=object)), 8)


def test_shards_as_a_source(tmp_path):
    content = {"latents": torch.randn(5, 4, 2, 2), "labels": torch.tensor([3, 0, 1, 2, 2])}
    save_file(content, tmp_path / "latents_rank00_shard000.safetensors")
    save_file(content, tmp_path / "latents_rank01_shard000.safetensors")
    source = open_source(str(tmp_path))
    assert source.content == "latents" and source.labels.tolist() == [3, 0, 1, 2, 2] * 2


def test_zip_that_is_cut(tree, tmp_path):
    path = zipped(tree, tmp_path / "a.zip")
    whole = path.read_bytes()
    path.write_bytes(whole[:-500])
    with pytest.raises(ValueError, match="no complete zip file"):
        open_source(str(path))
    damaged = bytearray(whole)
    damaged[whole.index(b"n0/001.JPEG") + 300] ^= 255
    path.write_bytes(damaged)
    with pytest.raises(ValueError, match=r"a.zip is damaged at n0/001.JPEG.*shards are kept"):
        read_batch(open_source(str(path)), [0, 1], 16, 8)


def test_hub_rows(tmp_path):
    datasets = pytest.importorskip("datasets")
    features = datasets.Features(
        {"image": datasets.Image(), "label": datasets.ClassLabel(names=["cat", "dog"])}
    )
    content = {
        "image": [{"bytes": toys.jpeg(i), "path": None} for i in range(4)],
        "label": [0, 1, 1, 0],
    }
    rows = datasets.Dataset.from_dict(content, features=features)
    source = HubSource("hub:x/y", rows, "image", "label")
    assert source.classes == ("cat", "dog") and source.labels.tolist() == [0, 1, 1, 0]
    assert source.content_of(2) == toys.jpeg(2) and source.entry(2) == "row 2"
    assert HubSource("hub:x/y", rows, "image", None).unlabelled
    with pytest.raises(ValueError, match="no column 'img'"):
        HubSource("hub:x/y", rows, "img", "label")
    rows.to_parquet(tmp_path / "train.parquet")
    local = open_source(f"hub:{tmp_path}")
    assert local.labels.tolist() == [0, 1, 1, 0] and local.content_of(3) == toys.jpeg(3)


def test_crop_is_that_of_adm():
    """Worked by hand for 300 x 512 to 100: one halving, one bicubic, the centre."""
    rng = np.random.default_rng(0)
    image = Image.fromarray(rng.integers(0, 256, (300, 512, 3), dtype=np.uint8))
    halved = image.resize((256, 150), Image.Resampling.BOX)
    scaled = halved.resize((171, 100), Image.Resampling.BICUBIC)
    assert center_crop(image, 100).tobytes() == scaled.crop((35, 0, 135, 100)).tobytes()
    twice = image.crop((0, 0, 200, 200))  # exactly two: halved, then a resize that does nothing
    assert (
        center_crop(twice, 100).tobytes()
        == twice.resize((100, 100), Image.Resampling.BOX).tobytes()
    )
    exact = image.crop((0, 0, 100, 100))
    assert center_crop(exact, 100).tobytes() == exact.tobytes()
    small = center_crop(image.crop((0, 0, 30, 40)), 64)
    assert small.size == (64, 64)


def test_read_image_modes_and_damage():
    grey = Image.fromarray(np.full((20, 20), 7, dtype=np.uint8))
    for image in (grey, grey.convert("P"), grey.convert("RGBA"), grey.convert("CMYK")):
        file = io.BytesIO()
        image.save(file, format="TIFF")
        pixels = read_image(file.getvalue(), 10)
        assert pixels.shape == (3, 10, 10) and (abs(pixels.astype(int) - 7) <= 1).all()
    for content in (b"", b"no image", toys.jpeg(0)[:200], b"GIF89a"):
        with pytest.raises(UnreadableImage):
            read_image(content, 16)
