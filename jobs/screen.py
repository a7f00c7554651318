"""What people see while a command works and when it ends: progress on stderr, figures on stdout."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, SpinnerColumn, TaskID, TextColumn, TimeElapsedColumn
from rich.progress import Progress as Bars
from rich.table import Table
from rich.text import Text

from jobs.brief import legible
from jobs.figures import Figures, Row, Value, shown, words
from jobs.journal import as_json
from pipeline.progress import Progress, silent

WIDE = 240  # columns of a file or a pipe, so that nothing is cut there


@contextmanager
def progress(also: Progress = silent) -> Iterator[Progress]:
    """A listener that tells `also`, and draws one bar per step on a terminal; anywhere else it draws nothing."""
    console = Console(stderr=True)
    if as_json() or not console.is_terminal:
        yield also
        return
    columns = (
        SpinnerColumn(),
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
    )
    with Bars(*columns, console=console, transient=True) as bars:
        listener = _Listener(bars)

        def both(step: str, done: int, total: int | None) -> None:
            also(step, done, total)
            listener(step, done, total)

        yield both


class _Listener:
    """Calls of `Progress` as bars. What follows a comma in a step's name may change from call to call."""

    def __init__(self, bars: Bars) -> None:
        self._bars = bars
        self._tasks: dict[str, TaskID] = {}

    def __call__(self, step: str, done: int, total: int | None) -> None:
        name = step.partition(",")[0]
        if name not in self._tasks:
            self._tasks[name] = self._bars.add_task(step, total=total)
        self._bars.update(self._tasks[name], description=step, completed=done, total=total)


def show(figures: Figures) -> None:
    """Print the figures: a table on a terminal, plain aligned text into a file or a pipe."""
    console = _console()
    console.print(Text(figures.title, style="bold"))
    if figures.values:
        console.print(_columns([("", words(name), shown(value)) for name, value in figures.values.items()]))
    for name, rows in figures.tables.items():
        if rows:
            console.print(Text(words(name), style="bold"))
            console.print(_grid(rows, boxed=console.is_terminal))


def _console() -> Console:
    console = Console(highlight=False)
    return console if console.is_terminal else Console(highlight=False, width=WIDE)


def _columns(lines: Sequence[tuple[str, str, str]]) -> Table:
    table = Table.grid(padding=(0, 2))
    for line in lines:
        table.add_row(*(Text(legible(cell)) for cell in line))
    return table


def _grid(rows: Sequence[Row], boxed: bool) -> Table:
    table = Table(box=SIMPLE_HEAD if boxed else None, pad_edge=True)
    for name in rows[0]:
        numeric = all(_is_number(row[name]) for row in rows)
        table.add_column(Text(words(name)), justify="right" if numeric else "left", overflow="fold")
    for row in rows:
        table.add_row(*(Text(legible(shown(value))) for value in row.values()))
    return table


def _is_number(value: Value) -> bool:
    return value is None or (isinstance(value, int | float) and not isinstance(value, bool))
