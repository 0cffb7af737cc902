"""The audit as one HTML page without scripts or external files, so that it can be mailed."""

from __future__ import annotations

import jinja2

from graftlm.data.audit.audit import Audit

__all__ = ["audit_page"]

_PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>graftlm check: {{ name }}</title>
<meta name="viewport" content="width=device-width, initial-scale=1">
<style>
:root { color-scheme: light dark; --line: #8884; --learn: #2e9e5b33; --soft: #626262;
  --error: #b3261e; --warning: #8a5a00; --bar: #4a80d0 }
@media (prefers-color-scheme: dark) {
  :root { --soft: #a3a3a3; --error: #ff8a80; --warning: #e5ac3c } }
body { font: 15px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem }
h1 { font-size: 1.4rem; overflow-wrap: anywhere } h2 { font-size: 1.1rem; margin-top: 2rem }
table { border-collapse: collapse; width: 100% }
td, th { text-align: left; padding: .3rem .6rem; border-bottom: 1px solid var(--line);
  vertical-align: top; font-weight: normal }
th { color: var(--soft); width: 9rem }
.n { text-align: right; font-variant-numeric: tabular-nums; white-space: nowrap; width: 1% }
.error, .warning, .info { font-weight: 600 }
.error { color: var(--error) } .warning { color: var(--warning) } .info { color: var(--soft) }
.kind { width: 1% } .said { overflow-wrap: anywhere }
.places { color: var(--soft); font: 12px/1.4 ui-monospace, monospace; overflow-wrap: anywhere }
.lengths td { border: 0; padding: .1rem .6rem; vertical-align: middle }
.bar { background: var(--bar); height: .9rem; min-width: 1px }
pre { border: 1px solid var(--line); padding: .8rem; white-space: pre-wrap;
  overflow-wrap: anywhere; font: 13px/1.5 ui-monospace, monospace; border-radius: 6px }
mark { background: var(--learn); color: inherit; border-bottom: 2px solid #2e9e5b }
.verdict { padding: .6rem 1rem; border-radius: 6px; border: 1px solid var(--line) }
@media (max-width: 34rem) { th { width: 6.5rem } td, th { padding: .3rem } }
</style></head><body>
<h1>What will be learned from {{ name }}</h1>
<p class="verdict">{% if audit.ok %}Ready to train.{% else %}<span class="error">Training on this
would not do what was meant:</span> see the errors below.{% endif %}
Model <b>{{ model }}</b>.</p>
<table>
{% for label, value in facts %}<tr><th scope="row">{{ label }}</th>
<td class="said">{{ value }}</td></tr>
{% endfor %}</table>
<h2>Findings</h2>
{% if audit.findings %}<table>
{% for f in audit.findings %}<tr><td class="kind {{ f.severity }}">{{ f.severity }}</td>
<td class="n">{{ "{:,}".format(f.count) }}</td><td class="said">{{ f.message }}
{% for place in f.places %}<div class="places">{{ place }}</div>{% endfor %}</td></tr>
{% endfor %}</table>{% else %}<p>None.</p>{% endif %}
<h2>Tokens a row</h2>
<table class="lengths">
{% for upto, rows in audit.length_histogram if rows %}<tr><td class="n">≤ {{ upto }}</td>
<td class="n">{{ "{:,}".format(rows) }}</td><td><div class="bar"
style="width: {{ (100 * rows / most) | round(2) }}%"></div></td></tr>{% endfor %}</table>
<h2>Samples</h2>
<p><mark>Marked text is learned</mark>; the rest is only read.</p>
{% for sample in audit.samples %}<pre>{% for text, learned in sample.pieces -%}
{% if learned %}<mark>{{ text }}</mark>{% else %}{{ text }}{% endif %}{%- endfor %}</pre>
{% endfor %}</body></html>
"""


def audit_page(audit: Audit, facts: list[tuple[str, str]], *, name: str, model: str) -> str:
    """The page's HTML; everything from the data is escaped."""
    environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined)
    most = max((rows for _, rows in audit.length_histogram), default=1)
    return environment.from_string(_PAGE).render(
        audit=audit, facts=facts, name=name, model=model, most=max(1, most)
    )
