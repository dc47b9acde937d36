"""Colours for classes that bring none of their own."""

# Okabe and Ito, "Color Universal Design" (2008), without black: told apart with every common kind
# of colour vision.
OKABE_ITO = (
    (0, 114, 178),
    (230, 159, 0),
    (0, 158, 115),
    (213, 94, 0),
    (86, 180, 233),
    (204, 121, 167),
    (240, 228, 66),
)


def default_color(index: int) -> list[int]:
    """Return the colour of class ``index``, three integers from 0 to 255.

    The first seven are Okabe's and Ito's. After them the seven come again, lighter and darker in
    turn, each time by an amount that was not used before.

    Args:
        index: contiguous class id, from 0.
    """
    turn, place = divmod(index, len(OKABE_ITO))
    if turn == 0:
        return list(OKABE_ITO[place])
    target = 255 if turn % 2 else 0
    share = 0.2 + 0.5 * _van_der_corput((turn + 1) // 2)
    return [round(channel + share * (target - channel)) for channel in OKABE_ITO[place]]


def _van_der_corput(number: int) -> float:
    """Reversed binary digits of a positive integer as a fraction: 1/2, 1/4, 3/4, 1/8, ..."""
    fraction, step = 0.0, 0.5
    while number:
        number, digit = divmod(number, 2)
        fraction += step * digit
        step /= 2
    return fraction
