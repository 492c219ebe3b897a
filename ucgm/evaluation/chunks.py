"""Features of generated images, a chunk at a time: what survives a kill.

A set of n samples is cut into chunks of 1,024 indices.  Chunk c belongs to process c mod size;
there is no collective in the loop, so processes may run at different speeds.  A finished chunk is
a file, written beside its name and renamed: it is there whole or not at all.  A restart, on any
number of processes, keeps the chunks whose checksum holds and makes the others.

    chunk_00012.safetensors   features, logits, spatial (1024, .) float32, labels (1024,) int64
        metadata: checksum, hash of the images, network rows, seconds per stage

The hash of a set of images is the sum over its images of sha256(index, pixels), modulo 2^256: it
does not depend on order, chunks, batches or processes.
"""

import hashlib
import json
import math
import time
import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from ucgm.evaluation.extractors import Extractor, Extractors
from ucgm.evaluation.metrics import RunningMoments
from ucgm.generation.samples import RowCounter, SampleSet
from ucgm.runtime.files import IN_TURN, sole_writer, write_atomic
from ucgm.runtime.fixed_batches import Tile, by_tiles, whole_tiles
from ucgm.runtime.reading import reading

CHUNK = 1024
STAGES: tuple[str, ...] = ("sampler", "decoder", "extractor")

# Rows by name, of equal lengths in a chunk of features, and facts that JSON can hold.
Chunk = tuple[dict[str, Tensor], dict[str, Any]]


