"""Renders the emoji of Debian's fonts-noto-color-emoji to one .npz file, the training data of train.py.

    apt-get install fonts-noto-color-emoji unicode-data
    pip install pillow numpy
    python render.py --out emoji.npz

The font (Noto Color Emoji, SIL Open Font License 1.1) holds 136x128 bitmaps. Each is put over white and
scaled to 64x64. The list of emoji and their subgroups ("face-smiling", "animal-mammal"), which become the
model's classes, is Unicode's emoji-test.txt from Debian's unicode-data.

The file holds images uint8 [N, 64, 64, 3], classes int64 [N] and class_names [C].
"""

import argparse

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


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--font", default="/usr/share/fonts/truetype/noto/NotoColorEmoji.ttf")
    parser.add_argument("--list", default="/usr/share/unicode/emoji/emoji-test.txt")
    parser.add_argument("--out", default="emoji.npz")
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

    if arguments.preview:
        some = np.stack(images[::16])
        some = np.concatenate([some, np.full((-len(some) % 16, SIZE, SIZE, 3), 255, np.uint8)])
        rows = some.reshape(-1, 16, SIZE, SIZE, 3).transpose(0, 2, 1, 3, 4).reshape(-1, 16 * SIZE, 3)
        Image.fromarray(rows).save(arguments.preview)


if __name__ == "__main__":
    main()
