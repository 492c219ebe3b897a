"""Folders, zips and tables of images, labelled in every way: their items and labels, or one line.

Images are of one colour each, so that whatever kind of file holds them, every pixel is known.
"""

import contextlib
import io
import json
import math
import os
import struct
import zipfile
import zlib

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from tests.fuzz.rules import right_or_one_line, state_of
from ucgm.data import Images, Latents
from ucgm.data.encoding.check import describe_data
from ucgm.data.encoding.command import encode_data
from ucgm.data.encoding.encoder import read_batch
from ucgm.data.sources.listing import HubSource, open_source

SIDES = st.tuples(st.integers(1, 20), st.integers(1, 20))
LEVELS = st.tuples(*[st.integers(0, 255)] * 3)
FOLDERS = st.sampled_from(
    ["cat", "Cat", "dog", "é", "a b", "a\nb", "0", "1", "train", "val", "x" * 99]
)
FILES = st.sampled_from(
    ["0.png", "1.png", "A.PNG", "a.png", "é.jpg", "n\n.png", "\x1b[31m.png", "x" * 99 + ".tif"]
    + [
        "2.webp",
        "3.JPEG",
        "4.gif",
        "5.pgm",
        "notes.txt",
        ".hidden.png",
        "a,b.png",
        '"q".png',
        "-.bmp",
    ]
)
LABELS = st.sampled_from(
    [0, 1] * 12
    + [2, 7, -1, 10**12, 10**30, 0.0, 1.0, 0.5, math.nan, math.inf, True, None]
    + ["0", "1", "x", "", [0], {}]
)
SPOILS = st.sampled_from(
    ["none"] * 14
    + ["pipe", "device", "nowhere", "twice", "loop", "moments", "empty class", "left behind"]
    + ["absolute", "above", "backslash", "cut", "flipped", "encrypted", "no zip"]
)


def rgb16(levels, side):
    """A PNG of 16 bits per colour, which Pillow cannot write."""
    row = b"\0" + struct.pack(">3H", *(257 * v for v in levels)) * side[0]

    def chunk(kind, body):
        return (
            struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
        )

    head = struct.pack(">2I5B", *side, 16, 2, 0, 0, 0)
    body = chunk(b"IDAT", zlib.compress(row * side[1]))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + body + chunk(b"IEND", b"")


@st.composite
def pictures(draw):
    """Bytes of a file, and the colour (3,) of its pixels; None where it is no image."""
    side, levels, kind = draw(SIDES), draw(LEVELS), draw(st.integers(0, 13))
    colour, grey = Image.new("RGB", side, levels), np.full(side[::-1], levels[0])
    forms = {
        "PNG": [colour, colour.quantize(2), Image.new("L", side, levels[0])],
        "TIFF": [Image.fromarray((grey / 255.0).astype(np.float32)), colour.convert("CMYK")],
        "PPM": [Image.fromarray((grey * 257).astype(np.uint16))],
        "WEBP": [Image.new("RGBA", side, (*levels, draw(st.integers(1, 255))))],
        "BMP": [Image.new("1", side, levels[0] > 127)],
    }
    made = [(name, image) for name, images in forms.items() for image in images]
    made += [("PNG", Image.fromarray((grey * 257).astype(np.uint16)))]
    if kind < len(made):
        name, image = made[kind]
        file = io.BytesIO()
        image.save(file, name, **({"lossless": True, "exact": True} if name == "WEBP" else {}))
        one = {"1": 255 * (levels[0] > 127)}.get(image.mode, levels[0])
        alike = image.mode in ("L", "1", "F") or image.mode.startswith("I")
        return file.getvalue(), [one] * 3 if alike else list(levels)
    if kind == len(made):
        return rgb16(levels, side), list(levels)
    return draw(st.sampled_from([b"", b"\x89PNG\r\n\x1a\n", b"BM" + b"\xff" * 60, b"%!PS"])), None


def is_image(name):
    return not name.startswith(".") and not name.endswith(".txt")


