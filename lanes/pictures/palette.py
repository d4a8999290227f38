"""Colours that mean the same in all pictures: those of the lanes, as in the report.

People who are colour-blind can tell them apart; lane 8 again has the colour of lane 0.
"""

Colour = tuple[int, int, int]
LANES: tuple[Colour, ...] = (  # of the report's light theme, report/page.css
    *((0, 114, 178), (213, 94, 0), (0, 132, 95), (176, 70, 143)),
    *((138, 109, 0), (42, 159, 214), (127, 63, 191), (102, 102, 102)),
)


def lane_colour(lane: int) -> Colour:
    """The colour of a lane."""
    return LANES[lane % len(LANES)]


def lighter(colour: Colour, share: float) -> Colour:
    """A colour mixed with white; share 1 is white."""
    red, green, blue = (round(part + (255 - part) * share) for part in colour)
    return red, green, blue
