"""Class-conditional generation as a diffusers pipeline: what DiTPipeline leaves out.

    pipe = UCGMPipeline.from_pretrained(folder)
    images = pipe(["golden retriever", 88], num_inference_steps=20, generator=generators).images

The null class is the model's own, guidance has an interval of times and may concern all channels,
each image has its own generator and does not depend on the others in the batch, and latents are
normalised per channel or by the factor of their autoencoder.  The samples are those of the native
:class:`ucgm.Sampler`: the pipeline runs its loop.
"""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from diffusers.models.modeling_utils import ModelMixin
from diffusers.pipelines.pipeline_utils import DiffusionPipeline, ImagePipelineOutput
from diffusers.utils.torch_utils import randn_tensor
from torch import Tensor

from ucgm.data.latents.autoencoder import images_of
from ucgm.data.latents.codec import DECODE_BATCH
from ucgm.data.pixels import to_pil, to_uint8
from ucgm.data.sets.declared import open_for_sampling
from ucgm.integrations.foreign import random_of
from ucgm.integrations.scheduler import UCGMScheduler
from ucgm.integrations.times import offset_of
from ucgm.runs.checkpoint import Run
from ucgm.runtime.values import Count, checked
from ucgm.sampler import Guidance, Sampler
from ucgm.sampler.guidance import Watched

Generators = torch.Generator | list[torch.Generator] | None
Labels = str | int | Sequence[str | int] | np.ndarray | Tensor  # numbers of any kind


