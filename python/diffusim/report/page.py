"""A report as one HTML page that needs no other file: the picture, the table, and how it was made."""

import base64
import json
from html import escape

from diffusim.report.plots import Comparison

STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; max-width: 1180px; margin: 2em auto; padding: 0 1em; color: #222; }
img { width: 100%; } table { border-collapse: collapse; margin: 1em 0; }
td, th { text-align: left; padding: 0.25em 1.4em 0.25em 0; border-bottom: 1px solid #ddd; }
code, pre { font: 14px/1.4 ui-monospace, monospace; } pre { overflow-x: auto; background: #f6f6f6; padding: 1em; }
"""


def html(shown: Comparison, picture: bytes, rows: list[tuple[str, ...]], numbers: dict, command: str) -> str:
    """The page; `rows` are a name, one value for each ensemble and a note."""
    columns = ["", "simulated", *([] if shown.iid is None else ["independent"]), ""]
    head = "".join(f"<th>{column}</th>" for column in columns)
    body = "".join("<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in row) + "</tr>" for row in rows)
    levels = "".join(
        f"<tr><td>{r.noise_level:.3g}</td><td>{r.value:.4f} ± {r.error:.4f}</td></tr>" for r in shown.residuals
    )
    residuals = (
        f"<h2>Fokker–Planck residual</h2><table><tr><th>σ / nm</th><th>per coordinate</th></tr>{levels}</table>"
        if levels
        else ""
    )
    return f"""<!DOCTYPE html>
<html lang="en"><head><meta charset="utf-8"><title>{escape(shown.title)}</title><style>{STYLE}</style></head><body>
<h1>{escape(shown.title)}</h1>
<p>Grey: the reference, {shown.reference.n_frames:,} frames. Blue: the simulation, {shown.simulated.n_frames:,} frames.
{"" if shown.iid is None else f"Green: {shown.iid.n_frames:,} independent frames by reverse diffusion."}
A floor is what exact, independent samples of the reference would score.</p>
<table><tr>{head}</tr>{body}</table>
<img alt="{escape(shown.title)}" src="data:image/png;base64,{base64.b64encode(picture).decode()}">
{residuals}
<h2>All numbers</h2><details><summary>JSON</summary><pre>{escape(json.dumps(numbers, indent=1))}</pre></details>
<p><code>{escape(command)}</code></p>
</body></html>
"""
