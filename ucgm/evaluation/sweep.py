"""One set of images, from indices to the ingredients of scores, on any number of processes.

    chunks of 1,024 indices, chunk c on process c mod size, no collective in the loop
    -> running moments of the chunks of this process
    -> one float64 sum over the processes: count, sum and outer product

The count that comes out is checked against the number asked for.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ucgm.evaluation.chunks import STAGES, ChunkFolder, FeatureExtractor, ImageSource, add_hashes
from ucgm.evaluation.extractors import Extractors
from ucgm.evaluation.metrics import RunningMoments
from ucgm.evaluation.scoring import FeatureStatistics
from ucgm.runtime.processes import Progress, World


@dataclass(frozen=True, eq=False)
class FeatureExtraction:
    """Makes and reduces sets of chunks.

    Attributes:
        extractor: of the features; one or several.
        folder: holds ``chunks/``; on a disk that all processes share.
        chunk_size: images per file.
        world: the processes.
    """

    extractor: Extractors
    folder: Path
    chunk_size: int
    world: World

    def clean(self) -> None:
        """Remove what killed processes left half written; all processes call it first."""
        if self.world.first:
            for path in self.folder.glob("chunks/*/.chunk_*.tmp"):
                path.unlink()
        self.world.wait()

    def measure(
        self, name: str, source: ImageSource, indices: Tensor
    ) -> tuple[FeatureStatistics, dict[str, Any]]:
        """Make what is missing of one set and reduce it over all processes.

        Args:
            name: of the set; its chunks are in ``chunks/name``.
            source: of the images.
            indices: (n,) consecutive.

        Returns:
            the moments and rows; count, image hash and times (empty on other processes than the
            first).
        """
        folder = ChunkFolder(self.folder / "chunks" / name)
        parts = indices.split(self.chunk_size)
        maker = FeatureExtractor(source, self.extractor)
        moments = {
            output: RunningMoments(width)
            for output, width in self.extractor.dimensions.items()
            if output.endswith(("features", "spatial"))
        }
        mine = self.world.share(range(len(parts)))
        total = sum(len(parts[number]) for number in mine)
        progress = Progress(total, name.replace("_", " "), silent=not self.world.first)
        for number in mine:
            chunk = folder.read(number, len(parts[number]))
            if chunk is None:
                chunk = maker.make(parts[number], progress.add)
                folder.write(number, chunk)
            else:
                progress.skip(len(chunk))
            for output, running in moments.items():
                running.update(chunk.rows[output])
        for running in moments.values():
            running.reduce()
            assert running.count == len(indices), "a chunk was counted twice or not at all"
        measured = FeatureStatistics(
            {output: running.gaussian() for output, running in moments.items()},
            lambda output: folder.all_rows(range(len(parts)), output),
        )
        return measured, facts_of(folder, parts) if self.world.first else {}


def facts_of(folder: ChunkFolder, parts: tuple[Tensor, ...]) -> dict[str, Any]:
    """Counts, image hash and times of a finished set of ``parts`` (n,), from its files."""
    count = sum(map(len, parts))
    hashes = []
    rows, seconds, timed = 0, dict.fromkeys(STAGES, 0.0), dict.fromkeys(STAGES, 0)
    for number in range(len(parts)):
        facts = folder.facts(number)
        hashes.append(facts["images_hash"])
        rows += facts["network_rows"]
        for stage in STAGES:
            seconds[stage] += facts["seconds"][stage]
            timed[stage] += facts["timed"][stage]
    cost = {stage: seconds[stage] / timed[stage] if timed[stage] else None for stage in STAGES}
    making = None
    if cost["sampler"] and cost["decoder"] is not None:
        making = 1.0 / (cost["sampler"] + cost["decoder"])
    return {
        "num_samples": count,
        "nfe": rows / count,
        "images_hash": add_hashes(hashes),
        "seconds_per_image": cost,
        "images_per_second": making,
    }


def consecutive(first: int, count: int) -> Tensor:
    """Indices first .. first + count - 1."""
    return torch.arange(first, first + count)
