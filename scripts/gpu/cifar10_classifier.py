"""A classifier of CIFAR-10 whose features make a FID for 32x32 images without any download.

    python -m scripts.gpu.cifar10_classifier TRAIN TEST --out FILE

TRAIN and TEST are folders of ``ucgm encode --vae identity --size 32``.  Half a minute on a GPU.
Random crops and flips, label smoothing 0.1, SGD with a one-cycle schedule; the last weights are
kept, none are selected on TEST.  It is an extractor of ``ucgm benchmark``:

    --extractor scripts.gpu.cifar10_classifier:build --extractor-weights FILE

    features = c h,   h = the 256 pooled units before the last layer,

with the one scalar c that makes the covariance of TRAIN's features have trace 256.
"""

import argparse

import torch
import torch.nn.functional as F
from safetensors import safe_open
from safetensors.torch import save_file
from torch import nn

from scripts.train_classifier import moved, outputs
from ucgm.data import Latents
from ucgm.data.pixels import from_uint8
from ucgm.evaluation.extractors import Extractor
from ucgm.evaluation.metrics import moments_of
from ucgm.runtime.files import sha256
from ucgm.runtime.processes import best_device

FEATURES = 256


def convolution(inside, outside):
    return nn.Sequential(
        nn.Conv2d(inside, outside, 3, padding=1, bias=False), nn.BatchNorm2d(outside), nn.ReLU()
    )


class Residual(nn.Module):
    """Two convolutions beside the identity."""

    def __init__(self, width):
        super().__init__()
        self.body = nn.Sequential(convolution(width, width), convolution(width, width))

    def forward(self, x):
        return x + self.body(x)


class Classifier(nn.Module):
    """Seven convolutions, 256 features, ten classes, for (B, 3, 32, 32) uint8 images."""

    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(
            convolution(3, 64),
            convolution(64, 128),
            nn.MaxPool2d(2),
            Residual(128),
            convolution(128, FEATURES),
            nn.MaxPool2d(2),
            Residual(FEATURES),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
        )
        self.head = nn.Linear(FEATURES, 10)
        self.register_buffer("scale", torch.ones(()))

    def forward(self, images):
        if images.shape[2:] != (32, 32):
            raise ValueError(f"takes images of 32x32 pixels, got {tuple(images.shape[2:])}")
        hidden = self.body(from_uint8(images))
        return {"features": self.scale * hidden, "logits": self.head(hidden)}


def build(weights):
    """The classifier of the file ``weights`` as an extractor."""
    module = Classifier()
    with safe_open(weights, framework="pt") as file:
        accuracy = file.metadata()["accuracy_test"]
        module.load_state_dict({name: file.get_tensor(name) for name in file.keys()})  # noqa: SIM118
    return Extractor(
        name="cifar10_classifier",
        digest=sha256(weights),
        module=module,
        dimensions={"features": FEATURES, "logits": 10},
        channels=3,
        num_classes=10,
        note=f"accuracy {accuracy} on held-out images",
        batch_size=500,
    )


def images_of(folder, device):
    """uint8 images (N, 3, 32, 32) and labels (N,) of a folder of encoded pixels."""
    data = Latents(folder, flips=False).open()
    stored, labels = data.read(range(len(data)))
    return stored.to(device), labels.to(device)


def train(images, labels, epochs, batch_size=500):
    torch.manual_seed(0)
    device = images.device
    generator = torch.Generator(device).manual_seed(0)
    network = Classifier().to(device, memory_format=torch.channels_last)
    optimizer = torch.optim.SGD(
        network.parameters(), lr=0.1, momentum=0.9, nesterov=True, weight_decay=5e-4
    )
    steps = epochs * (len(labels) // batch_size)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.4, total_steps=steps, pct_start=0.2)
    for epoch in range(epochs):
        order = torch.randperm(len(labels), generator=generator, device=device)
        for rows in order[: len(labels) // batch_size * batch_size].split(batch_size):
            with torch.autocast(device.type, torch.bfloat16):
                logits = network(moved(images[rows], generator, True, 4, "reflect"))["logits"]
            loss = F.cross_entropy(logits.float(), labels[rows], label_smoothing=0.1)
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()
            schedule.step()
        print(f"epoch {epoch + 1}/{epochs}  loss {loss.item():.3f}", flush=True)
    return network.eval()


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("train")
    parser.add_argument("test")
    parser.add_argument("--out", required=True)
    parser.add_argument("--epochs", type=int, default=15)
    options = parser.parse_args()
    device = best_device()
    images, labels = images_of(options.train, device)
    network = train(images, labels, options.epochs)
    features, accuracy_train = outputs(network, images, labels)
    network.scale.copy_((FEATURES / moments_of(features).covariance.trace()).sqrt())
    _, accuracy_test = outputs(network, *images_of(options.test, device))
    metadata = {
        "accuracy_train": f"{accuracy_train:.4f}",
        "accuracy_test": f"{accuracy_test:.4f}",
        "images": f"{len(labels)} for training",
        "epochs": str(options.epochs),
    }
    state = {name: value.contiguous().cpu() for name, value in network.state_dict().items()}
    save_file(state, options.out, metadata)
    print(f"{options.out}: {metadata}")


if __name__ == "__main__":
    main()
