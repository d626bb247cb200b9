"use strict";
// The page is shown in a frame that runs no script. This script reads its nodes, and a layer above it receives
// pointer events, so nothing in it can be clicked. Comments in the copy hold the byte offsets of texts in the source.
const $ = (id) => document.getElementById(id);
const frame = $("page"), overlay = $("overlay");
const SAMPLE = '<!DOCTYPE html>\n<html lang="en">\n<title>Fruit</title>\n<style>body { font: 18px/1.6 sans-serif; margin: 2rem; max-width: 40rem }</style>\n' +
  '<h1>An apple</h1>\n<p class="intro">An apple is a round fruit with red skin.</p>\n<p>It is <mask> and sweet.</p>\n';
let state = null; // { name, bytes, pictures, recipe }
let history = [], chosen = [], running = null, drag = null;

const toBase64 = (bytes) => {
  let text = "";
  for (let at = 0; at < bytes.length; at += 32768) text += String.fromCharCode(...bytes.subarray(at, at + 32768));
  return btoa(text);
};
const fromBase64 = (text) => Uint8Array.from(atob(text), (each) => each.charCodeAt(0));

function fail(message) {
  $("error").textContent = message || "";
  $("error").hidden = !message;
}

async function post(path, body, signal) {
  const answer = await fetch(path, { method: "POST", headers: { "Content-Type": "application/json" }, body: JSON.stringify(body), signal });
  if (!answer.ok) throw new Error((await answer.json()).error.message);
  return answer;
}

const source = () => ({ html_base64: toBase64(state.bytes), pictures: state.pictures });

async function show(next, keep) {
  const before = state;
  state = next;
  try {
    const look = await (await post("/look", source())).json();
    if (keep && before) history.push(before);
    chosen = [];
    await new Promise((resolve) => { frame.onload = resolve; frame.srcdoc = look.shown; });
    $("empty").hidden = true;
    $("paper").hidden = false;
    state.written = look.gaps;
    fail(look.missing.length ? `Missing pictures, left unchanged: ${look.missing.slice(0, 5).join(", ")}. Open them together with the page.` : "");
    frame.contentWindow.addEventListener("scroll", draw, { passive: true });
  } catch (error) {
    state = before;
    fail(error.message);
  }
  refresh();
}

function refresh() {
  $("undo").disabled = !history.length;
  $("export").disabled = !state;
  $("recipe").disabled = !(state && state.recipe);
  const list = $("gaps");
  list.replaceChildren();
  const add = (text, remove) => {
    const item = document.createElement("li"), label = document.createElement("span");
    label.textContent = text;
    item.append(label);
    if (remove) {
      const button = document.createElement("button");
      button.type = "button";
      button.textContent = "×";
      button.setAttribute("aria-label", `Leave out ${text}`);
      button.onclick = remove;
      item.append(button);
    } else if (remove === undefined) label.className = "none";
    list.append(item);
  };
  const written = state ? state.written || [] : [];
  written.forEach((gap) => add(`<mask> in line ${gap.line}, ${gap.kind} of <${gap.element}>`, null));
  chosen.forEach((each, index) => add(each.label, () => { chosen.splice(index, 1); refresh(); }));
  if (!written.length && !chosen.length) add(state ? "Drag over words or a picture." : "Nothing yet.");
  $("fill").disabled = !state || running !== null || !(written.length + chosen.length);
  draw();
}

function box(rect, kind) {
  const mark = document.createElement("i");
  mark.className = kind;
  mark.style.cssText = `left:${rect.left}px;top:${rect.top}px;width:${rect.width}px;height:${rect.height}px`;
  overlay.append(mark);
}

function pictureRect(image, region) {
  const outer = content(image);
  if (!region) return outer;
  const x = outer.width / image.naturalWidth, y = outer.height / image.naturalHeight;
  return { left: outer.left + region[0] * x, top: outer.top + region[1] * y, width: region[2] * x, height: region[3] * y };
}

function content(image) {
  const outer = image.getBoundingClientRect(), style = frame.contentWindow.getComputedStyle(image);
  const edge = (side) => parseFloat(style[`border${side}Width`]) + parseFloat(style[`padding${side}`]);
  const left = edge("Left"), top = edge("Top");
  return { left: outer.left + left, top: outer.top + top, width: outer.width - left - edge("Right"), height: outer.height - top - edge("Bottom") };
}

function draw() {
  overlay.replaceChildren();
  for (const each of chosen) {
    if (each.range) for (const rect of each.range.getClientRects()) box(rect, "");
    if (each.image) box(pictureRect(each.image, each.region), "");
  }
  if (drag && drag.range) for (const rect of drag.range.getClientRects()) box(rect, "now");
  if (drag && drag.region) box(pictureRect(drag.image, drag.region), "now");
}

