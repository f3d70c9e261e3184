"""Renders the emoji of Debian's fonts-noto-color-emoji to one .npz file, the training data of train.py.

    apt-get install fonts-noto-color-emoji unicode-data
    pip install pillow numpy
    python render.py --out emoji.npz

The font (Noto Color Emoji, SIL Open Font License 1.1) holds 136x128 bitmaps. Each is put over white and
scaled to 64x64. The list of emoji and their subgroups ("face-smiling", "animal-mammal"), which become the
model's classes, is Unicode's emoji-test.txt from Debian's unicode-data.

The file holds images uint8 [N, 64, 64, 3], classes int64 [N] and class_names [C]. With --features FILE it
also writes mean and covariance of simple features of the images, every class weighing the same: what
`sage-attn diffuse --reference FILE` compares drawings of one image a class with.
"""

import argparse
import json

import numpy as np
from PIL import Image, ImageDraw, ImageFont, features

BITMAP = 109  # The one size at which the font has bitmaps.
ADVANCE = 136  # Width of a glyph; a sequence that the font does not know takes several.
SIZE = 64


def emoji(path):
    """Yields (text, subgroup) of each fully qualified emoji."""
    subgroup = None
    with open(path, encoding="utf-8") as lines:
        for line in lines:
            if line.startswith("# subgroup:"):
                subgroup = line.split(":", 1)[1].strip()
            elif "; fully-qualified" in line:
                points = line.split(";")[0].split()
                yield "".join(chr(int(point, 16)) for point in points), subgroup


def render(font, text):
    """The emoji as uint8 [64, 64, 3] over white, or None if the font has no single glyph for it."""
    if round(font.getlength(text)) != ADVANCE:
        return None
    canvas = Image.new("RGBA", (ADVANCE, ADVANCE), (255, 255, 255, 255))
    glyph = Image.new("RGBA", (ADVANCE, ADVANCE), (255, 255, 255, 0))
    ImageDraw.Draw(glyph).text((0, 4), text, font=font, embedded_color=True)
    if glyph.getchannel("A").getextrema()[1] == 0:
        return None
    canvas.alpha_composite(glyph)
    return np.asarray(canvas.convert("RGB").resize((SIZE, SIZE), Image.Resampling.LANCZOS))


def features_of(images):
    """Features [N, 64] of images uint8 [N, 64, 64, 3], as host/src/models/distribution.rs defines them: of
    each of 4 by 4 cells the mean red, green and blue (-1 to 1) and the deviation of the pixels' mean."""
    count, cells, side = len(images), 4, SIZE // 4
    x = images.astype(np.float64) / 127.5 - 1
    x = x.reshape(count, cells, side, cells, side, 3).transpose(0, 1, 3, 2, 4, 5)
    x = x.reshape(count, cells * cells, side * side, 3)
    return np.concatenate([x.mean(2), x.mean(3).std(2)[..., None]], axis=2).reshape(count, -1)


def write_features(path, images, classes):
    """Mean and covariance as JSON, to seven digits."""
    x, weights = features_of(images), 1 / np.bincount(classes)[classes]
    weights /= weights.sum()
    mean = weights @ x
    covariance = (x - mean).T @ ((x - mean) * weights[:, None])
    numbers = {"mean": mean, "covariance": covariance}
    short = {name: [float(f"{value:.7g}") for value in values.reshape(-1)] for name, values in numbers.items()}
    with open(path, "w", encoding="utf-8") as file:
        file.write(json.dumps(short) + "\n")


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--font", default="/usr/share/fonts/truetype/noto/NotoColorEmoji.ttf")
    parser.add_argument("--list", default="/usr/share/unicode/emoji/emoji-test.txt")
    parser.add_argument("--out", default="emoji.npz")
    parser.add_argument("--features", help="also write mean and covariance of the images' features")
    parser.add_argument("--preview", help="also write a picture of every 16th emoji")
    arguments = parser.parse_args()
    if not features.check("raqm"):
        raise SystemExit("this Pillow cannot shape sequences: it was built without raqm")

    font = ImageFont.truetype(arguments.font, BITMAP, layout_engine=ImageFont.Layout.RAQM)
    names, images, classes = [], [], []
    for text, subgroup in emoji(arguments.list):
        image = render(font, text)
        if image is None:
            continue
        if subgroup not in names:
            names.append(subgroup)
        images.append(image)
        classes.append(names.index(subgroup))
    np.savez_compressed(
        arguments.out, images=np.stack(images), classes=np.array(classes), class_names=np.array(names)
    )
    print(f"{len(images)} emoji in {len(names)} classes: {arguments.out}")

    if arguments.features:
        write_features(arguments.features, np.stack(images), np.array(classes))
    if arguments.preview:
        some = np.stack(images[::16])
        some = np.concatenate([some, np.full((-len(some) % 16, SIZE, SIZE, 3), 255, np.uint8)])
        rows = some.reshape(-1, 16, SIZE, SIZE, 3).transpose(0, 2, 1, 3, 4).reshape(-1, 16 * SIZE, 3)
        Image.fromarray(rows).save(arguments.preview)


if __name__ == "__main__":
    main()
