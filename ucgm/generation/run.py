"""A trained run in Python: ``ucgm.load_run("runs/few").sample(classes=[3, 7], steps=2)``."""

from collections.abc import Sequence
from pathlib import Path

import torch
from PIL import Image

from ucgm.data.pixels import to_pil
from ucgm.generation.command import samples_of_run
from ucgm.generation.samples import SamplingConfig
from ucgm.runs import checkpoint


class Run(checkpoint.Run):
    """A trained network that makes images."""

    def sample(
        self,
        num_images: int | None = None,
        classes: Sequence[int | str] | None = None,
        steps: int | None = None,
        seed: int = 0,
        guidance_scale: float | None = None,
    ) -> list[Image.Image]:
        """Images of this run, as ``ucgm sample`` makes them; image i depends on seed and i alone.

        Args:
            num_images: how many; one of each of ``classes``, or 8, when left out.
            classes: only these numbers or names, in turn; all in turn when left out.
            steps: of the sampler; the run's own when left out.
            seed: of noise and labels.
            guidance_scale: 1 is off; the run's own when left out.

        Raises:
            ValueError: a class or number that is out of range, or no autoencoder to decode with.
        """
        chosen = (
            None if classes is None else tuple(c if isinstance(c, str) else int(c) for c in classes)
        )
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
    are downloaded into the cache, as from any other URL.

    Raises:
        ValueError: no such folder, checkpoint or weights, or nothing came from the URL.
    """
    return Run(**vars(checkpoint.load_run(run_dir, step, weights, device)))