class UCGMPipeline(DiffusionPipeline):
    """Samples of a network of :mod:`ucgm.nn`.

    Args:
        model: the network.
        vae: the autoencoder of its latents; None for a model of pixels.
        scheduler: the solver and the path.
        id2label: class number -> name, or names separated by commas.
        latent_mean: per channel; raw latents are ``x * latent_std + latent_mean``.
        latent_std: per channel.  Without the two, the factor and shift of the autoencoder are used.
        guidance_scale: default of a call.
        guidance_interval: times in which guidance is on, default of a call.
        guidance_channels: first channels that are guided, default of a call; None: all.
        guidance_input: guide by an input of the network, and not classifier-free.
        guidance_internal: guide by the exit head of the network.
    """

    model_cpu_offload_seq = "model->vae"
    _optional_components = ["vae"]
    _callback_tensor_inputs = ["latents"]

    def __init__(
        self,
        model: ModelMixin,
        vae: ModelMixin | None,
        scheduler: UCGMScheduler,
        id2label: dict[int, str] | dict[str, str] | None = None,
        latent_mean: list[float] | None = None,
        latent_std: list[float] | None = None,
        guidance_scale: float = 1.0,
        guidance_interval: list[float] | None = None,
        guidance_channels: int | None = None,
        guidance_input: bool = False,
        guidance_internal: bool = False,
    ) -> None:
        super().__init__()
        _require_own(scheduler)
        if (latent_mean is None) != (latent_std is None):
            raise ValueError("give both latent_mean and latent_std, or neither")
        self.register_modules(model=model, vae=vae, scheduler=scheduler)
        self.register_to_config(
            id2label=id2label,
            latent_mean=None if latent_mean is None else [float(v) for v in latent_mean],
            latent_std=None if latent_std is None else [float(v) for v in latent_std],
            guidance_scale=float(guidance_scale),
            guidance_interval=[float(t) for t in guidance_interval or (0.0, 1.0)],
            guidance_channels=guidance_channels,
            guidance_input=guidance_input,
            guidance_internal=guidance_internal,
        )
        names = {int(number): text for number, text in (id2label or {}).items()}
        self.labels = {
            name.strip(): number for number, text in names.items() for name in text.split(",")
        }

    def register_modules(self, **kwargs: Any) -> None:
        """Components of ours are saved under the public name of their class, ``ucgm.DiT``."""
        super().register_modules(**kwargs)
        for name, module in kwargs.items():
            if type(module).__module__.startswith("ucgm."):
                self.register_to_config(**{name: ("ucgm", type(module).__name__)})

    @classmethod
    def _get_signature_types(cls) -> dict[str, Any]:
        """Any model fits: the base class looks for the very class of a component, no base of it."""
        models: list[type] = [ModelMixin]
        for known in models:
            models += known.__subclasses__()
        return {**super()._get_signature_types(), "model": tuple(models), "vae": tuple(models)}

    @classmethod
    def from_run(cls, run: Run, **settings: Any) -> "UCGMPipeline":
        """The pipeline of a trained run, with its sampler, guidance, classes and codec."""
        data = open_for_sampling(run.config.data, run.run_dir)
        codec = getattr(data, "codec", None)
        if codec is not None and codec.kind != "identity":
            module = codec.autoencoder().module
            scale, shift = (
                getattr(module.config, f"{k}_factor", None) for k in ("scaling", "shift")
            )
            if shift or (codec.scale, {*codec.mean}, {*codec.std}) != (scale, {0.0}, {1.0}):
                std = [s / codec.scale for s in codec.std]
                settings = {"latent_mean": codec.mean, "latent_std": std} | settings
            settings.setdefault("vae", module)
        guidance: Guidance = run.config.guidance
        settings = {
            "vae": None,
            "id2label": dict(enumerate(data.class_names)) or None,
            "guidance_scale": guidance.scale,
            "guidance_interval": guidance.interval,
            "guidance_channels": guidance.channels,
            "guidance_input": guidance.kind == "input",
            "guidance_internal": guidance.kind == "internal",
        } | settings
        network: Any = run.network
        return cls(network, scheduler=UCGMScheduler.from_sampler(run.config.sampler), **settings)

    def get_label_ids(self, labels: Labels) -> list[int]:
        """Class numbers of names or numbers.

        Raises:
            ValueError: a name or number that is no class of the model.
        """
        classes = self.model.num_classes
        if classes == 0:
            raise ValueError("this model has no classes: leave class_labels out, give num_images")
        numbers = []
        given: Any = [labels] if isinstance(labels, str) or not np.ndim(labels) else labels
        for label in given:
            number = self.labels.get(label) if isinstance(label, str) else label
            if number is None:
                known = ", ".join(list(self.labels)[:5]) or "none: the pipeline has no id2label"
                raise ValueError(f"there is no class named {label!r}; the first names are {known}")
            number = checked(int, number.item() if isinstance(number, Tensor) else number, "class")
            if not 0 <= number < classes:
                raise ValueError(f"class {number} is out of range: choose from 0 to {classes - 1}")
            numbers.append(number)
        return numbers

    def _rows(self, labels: Labels | None, num_images: int | None, each: int) -> list[int]:
        """Class numbers of all images of a call; the null class without labels."""
        numbers = [self.model.num_classes] if labels is None else self.get_label_ids(labels)
        if num_images is not None and len(numbers) == 1:
            numbers *= checked(Count, num_images, "num_images")
        elif num_images not in (None, len(numbers)):
            raise ValueError(
                f"num_images is {num_images} for {len(numbers)} labels: give num_images_per_prompt"
            )
        return np.repeat(numbers, checked(Count, each, "num_images_per_prompt")).tolist()

    @torch.no_grad()
    def __call__(
        self,
        class_labels: Labels | None = None,
        num_inference_steps: int = 20,
        guidance_scale: float | None = None,
        guidance_interval: Sequence[float] | None = None,
        guidance_channels: int | None = None,
        num_images: int | None = None,
        generator: Generators = None,
        latents: Tensor | None = None,
        output_type: str = "pil",
        return_dict: bool = True,
        num_images_per_prompt: int = 1,
        callback_on_step_end: Callable[..., dict[str, Tensor]] | None = None,
        callback_on_step_end_tensor_inputs: Sequence[str] = ("latents",),
    ) -> ImagePipelineOutput | tuple[Any]:
        """Generate images of labels.

        Args:
            class_labels: numbers or names; None for a model without classes, or for no class.
            num_inference_steps: steps of the solver.
            guidance_scale: weight of the conditional prediction; 1 is off; None: the pipeline's.
            guidance_interval: times in [0, 1], 0 the data, in which guidance is on.
            guidance_channels: guide the first channels alone; None: the pipeline's.
            num_images: how many, of one label or without labels.
            generator: one for all, or a list with one per image.
            latents: noise (B, C, H, W) to start from.
            output_type: pil, np (B, H, W, C) in [0, 1], pt (B, C, H, W) in [0, 1], or latent.
            return_dict: an object with ``images``, or a tuple.
            num_images_per_prompt: images of each label.
            callback_on_step_end: called with the pipeline, the number of the evaluation, its
                timestep, and a dict of the state "latents" (B, C, H, W) after it; what it returns
                replaces the state.  It may set ``pipe._interrupt`` to end there.
            callback_on_step_end_tensor_inputs: what is in that dict.
        """
        if output_type not in ("pil", "np", "pt", "latent"):
            raise ValueError(f"output_type must be pil, np, pt or latent, got {output_type!r}")
        _require_own(self.scheduler)
        device = self._execution_device
        y = torch.tensor(self._rows(class_labels, num_images, num_images_per_prompt), device=device)
        if isinstance(generator, list) and len(generator) != len(y):
            raise ValueError(f"{len(generator)} generators were given for {len(y)} images")
        shape, noise = (len(y), *self.model.shape), latents
        if noise is None:
            noise = randn_tensor(shape, generator=generator, device=device, dtype=torch.float32)
        own = self.config
        scale = own["guidance_scale"] if guidance_scale is None else guidance_scale
        low, high = guidance_interval or own["guidance_interval"]
        channels = own["guidance_channels"] if guidance_channels is None else guidance_channels
        kind = "internal" if own["guidance_internal"] else "classifier_free"
        kind = "input" if own["guidance_input"] else kind
        guidance = Guidance(scale if class_labels is not None else 1.0, (low, high), channels, kind)
        sampler = self.scheduler.sampler(num_inference_steps)
        inputs = getattr(callback_on_step_end, "tensor_inputs", callback_on_step_end_tensor_inputs)
        if set(inputs) - set(self._callback_tensor_inputs):
            raise ValueError(f"callbacks have the tensor latents, not {', '.join(inputs)}")
        x = self._sample(sampler, guidance, noise.to(device), y, generator, callback_on_step_end)
        images: Any = x if output_type == "latent" else self.decode(x, output_type)
        self.maybe_free_model_hooks()
        return ImagePipelineOutput(images=images) if return_dict else (images,)

    def _sample(
        self,
        sampler: Sampler,
        guidance: Guidance,
        x: Tensor,
        y: Tensor,
        generator: Generators,
        callback: Callable[..., dict[str, Tensor]] | None,
    ) -> Tensor:
        """The state (B, C, H, W) after all evaluations, or those until a callback ends them."""
        plan, scheduler, dtype = sampler.plan(), self.scheduler, self.model.dtype
        self._num_timesteps, self._interrupt = len(plan), False
        bars: Any = self.progress_bar
        with bars(total=len(plan)) as bar:

            def see(x: Tensor) -> Tensor:
                bar.update()
                return x.to(dtype)

            fresh = any(step.noise for step in plan)
            random = random_of(generator, scheduler.config["seed"], x) if fresh else None
            guided = guidance.apply(Watched(self.model, see), self.model.num_classes)
            run, changed = sampler.evaluations(guided, x, y, random), None
            for i, step in enumerate(plan):
                x = run.send(changed)[-1]
                if callback is not None:
                    t = torch.tensor(step.t * len(scheduler) - offset_of(sampler.transport))
                    x = changed = (callback(self, i, t, {"latents": x}) or {}).get("latents", x)
                if self._interrupt:
                    break
        return x

    @property
    def num_timesteps(self) -> int:
        """Number of evaluations of the last call, for callbacks."""
        return self._num_timesteps

    def decode(self, x: Tensor, output_type: str = "pil") -> Any:
        """Images of normalised latents (or pixels) (B, C, H, W)."""
        if self.vae is not None:
            config = self.vae.config
            if self.config["latent_mean"] is not None:
                mean, std = (
                    torch.tensor(v, device=x.device)[:, None, None]
                    for v in (self.config["latent_mean"], self.config["latent_std"])
                )
                raw = x * std + mean
            else:
                shift = getattr(config, "shift_factor", None) or 0.0
                raw = x / (getattr(config, "scaling_factor", None) or 1.0) + shift
            parts = raw.to(self.vae.dtype).split(DECODE_BATCH)
            x = torch.cat([images_of(self.vae, part).float() for part in parts])
        if output_type == "pil":
            return [to_pil(image) for image in to_uint8(x).cpu()]
        images = (x / 2 + 0.5).clamp(0, 1).cpu()
        return images if output_type == "pt" else images.permute(0, 2, 3, 1).numpy()


def _require_own(scheduler: Any) -> None:
    if not isinstance(scheduler, UCGMScheduler):
        raise ValueError(
            f"the scheduler is a {type(scheduler).__name__}: use UCGMScheduler.from_config("
            "scheduler.config)"
        )


UCGMPipeline.__module__ = "ucgm"  # the name that a saved pipeline gives, see ucgm.integrations
