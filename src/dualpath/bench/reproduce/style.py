"""How the report looks, in light and dark."""

CSS = """
:root { color-scheme: light dark; --ink: #1c1c1a; --soft: #5f5e5a; --line: #d9d8d2; --paper: #fcfcfa; --box: #f3f2ee;
  --basic: #77766f; --dualpath: #2a78d6; --oracle: #118a5f; --fourth: #b87400; --fifth: #7a56c8; --sixth: #d0432f;
  --seventh: #b0418d; }
@media (prefers-color-scheme: dark) {
  :root { --ink: #eceae4; --soft: #a9a79f; --line: #3a3935; --paper: #191917; --box: #23221f;
    --basic: #a3a199; --dualpath: #4c98ee; --oracle: #2fb786; --fourth: #dd9a2b; --fifth: #a48bea; --sixth: #ee7562;
  --seventh: #dc78bd; }
}
body { font: 15px/1.5 system-ui, sans-serif; color: var(--ink); background: var(--paper); max-width: 1320px; margin:
  2rem auto; padding: 0 1rem; }
h1 { font-size: 1.6rem; } h2 { font-size: 1.2rem; margin-top: 2.5rem; border-top: 1px solid var(--line); padding-top:
  1.2rem; }
p, li { max-width: 90ch; } .soft { color: var(--soft); }
.warn { background: var(--box); border-left: 4px solid var(--fourth); padding: .6rem 1rem; }
.plots { display: grid; grid-template-columns: repeat(auto-fill, minmax(340px, 1fr)); gap: 1rem; }
figure { margin: 0; } figure > svg { width: 100%; height: auto; display: block; }
.legend { display: flex; flex-wrap: wrap; gap: .2rem 1rem; font-size: .8rem; color: var(--soft); padding-left:
  3.5rem; }
.legend span { display: inline-flex; align-items: center; gap: .35rem; } .key { width: 24px; height: 14px; }
.scroll { overflow-x: auto; } table { border-collapse: collapse; font-size: .86rem; margin-top: 1rem; }
th, td { padding: .3rem .7rem; text-align: left; border-bottom: 1px solid var(--line); vertical-align: top; }
td.n, th.n { text-align: right; font-variant-numeric: tabular-nums; white-space: nowrap; } .near { color:
  var(--oracle); } .far { color: var(--sixth); font-weight: 600; }
nav a { margin-right: 1rem; } a { color: var(--dualpath); }
text { fill: var(--ink); font-size: 11px; } text.title { font-size: 12.5px; font-weight: 600; } text.small {
  font-size: 9px; fill: var(--soft); }
.tick, .label { fill: var(--soft); } .grid { stroke: var(--line); stroke-width: .7; } .axis { stroke: var(--soft); }
.bound { stroke: var(--sixth); stroke-dasharray: 2 3; } .line { fill: none; stroke-width: 1.8; } .dashed {
  stroke-dasharray: 5 4; }
.hollow { fill: var(--paper); stroke-width: 1.8; }
.basic { stroke: var(--basic); } .dualpath { stroke: var(--dualpath); } .oracle { stroke: var(--oracle); } .fourth {
  stroke: var(--fourth); }
.fifth { stroke: var(--fifth); } .sixth { stroke: var(--sixth); } .seventh { stroke: var(--seventh); }
.onbar { stroke: var(--ink); }
.mark, .bar { stroke: none; } .mark.basic, .bar.basic { fill: var(--basic); } .mark.dualpath, .bar.dualpath { fill:
  var(--dualpath); }
.mark.oracle, .bar.oracle { fill: var(--oracle); } .mark.fourth, .bar.fourth { fill: var(--fourth); } .mark.fifth,
  .bar.fifth { fill: var(--fifth); }
.mark.sixth, .bar.sixth { fill: var(--sixth); } .mark.seventh, .bar.seventh { fill: var(--seventh); }
"""
