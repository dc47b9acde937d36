"""The look of the page: light or dark as the reader's system is, from a phone to a wide screen."""

STYLE = """
:root { color-scheme: light dark; --ink: #1c1e21; --quiet: #5d636b; --paper: #fff; --card: #f4f5f7;
  --line: #d5d8dd; --link: #0b57a4; --bad: #b3261e; --good: #1a6b3c;
  --c0: #0072b2; --c1: #c24f00; --c2: #00805f; --c3: #a04a86; --c4: #7f6200; --c5: #5d636b; }
@media (prefers-color-scheme: dark) { :root { --ink: #e6e8eb; --quiet: #a2a9b3; --paper: #16181b;
  --card: #212429; --line: #3b4048; --link: #7db7f5; --bad: #ff8a80; --good: #7ed6a0;
  --c0: #56b4e9; --c1: #ff8f40; --c2: #2fcf9f; --c3: #e79bc7; --c4: #f0c93a; --c5: #a2a9b3; } }
* { box-sizing: border-box; }
body { font: 16px/1.5 system-ui, sans-serif; color: var(--ink); background: var(--paper);
  margin: 0 auto; max-width: 1120px; padding: 0 16px 64px; overflow-wrap: anywhere; }
h1 { font-size: 1.5rem; line-height: 1.25; margin: 1em 0 .2em; }
h2 { font-size: 1.2rem; margin: 2em 0 .6em; }
h3 { font-size: 1rem; margin: 1.2em 0 .4em; }
p { margin: .4em 0; max-width: 46em; }
.quiet { color: var(--quiet); font-weight: normal; }
.failed { color: var(--bad); } .finished { color: var(--good); }
.note { background: var(--card); border-left: 4px solid var(--c4); padding: .5em .8em; }
.facts { display: grid; gap: 10px; padding: 0; margin: 1em 0;
  grid-template-columns: repeat(auto-fit, minmax(8.5rem, 1fr)); }
.facts div { background: var(--card); border-radius: 8px; padding: .6em .8em; }
.facts dt { color: var(--quiet); font-size: .85rem; }
.facts dd { margin: 0; font-size: 1.3rem; font-weight: 600; line-height: 1.3; }
.grid { display: grid; gap: 14px;
  grid-template-columns: repeat(auto-fit, minmax(min(100%, 20rem), 1fr)); }
.wide { grid-template-columns: 1fr; }
.wide figure { overflow-x: auto; } .wide img { width: 100%; min-width: 38rem; max-width: none; }
.pictures { display: grid; gap: 8px; margin-bottom: 1.4em; overflow-x: auto;
  grid-auto-flow: column; grid-auto-columns: minmax(16.2rem, 1fr); }
figure { margin: 0; min-width: 0; }
figcaption { font-size: .9rem; margin-bottom: .2em; }
img { display: block; max-width: 100%; height: auto; border-radius: 4px; }
.pictures img { width: 100%; }
.chart { background: var(--card); border-radius: 8px; padding: .7em .8em; }
.chart figcaption { font-weight: 600; }
.chart > svg { display: block; width: 100%; height: auto; }
.chart text { fill: var(--quiet); font: 12px system-ui, sans-serif; }
.chart .grid { stroke: var(--line); stroke-width: 1; }
.chart ul { list-style: none; display: flex; flex-wrap: wrap; gap: 0 1em; margin: .2em 0 0;
  padding: 0; font-size: .85rem; }
.key { width: 22px; height: 8px; margin-right: .4em; vertical-align: middle; }
path { fill: none; stroke-width: 1.8; stroke-linejoin: round; }
circle { fill: var(--card); stroke-width: 1.8; stroke-dasharray: none !important; }
.c0 { stroke: var(--c0); } .c1 { stroke: var(--c1); stroke-dasharray: 7 2; }
.c2 { stroke: var(--c2); stroke-dasharray: 2.5 2; }
.c3 { stroke: var(--c3); stroke-dasharray: 9 2 2 2; } .c4 { stroke: var(--c4); }
.c5 { stroke: var(--c5); stroke-dasharray: 4 3; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; font-size: .92rem; }
th, td { text-align: left; padding: .25em 1em .25em 0; border-bottom: 1px solid var(--line);
  vertical-align: top; }
th { font-weight: 600; } td.number, th.number { text-align: right; white-space: nowrap;
  font-variant-numeric: tabular-nums; padding: .25em .5em; }
.quality { min-width: min(100%, 24rem); margin-bottom: .8em; }
.quality .name { min-width: 7rem; padding-right: .3em; }
details { margin: .6em 0; } summary { cursor: pointer; }
pre { background: var(--card); border-radius: 8px; padding: .8em; overflow-x: auto;
  overflow-wrap: normal; font: .8rem/1.45 ui-monospace, monospace; }
.legend { display: flex; flex-wrap: wrap; gap: 0 1em; font-size: .85rem; padding: 0;
  list-style: none; }
.legend i { display: inline-block; width: 1em; height: 1em; margin-right: .4em;
  vertical-align: -.15em; border: 1px solid var(--line); }
a { color: var(--link); }
"""
