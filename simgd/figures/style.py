"""How simgd's figures look, and how they reach a file.

Sizes are those of a two-column paper printed as it is: 7.2 inches wide, text of 7 to 9 points. No pyplot: it would
pick a window system and keep every figure alive.
"""

import io
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import matplotlib
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure

from simgd import files
from simgd.errors import FileError

WIDTH_IN = 7.2

PIXELS_PER_INCH = 220

INK = "#222222"

FAINT = "#8a8a8a"

#: Without dates and with a fixed salt, the same figure is the same bytes.
_METADATA: dict[str, dict[str, str | None]] = {
    "png": {"Software": None},
    "pdf": {"CreationDate": None},
    "svg": {"Date": None},
}

# Of any type: matplotlib's own type of these names differs between its versions.
_RC: Any = {
    "axes.axisbelow": True,
    "axes.edgecolor": INK,
    "axes.grid": False,
    "axes.labelsize": 8.5,
    "axes.linewidth": 0.7,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "axes.titlesize": 9.0,
    "font.family": "DejaVu Sans",
    "font.size": 8.0,
    "legend.fontsize": 8.0,
    "legend.frameon": False,
    "lines.linewidth": 1.5,
    "pdf.fonttype": 42,
    "svg.fonttype": "none",
    "svg.hashsalt": "simgd",
    "text.color": INK,
    "text.parse_math": False,
    "xtick.labelsize": 8.0,
    "ytick.labelsize": 8.0,
}


class Line(NamedTuple):
    """How a schedule is drawn: colours of Okabe and Ito, and one of Tol, that the colour-blind can tell apart."""

    color: str
    marker: str
    dashes: str


#: Markers and dashes differ too: a copy in grey keeps them.
LINES = (
    Line("#0072B2", "o", "-"),
    Line("#D55E00", "s", "-"),
    Line("#009E73", "^", "-"),
    Line("#CC79A7", "D", "-"),
    Line("#E69F00", "v", "--"),
    Line("#56B4E9", "P", "--"),
    Line("#7F7F7F", "X", "--"),
    Line("#332288", "p", "--"),
)


def on(color: str) -> str:
    """Return the colour of text that is legible on *color*.

    >>> on("#332288"), on("#E69F00")
    ('white', '#222222')
    """
    red, green, blue = to_rgb(color)
    return INK if 0.30 * red + 0.59 * green + 0.11 * blue > 0.55 else "white"


def line(index: int) -> Line:
    """Return how the schedule at place *index* is drawn; after eight the colours come again with dots."""
    found = LINES[index % len(LINES)]
    return found if index < len(LINES) else found._replace(dashes=":")


@contextmanager
def paper() -> Iterator[None]:
    """Make figures inside the block look as they should in print."""
    with matplotlib.rc_context(_RC):
        yield


def kind_of_file(path: str | Path) -> str:
    """Return png, pdf or svg, by the end of the name.

    Raises FileError for another name; a command calls this before it computes what the figure shows.
    """
    suffix = Path(path).suffix.lower().removeprefix(".")
    if suffix not in _METADATA:
        found = f"'.{suffix}' is no picture" if suffix else "its name has no ending"
        raise FileError(f"{path}: {found}; end the name in .png, .pdf or .svg")
    return suffix


def save(figure: Figure, path: str | Path) -> None:
    """Write *figure* to *path*, under a temporary name first."""
    kind = kind_of_file(path)
    held = io.BytesIO()
    with paper():
        figure.savefig(held, format=kind, dpi=PIXELS_PER_INCH, metadata=_METADATA[kind])
    files.write_bytes(path, held.getvalue())
