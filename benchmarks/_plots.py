"""Bar charts as SVG, on a ground of their own that follows whether the reader's system is dark."""

from __future__ import annotations

from html import escape

from ._stored import Figure, StoredColumn, Table

__all__ = ["plot"]

_WIDTH = 720
_NAMES = 230
_VALUES = 110
_MARGIN = 16
_TOP = 34
_HEAD = 22
_ROW = 26
_BAR = 16
_STYLE = (
    "text{font:13px system-ui,sans-serif;fill:#24292f}"
    ".ground{fill:#fff;stroke:#d0d7de}.head{font-weight:600}.note{fill:#57606a;font-size:12px}"
    ".ours{fill:#0969da}.other{fill:#8c959f}.spread{stroke:#24292f;stroke-width:1.5}"
    "@media(prefers-color-scheme:dark){text{fill:#e6edf3}.ground{fill:#161b22;stroke:#30363d}"
    ".note{fill:#9da7b3}.ours{fill:#4493f8}.other{fill:#6e7681}.spread{stroke:#e6edf3}}"
)


def plot(table: Table, date: str) -> str | None:
    """Return bars for each column that is compared, as SVG.

    None if there is no such column, or nothing was measured.

    Args:
        table: of which suite.
        date: when it was measured.
    """
    groups = [
        (column, [(row.name, row.figures[number]) for row in table.rows])
        for number, column in enumerate(table.columns)
        if column.ratio and any(row.figures[number] for row in table.rows)
    ]
    if not groups:
        return None
    bars = len(table.rows)
    height = _TOP + len(groups) * (_HEAD + _ROW * bars) + _MARGIN // 2
    spoken = escape(f"{table.title}: {', '.join(column.title for column, _ in groups)}")
    size = f'viewBox="0 0 {_WIDTH} {height}" width="{_WIDTH}" height="{height}"'
    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" {size} role="img" aria-label="{spoken}">',
        f"<style>{_STYLE}</style>",
        f'<rect class="ground" x="0.5" y="0.5" width="{_WIDTH - 1}" height="{height - 1}" rx="6"/>',
        f'<text class="head" x="{_MARGIN}" y="22">{escape(table.title)}</text>',
        f'<text class="note" x="{_WIDTH - _MARGIN}" y="22" text-anchor="end">{escape(date)}</text>',
    ]
    top = _TOP
    for column, figures in groups:
        title = escape(column.title)
        lines.append(f'<text class="note" x="{_MARGIN + _NAMES}" y="{top + 12}">{title}</text>')
        top += _HEAD
        highest = max(figure.high for _, figure in figures if figure is not None) or 1.0
        for number, (name, figure) in enumerate(figures):
            kind = "ours" if not number or name.startswith("spa_dat") else "other"
            lines += _bar(name, figure, column, highest, kind, top)
            top += _ROW
    return "\n".join((*lines, "</svg>")) + "\n"


def _bar(
    name: str, figure: Figure | None, column: StoredColumn, highest: float, kind: str, top: int
) -> list[str]:
    base, middle = _MARGIN + _NAMES, top + _BAR / 2
    room = _WIDTH - base - _VALUES - _MARGIN
    text = f'<text x="{base - 10}" y="{middle + 4.5:g}" text-anchor="end">{escape(name)}</text>'
    if figure is None:
        return [text, f'<text class="note" x="{base}" y="{middle + 4.5:g}">not measured</text>']
    width, low, high = (
        value / highest * room for value in (figure.median, figure.low, figure.high)
    )
    value = escape(format(figure.median, column.form))
    return [
        text,
        f'<rect class="{kind}" x="{base}" y="{top}" width="{max(width, 1):.1f}" height="{_BAR}"/>',
        f'<path class="spread" d="M{base + low:.1f} {middle:g}H{base + high:.1f}"/>',
        f'<text x="{base + max(width, high) + 8:.1f}" y="{middle + 4.5:g}">{value}</text>',
    ]
