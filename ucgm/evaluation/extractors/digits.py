"""Features of the digits: a small convolutional classifier, trained by a script of this repository.

    features = c h(u),   h = the 32 pre-activation units before the last layer,

with the one scalar c that makes the covariance of the training data's features have trace 32, so
that distances keep their scale when the classifier is trained again.  The logits give conditional
accuracy.  Weights, accuracy and the data they were trained on are in
``assets/digits_classifier.safetensors``, made by ``scripts/train_digits_classifier.py``.
"""

from pathlib import Path

import torch
from safetensors import safe_open
from torch import Tensor, nn

from ucgm.data.extractor import Extractor, register_extractor
from ucgm.data.pixels import from_uint8
from ucgm.runtime.files import asset_path, sha256
from ucgm.runtime.reading import reading

FEATURES = 32


class DigitsClassifier(nn.Module):
    """Three convolutions, 32 features, ten classes, for (B, 1, 8, 8) uint8 images."""

    scale: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(1, 16, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(16, 32, 3, padding=1),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Conv2d(32, 32, 3, padding=1),
            nn.ReLU(),
            nn.Flatten(),
            nn.Linear(32 * 4 * 4, FEATURES),
        )
        self.head = nn.Linear(FEATURES, 10)
        self.register_buffer("scale", torch.ones(()))

    def maps(self, images: Tensor) -> Tensor:
        """(B, 1, 8, 8) uint8 to what the last convolution sees in each place, (B, 32, 4, 4)."""
        return self.body[:-2](from_uint8(images))

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """(B, 1, 8, 8) uint8 to features (B, 32) and logits (B, 10)."""
        if images.shape[2:] != (8, 8):
            raise ValueError(
                f"extractor digits takes images of 8x8 pixels, got {images.shape[3]}x"
                f"{images.shape[2]}: choose another extractor."
            )
        hidden = self.body(from_uint8(images))
        return {"features": self.scale * hidden, "logits": self.head(hidden.relu())}


def build_digits(weights: str | None = None) -> Extractor:
    """The digits classifier as an extractor; ``weights`` defaults to the shipped file."""
    path = Path(weights or asset_path("digits_classifier.safetensors"))
    module = DigitsClassifier()
    try:
        with reading(path), safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            module.load_state_dict({name: file.get_tensor(name) for name in file.keys()})  # noqa: SIM118
    except (OSError, ValueError) as error:
        raise ValueError(
            f"{path} does not hold the digits classifier ({type(error).__name__}): make it with "
            "`python scripts/train_digits_classifier.py`."
        ) from error
    return Extractor(
        name="digits",
        digest=sha256(path),
        module=module,
        dimensions={"features": FEATURES, "logits": 10},
        channels=1,
        num_classes=10,
        note=f"accuracy {metadata.get('accuracy_test', 'unknown')} on held-out digits",
        batch_size=256,
    )


register_extractor("digits", build_digits)
