"""The report as one HTML file: tables, pictures inside it, the settings; nothing is fetched from anywhere."""

import base64
from collections.abc import Sequence
from html import escape
from pathlib import Path

from nemo_moslim.comparison.tables import Table, cell_text

STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; color: #222; max-width: 1150px; margin: 2em auto; padding: 0 1em; }
h1 { font-size: 1.6em; } h2 { font-size: 1.2em; margin-top: 2em; }
p.note { color: #5f5f5f; max-width: 60em; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; font-size: 13px; }
th, td { padding: .35em .7em; border-bottom: 1px solid #ddd; text-align: right; white-space: nowrap; }
th:first-child, td:first-child { text-align: left; }
thead th { border-bottom: 2px solid #888; white-space: normal; vertical-align: bottom; }
img { max-width: 100%; }
pre { background: #f6f6f6; padding: 1em; overflow-x: auto; font-size: 12px; }
"""


def html_page(
    title: str, made: str, tables: Sequence[Table], pictures: Sequence[tuple[str, Path]], settings: str
) -> str:
    """The page.

    Args:
        made: where it comes from, one line.
        pictures: (caption, PNG) pairs.
        settings: the comparison's configuration as text.
    """
    body = [f'<h1>{escape(title)}</h1><p class="note">{escape(made)}</p>']
    for caption, file in pictures:
        data = base64.b64encode(file.read_bytes()).decode()
        body.append(f'<h2>{escape(caption)}</h2><img alt="{escape(caption)}" src="data:image/png;base64,{data}">')
    body += [html_table(table) for table in tables]
    body.append(f"<h2>Settings</h2><details><summary>show</summary><pre>{escape(settings)}</pre></details>")
    return (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>{escape(title)}</title>'
        f"<style>{STYLE}</style></head>\n<body>\n" + "\n".join(body) + "\n</body></html>\n"
    )


def html_table(table: Table) -> str:
    """A table with its title and note."""
    head = "".join(f"<th>{escape(cell)}</th>" for cell in table.header)
    rows = "".join(
        "<tr>" + "".join(f"<td>{escape(cell_text(cell))}</td>" for cell in row) + "</tr>\n" for row in table.rows
    )
    return (
        f'<h2>{escape(table.title)}</h2><p class="note">{escape(table.note)}</p>'
        f'<div class="wide"><table><thead><tr>{head}</tr></thead><tbody>\n{rows}</tbody></table></div>'
    )
