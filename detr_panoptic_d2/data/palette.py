"""Colours for classes that bring none of their own."""

# Each far from all before it in CIELAB (tests/visualization/test_visualizer.py): no two of one hue
# and lightness, so that the classes of a small set cannot be mixed up. The first six are from Okabe
# and Ito, "Color Universal Design" (2008), told apart with every common kind of colour vision.
COLORS = (
    (0, 114, 178),  # blue
    (230, 159, 0),  # orange
    (0, 158, 115),  # green
    (213, 94, 0),  # vermilion
    (204, 121, 167),  # pink
    (240, 228, 66),  # yellow
    (112, 48, 160),  # violet
    (150, 220, 230),  # light cyan
    (110, 70, 30),  # brown
    (160, 200, 60),  # lime
    (200, 20, 70),  # crimson
    (128, 128, 128),  # grey
    (30, 40, 90),  # navy
    (255, 180, 165),  # salmon
    (20, 80, 40),  # dark green
    (190, 150, 255),  # lavender
    (130, 125, 20),  # olive
    (0, 200, 190),  # turquoise
)


def default_color(index: int) -> list[int]:
    """Return the colour of class ``index``, three integers from 0 to 255.

    After the list above its colours come again, lighter and darker in turn.

    Args:
        index: contiguous class id, from 0.
    """
    turn, place = divmod(index, len(COLORS))
    target = 255 if turn % 2 else 0
    share = 0 if turn == 0 else 1 - 0.6 / (1 + 0.25 * (turn - 1))
    return [round(channel + share * (target - channel)) for channel in COLORS[place]]
