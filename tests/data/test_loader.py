"""Order, resumption, flips and posterior samples of the training stream."""

import itertools
import json
import multiprocessing
import pickle
from collections import Counter

import numpy as np
import pytest
import torch

from tests.data import toys
from ucgm.data.latents.codec import Codec
from ucgm.data.latents.shard_format import write_shard
from ucgm.data.loader import BatchPlan, batches, flipped_rows, sample_indices
from ucgm.data.pixels import from_uint8, read_image
from ucgm.data.sets.image_folder import Images
from ucgm.data.sets.latent_shards import MANIFEST_FILE, LatentDataset

SHAPE = (2, 2, 2)


def make_set(folder, rows=(13, 1, 10), store="sample", flips=True):
    """Row i holds the number i, its flip i + 1000; labels are i mod 5."""
    folder.mkdir(exist_ok=True)
    records, first = [], 0
    for number, count in enumerate(rows):
        values = torch.arange(first, first + count).float()
        channels = 2 * SHAPE[0] if store == "moments" else SHAPE[0]
        latents = values[:, None, None, None].expand(-1, channels, *SHAPE[1:]).clone()
        if store == "moments":
            latents[:, SHAPE[0] :] = 0.5
        arrays = {"latents": latents.half(), "labels": (values % 5).long()}
        if flips:
            arrays["latents_flip"] = (latents + 1000).half()
        records.append(write_shard(folder / f"shard_{number:05d}.safetensors", arrays))
        first += count
    codec = Codec("v", "kl", "d", 8, SHAPE, store, "none", (0.0,) * 2, (1.0,) * 2)
    codec.save(folder)
    manifest = {"num_classes": 5, "classes": [], "rows": first, "shards": records, "skipped": []}
    (folder / MANIFEST_FILE).write_text(json.dumps(manifest))
    return folder


def numbers(x):
    """Which rows a batch of :func:`make_set` holds: (number, flipped)."""
    values = x[:, 0, 0, 0].long()
    return list(zip((values % 1000).tolist(), (values >= 1000).tolist(), strict=True))


def stream(dataset, steps, start=0, rank=0, world=1, workers=0, batch=6, accumulation=1, seed=3):
    plan = BatchPlan(batch, accumulation, rank, world)
    source = batches(dataset, plan, seed, start, workers)
    found = [next(source) for _ in range(steps * accumulation)]
    source.close()
    return found


@pytest.fixture
def dataset(tmp_path):
    return LatentDataset(make_set(tmp_path / "set"))


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("world", [1, 2])
def test_resuming_in_mid_epoch_sees_exactly_the_rest(tmp_path, workers, world):
    folder = make_set(tmp_path / "set")  # 24 rows: an epoch is four steps of six
    for stop in (1, 2, 3, 6):
        whole, parts = [], []
        for rank in range(world):
            whole += stream(LatentDataset(folder), 8, 0, rank, world)
            for start, steps in ((0, stop), (stop, 8 - stop)):  # a new process in between
                parts += stream(LatentDataset(folder), steps, start, rank, world, workers)
        assert all(
            torch.equal(a, b) and torch.equal(c, d)
            for (a, c), (b, d) in zip(whole, parts, strict=True)
        )


def in_process(folder, rank, queue, start, steps):
    torch.set_num_threads(1)
    found = stream(LatentDataset(folder), steps, start, rank, 2, workers=2)
    queue.put((rank, [numbers(x) for x, _ in found]))


def test_two_processes_together_see_every_row_once_per_epoch(tmp_path):
    folder, context = make_set(tmp_path / "set"), multiprocessing.get_context("fork")
    seen = Counter()
    for start, steps in ((4, 2), (6, 2)):  # the second epoch, killed and resumed in its middle
        queue = context.SimpleQueue()
        processes = [
            context.Process(target=in_process, args=(folder, rank, queue, start, steps))
            for rank in range(2)
        ]
        for process in processes:
            process.start()
        results = dict(queue.get() for _ in processes)
        for process in processes:
            process.join()
        for batch in itertools.chain(*results.values()):
            seen.update(number for number, _ in batch)
        alone = [numbers(x) for x, _ in stream(LatentDataset(folder), steps, start)]
        together = [a + b for a, b in zip(results[0], results[1], strict=True)]
        assert together == alone
    assert seen == Counter(range(24))


def test_accumulation_and_ranks_cut_one_batch(dataset):
    whole = [numbers(x) for x, _ in stream(dataset, 5, batch=12)]
    for world, accumulation in ((2, 1), (1, 3), (2, 3)):
        parts = [
            [numbers(x) for x, _ in stream(dataset, 5, 0, rank, world, 0, 12, accumulation)]
            for rank in range(world)
        ]
        for step in range(5):
            rows = []
            for rank in range(world):
                for micro in range(accumulation):
                    rows += parts[rank][step * accumulation + micro]
            assert rows == whole[step]


def test_labels_follow_their_rows(dataset):
    for x, y in stream(dataset, 8):
        assert [number % 5 for number, _ in numbers(x)] == y.tolist()


def test_epochs_have_other_orders_and_other_flips(dataset):
    epochs = [sum((numbers(x) for x, _ in stream(dataset, 4, start)), []) for start in (0, 4)]
    orders = [[number for number, _ in epoch] for epoch in epochs]
    assert sorted(orders[0]) == sorted(orders[1]) == list(range(24))
    assert orders[0] != orders[1]
    flips = [dict(epoch) for epoch in epochs]
    assert flips[0] != flips[1]
    other = sum((numbers(x) for x, _ in stream(dataset, 4, seed=4)), [])
    assert [n for n, _ in other] != orders[0]


