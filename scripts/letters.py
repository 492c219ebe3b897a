"""Ten capital letters in the fonts that matplotlib ships, 28x28 and grey, as folders of classes.

    python scripts/letters.py OUT

Every font in three sizes at four places, 12 images a letter; every fifth font goes to OUT/test, the
others to OUT/train.
"""

import argparse
import string
from pathlib import Path

import matplotlib
from PIL import Image, ImageDraw, ImageFont

SYMBOLS = ("STIXSiz", "cmex", "cmsy", "cmmi", "NonUni", "Display")
SIDE, SIZES, PLACES = 28, (20, 22, 24), ((0, 0), (2, 1), (-2, -1), (1, -2))


def main():
    """Draw them."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("out", type=Path)
    out = parser.parse_args().out
    found = sorted((Path(matplotlib.get_data_path()) / "fonts/ttf").glob("*.ttf"))
    fonts = [path for path in found if not any(name in path.name for name in SYMBOLS)]
    for number, path in enumerate(fonts):
        for size in SIZES:
            font = ImageFont.truetype(str(path), size)
            for x, y in PLACES:
                for letter in string.ascii_uppercase[:10]:
                    image = Image.new("L", (SIDE, SIDE), 0)
                    place = (SIDE // 2 + x, SIDE // 2 + y)
                    ImageDraw.Draw(image).text(place, letter, fill=255, font=font, anchor="mm")
                    folder = out / ("test" if number % 5 == 4 else "train") / letter
                    folder.mkdir(parents=True, exist_ok=True)
                    image.save(folder / f"{number:02d}_{size}_{x}_{y}.png")


if __name__ == "__main__":
    main()