@st.composite
def trees(draw):
    """{name: (bytes, colour)}, {name: class} where it can be used, and what spoils it."""
    form = draw(st.sampled_from(["folders", "flat", "dataset.json", "labels.csv"]))
    files = draw(st.dictionaries(FILES, pictures(), max_size=4))
    if form != "flat":
        folders = draw(st.lists(FOLDERS, min_size=1, max_size=3, unique=True))
        files = {f"{folder}/{n}": f for folder in folders for n, f in files.items()}
    images = [name for name in files if is_image(name.rsplit("/", 1)[-1])]
    want = dict.fromkeys(images, 0) if images else None
    if form == "folders" and images:
        classes = sorted({name.split("/")[0] for name in images})
        want = {name: classes.index(name.split("/")[0]) for name in images}
        if splits := {"train", "val"} & set(classes):
            want = want if len(classes) > 1 and len(splits) < 2 else None
    elif form in ("dataset.json", "labels.csv"):
        pairs = [(name, draw(LABELS)) for name in images]
        pairs += draw(
            st.sampled_from([[]] * 5 + [pairs[:1], [("gone.png", 0)], [("/etc/x.png", 1)]])
        )
        pairs = pairs[draw(st.sampled_from([0] * 5 + [1])) :]
        if form == "labels.csv":
            lines = ["file,label", *(f'"{n.replace(chr(34), chr(34) * 2)}",{k}' for n, k in pairs)]
            files[form] = "\n".join(lines).encode(), None
            pairs = [(n, int(k) if str(k) in ("0", "1", "2", "7") else None) for n, k in pairs]
        else:
            files[form] = json.dumps({"labels": pairs}).encode(), None
        want = dict(pairs) if images else None
        right = all(type(k) is int and 0 <= k < 9 for _, k in pairs)
        classes = {k for _, k in pairs if right}
        if len(pairs) != len(images) or set(dict(pairs)) != set(images):
            want = None
        elif not right or classes != set(range(len(classes))):
            want = None
    return files, want, draw(SPOILS), form


def write_folder(place, files, spoil):
    place.mkdir()
    for name, (content, _) in files.items():
        (place / name).parent.mkdir(parents=True, exist_ok=True)
        (place / name).write_bytes(content)
    inner = next((p for p in place.iterdir() if p.is_dir()), place)
    first = next((p for p in inner.iterdir() if is_image(p.name)), inner)
    actions = {
        "pipe": lambda: os.mkfifo(inner / "z.png"),
        "device": lambda: (inner / "z.png").symlink_to("/dev/zero"),
        "nowhere": lambda: (inner / "z.png").symlink_to("nowhere"),
        "twice": lambda: (inner / "z.png").symlink_to(first.name),
        "loop": lambda: (inner / "z").symlink_to("."),
        "moments": lambda: (inner / "z.npy").write_bytes(b""),
        "empty class": lambda: (place / "zz").mkdir(),
        "left behind": lambda: (place / "__MACOSX").mkdir(),
    }
    if spoil not in actions:
        return "none"
    actions[spoil]()
    return spoil


def write_zip(place, files, spoil, draw):
    with zipfile.ZipFile(place, "w") as archive:
        for name, (content, _) in files.items():
            archive.writestr(name, content)
        names = {"absolute": "/z.png", "above": "cat/../../z.png", "backslash": "cat\\z.png"}
        names |= {"empty class": "zz/", "left behind": "__MACOSX/cat/._0.png", "moments": "z.npy"}
        if spoil in names:
            archive.writestr(names[spoil], b"")
    content = bytearray(place.read_bytes())
    if spoil == "cut":
        content = content[: draw(st.integers(0, len(content) - 1))]
    elif spoil == "flipped":
        content[draw(st.integers(0, len(content) - 1))] ^= draw(st.integers(1, 255))
    elif spoil == "no zip":
        content = b"no zip"
    elif spoil == "encrypted" and b"PK\x01\x02" in content:
        content[content.index(b"PK\x01\x02") + 8] |= 1
    place.write_bytes(content)
    return spoil if spoil in (*names, "cut", "flipped", "no zip", "encrypted") else "none"


# What a spoiled set still is: itself, something else that may be right, or nothing.
STILL = {"none": True, "left behind": True, "moments": None, "flipped": None, "encrypted": None}


def check_items(found, files, want, read):
    """``found``: {name: label}; every item that can be read has its colour, others one line."""
    assert found == want
    for number, name in enumerate(sorted(want)):
        colour, pixels = files[name][1], None
        with right_or_one_line():
            pixels = read(number)
        assert (pixels is None) == (colour is None), name
        if pixels is not None:
            assert np.abs(np.asarray(pixels, float) - np.reshape(colour, (3, 1, 1))).max() <= 2, (
                name
            )