def test_flips_are_fair_and_a_function_of_seed_step_row():
    rows = torch.arange(4096)
    both = torch.stack([flipped_rows(0, step, rows) for step in range(8)]).float()
    assert abs(float(both.mean()) - 0.5) < 4 * 0.5 / (8 * 4096) ** 0.5
    assert not torch.equal(both[0], both[1])
    assert torch.equal(flipped_rows(0, 3, rows[100:200]).float(), both[3, 100:200])


def test_the_stream_flips_what_the_rule_says(dataset):
    for world in (1, 2):
        for rank in range(world):
            rows = BatchPlan(6, 1, rank, world).rows(0)
            for step, (x, _) in enumerate(stream(dataset, 12, 0, rank, world)):
                assert [flip for _, flip in numbers(x)] == flipped_rows(3, step, rows).tolist()


def test_no_flips_when_none_are_stored_or_wanted(tmp_path):
    plain = LatentDataset(make_set(tmp_path / "plain", flips=False))
    unwanted = LatentDataset(make_set(tmp_path / "set"), mirrored=False)
    for dataset in (plain, unwanted):
        assert not dataset.mirrored and "mirrored" not in dataset.describe()
        assert not any(flip for x, _ in stream(dataset, 8) for _, flip in numbers(x))


def test_moments_are_sampled_anew_and_replayed(tmp_path):
    dataset = LatentDataset(make_set(tmp_path / "set", rows=(24,), store="moments", flips=False))
    assert dataset.shape == SHAPE
    first, again = (torch.cat([x for x, _ in stream(dataset, 400)]) for _ in range(2))
    assert torch.equal(first, again)
    positions = torch.arange(400 * 6)
    mean = sample_indices(24, 3, positions).float()[:, None, None, None]
    noise = (first - mean) / 0.5
    assert abs(float(noise.mean())) < 4 / noise.numel() ** 0.5
    assert abs(float(noise.std()) - 1) < 4 / (2 * noise.numel()) ** 0.5
    assert len(noise[:, 0, 0, 0].round(decimals=4).unique()) > 2000  # no step repeats another
    late = torch.cat([x for x, _ in stream(dataset, 3, 397, workers=2)])
    assert torch.equal(late, first[-18:])
    assert torch.equal(dataset.__getitems__([5])[0], torch.full((1, *SHAPE), 5.0))


def test_a_held_batch_is_not_overwritten(dataset):
    source = batches(dataset, BatchPlan(6, 1, 0, 1), 0, 0, 1)
    held = [next(source)[0] for _ in range(40)]
    kept = [x.clone() for x in held]
    view = held[0][2:4, :1]
    del held[0]
    for _ in range(40):
        next(source)
    assert all(torch.equal(a, b) for a, b in zip(held, kept[1:], strict=True))
    assert torch.equal(view, kept[0][2:4, :1])


def test_memory_and_calls_read_the_same(tmp_path):
    folder = make_set(tmp_path / "set")
    kept, called = LatentDataset(folder), LatentDataset(folder)
    assert kept.rows.kept
    called.rows.kept = False
    rows = np.array([47, 0, 13, 13, 12, 37, 23, 14])
    for a, b in zip(kept.read(rows), called.read(rows), strict=True):
        assert torch.equal(a, b)
    assert numbers(kept.__getitems__(rows)[0]) == [(int(r) % 24, bool(r >= 24)) for r in rows]


def test_index_is_small(tmp_path):
    """The index of 1.28 million rows is proportional to the shards, not to the rows."""
    few = LatentDataset(make_set(tmp_path / "a", rows=(2,) * 8)).rows
    many = LatentDataset(make_set(tmp_path / "b", rows=(2000,) * 8)).rows
    sizes = []
    for rows in (few, many):
        sizes.append(len(pickle.dumps(rows)))
        assert rows._labels.dtype == np.int32  # the only part with an entry per row, when touched
    assert sizes[1] - sizes[0] < 100


def test_errors_of_a_worker_arrive(tmp_path):
    folder = toys.image_tree(tmp_path / "tree", 2, 4)
    (folder / "n1" / "002.JPEG").write_bytes(toys.jpeg(0)[:300])
    dataset = Images(str(folder), 16).open()
    source = batches(dataset, BatchPlan(4, 1, 0, 1), 0, 0, 2)
    with pytest.raises(ValueError, match="n1/002.JPEG in .* cannot be read .*[Tt]runcated"):
        for _ in range(4):
            next(source)


def test_images_on_the_fly(tmp_path):
    folder = toys.image_tree(tmp_path / "tree", 3, 4)
    dataset = Images(str(folder), 16).open()
    assert dataset.shape == (3, 16, 16) and dataset.num_classes == 3 and dataset.lossless
    assert dataset.class_names == ("n0", "n1", "n2")
    x, y = dataset.__getitems__([0, 5, 12 + 5])
    pixels = read_image((folder / "n1" / "001.JPEG").read_bytes(), 16)
    assert torch.equal(x[1], from_uint8(torch.from_numpy(pixels.copy())))
    assert torch.equal(x[2], x[1].flip(-1)) and y.tolist() == [0, 1, 1]
    assert torch.equal(from_uint8(dataset.decode(x)), x)
    epoch = Counter()
    for x, _ in stream(dataset, 2, workers=2):
        assert x.shape == (6, 3, 16, 16)
        epoch.update(float(v) for v in x.abs().sum((1, 2, 3)))
    assert len(epoch) == 12
    assert Images(str(folder), 16, held_out_path=str(folder)).held_out().open().mirrored is False
    grey = Images(str(folder), 16, channels=1).open()
    assert grey.__getitems__([0])[0].shape == (1, 1, 16, 16)
