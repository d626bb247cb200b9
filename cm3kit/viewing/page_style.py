"""The head of `report.html`: its style, light and dark, and a policy under which it can load nothing."""

HEAD = """<!DOCTYPE html>
<html lang="en"><head><meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; style-src 'unsafe-inline'; img-src data:">
<meta name="viewport" content="width=device-width, initial-scale=1"><meta name="color-scheme" content="light dark">
<!-- refresh --><!-- title -->
<style>
:root {
  --paper: #fff; --ink: #1c2024; --soft: #60646c; --line: #e3e5e9; --tile: #f6f7f9;
  --c0: #2563eb; --c1: #d9480f; --c2: #0d9488; --c3: #9333ea; --c4: #b45309; --c5: #be185d;
}
@media (prefers-color-scheme: dark) {
  :root {
    --paper: #16181c; --ink: #e8eaed; --soft: #9aa0a8; --line: #2e3238; --tile: #1f2227;
    --c0: #7aa2ff; --c1: #ff9b6b; --c2: #4fd1c5; --c3: #c79bff; --c4: #f0b65b; --c5: #ff8ab5;
  }
}
* { box-sizing: border-box; }
body { margin: 0; background: var(--paper); color: var(--ink); font: 15px/1.5 system-ui, sans-serif; }
main { max-width: 1180px; margin: 0 auto; padding: 24px 16px 48px; }
header { display: flex; gap: 12px; align-items: baseline; flex-wrap: wrap; }
h1 { font-size: 22px; margin: 0; overflow-wrap: anywhere; } h2 { font-size: 16px; margin: 32px 0 8px; }
header p { margin: 0; padding: 0 10px; border: 1px solid var(--line); border-radius: 99px; color: var(--soft); }
header p.running { color: var(--c2); border-color: var(--c2); }
header p.stopped { color: var(--c1); border-color: var(--c1); }
progress { width: 100%; height: 6px; margin: 12px 0; accent-color: var(--c0); }
dl { display: grid; grid-template-columns: repeat(auto-fit, minmax(128px, 1fr)); gap: 8px; margin: 0 0 20px; }
dl div { background: var(--tile); border-radius: 8px; padding: 8px 12px; }
dt { color: var(--soft); font-size: 12px; }
dd { margin: 0; font-size: 17px; font-variant-numeric: tabular-nums; white-space: nowrap; }
.charts { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(100%, 340px), 1fr)); gap: 16px; }
figure { margin: 0; border: 1px solid var(--line); border-radius: 8px; padding: 10px 12px; min-width: 0; }
figcaption { font-weight: 600; font-size: 14px; } figcaption small { color: var(--soft); font-weight: 400; }
svg { width: 100%; height: auto; display: block; } svg text { fill: var(--soft); font-size: 12px; }
svg path { fill: none; stroke-width: 2; stroke-linejoin: round; stroke-linecap: round; }
.grid { stroke: var(--line); }
.c0 { stroke: var(--c0); background: var(--c0); } .c1 { stroke: var(--c1); background: var(--c1); }
.c2 { stroke: var(--c2); background: var(--c2); } .c3 { stroke: var(--c3); background: var(--c3); }
.c4 { stroke: var(--c4); background: var(--c4); } .c5 { stroke: var(--c5); background: var(--c5); }
.legend { display: flex; flex-wrap: wrap; gap: 2px 14px; margin: 4px 0 0; font-size: 13px; color: var(--soft); }
.legend i { display: inline-block; width: 12px; height: 3px; border-radius: 2px; margin-right: 6px;
  vertical-align: 3px; }
.legend b { color: var(--ink); font-weight: 500; font-variant-numeric: tabular-nums; }
.pictures { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(100%, 340px), 1fr)); gap: 16px; }
.pictures img { width: 100%; height: auto; display: block; margin-top: 8px; image-rendering: pixelated; }
pre { background: var(--tile); border-radius: 8px; padding: 12px; margin: 8px 0; overflow-x: auto; font-size: 13px;
  white-space: pre-wrap; overflow-wrap: anywhere; }
details { margin-top: 32px; } summary { cursor: pointer; font-weight: 600; }
</style></head><body><main>
"""