// Byte offset of a node of the copy in the source, from the comment right before it.
function offsetOf(node, letter) {
  const before = node.previousSibling;
  const found = before && before.nodeType === 8 && /^cm3kit:([ti])(\d+)$/.exec(before.data);
  return found && found[1] === letter ? Number(found[2]) : null;
}

function caret(x, y) {
  const page = frame.contentDocument;
  if (page.caretPositionFromPoint) {
    const found = page.caretPositionFromPoint(x, y);
    return found && [found.offsetNode, found.offset];
  }
  const found = page.caretRangeFromPoint(x, y);
  return found && [found.startContainer, found.startOffset];
}

// A range between two positions in document order, extended to whole words.
function wordsBetween(one, other) {
  if (!one || !other || one[0].nodeType !== 3 || other[0].nodeType !== 3) return null;
  const range = frame.contentDocument.createRange();
  range.setStart(...one);
  range.collapse(true);
  if (range.comparePoint(...other) < 0) [one, other] = [other, one];
  let [first, start] = one, [last, end] = other;
  while (start > 0 && /\S/.test(first.data[start - 1])) start -= 1;
  while (end < last.data.length && /\S/.test(last.data[end])) end += 1;
  range.setStart(first, start);
  range.setEnd(last, end);
  return range.toString().trim() ? range : null;
}

function chooseWords(range) {
  const start = offsetOf(range.startContainer, "t"), end = offsetOf(range.endContainer, "t");
  const text = range.toString();
  if (start === null || end === null) return fail("These words cannot be found in the source; select them with a CSS selector.");
  const words = { start: [start, range.startOffset], end: [end, range.endOffset], text };
  chosen.push({ label: `“${text.trim().replace(/\s+/g, " ")}”`, range, words });
  fail();
}

function choosePicture(image, region) {
  const offset = offsetOf(image, "i");
  if (offset === null) return fail("This picture cannot be found in the source; select it with a CSS selector.");
  const label = region ? `region ${region.join(",")} of a picture` : "a whole picture";
  chosen.push({ label, image, region, regions: { offset, box: region } });
  fail();
}

function at(event) {
  const outer = overlay.getBoundingClientRect();
  return [event.clientX - outer.left, event.clientY - outer.top];
}

function regionOf(image, [x0, y0], [x1, y1]) {
  const outer = content(image), wide = image.naturalWidth, high = image.naturalHeight;
  const clamp = (value, most) => Math.max(0, Math.min(most, Math.round(value)));
  const left = clamp((Math.min(x0, x1) - outer.left) * wide / outer.width, wide), right = clamp((Math.max(x0, x1) - outer.left) * wide / outer.width, wide);
  const top = clamp((Math.min(y0, y1) - outer.top) * high / outer.height, high), bottom = clamp((Math.max(y0, y1) - outer.top) * high / outer.height, high);
  return right > left && bottom > top ? [left, top, right - left, bottom - top] : null;
}

overlay.addEventListener("pointerdown", (event) => {
  if (running || event.button) return;
  const place = at(event), under = frame.contentDocument.elementFromPoint(...place);
  const image = under && under.localName === "img" && under.naturalWidth ? under : null;
  drag = { place, image, start: image ? null : caret(...place), range: null, region: null, moved: false };
  overlay.setPointerCapture(event.pointerId);
  event.preventDefault();
});
overlay.addEventListener("pointermove", (event) => {
  const place = at(event);
  if (!drag) {
    const under = frame.contentDocument && frame.contentDocument.elementFromPoint(...place);
    overlay.className = under && under.localName === "img" ? "picture" : "";
    return;
  }
  drag.moved ||= Math.hypot(place[0] - drag.place[0], place[1] - drag.place[1]) > 3;
  if (drag.image) drag.region = regionOf(drag.image, drag.place, place);
  else drag.range = wordsBetween(drag.start, caret(...place));
  draw();
});
overlay.addEventListener("pointerup", () => {
  const done = drag;
  drag = null;
  if (!done) return;
  if (done.image) choosePicture(done.image, done.moved ? done.region : null);
  else if (done.moved && done.range) chooseWords(done.range);
  refresh();
});
overlay.addEventListener("pointercancel", () => { drag = null; draw(); });
overlay.addEventListener("wheel", (event) => frame.contentWindow.scrollBy(event.deltaX, event.deltaY), { passive: true });
window.addEventListener("resize", draw);

