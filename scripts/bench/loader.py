"""Batches of images and of latents, on the files that both sides read, from the page cache.

One process each, so that the cost of the code is compared and not a number of workers.  Images are
cropped as ADM does on both sides.  ``OpenPerSample`` reads as LightningDiT's and UCGM's published
data sets do: one open and two slices per sample.
"""

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from safetensors import safe_open
from timing import Pair
from torch.utils.data import DataLoader, Dataset, RandomSampler, TensorDataset
from torchvision import transforms
from torchvision.datasets import ImageFolder

from ucgm.data import Images
from ucgm.data.latents.codec import Codec
from ucgm.data.latents.shard_format import write_shard
from ucgm.data.loader import BatchPlan, batches
from ucgm.data.pixels import center_crop
from ucgm.data.sets.latent_shards import LatentDataset


class OpenPerSample(Dataset):
    """Opens the file for every sample, as the published code does."""

    def __init__(self, folder):
        self.place = []
        for path in sorted(folder.glob("*.safetensors")):
            with safe_open(path, framework="pt") as file:
                count = file.get_slice("labels").get_shape()[0]
            self.place += [(path, row) for row in range(count)]

    def __len__(self):
        return len(self.place)

    def __getitem__(self, index):
        path, row = self.place[index]
        with safe_open(path, framework="pt", device="cpu") as file:
            latent = file.get_slice("latents")[row : row + 1]
            label = file.get_slice("labels")[row : row + 1]
        return latent.squeeze(0), label.squeeze(0)


def describe(folder: Path, shape: tuple[int, int, int], records: list) -> None:
    """Codec and manifest of a set that nobody encoded."""
    zeros, ones = (0.0,) * shape[0], (1.0,) * shape[0]
    Codec("none", "kl", "", 256, shape, "sample", "none", zeros, ones).save(folder)
    facts = {"num_classes": 1000, "classes": [], "rows": sum(r["rows"] for r in records)}
    (folder / "manifest.json").write_text(json.dumps(facts | {"shards": records, "skipped": []}))


def make_latents(folder: Path, shape=(32, 16, 16), shards: int = 4, rows: int = 1024) -> None:
    """Random latents in shards, as ``ucgm encode`` would leave them."""
    folder.mkdir()
    generator, records = torch.Generator().manual_seed(0), []
    for number in range(shards):
        arrays = {
            "latents": torch.randn(rows, *shape, generator=generator),
            "labels": torch.randint(0, 1000, (rows,), generator=generator),
        }
        records.append(write_shard(folder / f"shard_{number:05d}.safetensors", arrays))
    describe(folder, shape, records)


def make_images(folder: Path, count: int = 64) -> None:
    """Smooth JPEGs of 500 x 375, the usual size of ImageNet, in two classes."""
    random = np.random.default_rng(0)
    for i in range(count):
        coarse = Image.fromarray(random.integers(0, 256, (12, 16, 3), dtype=np.uint8))
        path = folder / str(i % 2) / f"{i}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        coarse.resize((500, 375), Image.Resampling.BICUBIC).save(path, quality=90)


def endless(dataset: Dataset, batch: int) -> Iterator:
    """A plain loader in random order that does not end."""
    sampler = RandomSampler(dataset, replacement=True, num_samples=2**30)
    return iter(DataLoader(dataset, batch, sampler=sampler))


def pairs(folder: Path) -> Iterator[Pair]:
    """Images, then latents."""
    photos, latents = folder / "photos", folder / "latents"
    make_images(photos)
    make_latents(latents)
    for size in (256, 64):
        ours = batches(Images(str(photos), size, flips=True).open(), BatchPlan(32, 1, 0, 1), seed=0)
        transform = transforms.Compose([
            transforms.Lambda(lambda image, size=size: center_crop(image, size)),
            transforms.RandomHorizontalFlip(),
            transforms.ToTensor(),
            transforms.Normalize([0.5] * 3, [0.5] * 3, inplace=True),
        ])  # fmt: skip
        theirs = endless(ImageFolder(str(photos), transform), 32)
        name = f"32 images, 500 x 375 to {size} x {size}"
        yield Pair(name, "torchvision", lambda o=ours: next(o), lambda t=theirs: next(t))
    mine = batches(LatentDataset(latents), BatchPlan(256, 1, 0, 1), seed=0)
    opened, known = OpenPerSample(latents), LatentDataset(latents)
    x, y = zip(*(known.read(torch.arange(k, k + 1024)) for k in range(0, 4096, 1024)), strict=True)
    kept = endless(TensorDataset(torch.cat(x), torch.cat(y)), 256)
    plain, name = endless(opened, 256), "256 latents of 32 x 16 x 16"
    yield Pair(name, "safe_open per sample", lambda: next(mine), lambda: next(plain))
    yield Pair(name, "TensorDataset in memory", lambda: next(mine), lambda: next(kept))
