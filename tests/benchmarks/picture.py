"""A chart as an SVG file of its own, for a page that has no style sheet: README's."""

from __future__ import annotations

from collections.abc import Mapping

from trainer.charts import Points, chart
from trainer.curves import percent
from trainer.page import TEMPLATES

WIDTH, HEIGHT, ROW = 340, 200, 18  # of the chart, and of a line of the legend


def draw(title: str, lines: Mapping[str, Points], x: str) -> str:
    """Shares, by a count that grows by doubling."""
    figure = chart(title, lines, percent, top=1.0, x=x)
    style = TEMPLATES.get_template("page.css.jinja").render()
    height = HEIGHT + ROW * len(lines)
    head = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}"'
    body = figure.svg.partition(f'viewBox="0 0 {WIDTH} ')[2].partition('"')[2]
    legend = "".join(
        f'<line x1="46" y1="{y - 4}" x2="76" y2="{y - 4}" class="line s{i}"/>'
        f'<text x="84" y="{y}">{name}</text>'
        for i, name in enumerate(figure.legend)
        for y in [HEIGHT + ROW * i + 10]
    )
    page = f'<rect width="{WIDTH}" height="{height}" style="fill: var(--page)"/>'
    opened, _, drawn = body.removesuffix("</svg>").partition("</title>")
    style = f"<style>{style} text {{ font-family: sans-serif; }}</style>"
    return f"{head}{opened}</title>{style}{page}{drawn}{legend}</svg>"
