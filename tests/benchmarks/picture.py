"""A chart as an SVG file of its own, for a page that has no style sheet: README's."""

from __future__ import annotations

from collections.abc import Mapping

from trainer.reports.charts import Points, chart
from trainer.reports.curves import percent
from trainer.reports.page import TEMPLATES

WIDTH, HEIGHT, ROW = 340, 194, 18  # of the chart, and of a line of the legend


def draw(title: str, lines: Mapping[str, Points], x: str) -> str:
    """Shares, by a count that grows by doubling."""
    figure = chart(title, lines, percent, top=1.0, x=x)
    size = f"0 0 {WIDTH} {HEIGHT + ROW * (len(lines) + 1)}"
    style = TEMPLATES.get_template("page.css.jinja").render()
    legend = "".join(
        f'<line x1="46" y1="{y - 4}" x2="76" y2="{y - 4}" class="line s{i}"/>'
        f'<text x="84" y="{y}">{name}</text>'
        for i, name in enumerate(figure.legend)
        for y in [HEIGHT + ROW * (i + 1)]
    )
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="{size}">'
        f"<style>{style} text {{ font-family: sans-serif; }}</style>"
        '<rect width="100%" height="100%" style="fill: var(--page)"/>'
        f'<svg width="{WIDTH}" height="{HEIGHT}">{figure.svg}</svg>{legend}</svg>'
    )
