"""Tables for a terminal: columns that are aligned, and left out where the terminal is too narrow."""

from collections.abc import Sequence

from rich.console import Console, ConsoleOptions, RenderResult
from rich.measure import Measurement
from rich.table import Table
from rich.text import Text


def table(*columns: str, left: int = 1, title: str | None = None) -> Table:
    """Return an empty table whose first *left* columns are aligned to the left, the others to the right."""
    made = Table(title=title, title_justify="left", box=None, header_style="bold", pad_edge=False)
    for place, column in enumerate(columns):
        made.add_column(column, justify="left" if place < left else "right", no_wrap=True)
    return made


class Fitting:
    """A table that leaves out its *spare* columns, one after the other, as long as the terminal is too narrow."""

    def __init__(self, whole: Table, spare: Sequence[str]) -> None:
        self.whole = whole
        self.spare = spare

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        """Yield the table, and what was left out of it."""
        unbounded, gone, shown = options.update(width=10_000), [], self.whole
        for name in self.spare:
            if Measurement.get(console, unbounded, shown).maximum <= options.max_width:
                break
            gone.append(name)
            shown = self._without(gone)
        yield shown
        if gone:
            yield Text(f"left out, the terminal being narrow: {', '.join(gone)}")

    def _without(self, gone: Sequence[str]) -> Table:
        kept = [column for column in self.whole.columns if column.header not in gone]
        left = sum(column.justify == "left" for column in kept)
        made = table(*(str(column.header) for column in kept), left=left, title=str(self.whole.title or ""))
        for row in zip(*(column.cells for column in kept), strict=True):
            made.add_row(*row)
        return made
