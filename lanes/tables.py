"""Tables in plain text, for reports that print."""

from collections.abc import Sequence


def table(rows: Sequence[Sequence[str]], align: str, *, total: bool = False) -> str:
    """Lay out rows in columns, the first of them as the heading.

    Args:
        rows: of as many cells each.
        align: a letter per column: "<" to the left (words), ">" to the right (numbers).
        total: whether the last row sums up the others, and is set apart.
    """
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = []
    for row in rows:
        cells = (f"{cell:{side}{width}}" for cell, side, width in zip(row, align, widths, strict=True))
        lines.append("  ".join(cells).rstrip())
    rule = "-" * max(map(len, lines))
    body = [*lines[1:-1], rule, lines[-1]] if total else lines[1:]
    return "\n".join([lines[0], rule, *body])
