"""``ucgm condense restore``: a set from its manifest, which is a recipe of whole images.

The name of a candidate says how it is made again: the number of a sample of a run, or of a real
image.  The digest of all pixels says whether they are the same.
"""

import shutil
from pathlib import Path
from typing import Any

import torch

from ucgm.condense.command import generated_pool
from ucgm.condense.condensed import FIELDS, LABELS, MANIFEST, OBSERVER, save_images, writing
from ucgm.condense.observe import ClassifierObserver
from ucgm.condense.pool import GeneratedPool, RealImages, RealPool, open_sets
from ucgm.evaluation.metrics.reference import digest_of
from ucgm.generation.command import open_run
from ucgm.runtime.files import new_folder, plain
from ucgm.runtime.reading import check_fields, read_json

_WHOLE = {"crops": 1, "factor": 1, "match": "none"}
_RECIPE = {
    "source": str,
    "data": {"where": str, "size": int | None, "held_out": str | None},
    "images_per_class": [int],
    "pixels_sha256": str,
}
_GENERATED = {"training_step": int, "weights": str, "seed": int, "steps": int}


def restore(manifest: str, out_dir: str, run: str | None = None) -> Path:
    """Make a condensed set again from its condensed.json, without its images.

    The stored labels and the observer are taken from beside the manifest; where they are not, the
    set has hard labels.

    Args:
        manifest: condensed.json of a set of whole images: no crops, patches or matching.
        out_dir: where the set goes; must not exist.
        run: folder of the run whose samples they are; that of the manifest when left out.

    Returns:
        the folder.

    Raises:
        ValueError: it is no such recipe, or another run or data set is there now.
    """
    path = Path(manifest)
    said = read_json(path, FIELDS | _RECIPE)
    for key, value in _WHOLE.items():
        if said["settings"][key] != value:
            raise ValueError(
                f"{path} is of a set with {key} {said['settings'][key]}: only whole images that "
                "were not moved are made again, copy its images"
            )
    if run is not None:
        old = said["source"]
        for section, key in ((said, "source"), (said["data"], "where"), (said["observer"], "run")):
            if section.get(key) == old:
                section[key] = run
    counts, names = said["images_per_class"], said["candidates"]
    if len(counts) != len(said["classes"]) or sum(counts) != len(names) or not all(counts):
        raise ValueError(f"{path} has {len(names)} candidates for {counts} images per class")
    with new_folder(Path(out_dir), "ucgm condense restore") as temporary:
        pixels = _pixels(_pools(said), names, said["shape"], path)
        if digest_of(pixels) != said["pixels_sha256"]:
            raise ValueError(
                f"the images of {path} come out with other pixels: the data are others, or another "
                "processor, number of threads or version of torch rounds otherwise"
            )
        labels = torch.arange(len(counts)).repeat_interleave(torch.tensor(counts))
        images = RealImages(str(path), pixels, labels, tuple(said["classes"]))
        with writing():
            missing = _take(said, path.parent, temporary)
            save_images(images, said, temporary)
    print(f"{len(names)} images with {said['settings']['labels']} labels: {out_dir}/images")
    if missing:
        print(f"{' and '.join(missing)} not found beside {path}")
    return Path(out_dir)


def _take(said: dict[str, Any], beside: Path, folder: Path) -> list[str]:
    """Copy labels and observer; the names of those that are missing, without which the set's
    labels become hard.
    """
    wanted = [] if {"run", "spec"} & said["observer"].keys() else [OBSERVER]
    wanted += [LABELS] if said["settings"]["labels"] == "stored" else []
    there = [name for name in wanted if (beside / name).is_file()]
    if OBSERVER in there:
        found = ClassifierObserver.load(beside / OBSERVER).digest
        if found != said["observer"]["sha256"]:
            raise ValueError(f"{beside / OBSERVER} has other weights than {beside / MANIFEST} says")
    for name in there:
        shutil.copyfile(beside / name, folder / name)
    missing = [name for name in wanted if name not in there]
    if missing:
        said["settings"]["labels"] = "hard"
    return missing


def _pools(said: dict[str, Any]) -> dict[str, GeneratedPool | RealPool]:
    """What the candidates were taken from, by the first part of their names."""
    pools: dict[str, GeneratedPool | RealPool] = {}
    for part in said["pool"].get("chained", [said["pool"]]):
        if "generated" in part:
            pools["sample"] = _samples(said["source"], part["generated"])
            continue
        data = said["data"]
        real, _ = open_sets(data["where"], data["size"], data["held_out"])
        pools[real.name] = RealPool(real, 0)
    return pools


def _samples(where: str, protocol: dict[str, Any]) -> GeneratedPool:
    """The samples of a run, which must be those of a protocol."""
    check_fields(protocol, _GENERATED, "pool.generated")
    run = open_run(where, protocol["training_step"], protocol["weights"], "cpu")
    pool = generated_pool(run, protocol["seed"], protocol["steps"])
    found = plain(pool.protocol)
    for key in found.keys() | protocol.keys():
        if found.get(key) != protocol.get(key):
            raise ValueError(
                f"the set is of a run with {key} {protocol.get(key)} and {where} has "
                f"{found.get(key)}: name the run with --run"
            )
    return pool


def _pixels(
    pools: dict[str, GeneratedPool | RealPool], names: list[list[str]], shape: list[int], path: Path
) -> torch.Tensor:
    """(N, C, H, W) uint8 pixels of candidates."""
    places: dict[str, list[int]] = {}
    numbers: dict[str, list[int]] = {}
    for place, parts in enumerate(names):
        pool, _, number = "".join(parts).rpartition(":")
        of = pools.get(pool)
        most = len(of.images.labels) if isinstance(of, RealPool) else 2**53
        if of is None or not number.isdecimal() or len(number) > 16 or int(number) >= most:
            raise ValueError(f"{path} names {parts}, which is no candidate of its pool")
        places.setdefault(pool, []).append(place)
        numbers.setdefault(pool, []).append(int(number))
    pixels = [pools[pool].numbered(torch.tensor(numbers[pool])) for pool in places]
    for pool, part in zip(places, pixels, strict=True):
        if list(part.shape[1:]) != shape:
            there, here = ("x".join(map(str, side)) for side in (part.shape[1:], shape))
            raise ValueError(f"the candidates {pool} are of {there} and the set is of {here}")
    order = torch.tensor([place for found in places.values() for place in found]).argsort()
    return torch.cat(pixels)[order]
