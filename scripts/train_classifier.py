"""A small classifier of any image folder, whose features make a FID without a download.

    python scripts/train_classifier.py TRAIN TEST --side 28 --out FILE [--network attention]

TRAIN and TEST: folders or zips of class folders, or ``digits``, the embedded scans.  Shifts by a
sixteenth of the side and, where mirroring keeps the class, flips; label smoothing 0.1; AdamW with a
one-cycle schedule.  The last weights are kept, none are selected on TEST.  A minute or two on a CPU
for some thousand images of 28x28.  It is an extractor of ``ucgm benchmark`` and ``evaluate``:

    --extractor scripts.train_classifier:build --extractor-weights FILE

    features = c h,   h = the 64 units before the last layer,

with the one scalar c that makes the covariance of TRAIN's features have trace 64.  The two networks
have nothing in common, so that one can be asked about what was chosen by the other.
"""

import argparse
import json

import torch
import torch.nn.functional as F
from safetensors import safe_open
from safetensors.torch import save_file
from torch import nn

from ucgm.data import Digits, Images, from_uint8, to_uint8
from ucgm.data.dataset import flips_fit
from ucgm.evaluation.extractors import Extractor
from ucgm.evaluation.metrics import moments_of
from ucgm.runtime.files import sha256
from ucgm.runtime.processes import best_device

FEATURES = 64


def convolutions(channels, size):
    """Three stages of two convolutions; (B, channels, size, size) to (B, 64)."""
    layers, inside = [], channels
    for width in (32, 64, 128):
        for _ in range(2):
            layers += [nn.Conv2d(inside, width, 3, padding=1, bias=False), nn.BatchNorm2d(width)]
            layers += [nn.ReLU()]
            inside = width
        layers.append(nn.MaxPool2d(2))
    return nn.Sequential(
        *layers, nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(4 * inside, FEATURES)
    )