class ChunkFolder:
    """The chunk files of one set of samples.

    Args:
        folder: is made when missing.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)

    def path(self, number: int) -> Path:
        """File of chunk ``number``."""
        return self.folder / f"chunk_{number:05d}.safetensors"

    def write(self, number: int, chunk: Chunk) -> None:
        """Save a chunk with its checksum, whole or not at all, see ``files.write_atomic``.

        Two jobs with the same chunk write the same, in turn.
        """
        rows = {name: value.contiguous() for name, value in chunk[0].items()}
        metadata = {"facts": json.dumps(chunk[1]), "checksum": checksum(rows)}
        with sole_writer(self.path(number), "another job", IN_TURN):
            write_atomic(self.path(number), lambda path: save_file(rows, path, metadata))

    def read(self, number: int) -> Chunk | None:
        """The chunk; None when it is missing, or damaged (a warning says so)."""
        path = self.path(number)
        if not path.is_file():
            return None
        try:
            with reading(path), safe_open(path, framework="pt") as file:
                metadata = file.metadata() or {}
                rows = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
                if metadata["checksum"] != checksum(rows):
                    raise ValueError("its checksum does not hold")
                return rows, json.loads(metadata["facts"])
        except (ValueError, OSError) as error:
            warnings.warn(f"{path} is damaged ({error}): it is made again.", stacklevel=2)
            return None

    def rows(self, number: int, name: str) -> Tensor:
        """The rows ``name`` (n, ...) of a finished chunk."""
        with safe_open(self.path(number), framework="pt") as file:
            return file.get_tensor(name)


def checksum(rows: dict[str, Tensor]) -> str:
    """sha256 over names, shapes and values of tensors of any shape."""
    digest = hashlib.sha256()
    for name in sorted(rows):
        digest.update(f"{name} {tuple(rows[name].shape)} {rows[name].dtype}".encode())
        digest.update(rows[name].contiguous().numpy().tobytes())
    return digest.hexdigest()


def images_hash(indices: Tensor, images: Tensor) -> str:
    """Hash of images (B, C, H, W) uint8 with their ``indices`` (B,), 64 hex digits."""
    single = (
        hashlib.sha256(index.to_bytes(8, "little") + image.numpy().tobytes()).hexdigest()
        for index, image in zip(indices.tolist(), images, strict=True)
    )
    return add_hashes(single)


def add_hashes(parts: Iterable[str]) -> str:
    """Hash of the union of disjoint sets."""
    return f"{sum(int(part, 16) for part in parts) % 2**256:064x}"


class Stopwatch:
    """Seconds and images per stage; the first use of a stage is warm-up and is not counted."""

    def __init__(self) -> None:
        self._warm: set[str] = set()
        self.clear()

    def clear(self) -> None:
        """Start again from zero, still warm."""
        self.seconds = dict.fromkeys(STAGES, 0.0)
        self.images = dict.fromkeys(STAGES, 0)

    @contextmanager
    def time(self, stage: str, images: int) -> Iterator[None]:
        """Count what happens inside, on the CPU or on CUDA."""
        start = time.perf_counter()
        yield
        if torch.cuda.is_available() and torch.cuda.is_initialized():
            torch.cuda.synchronize()
        if stage in self._warm:
            self.seconds[stage] += time.perf_counter() - start
            self.images[stage] += images
        self._warm.add(stage)


class ImageSource(ABC):
    """Images by index: samples of a run, a data set, files.

    Attributes:
        labels: (N,) int64, None where there are none.
        tile: images that are made together, see :mod:`ucgm.runtime.fixed_batches`.
        batch_size: images held at a time.
        counter: of the rows that a network evaluates for them.
    """

    labels: Tensor | None = None
    tile, batch_size = 1, 256
    counter = RowCounter()

    @abstractmethod
    def timed_images(self, indices: Tensor, watch: Stopwatch) -> Tensor:
        """Images (n, C, H, W) uint8 of ``indices`` (n,), and the time that they take."""

    def labels_at(self, indices: Tensor) -> Tensor:
        """Labels (n,) int64 of ``indices`` (n,); -1 where there are none."""
        return torch.full_like(indices, -1) if self.labels is None else self.labels[indices]


class GeneratedImages(ImageSource):
    """The images of a sample set.

    Args:
        samples: with a row counter.
        batch_size: images held at a time, rounded up to whole tiles.
    """

    def __init__(self, samples: SampleSet, batch_size: int) -> None:
        self.samples, self.batch_size = samples, batch_size
        self.tile, self.counter = samples.settings.tile, samples.counter

    def labels_at(self, indices: Tensor) -> Tensor:
        """The labels (n,) that were asked for at ``indices`` (n,)."""
        return self.samples.labels_at(indices)

    def timed_images(self, indices: Tensor, watch: Stopwatch) -> Tensor:
        """Images (n, C, H, W) of ``indices`` (n,), sampled and decoded tile by tile, both timed."""

        def make(tile: Tile) -> Tensor:
            with watch.time("sampler", len(tile.rows)):
                latents = self.samples.tile_latents(indices, tile)
            with watch.time("decoder", len(tile.rows)):
                return self.samples.decode(latents)

        return by_tiles(indices, self.tile, make)


class FeatureExtractor:
    """Extracts the features of images, and keeps the time of each stage.

    Args:
        source: where images come from.
        extractor: where features come from.
    """

    def __init__(self, source: ImageSource, extractor: Extractor | Extractors) -> None:
        self.source, self.extractor = source, extractor
        self.held = whole_tiles(source.batch_size, math.lcm(source.tile, extractor.batch_size))
        self.watch = Stopwatch()

    def chunk(
        self, indices: Tensor, report: Callable[[int], object] = int, kept: Tensor | None = None
    ) -> Chunk:
        """Outputs and labels of the samples ``indices`` (n,), and facts of their making.

        Args:
            indices: numbers of the images.
            report: hears how many are done, batch by batch.
            kept: (k,) numbers; given, the outputs are the state of their moments alone, and the
                feature rows of those that are among the kept ones.
        """
        if kept is not None:
            return self._moments(indices, report, kept), {}
        self.watch.clear()
        before = self.source.counter.rows
        hashes: list[str] = []
        outputs: list[dict[str, Tensor]] = []
        for part in indices.split(self.held):
            images = self.source.timed_images(part, self.watch)
            with self.watch.time("extractor", len(part)):
                outputs.append(self.extractor(images, part))
            hashes.append(images_hash(part, images))
            report(len(part))
        rows = {name: torch.cat([part[name] for part in outputs]) for name in outputs[0]}
        rows["labels"] = self.source.labels_at(indices)
        return rows, {
            "images_hash": add_hashes(hashes),
            "network_rows": self.source.counter.rows - before,
            "seconds": self.watch.seconds,
            "timed": self.watch.images,
        }

    def _moments(
        self, indices: Tensor, report: Callable[[int], object], kept: Tensor
    ) -> dict[str, Tensor]:
        moments, rows = empty_moments(self.extractor), []
        for part in indices.split(CHUNK):
            outputs, _ = self.chunk(part, report)
            for name, running in moments.items():
                running.update(outputs[name])
            chosen = torch.isin(part, kept)
            rows.append({n: v[chosen] for n, v in outputs.items() if n.endswith("features")})
        found = {name: running.state for name, running in moments.items()}
        return found | {
            name.removesuffix("features") + "rows": torch.cat([part[name] for part in rows])
            for name in rows[0]
        }


def empty_moments(extractor: Extractor | Extractors) -> dict[str, RunningMoments]:
    """Moments to be filled, of every output that Frechet distances are computed from."""
    return {
        output: RunningMoments(width)
        for output, width in extractor.dimensions.items()
        if output.endswith(("features", "spatial"))
    }
