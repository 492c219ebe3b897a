"""Train the classifier behind ``assets/digits_classifier.safetensors``.

    python scripts/train_digits_classifier.py

About ten seconds on one core.  It sees the training split alone; the held-out split gives the
accuracy that is printed and stored in the file.  Random shifts by at most one pixel, label
smoothing 0.05, AdamW with a one-cycle schedule; the last weights are kept, none are selected on
the held-out data.
"""

import argparse
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import save_file

from ucgm.data import Digits, from_uint8, to_uint8
from ucgm.evaluation.extractors import DigitsClassifier
from ucgm.evaluation.extractors.digits import FEATURES
from ucgm.evaluation.metrics import moments_of

ASSET = Path(__file__).resolve().parents[1] / "assets" / "digits_classifier.safetensors"


def shifted(x, generator):
    """Each image moved by -1, 0 or 1 pixel in both directions, background shifted in."""
    padded = F.pad(x, (1, 1, 1, 1), value=-1.0)
    top, left = torch.randint(0, 3, (2, len(x), 1, 1), generator=generator)
    rows = top + torch.arange(8)[None, :, None]
    columns = left + torch.arange(8)[None, None, :]
    return padded[torch.arange(len(x))[:, None, None], 0, rows, columns][:, None]


def train(epochs, seed, batch_size=64):
    torch.manual_seed(seed)
    generator = torch.Generator().manual_seed(seed)
    data = Digits("train").open()
    x, y = from_uint8(to_uint8(data.x)), data.y
    network = DigitsClassifier()
    optimizer = torch.optim.AdamW(network.parameters(), weight_decay=0.05)
    steps = epochs * (len(y) // batch_size)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=3e-3, total_steps=steps)
    for _ in range(epochs):
        order = torch.randperm(len(y), generator=generator)
        for rows in order[: len(y) // batch_size * batch_size].split(batch_size):
            inputs = x[rows]
            if torch.rand((), generator=generator) < 0.5:  # the other half sees the scans as are
                inputs = shifted(inputs, generator)
            loss = F.cross_entropy(
                network.head(network.body(inputs).relu()), y[rows], label_smoothing=0.05
            )
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
    return network.eval()


@torch.no_grad()
def outputs(network, split):
    data = Digits(split).open()
    result = network(to_uint8(data.x))
    accuracy = (result["logits"].argmax(dim=1) == data.y).float().mean().item()
    return result["features"], accuracy


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=ASSET)
    parser.add_argument("--epochs", type=int, default=60)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    network = train(options.epochs, options.seed)
    features, accuracy_train = outputs(network, "train")
    network.scale.copy_((FEATURES / moments_of(features).covariance.trace()).sqrt())
    _, accuracy_test = outputs(network, "test")
    metadata = {
        "accuracy_train": f"{accuracy_train:.4f}",
        "accuracy_test": f"{accuracy_test:.4f}",
        "data": "ucgm.data.Digits: trained on split train, tested on split test",
        "epochs": str(options.epochs),
        "seed": str(options.seed),
    }
    state = {name: value.contiguous() for name, value in network.state_dict().items()}
    options.out.parent.mkdir(parents=True, exist_ok=True)
    save_file(state, options.out, metadata)
    print(f"{options.out}: {metadata}")


if __name__ == "__main__":
    main()