class Attention(nn.Module):
    """A vision transformer on about 7x7 patches with learned positions and mean pooling."""

    def __init__(self, channels, size, width=96):
        super().__init__()
        side = max(2, round(size / 7.5))
        self.patches = nn.Conv2d(channels, width, side, stride=side)
        self.positions = nn.Parameter(0.5 * torch.randn(1, (size // side) ** 2, width))
        block = nn.TransformerEncoderLayer(
            width, 4, 2 * width, 0.0, "gelu", batch_first=True, norm_first=True
        )
        self.blocks = nn.TransformerEncoder(block, 3, enable_nested_tensor=False)
        self.out = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, FEATURES))

    def maps(self, x):
        tokens = self.patches(x).flatten(2).transpose(1, 2) + self.positions
        found = self.blocks(tokens).transpose(1, 2)
        return found.unflatten(2, (round(found.shape[2] ** 0.5),) * 2)

    def forward(self, x):
        return self.out(self.maps(x).flatten(2).mean(2))


NETWORKS = {"convolutions": convolutions, "attention": Attention}


class Classifier(nn.Module):
    """Features (B, 64) and logits of (B, channels, size, size) uint8 images."""

    def __init__(self, network, channels, size, num_classes):
        super().__init__()
        self.size = size
        self.body = NETWORKS[network](channels, size)
        self.head = nn.Linear(FEATURES, num_classes)
        self.register_buffer("scale", torch.ones(()))

    def maps(self, images):
        """Features of places (B, D, g, g): of the last convolution, or of all blocks."""
        x = from_uint8(images)
        return self.body.maps(x) if isinstance(self.body, Attention) else self.body[:-4](x)

    def forward(self, images):
        if images.shape[2] != self.size:
            raise ValueError(f"takes images of {self.size} pixels, got {tuple(images.shape[2:])}")
        hidden = self.body(from_uint8(images))
        return {"features": self.scale * hidden, "logits": self.head(hidden.relu())}


def build(weights):
    """The classifier of the file ``weights`` as an extractor."""
    with safe_open(weights, framework="pt") as file:
        made = json.loads(file.metadata()["made"])
        module = Classifier(*made["arguments"])
        module.load_state_dict({name: file.get_tensor(name) for name in file.keys()})  # noqa: SIM118
    network, channels, _, num_classes = made["arguments"]
    return Extractor(
        name=f"classifier_{network}",
        digest=sha256(weights),
        module=module,
        dimensions={"features": FEATURES, "logits": num_classes},
        channels=channels,
        num_classes=num_classes,
        note=f"accuracy {made['accuracy_test']:.4f} on held-out images",
        batch_size=500,
    )


def images_of(where, split, side, channels=None):
    """uint8 images (N, C, S, S), labels (N,) and the names of the classes."""
    data = (Digits(split) if where == "digits" else Images(where, side, flips=False)).open()
    if where != "digits":
        channels = channels or data.channels_that_fit()
        data = Images(where, side, channels, flips=False).open()
    x, labels = data.__getitems__(range(len(data)))
    return to_uint8(x), labels, data.class_names


def moved(images, generator, flips, most=None, border="replicate"):
    """The images, shifted by up to ``most`` pixels; with ``flips`` half are mirrored.

    ``most`` is a sixteenth of the side where it is None; ``border`` is what is shifted in.
    """
    count, size, device = len(images), images.shape[3], images.device
    most = most or max(1, size // 16)
    padded = F.pad(images.float(), (most,) * 4, mode=border).to(torch.uint8)
    top, left = torch.randint(0, 2 * most + 1, (2, count, 1), generator=generator, device=device)
    line = torch.arange(size, device=device)
    turned = (torch.rand(count, 1, generator=generator, device=device) >= 0.5) & flips
    columns = left + torch.where(turned, size - 1 - line, line)
    rows = torch.arange(count, device=device)[:, None, None]
    return padded[rows, :, (top + line)[:, :, None], columns[:, None]].permute(0, 3, 1, 2)


def train(network, images, labels, epochs, flips, batch_size=128):
    """Train ``network`` on uint8 images (N, C, S, S) and labels (N,), both on the CPU."""
    device = next(network.parameters()).device
    generator = torch.Generator().manual_seed(0)
    optimizer = torch.optim.AdamW(network.parameters(), weight_decay=0.05)
    count = len(labels) // batch_size
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 2e-3, total_steps=epochs * count)
    for epoch in range(epochs):
        order = torch.randperm(len(labels), generator=generator)
        for rows in order[: count * batch_size].split(batch_size):
            inputs = moved(images[rows], generator, flips).to(device)
            logits = network(inputs)["logits"]
            loss = F.cross_entropy(logits, labels[rows].to(device), label_smoothing=0.1)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
        print(f"epoch {epoch + 1}/{epochs}  loss {loss.item():.3f}", flush=True)
    return network.eval()


@torch.no_grad()
def outputs(network, images, labels):
    """Features (N, 64) on the CPU and the accuracy."""
    device = next(network.parameters()).device
    parts = [network(part.to(device)) for part in images.split(500)]
    features, logits = (torch.cat([p[k] for p in parts]).cpu() for k in ("features", "logits"))
    return features, (logits.argmax(1) == labels).float().mean().item()


def fit(name, train_set, test_set, out, epochs, flips):
    """Train the network ``name`` on images (N, C, S, S) and labels (N,), and save it as ``out``."""
    images, labels = train_set
    arguments = (name, images.shape[1], images.shape[3], int(labels.max()) + 1)
    torch.manual_seed(0)
    network = Classifier(*arguments).to(best_device())
    train(network, images, labels, epochs, flips)
    features, accuracy = outputs(network, images, labels)
    network.scale.copy_((FEATURES / moments_of(features).covariance.trace()).sqrt())
    made = {
        "arguments": arguments,
        "accuracy_train": accuracy,
        "accuracy_test": outputs(network, *test_set)[1],
        "images": len(labels),
        "epochs": epochs,
    }
    state = {name: value.contiguous().cpu() for name, value in network.state_dict().items()}
    save_file(state, out, {"made": json.dumps(made)})
    print(f"{out}: {made}")


def main():
    """Train and save."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("train")
    parser.add_argument("test")
    parser.add_argument("--side", type=int, default=32, help="of the images, in pixels")
    parser.add_argument("--out", required=True)
    parser.add_argument("--network", choices=NETWORKS, default="convolutions")
    parser.add_argument("--epochs", type=int, default=20)
    options = parser.parse_args()
    images, labels, names = images_of(options.train, "train", options.side)
    test = images_of(options.test, "test", options.side, images.shape[1])[:2]
    flips = flips_fit(names)
    fit(options.network, (images, labels), test, options.out, options.epochs, flips)


if __name__ == "__main__":
    main()
