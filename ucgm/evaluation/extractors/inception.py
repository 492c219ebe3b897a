"""Inception-v3 of 2015 as FID means it, from torch-fidelity: exact port of the TensorFlow graph.

    features  pool3, 2,048                              FID, KID, precision, recall
    logits    1,008, without the bias                   inception score, as in ADM's evaluator
    spatial   the first 7 channels of mixed_6/conv (branch1x1 of Mixed_6d after its ReLU),
              7 x 17 x 17 = 2,023                       sFID (2103.03841)

The images are resized to 299 with the bilinear filter of TensorFlow 1, which is part of the
definition.  Grey images are repeated over three channels.  One pass gives all three outputs.
"""

import socket
import warnings
from pathlib import Path

import torch
from torch import Tensor, nn

from ucgm.data.extractor import Extractor, register_extractor
from ucgm.runtime.files import sha256
from ucgm.runtime.reading import read_tensors

FILE = "weights-inception-2015-12-05-6726825d.pth"
URL = f"https://github.com/toshas/torch-fidelity/releases/download/v0.2.0/{FILE}"
PREFIX = "6726825d"
SPATIAL_CHANNELS = 7
SECONDS = 30.0
REMEDY = (
    f"Get {URL} (sha256 {PREFIX}...) and name it with --extractor-weights PATH; "
    "pytorch-fid's pt_inception-2015-12-05-6726825d.pth holds the same numbers. "
    "Extractor random needs no file."
)


class MissingWeights(ValueError):
    """The published weights are not on this machine, and cannot be fetched."""


class InceptionFeatures(nn.Module):
    """torch-fidelity's network with the spatial features beside its own outputs.

    Args:
        path: weights, already known to hold tensors alone.
    """

    def __init__(self, path: str) -> None:
        super().__init__()
        from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

        self.network = FeatureExtractorInceptionV3(
            "inception-v3-compat", ["2048", "logits_unbiased"], feature_extractor_weights_path=path
        )
        self.network.to(memory_format=torch.channels_last)  # half as long again on CPUs without
        self._spatial = torch.empty(0)
        branch = self.network.get_submodule("Mixed_6d.branch1x1")
        branch.register_forward_hook(self._keep)

    def _keep(self, module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        self._spatial = output[:, :SPATIAL_CHANNELS].flatten(1)

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """(B, 3, H, W) uint8, or float in [0, 255] for a gradient (which the network itself
        refuses), to features (B, 2048), logits (B, 1008), spatial (B, 2023).
        """
        if images.is_floating_point():
            return {"features": self._pool3(images)}
        features, logits = self.network(images)
        return {"features": features, "logits": logits, "spatial": self._spatial}

    def _pool3(self, images: Tensor) -> Tensor:
        """Features (B, 2048) of images (B, 3, H, W) in [0, 255], layer by layer."""
        from torch_fidelity.interpolate_compat_tensorflow import (
            interpolate_bilinear_2d_like_tensorflow1x,
        )

        x = interpolate_bilinear_2d_like_tensorflow1x(images, size=(299, 299), align_corners=False)
        x = (x - 128.0) / 128.0
        for name, layer in self.network.named_children():  # in the order of the graph
            x = layer(x)
            if name == "AvgPool":
                break
        return x.flatten(1)


def build_inception(weights: str | None = None) -> Extractor:
    """Inception as an extractor; without ``weights`` torch's cache is looked into, then the net.

    Raises:
        ValueError: when there are no weights, or the file is not of this network.
    """
    path = weights or _cached_or_downloaded()
    if not Path(path).is_file():
        raise ValueError(f"{path} does not exist. {REMEDY}")
    try:
        read_tensors(Path(path))  # tensors alone, no code
        module = InceptionFeatures(path)
    except (RuntimeError, KeyError, ValueError) as error:
        reason = str(error).splitlines()[0]
        raise ValueError(f"{path} is not the Inception of FID ({reason}). {REMEDY}") from error
    digest = sha256(path)
    note = "TensorFlow's weights of 2015-12-05"
    if not digest.startswith(PREFIX):
        note = f"not the published weights (sha256 {PREFIX}...): not comparable with any FID"
        warnings.warn(f"{path}: {note}", stacklevel=2)
    return Extractor(
        name="inception",
        digest=digest,
        module=module,
        dimensions={"features": 2048, "logits": 1008, "spatial": SPATIAL_CHANNELS * 17 * 17},
        channels=3,
        note=note,
        batch_size=32,
    )


def _cached_or_downloaded() -> str:
    """The published file in torch's cache, fetched into it when it is not there."""
    path = Path(torch.hub.get_dir()) / "checkpoints" / FILE
    before = socket.getdefaulttimeout()
    try:
        socket.setdefaulttimeout(SECONDS)  # a network that swallows packets would be waited for
        if not path.is_file():
            path.parent.mkdir(parents=True, exist_ok=True)
            torch.hub.download_url_to_file(URL, str(path), hash_prefix=PREFIX, progress=False)
        return str(path)
    except (OSError, RuntimeError) as error:
        reason = f"{FILE} could not be downloaded ({error})."
        raise MissingWeights(f"{reason} {REMEDY}") from error
    finally:
        socket.setdefaulttimeout(before)


register_extractor("inception", build_inception)
