"""A trained run in Python: ``ucgm.load_run("runs/few").sample(classes=[3, 7], steps=2)``."""

from collections.abc import Sequence
from pathlib import Path

import torch
from huggingface_hub import snapshot_download
from huggingface_hub.errors import HFValidationError
from PIL import Image

from ucgm.data.pixels import to_pil
from ucgm.generation.command import samples_of_run
from ucgm.generation.samples import SamplingConfig
from ucgm.runs import checkpoint

HUB = "hf://"


class Run(checkpoint.Run):
    """A trained network that makes images."""

    def sample(
        self,
        num_images: int | None = None,
        classes: Sequence[int] | None = None,
        steps: int | None = None,
        seed: int = 0,
        guidance_scale: float | None = None,
    ) -> list[Image.Image]:
        """Images of this run, as ``ucgm sample`` makes them; image i depends on seed and i alone.

        Args:
            num_images: how many; one of each of ``classes``, or 8, when left out.
            classes: only these, in turn; all in turn when left out.
            steps: of the sampler; the run's own when left out.
            seed: of noise and labels.
            guidance_scale: 1 is off; the run's own when left out.

        Raises:
            ValueError: a class or number that is out of range, or no autoencoder to decode with.
        """
        chosen = None if classes is None else tuple(int(c) for c in classes)
        count = (len(chosen) if chosen else 8) if num_images is None else num_images
        if count < 1:
            raise ValueError(f"num_images must be at least 1, got {count}")
        settings = SamplingConfig(seed=seed, classes=chosen, guidance_scale=guidance_scale)
        device = str(next(self.network.parameters()).device)
        images = samples_of_run(self, settings, steps, device).images(torch.arange(count))
        return [to_pil(image) for image in images]


def load_run(
    run_dir: str | Path, step: int | None = None, weights: str = "ema", device: str = "cpu"
) -> Run:
    """The run in a folder, see :func:`ucgm.runs.checkpoint.load_run`.

    ``hf://USER/NAME`` is a run folder on the Hub, of which the configuration and the checkpoints
    are downloaded into the cache.

    Raises:
        ValueError: no such folder, checkpoint or weights, or nothing came from the Hub.
    """
    if str(run_dir).startswith(HUB):
        run_dir = _from_hub(str(run_dir).removeprefix(HUB))
    return Run(**vars(checkpoint.load_run(run_dir, step, weights, device)))


def _from_hub(name: str) -> Path:
    """The folder in the cache that holds what is needed of a run on the Hub."""
    try:
        return Path(snapshot_download(name, allow_patterns=["*.yaml", "*.json", "checkpoints/*"]))
    except (HFValidationError, OSError) as error:
        raise ValueError(
            f"{HUB}{name} could not be downloaded ({str(error).splitlines()[0]}): name a run "
            "folder USER/NAME that is on the Hub, or download it and name the folder"
        ) from error
