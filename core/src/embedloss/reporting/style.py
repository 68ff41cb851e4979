"""The style sheet of the page."""

STYLE = """
:root{--ground:#f6f7f9;--card:#fff;--ink:#1b2430;--faint:#66717f;--edge:#e3e7ec;--own:#e8f5ee;--good:#0b7a4b;--bad:#b3261e;
--c0:#2563eb;--c1:#d97706;--c2:#059669;--c3:#db2777;--c4:#7c3aed;--c5:#0891b2;--c6:#65a30d;--c7:#dc2626}
@media(prefers-color-scheme:dark){:root{--ground:#12161c;--card:#1a2028;--ink:#e4e8ee;--faint:#94a0ae;--edge:#2b333e;
--own:#153026;--good:#4cc38a;--bad:#ff8a80;--c0:#6ea0ff;--c1:#f5a742;--c2:#3ecf9a;--c3:#f472b6;--c4:#a98bfa;--c5:#3cc5e0;
--c6:#a3d94a;--c7:#f87171}}
*{box-sizing:border-box}
body{margin:0;background:var(--ground);color:var(--ink);font:15px/1.5 system-ui,-apple-system,"Segoe UI",Roboto,sans-serif;
-webkit-text-size-adjust:100%}
main{max-width:1180px;margin:0 auto;padding:28px 20px 56px}
h1{font-size:26px;line-height:1.2;margin:0 0 16px;letter-spacing:-.01em;overflow-wrap:anywhere}
h2{font-size:17px;margin:0 0 4px}
h4{font-size:12.5px;font-weight:600;margin:0 0 6px;color:var(--faint);overflow-wrap:anywhere}
section{margin-top:32px}
code,pre{font:13px/1.5 ui-monospace,SFMono-Regular,Menlo,Consolas,monospace}
.note{color:var(--faint);font-size:13.5px;margin:0 0 12px}
.runs{list-style:none;margin:0;padding:0;display:grid;gap:10px;
grid-template-columns:repeat(auto-fill,minmax(min(100%,300px),1fr))}
.runs li{display:flex;gap:10px;background:var(--card);border:1px solid var(--edge);border-radius:10px;padding:12px 14px;
min-width:0}
.runs li>div{min-width:0}
.runs b,.runs code,.runs small{display:block;overflow-wrap:anywhere}
.runs small{color:var(--faint);margin-top:2px}
.swatch{display:inline-block;flex:none;width:10px;height:10px;border-radius:3px;margin-right:7px;background:currentColor}
.runs .swatch{margin:6px 0 0}
.scroll{overflow-x:auto;background:var(--card);border:1px solid var(--edge);border-radius:10px}
table{border-collapse:collapse;width:100%;font-variant-numeric:tabular-nums}
th,td{padding:8px 14px;text-align:right;border-top:1px solid var(--edge);vertical-align:baseline}
thead th{border-top:0;font-size:13px;white-space:nowrap}
th:first-child{text-align:left;font-weight:500;position:sticky;left:0;background:var(--card)}
tbody td{white-space:nowrap}
.texts{font-size:13.5px}.texts td,.texts th{text-align:left}
.texts tbody td{white-space:normal;overflow-wrap:anywhere;min-width:150px}
td small{color:var(--faint);margin-right:6px}
td.best .value{font-weight:700}
td.best .value::before{content:"\\2605";color:var(--c1);font-size:11px;margin-right:4px}
.up,.down,.same{display:inline-block;font-size:12.5px;margin-left:8px;min-width:56px}
.up{color:var(--good)}.down{color:var(--bad)}.same,.none{color:var(--faint)}
.grid{display:grid;gap:14px;grid-template-columns:repeat(auto-fit,minmax(min(100%,440px),1fr))}
figure{margin:0;background:var(--card);border:1px solid var(--edge);border-radius:10px;padding:12px 12px 6px;min-width:0}
figcaption{font-size:13.5px;font-weight:600;padding:0 4px 6px;overflow-wrap:anywhere}
svg{display:block;width:100%;height:auto}
line.grid{stroke:var(--edge);stroke-width:1}
.tick{fill:var(--faint);font-size:11px;font-variant-numeric:tabular-nums}
.line{fill:none;stroke:currentColor;stroke-width:1.9;stroke-linejoin:round;stroke-linecap:round}
.dot{fill:currentColor;stroke:var(--card);stroke-width:1.2}
.mark{stroke:currentColor;stroke-width:1;stroke-dasharray:3 4;opacity:.7}
.c0{color:var(--c0)}.c1{color:var(--c1)}.c2{color:var(--c2)}.c3{color:var(--c3)}.c4{color:var(--c4)}.c5{color:var(--c5)}
.c6{color:var(--c6)}.c7{color:var(--c7)}
details{margin-top:12px}
summary{cursor:pointer;font-weight:500;overflow-wrap:anywhere}
details>.grid{margin-top:12px}
dl{display:grid;grid-template-columns:max-content 1fr;gap:3px 18px;font-size:13.5px;margin:10px 0 0}
dt{color:var(--faint)}dd{margin:0;overflow-wrap:anywhere;min-width:0}
.queries details{background:var(--card);border:1px solid var(--edge);border-radius:10px;padding:11px 14px;margin-top:10px}
.lists{display:grid;gap:14px 22px;grid-template-columns:repeat(auto-fit,minmax(min(100%,380px),1fr));margin-top:12px}
ol{list-style:none;margin:0;padding:0;font-size:13.5px}
ol li{display:flex;gap:10px;padding:5px 8px;border-radius:6px;overflow-wrap:anywhere;min-width:0}
ol li span{color:var(--faint);font-variant-numeric:tabular-nums;flex:none}
ol li.own{background:var(--own)}
ol li.own::after{content:"\\2713";color:var(--good);margin-left:auto;flex:none}
pre{background:var(--card);border:1px solid var(--edge);border-radius:10px;padding:12px 14px;margin:8px 0 0;overflow-x:auto}
@media(max-width:520px){main{padding:20px 12px 40px}h1{font-size:22px}th,td{padding:7px 10px}.tick{font-size:14px}
td small,td .value,.up,.down,.same{display:block;margin:0;min-width:0}dl{grid-template-columns:1fr}
dd{margin-bottom:5px}}
@media print{body{background:#fff}details{break-inside:avoid}}
""".strip()