@given(data=st.data())
def test_folders_and_zips(tmp_path_factory, data):
    files, want, spoil, form = data.draw(trees())
    home = tmp_path_factory.mktemp("case")
    if data.draw(st.booleans()):
        place = home / "set.zip"
        spoil = write_zip(place, files, spoil, data.draw)
    else:
        place = home / "set"
        spoil = write_folder(place, files, spoil)
    if spoil == "empty class" and form != "folders":
        spoil = "none"
    before, dataset = state_of(home), None
    with right_or_one_line():
        dataset = Images(str(place), 8, flips=False).open()
    still = STILL.get(spoil, False)
    if still is not None:
        assert (dataset is not None) == bool(still and want)
    if dataset is not None and still:
        source = dataset.source
        names = [source.entry(n) for n in range(len(source))]
        check_items(dict(zip(names, source.labels.tolist(), strict=True)), files, want,
                    lambda n: dataset.read([n])[0][0])  # fmt: skip
    for work in (
        lambda: describe_data(str(place), str(home / "report"), images=4, size=8),
        lambda: encode_data(str(place), "identity", 8, str(home / "out"), num_workers=0),
    ):
        with right_or_one_line(), contextlib.redirect_stdout(io.StringIO()):
            work()
    after = state_of(home)
    assert {k: v for k, v in after.items() if k.split("/")[0] not in ("report", "out")} == before
    if "out/manifest.json" in after and still and all(files[name][1] for name in want):
        rows, labels = Latents(str(home / "out")).open().read(range(len(want)))
        assert labels.tolist() == [want[name] for name in sorted(want)]
        assert torch.equal(rows, dataset.read(range(len(want)))[0])


@given(data=st.data())
def test_tables_of_the_hub(data):
    datasets = pytest.importorskip("datasets")
    made = data.draw(st.lists(pictures(), min_size=1, max_size=4))
    cells = [{"bytes": content, "path": None} for content, _ in made]
    kind = data.draw(st.sampled_from(["int64", "string", "float64", "bool", "ClassLabel"]))
    value = {"int64": st.integers(-1, 2), "string": st.sampled_from(["0", "x"]),
             "float64": st.sampled_from([0.0, 1.0, 0.5, math.nan]), "bool": st.booleans(),
             "ClassLabel": st.integers(0, 1)}[kind]  # fmt: skip
    labels = [data.draw(value | st.none() if data.draw(st.booleans()) else value) for _ in made]
    lost = data.draw(st.sampled_from([None, None, None, 0]))
    if lost is not None:
        cells[lost] = data.draw(st.sampled_from([None, {"bytes": None, "path": "/dev/zero"}]))
        made[lost] = b"", None
    feature = (
        datasets.ClassLabel(names=["a", "b"]) if kind == "ClassLabel" else datasets.Value(kind)
    )
    features = datasets.Features({"image": datasets.Image(), "label": feature})
    rows = datasets.Dataset.from_dict({"image": cells, "label": labels}, features=features)
    right = all(type(label) is int and label >= 0 for label in labels)
    count = 2 if kind == "ClassLabel" else len(set(labels))
    right = right and set(labels) == set(range(count))
    source = found = None
    with right_or_one_line():
        source = HubSource("hub:x", rows, "image", "label")
        found = source.count_classes()
    assert (found is not None) == right
    if found is None:
        return
    assert found == count and source.labels.tolist() == labels
    for number, (_, colour) in enumerate(made):
        batch = None
        with right_or_one_line():
            batch = read_batch(source, [number], 8, 8)
        if colour is None:
            assert batch is None or len(batch.skipped) == 1
        else:
            assert np.abs(batch.values[0].numpy() - np.reshape(colour, (3, 1, 1))).max() <= 2


@given(content=st.binary(max_size=200) | st.text(max_size=200).map(str.encode), name=st.booleans())
def test_lists_of_any_bytes(tmp_path_factory, content, name):
    place = tmp_path_factory.mktemp("case")
    (place / ("dataset.json" if name else "labels.csv")).write_bytes(content)
    Image.new("L", (8, 8)).save(place / "0.png")
    with right_or_one_line():
        source = open_source(str(place))
        assert len(source) == 1 and source.labels.tolist() == [0] or not source.unlabelled
