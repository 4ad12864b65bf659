"""``certframe compare``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from certframe.cli import options
from certframe.errors import UsageError

if TYPE_CHECKING:
    from certframe.report.comparison_page import Table


def compare(
    runs: Annotated[list[Path], typer.Argument(
        help="Run directories, or directories of studies, whose runs are taken together.", show_default=False)],
    show: Annotated[list[str] | None, typer.Option(
        "--show", metavar="QUANTITY", help="Show this quantity, such as certified or deletion.auc; may be repeated.",
        show_default="the main ones in the terminal, all on the page")] = None,
    paired: Annotated[list[str] | None, typer.Option(
        "--paired", metavar="QUANTITY", help="Compare every two methods on the same images by this quantity; may be "
                                             "repeated.", show_default="certified")] = None,
    out: Annotated[Path | None, typer.Option(help="Folder for tables, figures and the page.",
                                             show_default="<first>/comparison")] = None,
    figures: Annotated[bool, typer.Option("--figures/--no-figures", help="Draw figures (needs matplotlib).")] = True,
    as_json: options.Json = False,
    open_it: Annotated[bool, typer.Option("--open", help="Open the page in the browser.")] = False,
) -> None:
    """Compare methods, layers, noise levels and models over several runs, without a model.

    Prints means over images with standard errors and bootstrap intervals, and writes them as CSV and Parquet, with the
    differences between methods on the same images, figures as SVG and PNG, and an HTML page whose tables can be sorted.

    Examples:
    `certframe compare runs/study`

    `certframe compare runs/a runs/b --show certified --paired deletion.auc --out comparison/`
    """
    from certframe import comparing
    from certframe.report import comparison, comparison_page

    found = comparing.find_runs(runs)
    values = comparing.values_of(found)
    if not values:
        raise UsageError(f"nothing is finished in {runs[0]} yet: let 'certframe run' finish an image first")
    summaries = comparing.summaries(values)
    measured = list(dict.fromkeys(s.metric for s in summaries))
    for name in [*(show or []), *(paired or [])]:
        if name not in measured:
            raise UsageError(f"nothing called '{name}' was measured; there are {', '.join(measured)}")
    pairs = [p for name in paired or [n for n in ("certified",) if n in measured]
             for p in comparing.paired(values, name)]
    shown = comparison_page.tables([s for s in summaries if not show or s.metric in show])
    printed = shown if show else [t for t in shown if t.title in comparison_page.MAIN]
    folder = out or runs[0] / "comparison"
    comparing.write_tables(folder, summaries, pairs)
    if as_json:
        typer.echo(comparing.as_json(summaries, pairs))
    else:
        for table in printed:
            _print(table)
    drawn = []
    if figures:
        try:
            drawings = comparison.drawings(summaries)
        except UsageError as error:
            typer.secho(f"note: {error}", err=True)
        else:
            drawn = list(zip(drawings, comparison.save(drawings, folder), strict=True))
    shown += [comparison_page.differences([p for p in pairs if p.metric == name], f"Differences: {name}")
              for name in dict.fromkeys(p.metric for p in pairs)]
    page = folder / "index.html"
    comparison_page.write_page(page, [str(run.path) for run in found], shown, drawn)
    if not as_json:
        typer.echo(f"\ntables   {folder / 'summary.csv'}, {folder / 'paired.csv'} (and .parquet)")
        if drawn:
            typer.echo(f"figures  {len(drawn)} in {folder}, as SVG and PNG")
        typer.echo(f"page     {page}")
    if open_it:
        typer.launch(str(page))


def _print(table: Table) -> None:
    """A table in the terminal, without the columns that are the same in every row."""
    from rich.console import Console
    from rich.table import Table as Rich
    from rich.text import Text

    keep = [i for i, name in enumerate(table.columns)
            if name == "method" or name.startswith(("K =", "mean"))
            or (name != "family" and len({row[i].text for row in table.rows}) > 1)]
    rich = Rich(box=None, header_style="bold", pad_edge=False)
    for i in keep:
        rich.add_column(Text(table.columns[i]), justify="left" if table.rows[0][i].sort is None else "right")
    for row in table.rows:
        rich.add_row(*(Text(row[i].short or row[i].text) for i in keep))
    console = Console()
    console.print(f"\n{table.title}", style="bold", markup=False, highlight=False)
    console.print(rich)