$("point").addEventListener("submit", (event) => {
  event.preventDefault();
  const css = $("selector").value.trim();
  if (css && state) chosen.push({ label: css, select: css });
  $("selector").value = "";
  refresh();
});

async function* events(answer) {
  const reader = answer.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  for (;;) {
    const { done, value } = await reader.read();
    if (done) return;
    rest += value;
    const parts = rest.split("\n\n");
    rest = parts.pop();
    for (const part of parts) {
      const found = /^event: (\w+)\ndata: (.*)$/s.exec(part);
      if (found) yield [found[1], JSON.parse(found[2])];
    }
  }
}

async function fill() {
  const options = {};
  if ($("decoder").value) options.decoder = $("decoder").value;
  if ($("temperature").value !== "") options.temperature = Number($("temperature").value);
  const pick = (name) => chosen.filter((each) => each[name]).map((each) => each[name]);
  const body = { ...source(), select: pick("select"), words: pick("words"), regions: pick("regions"), variants: Number($("variants").value), options, stream: true, shown: true };
  if ($("seed").value !== "") body.seed = Number($("seed").value);
  running = new AbortController();
  $("results").replaceChildren();
  $("stop").hidden = $("progress").hidden = false;
  $("progress").removeAttribute("value");
  fail();
  refresh();
  try {
    for await (const [kind, data] of events(await post("/infill", body, running.signal))) {
      if (kind === "queued") $("status").textContent = data.before ? `${data.before} before this one` : "";
      if (kind === "progress") { $("progress").value = data.done / data.total; $("status").textContent = ""; }
      if (kind === "error") throw new Error(data.error.message);
      if (kind === "result") present(data);
    }
  } catch (error) {
    if (error.name !== "AbortError") fail(error.message);
  }
  running = null;
  $("stop").hidden = $("progress").hidden = true;
  refresh();
}

function present(data) {
  $("status").textContent = [`seed ${data.seed}`, ...(data.warnings || [])].join(" · ");
  for (const variant of data.variants) {
    const card = document.createElement("article"), view = document.createElement("iframe"), texts = document.createElement("ol");
    const use = document.createElement("button"), note = document.createElement("small");
    card.className = "variant";
    view.setAttribute("sandbox", "");
    view.title = `Variant ${variant.index + 1}`;
    view.srcdoc = variant.shown;
    for (const gap of variant.gaps) {
      const item = document.createElement("li");
      item.textContent = gap.text.trim() || "(nothing)";
      texts.append(item);
    }
    use.type = "button";
    use.textContent = "Use this one";
    use.onclick = () => {
      $("results").replaceChildren();
      show({ name: state.name, bytes: fromBase64(variant.html_base64), pictures: state.pictures, recipe: variant.recipe }, true);
    };
    const sum = variant.gaps.reduce((total, gap) => total + gap.logprob, 0);
    note.textContent = ` log-probability ${sum.toFixed(1)}`;
    card.append(view, texts, use, note);
    $("results").append(card);
  }
}

function save(name, content, kind) {
  const link = document.createElement("a");
  link.href = URL.createObjectURL(new Blob([content], { type: kind }));
  link.download = name;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 10000);
}

$("files").addEventListener("change", async (event) => {
  const files = [...event.target.files], page = files.find((each) => /\.html?$/i.test(each.name));
  event.target.value = "";
  if (!page) return fail("Choose an HTML file together with its pictures.");
  const pictures = {};
  for (const each of files) {
    if (each === page) continue;
    pictures[each.name] = toBase64(new Uint8Array(await each.arrayBuffer()));
  }
  history = [];
  $("results").replaceChildren();
  show({ name: page.name, bytes: new Uint8Array(await page.arrayBuffer()), pictures, recipe: null });
});
$("sample").onclick = () => show({ name: "fruit.html", bytes: new TextEncoder().encode(SAMPLE), pictures: {}, recipe: null });
$("fill").onclick = fill;
$("stop").onclick = () => running && running.abort();
$("undo").onclick = () => { const before = history.pop(); if (before) show(before); };
$("export").onclick = () => save(state.name, state.bytes, "application/octet-stream");
$("recipe").onclick = () => save(`${state.name}.cm3kit.json`, JSON.stringify(state.recipe, null, 2), "application/json");

fetch("/model").then((answer) => answer.json()).then((told) => {
  $("model").textContent = `${told.model} · pictures of ${told.picture}×${told.picture}`;
  for (const name of told.decoders) {
    const option = document.createElement("option");
    option.value = name;
    option.textContent = { cm3: "cm3, left to right", diffusion: "diffusion, in place" }[name] || name;
    $("decoder").append(option);
  }
  refresh();
}).catch((error) => fail(error.message));
