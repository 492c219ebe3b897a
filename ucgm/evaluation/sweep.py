"""One set of images, from indices to the ingredients of scores, on any number of processes.

    chunks of consecutive indices, chunk c on process c mod size, no collective in the loop

    all rows in chunks of 1,024, or moments and few rows in chunks of 50,000

The first process sums up in the order of the chunks, in float64 (count, sum, outer product), so
that the result does not depend on the number of processes.

Jobs that know nothing of each other may each make a part of the chunks, in one folder; one more
command finds all of them there and sums up.
"""

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ucgm.evaluation.chunks import (
    STAGES,
    Chunk,
    ChunkFolder,
    FeatureExtractor,
    ImageSource,
    add_hashes,
    empty_moments,
)
from ucgm.evaluation.extractors import Extractors
from ucgm.evaluation.scoring import FeatureStatistics
from ucgm.runtime.files import IN_TURN, claim_folder, sole_writer
from ucgm.runtime.processes import Progress, World


@dataclass(frozen=True)
class Part:
    """Part ``number``, from 1, of ``total``: of the chunks number - 1, number - 1 + total, ..."""

    number: int
    total: int

    @classmethod
    def of_text(cls, text: str, chunks: int) -> "Part":
        """The part K/N of sets of ``chunks`` chunks.

        Raises:
            ValueError: there is no such part.
        """
        words = re.fullmatch(r"(\d+)/(\d+)", text)
        number, total = map(int, words.groups()) if words else (0, 0)
        if not 1 <= number <= total:
            raise ValueError(f"--part {text} is no part: the third of eight is --part 3/8")
        if total > chunks:
            raise ValueError(
                f"--part {text} would leave parts without work, as there are {chunks} chunks: ask "
                "for fewer parts, or for smaller chunks with --chunk-size"
            )
        return cls(number, total)


@dataclass(frozen=True, eq=False)
class FeatureExtraction:
    """Makes and reduces sets of chunks.

    Attributes:
        extractor: of the features; one or several.
        folder: of the chunks, on a disk that all processes share.
        chunk_size: images per file.
        world: the processes.
        part: what this job makes; None: all, and the sums.
    """

    extractor: Extractors
    folder: Path
    chunk_size: int
    world: World
    part: Part | None = None

    def claim(self, protocol: dict[str, Any]) -> None:
        """Make the folder that of ``protocol``; all processes call it first.

        Raises:
            ValueError: the folder belongs to another protocol; nothing was written.
        """
        if self.world.first:
            with sole_writer(self.folder / "protocol.json", "another part", IN_TURN):
                claim_folder(self.folder, protocol, alone=self.part is None)
        self.world.wait()

    def measure(
        self, name: str, source: ImageSource, indices: Tensor, kept: Tensor | None = None
    ) -> tuple[FeatureStatistics, dict[str, Any]] | None:
        """Make what is missing of one set, and sum it up.

        Args:
            name: of the set; its chunks are in ``chunks/name``.
            source: of the images.
            indices: (n,) consecutive.
            kept: (k,) indices; given, moments are kept, and their feature rows (k, d) as ``rows``
                under the prefix of the extractor, but no others.

        Returns:
            the moments and rows; count, image hash and times, unless ``kept``.  None on other
            processes than the first, and of a part.
        """
        folder, moments = ChunkFolder(self.folder / "chunks" / name), empty_moments(self.extractor)
        parts, made = indices.split(self.chunk_size), []
        for rows, facts in self._chunks(folder, name.replace("_", " "), source, parts, kept):
            for output, running in moments.items():
                if kept is None:
                    running.update(rows[output])
                else:
                    running.state += rows[output]
            made.append(facts)
        if self.part or not self.world.first:
            return None
        statistics = FeatureStatistics(
            {output: running.gaussian() for output, running in moments.items()},
            lambda output: torch.cat([folder.rows(n, output) for n in range(len(parts))]),
        )
        return statistics, facts_of(made, len(indices)) if kept is None else {}

    def _chunks(
        self,
        folder: ChunkFolder,
        label: str,
        source: ImageSource,
        parts: tuple[Tensor, ...],
        kept: Tensor | None,
    ) -> Iterator[Chunk]:
        """Make what is missing of this process's share; the first gets all chunks, in order."""
        extractor = FeatureExtractor(source, self.extractor)
        first, step = (self.part.number - 1, self.part.total) if self.part else (0, 1)
        mine = self.world.share(range(first, len(parts), step))
        total, whole = sum(len(parts[n]) for n in mine), sum(map(len, parts[first::step]))
        progress = Progress(total, label, not self.world.first, whole)
        for number in mine:
            if folder.read(number) is not None:
                progress.skip(len(parts[number]))
            else:
                folder.write(number, extractor.chunk(parts[number], progress.add, kept))
        self.world.wait()
        for number in range(len(parts)) if self.world.first and not self.part else ():
            found = folder.read(number)
            if found is None:
                path = folder.path(number)
                raise ValueError(f"{path} is missing or damaged: run the same command again.")
            yield found

    def state(self, names: Iterable[str], count: int) -> str:
        """Which parts are missing, of which a chunk of the sets ``names`` of ``count`` images."""
        assert self.part is not None
        total, chunks = self.part.total, range(-(-count // self.chunk_size))
        sets = [ChunkFolder(self.folder / "chunks" / name) for name in names]
        lacking = {n % total + 1 for n in chunks for each in sets if not each.path(n).is_file()}
        missing = " ".join(f"{number}/{total}" for number in sorted(lacking))
        rest = f"missing: {missing}" if missing else "all are there: now the same without --part"
        return f"part {self.part.number}/{total} is done; {rest}"


def facts_of(facts: Sequence[dict[str, Any]], count: int) -> dict[str, Any]:
    """Counts, image hash and times of a set of ``count`` images from those of its chunks."""
    cost: dict[str, float | None] = {}
    for stage in STAGES:
        timed = sum(chunk["timed"][stage] for chunk in facts)
        seconds = sum(chunk["seconds"][stage] for chunk in facts)
        cost[stage] = seconds / timed if timed else None
    making = None
    if cost["sampler"] and cost["decoder"] is not None:
        making = 1.0 / (cost["sampler"] + cost["decoder"])
    return {
        "num_samples": count,
        "nfe": sum(chunk["network_rows"] for chunk in facts) / count,
        "images_hash": add_hashes(chunk["images_hash"] for chunk in facts),
        "seconds_per_image": cost,
        "images_per_second": making,
    }
