"""The shard file: standard, verified, and each fault an error that names the file."""

import json
import os
import resource
import struct

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from ucgm.data.latents.shard_format import read_header, write_shard
from ucgm.data.latents.shards import ShardSet
from ucgm.runtime.files import sha256


def arrays(rows=6, channels=2, dtype=torch.float16, seed=0):
    generator = torch.Generator().manual_seed(seed)
    latents = torch.randn(rows, channels, 3, 3, generator=generator)
    return {"latents": latents.to(dtype), "labels": torch.arange(rows) % 4}


def everything(paths, **options):
    rows = ShardSet(paths, **options)
    return rows.gather(np.arange(len(rows)), np.zeros(len(rows), dtype=bool))


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.bfloat16, torch.uint8])
def test_what_is_written_is_plain_safetensors(tmp_path, dtype):
    path, content = tmp_path / "a.safetensors", arrays(dtype=dtype)
    record = write_shard(path, content)
    found = load_file(path)
    assert found.keys() == content.keys()
    assert all(
        torch.equal(found[k], content[k]) and found[k].dtype == content[k].dtype for k in found
    )
    assert record["sha256"] == sha256(path) and record["bytes"] == path.stat().st_size
    assert record["rows"] == 6 and record["file"] == "a.safetensors"
    assert all(
        array.offset % 4096 == 0
        for name, array in read_header(path).arrays.items()
        if name == "latents"
    )
    latents, labels = everything([path])
    assert torch.equal(latents, content["latents"]) and torch.equal(labels, content["labels"])
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.bfloat16])
def test_foreign_shards_are_read(tmp_path, dtype):
    """As LightningDiT writes them: any order of arrays, metadata of strings."""
    content = arrays(dtype=dtype) | {"latents_flip": arrays(dtype=dtype, seed=1)["latents"]}
    save_file(content, tmp_path / "latents_rank00_shard000.safetensors", {"total_size": "6"})
    save_file(content, tmp_path / "latents_rank00_shard001.safetensors", {"total_size": "6"})
    rows = ShardSet(sorted(tmp_path.iterdir()))
    assert rows.flips and len(rows) == 12
    order = np.array([11, 0, 6, 5, 0])
    flipped = np.array([True, False, True, True, True])
    for kept in (True, False):
        rows = ShardSet(sorted(tmp_path.iterdir()))
        rows.kept = kept
        latents, labels = rows.gather(order, flipped)
        for slot, (row, flip) in enumerate(zip(order % 6, flipped, strict=True)):
            name = "latents_flip" if flip else "latents"
            assert torch.equal(latents[slot], content[name][row])
            assert labels[slot] == content["labels"][row]


def test_truncated_shard(tmp_path):
    path = tmp_path / "a.safetensors"
    write_shard(path, arrays())
    whole = path.read_bytes()
    for keep in (len(whole) - 1, 4100, 100, 7, 0):
        path.write_bytes(whole[:keep])
        with pytest.raises(ValueError, match=f"shard {path} cannot be read: it has {keep:,} bytes"):
            ShardSet([path])


def test_a_shard_that_shrinks_while_it_is_read(tmp_path):
    path = tmp_path / "a.safetensors"
    write_shard(path, arrays())
    rows = ShardSet([path])
    rows.kept = False
    rows.labels(0)
    os.truncate(path, 4100)
    with pytest.raises(ValueError, match=f"shard {path} has become shorter"):
        rows.gather(np.arange(3), np.zeros(3, dtype=bool))


def test_garbage_is_no_shard(tmp_path):
    path = tmp_path / "a.safetensors"
    for content in (
        b"PK" * 4000,
        struct.pack("<Q", 4) + b"true" + b"0" * 99,
        struct.pack("<Q", 2) + b"{}",
    ):
        path.write_bytes(content)
        with pytest.raises(ValueError, match=f"shard {path}"):
            ShardSet([path])


def test_wrong_channel_count(tmp_path):
    write_shard(tmp_path / "a.safetensors", arrays())
    write_shard(tmp_path / "b.safetensors", arrays(channels=4))
    with pytest.raises(
        ValueError, match=r"b.safetensors holds F16 \(4, 3, 3\).*a.safetensors holds"
    ):
        ShardSet(sorted(tmp_path.iterdir()))


def test_arrays_that_do_not_fit(tmp_path):
    path = tmp_path / "a.safetensors"
    good = arrays()
    for change, message in (
        ({"labels": torch.zeros(5, dtype=torch.int64)}, r"labels are I64 \(5,\)"),
        ({"labels": torch.zeros(6)}, r"labels are F32"),
        ({"latents": torch.zeros(6, 2)}, "four axes"),
        ({"latents": torch.zeros(6, 2, 3, 3, dtype=torch.float64)}, "latents are F64"),
        ({"latents_flip": torch.zeros(6, 2, 3, 3)}, "latents_flip"),
    ):
        save_file(good | change, path)
        with pytest.raises(ValueError, match=message):
            ShardSet([path])
    save_file({"labels": good["labels"]}, path)
    with pytest.raises(ValueError, match="and no latents"):
        ShardSet([path])
    with pytest.raises(ValueError, match="no shards"):
        ShardSet([])


@pytest.mark.parametrize("label", [4, -1])
def test_label_out_of_range(tmp_path, label):
    content = arrays()
    content["labels"][2] = label
    write_shard(tmp_path / "a.safetensors", content)
    with pytest.raises(ValueError, match=f"row 2 of .*a.safetensors has label {label}, out"):
        everything([tmp_path / "a.safetensors"], num_classes=4)


def limited(path, limit, queue):
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
    try:
        write_shard(path, arrays(rows=1000))
    except ValueError as error:
        queue.put(str(error))


def test_full_disk_leaves_what_was_there(tmp_path):
    """A file size limit stands for the full disk: the write fails after some bytes."""
    import multiprocessing

    path = tmp_path / "a.safetensors"
    write_shard(path, arrays())
    before, context = path.read_bytes(), multiprocessing.get_context("fork")
    queue = context.SimpleQueue()
    process = context.Process(target=limited, args=(path, 8192, queue))
    process.start()
    message = queue.get()
    process.join()
    assert f"{path} could not be written" in message and "make room" in message
    assert path.read_bytes() == before and list(tmp_path.iterdir()) == [path]


def test_more_shards_than_files_may_be_open(tmp_path):
    write_shard(tmp_path / "a.safetensors", arrays(rows=1))
    paths = []
    for number in range(300):
        paths.append(tmp_path / f"b{number:04d}.safetensors")
        os.link(tmp_path / "a.safetensors", paths[-1])
    soft = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (200, soft[1]))
    try:
        latents, _ = everything(paths)
        assert latents.shape[0] == 300
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, soft)


def test_header_of_json_spaces_is_accepted_by_safetensors(tmp_path):
    path = tmp_path / "a.safetensors"
    write_shard(path, arrays())
    (length,) = struct.unpack("<Q", path.read_bytes()[:8])
    assert (length + 8) % 4096 == 0
    assert json.loads(path.read_bytes()[8 : 8 + length])["labels"]["dtype"] == "I64"
