"""One set of samples, from indices to scores' ingredients, on any number of processes.

    chunks of 1,000 indices, chunk c on process c mod size, no collective in the loop
    -> running moments of the chunks of this process
    -> one float64 sum over the processes: count, sum and outer product

The count that comes out is checked against the number asked for.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from ucgm.chunks import STAGES, ChunkFolder, ChunkMaker, add_hashes
from ucgm.evaluate import Measured
from ucgm.extractors import Extractor
from ucgm.metrics import RunningMoments
from ucgm.processes import Progress, World
from ucgm.samples import SampleSet


@dataclass(frozen=True, eq=False)
class Sweep:
    """What is sampled and measured, and on which processes.

    Attributes:
        samples: of the run, at its own number of steps.
        extractor: of the features.
        num_samples: per number of steps and repeat.
        repeats: number of disjoint index ranges.
        batch_size: images per sampler call and process; batches do not cross chunks.
        chunk_size: samples per file.
        folder: of this benchmark; on a disk that all processes share.
        world: the processes.
    """

    samples: SampleSet
    extractor: Extractor
    num_samples: int
    repeats: int
    batch_size: int
    chunk_size: int
    folder: Path
    world: World

    def chunk_folder(self, steps: int, repeat: int) -> ChunkFolder:
        """Where the chunks of one set are."""
        return ChunkFolder(self.folder / "chunks" / f"steps_{steps:03d}_repeat_{repeat}")

    def rows(
        self, steps: Sequence[int], score: Callable[[Measured], dict[str, float]]
    ) -> list[dict[str, Any]]:
        """One row per number of steps and repeat; the first process alone scores."""
        if self.world.first:
            for path in self.folder.glob("chunks/*/.chunk_*.tmp"):
                path.unlink()  # left by a killed process
        self.world.wait()
        rows = []
        for count in steps:
            for repeat in range(self.repeats):
                measured, row = self.measure(count, repeat)
                if self.world.first:
                    row["scores"] = score(measured)
                rows.append(row)
        return rows

    def measure(self, steps: int, repeat: int) -> tuple[Measured, dict[str, Any]]:
        """Make what is missing of one set and reduce it over all processes.

        Returns:
            the moments and rows, and the facts of a report row (complete on the first process).
        """
        world, folder = self.world, self.chunk_folder(steps, repeat)
        first = repeat * self.num_samples
        parts = torch.arange(first, first + self.num_samples).split(self.chunk_size)
        samples = self.samples.with_steps(steps)
        maker = ChunkMaker(samples, self.extractor, self.batch_size)
        dimensions = self.extractor.dimensions
        moments = {
            name: RunningMoments(dimensions[name])
            for name in ("features", "spatial")
            if name in dimensions
        }
        mine = world.share(range(len(parts)))
        total = sum(len(parts[number]) for number in mine)
        progress = Progress(total, f"{steps:3d} steps", silent=not world.first)
        for number in mine:
            chunk = folder.read(number, len(parts[number]))
            if chunk is None:
                chunk = maker.make(parts[number], progress.add)
                folder.write(number, chunk)
            else:
                progress.skip(len(chunk))
            for name, running in moments.items():
                running.update(chunk.rows[name])
        for running in moments.values():
            running.reduce()
            assert running.count == self.num_samples, "a chunk was counted twice or not at all"
        measured = Measured(
            moments["features"].gaussian(),
            moments["spatial"].gaussian() if "spatial" in moments else None,
            lambda name: folder.all_rows(range(len(parts)), name),
        )
        facts = self._facts(folder, parts) if world.first else {}
        return measured, {"steps": steps, "repeat": repeat, "first_index": first, **facts}

    def _facts(self, folder: ChunkFolder, parts: Sequence[torch.Tensor]) -> dict[str, Any]:
        """Counts, image hash and times of a finished set, from its files."""
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
            "num_samples": self.num_samples,
            "nfe": rows / self.num_samples,
            "images_hash": add_hashes(hashes),
            "seconds_per_image": cost,
            "images_per_second": making,
        }
