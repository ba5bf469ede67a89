"""Draws signal-bytes.svg: validation loss against bytes per token, by the table of the record.

    python3 docs/figures/signal_bytes.py
"""

import pathlib
import re

ROOT = pathlib.Path(__file__).resolve().parents[2]
RECORD = ROOT / "benches/records/2026-11-29-signal.md"
LEFT, RIGHT, TOP, BOTTOM = 64, 620, 16, 284
MOST_BYTES, LEAST, MOST = 140.0, 4.9, 5.2

STYLE = """:root{--ink:#111;--soft:#444;--paper:#fff;--rule:#ddd;--a:#0072B2;--b:#D55E00;color-scheme:light dark}
@media (prefers-color-scheme:dark){:root{--ink:#ececec;--soft:#b4b8be;--paper:#14161a;--rule:#363b44;--a:#5a9ff0;--b:#ff7f3f}}
text{font:12px system-ui,sans-serif;fill:var(--soft)}.ink{fill:var(--ink)}.grid{stroke:var(--rule)}
.level{stroke:var(--soft);stroke-dasharray:5 4}.a{stroke:var(--a);fill:none}.b{stroke:var(--b);fill:none}"""


def rows():
    """(name, mean loss, bytes per token or None) of the table of novels."""
    section = RECORD.read_text().split("## Losses on novels")[1].split("\n## ")[0]
    for line in section.splitlines():
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        if len(cells) == 7 and re.fullmatch(r"\d\.\d{4}", cells[4]):
            yield cells[0], float(cells[4]), float(cells[6]) if cells[6] else None


def x(size):
    return LEFT + (RIGHT - LEFT) * size / MOST_BYTES


def y(loss):
    return BOTTOM - (BOTTOM - TOP) * (loss - LEAST) / (MOST - LEAST)


def main():
    found = list(rows())
    out = [f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 860 330" width="860" height="330" role="img" '
           f'aria-label="Validation cross-entropy against bytes per token"><style>{STYLE}</style>'
           '<rect width="860" height="330" style="fill:var(--paper)"/>']
    for step in range(7):
        loss = LEAST + step * 0.05
        out.append(f'<path class="grid" d="M{LEFT} {y(loss):.1f}H{RIGHT}"/>'
                   f'<text x="{LEFT - 8}" y="{y(loss) + 4:.1f}" text-anchor="end">{loss:.2f}</text>')
    for size in range(0, 141, 20):
        out.append(f'<text x="{x(size):.1f}" y="{BOTTOM + 18}" text-anchor="middle">{size}</text>')
    out.append(f'<text x="{(LEFT + RIGHT) / 2}" y="322" text-anchor="middle">bytes per token of the signal</text>')
    for name, loss, size in found:
        if size is None:
            out.append(f'<path class="level" d="M{LEFT} {y(loss):.1f}H{RIGHT}"/>'
                       f'<text class="ink" x="{RIGHT + 10}" y="{y(loss) + 4:.1f}">{name} {loss:.4f}</text>')
    for kind, colour in (("draws", "a"), ("top", "b")):
        points = sorted((size, loss, name) for name, loss, size in found if size and kind in name)
        path = "L".join(f"{x(size):.1f} {y(loss):.1f}" for size, loss, _ in points)
        out.append(f'<path class="{colour}" style="stroke-width:1.8" d="M{path}"/>')
        for size, loss, name in points:
            name = name if (size, loss, name) == points[-1] else name.removesuffix(" draws")
            out.append(f'<circle class="{colour}" cx="{x(size):.1f}" cy="{y(loss):.1f}" r="4"/>'
                       f'<text class="ink" x="{x(size):.1f}" y="{y(loss) - 9:.1f}" text-anchor="middle">{name}</text>')
    out.append("</svg>\n")
    (ROOT / "docs/figures/signal-bytes.svg").write_text("\n".join(out))


main()
