"""The page's style sheet. Every rule is scoped, so that a notebook around it stays as it is."""

from conflictkit.trace.layout import INK, STOPS

STYLE = f"""
.ck-trace {{
  --ink: {INK}; --soft: #57534e; --line: #e2ded9; --paper: #fff;
  --context: #0b6577; --memory: #7a2f91; --heat: {STOPS[-1]};
  color: var(--ink); background: var(--paper); box-sizing: border-box; max-width: 1120px;
  padding: 28px 32px; font: 15px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, "Noto Sans",
  "Liberation Sans", "DejaVu Sans", sans-serif; text-align: left; overflow-wrap: break-word;
}}
.ck-trace *, .ck-trace *::before {{ box-sizing: border-box; }}
.ck-trace .ck-label {{
  color: var(--soft); font-size: 12px; letter-spacing: .06em; text-transform: uppercase;
  font-weight: 600; margin: 0 0 4px;
}}
.ck-trace h2 {{ font-size: 26px; line-height: 1.25; margin: 0 0 14px; font-weight: 650;
  color: var(--ink); }}
.ck-trace .ck-passage {{ border-left: 3px solid var(--context); padding: 2px 0 2px 14px;
  margin: 0 0 8px; white-space: pre-wrap; color: var(--ink); }}
.ck-trace details.ck-passage summary {{ cursor: pointer; }}
.ck-trace .ck-answers {{ display: flex; flex-wrap: wrap; gap: 12px; margin: 20px 0 22px;
  padding: 0; }}
.ck-trace .ck-answer {{ flex: 1 1 220px; border: 1px solid var(--line); border-radius: 10px;
  padding: 10px 14px 12px; }}
.ck-trace .ck-answer b {{ display: block; font-size: 19px; line-height: 1.35; font-weight: 600;
  white-space: pre-wrap; }}
.ck-trace .ck-memory b, .ck-trace .ck-of-memory {{ color: var(--memory); }}
.ck-trace .ck-context b, .ck-trace .ck-of-context {{ color: var(--context); }}
.ck-trace .ck-method {{ border: 2px solid var(--ink); padding: 9px 13px 11px; }}
.ck-trace .ck-headline {{ font-size: 16px; margin: 0 0 12px; }}
.ck-trace .ck-strip {{ position: relative; border-radius: 10px; background: #faf8f5;
  padding: 18px 20px 14px; }}
.ck-trace .ck-tokens {{ font-size: 22px; line-height: 1.3; }}
.ck-trace .ck-word {{ display: inline-block; vertical-align: top; margin: 0 .26em 6px 0; }}
.ck-trace .ck-token {{ cursor: default; outline: none; }}
.ck-trace .ck-chip {{ display: inline-block; border-radius: 5px; padding: 1px 2px;
  white-space: pre-wrap; border-bottom: 2px solid transparent; }}
.ck-trace .ck-hot .ck-chip {{ border-bottom-color: #9a3412; }}
.ck-trace .ck-token:hover .ck-chip, .ck-trace .ck-token:focus .ck-chip {{
  box-shadow: 0 0 0 2px var(--ink); }}
.ck-trace .ck-mark {{ color: var(--soft); font-size: 14px; }}
.ck-trace .ck-rival {{ display: block; font-size: 12px; line-height: 1.35; padding: 2px 3px 0; }}
.ck-trace .ck-tip {{ display: none; position: absolute; left: 20px; right: 20px; top: 100%;
  z-index: 2; margin-top: -6px; padding: 12px 16px; background: var(--paper);
  border: 1px solid var(--ink); border-radius: 8px; box-shadow: 0 6px 24px rgba(0, 0, 0, .16);
  font-size: 14px; line-height: 1.5; }}
.ck-trace .ck-token:hover .ck-tip, .ck-trace .ck-token:focus .ck-tip {{ display: block; }}
.ck-trace .ck-legend {{ display: flex; align-items: center; gap: 8px; color: var(--soft);
  font-size: 12.5px; margin-top: 10px; }}
.ck-trace .ck-scale {{ width: 140px; height: 10px; border-radius: 5px;
  border: 1px solid var(--line); background: linear-gradient(90deg, #fff, {", ".join(STOPS)}); }}
.ck-trace .ck-scroll {{ overflow-x: auto; margin-top: 24px; }}
.ck-trace table {{ border-collapse: collapse; table-layout: auto; width: 100%; font-size: 14px;
  margin: 0; color: var(--ink); background: var(--paper); border: 0; }}
.ck-trace th, .ck-trace td {{ text-align: left; vertical-align: top; padding: 7px 14px 7px 0;
  border: 0; border-bottom: 1px solid var(--line); background: var(--paper); }}
.ck-trace th {{ color: var(--soft); font-size: 12px; font-weight: 600; vertical-align: bottom;
  border-bottom: 1px solid var(--ink); line-height: 1.3; }}
.ck-trace .ck-n {{ text-align: right; font-variant-numeric: tabular-nums; }}
.ck-trace td.ck-n, .ck-trace span.ck-n {{ white-space: nowrap; }}
.ck-trace th.ck-n {{ max-width: 92px; }}
.ck-trace td.ck-code {{ max-width: 220px; min-width: 64px; }}
.ck-trace .ck-code {{ font-family: ui-monospace, SFMono-Regular, Menlo, Consolas,
  "Liberation Mono", "DejaVu Sans Mono", monospace; font-size: 13.5px; }}
.ck-trace .ck-dot {{ color: #8f8a84; }}
.ck-trace .ck-bar {{ display: inline-block; width: 84px; height: 9px; border-radius: 5px;
  background: #efece8; margin-left: 8px; overflow: hidden; }}
.ck-trace .ck-bar i {{ display: block; height: 100%; background: var(--heat); }}
.ck-trace .ck-list {{ display: grid; grid-template-columns: minmax(64px, max-content) auto;
  column-gap: 10px; row-gap: 1px; justify-content: start; }}
.ck-trace .ck-list .ck-chosen {{ font-weight: 700; }}
.ck-trace .ck-list > span:nth-child(n + 3) {{ color: var(--soft); }}
.ck-trace .ck-source {{ display: inline-block; min-width: 20px; padding: 1px 5px;
  margin: 0 3px 0 0; border-radius: 10px; color: #fff; text-align: center; font-size: 12px;
  line-height: 1.4; font-weight: 600; }}
.ck-trace .ck-source-memory {{ background: var(--memory); }}
.ck-trace .ck-story {{ margin: 0 0 18px; }}
.ck-trace .ck-story p {{ margin: 0 0 4px; }}
.ck-trace .ck-story .ck-foot {{ margin: 8px 0 0; }}
.ck-trace .ck-story .ck-scroll {{ margin-top: 10px; }}
.ck-trace table.ck-sides {{ width: auto; }}
.ck-trace table.ck-sides .ck-cell {{ min-width: 44px; padding: 7px 6px; text-align: center; }}
.ck-trace .ck-wanted {{ white-space: nowrap; }}
.ck-trace .ck-foot {{ color: var(--soft); font-size: 12.5px; margin: 14px 0 0; }}
@media print {{
  .ck-trace {{ padding: 0; max-width: none; print-color-adjust: exact;
    -webkit-print-color-adjust: exact; }}
  .ck-trace .ck-tip {{ display: none; }}
  .ck-trace .ck-scroll {{ overflow: visible; }}
  .ck-trace tr {{ break-inside: avoid; }}
  .ck-trace thead {{ display: table-header-group; }}
}}
@supports selector(::details-content) {{ @media print {{
  .ck-trace details.ck-passage summary {{ display: none; }}
  .ck-trace details.ck-passage::details-content {{ content-visibility: visible; }}
}} }}
"""
