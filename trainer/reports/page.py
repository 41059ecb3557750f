"""A page that stands alone: its style within, nothing to run, nothing to ask of any host."""

from __future__ import annotations

import base64
import hashlib
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from trainer.reports.words import count_people, count_points, duration, share
from trainer.statistics import Estimate
from trainer.system.files import replace_text

TEMPLATES = Environment(
    loader=FileSystemLoader(Path(__file__).parent),
    autoescape=True,
    undefined=StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
)


def write_page(path: Path, template: str, **values: Any) -> Path:
    """Whole or not at all. The page's own policy allows this style and forbids all else."""
    style = TEMPLATES.get_template("page.css.jinja").render()
    digest = base64.b64encode(hashlib.sha256(style.encode()).digest()).decode()
    page = TEMPLATES.get_template(template).render(
        style=Markup(style),
        policy=(
            f"default-src 'none'; style-src 'sha256-{digest}'; base-uri 'none'; form-action 'none'"
        ),
        **values,
    )
    return replace_text(path, page)


def written(value: float | None, is_share: bool = True) -> str:
    """A share as 98.4 %, another number by four digits."""
    if is_share or value is None:
        return share(value)
    return f"{value:,.0f}" if abs(value) >= 10_000 else f"{value:.4g}"


def interval(value: float | None, is_share: bool = True) -> str:
    """`96.1 – 99.4`, or nothing where it is not known."""
    if not isinstance(value, Estimate):
        return ""
    if is_share:
        return f"{100 * value.low:.1f} – {100 * value.high:.1f}"
    return f"{value.low:.3g} – {value.high:.3g}"


def points(change: float) -> str:
    """A difference of shares in percentage points: `+0.3`, `−1.2`, `0.0`."""
    written = f"{100 * change:+.1f}"
    return "0.0" if written in ("+0.0", "-0.0") else written.replace("-", "−")


TEMPLATES.globals.update(
    written=written,
    interval=interval,
    points=points,
    duration=duration,
    count_people=count_people,
    count_points=count_points,
)
