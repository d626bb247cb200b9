"use strict";
const data = JSON.parse(document.getElementById("data").textContent);
const at = (id) => document.getElementById(id);
const slider = at("slider"), play = at("play"), words = at("words"), log = at("log");
const last = data.frames.length - 1;
let now = 0, timer = 0, rest = 0;

const make = (tag, name, text) => {
  const element = document.createElement(tag);
  if (name) element.className = name;
  if (text !== undefined) element.textContent = text;
  return element;
};

// The labels of every frame; a frame lists only the positions that differ from the previous one.
const labels = [data.first];
for (const frame of data.frames.slice(1)) {
  const next = labels[labels.length - 1].slice();
  for (const [place, label] of frame.diff) next[place] = label;
  labels.push(next);
}

const ratio = Math.max(1, Math.min(3, window.devicePixelRatio || 1));
const films = data.films.map((film, index) => {
  const canvas = make("canvas");
  canvas.width = Math.round(film.size[0] * data.scale * ratio);
  canvas.height = Math.round(film.size[1] * data.scale * ratio);
  canvas.style.width = `${film.size[0] * data.scale}px`;
  canvas.setAttribute("role", "img");
  canvas.setAttribute("aria-label", `Picture ${index + 1}`);
  at("pictures").append(canvas);
  const pictures = film.pictures.map((source) => {
    const picture = new Image();
    picture.onload = () => show(now);
    picture.src = source;
    return picture;
  });
  return { ...film, canvas, pictures };
});
at("stage").classList.toggle("bare", !films.length);

function draw(film, frame) {
  const [rows, columns] = data.grid, { width, height } = film.canvas;
  const pen = film.canvas.getContext("2d"), picture = film.pictures[film.shown[now]];
  pen.imageSmoothingEnabled = true;
  pen.imageSmoothingQuality = "high";
  pen.clearRect(0, 0, width, height);
  if (picture.complete && picture.naturalWidth) pen.drawImage(picture, 0, 0, width, height);
  const fresh = new Map(frame.fresh);
  for (let cell = 0; cell < rows * columns; cell++) {
    const row = Math.floor(cell / columns), column = cell % columns;
    const x = Math.round(column * width / columns), y = Math.round(row * height / rows);
    const w = Math.round((column + 1) * width / columns) - x, h = Math.round((row + 1) * height / rows) - y;
    const kind = fresh.get(film.start + cell);
    if (labels[now][film.start + cell] === null) {
      pen.fillStyle = (row + column) % 2 ? "#ebe8e1" : "#e4e1d9";
      pen.fillRect(x, y, w, h);
    }
    if (kind) {
      // A white edge inside the coloured one, visible on any picture.
      for (const [colour, inset] of [["#fff", 2], [{ write: "#c2410c", edit: "#6d4bd8", remask: "#c81e1e" }[kind], 0]]) {
        const thick = Math.round(2 * ratio), edge = inset * ratio + thick / 2;
        pen.lineWidth = thick;
        pen.strokeStyle = colour;
        pen.strokeRect(x + edge, y + edge, w - 2 * edge, h - 2 * edge);
      }
    }
  }
}

function write(frame) {
  const fresh = new Map(frame.fresh), starts = new Map(films.map((film, index) => [film.start, index]));
  const spans = [];
  labels[now].forEach((label, place) => {
    const kind = data.classes[place];
    if (kind === "p") {
      if (starts.has(place)) spans.push(make("span", "picture", `picture ${starts.get(place) + 1}`));
      return;
    }
    if (label === "" && !fresh.has(place)) return;
    const open = label === null, end = label === data.end && kind === "t";
    spans.push(make("span", `${kind}${open ? " open" : end ? " end" : ""}`, open ? data.open : label));
    if (fresh.has(place)) spans[spans.length - 1].classList.add("fresh", fresh.get(place));
  });
  words.replaceChildren(...spans);
  const first = words.querySelector(".fresh");
  if (first && words.scrollHeight > words.clientHeight) words.scrollTop = first.offsetTop - words.offsetTop - words.clientHeight / 2;
}

const cellOf = (place) => {
  const film = films.find((each) => place >= each.start && place < each.start + data.grid[0] * data.grid[1]);
  if (!film) return `position ${place}`;
  const cell = place - film.start;
  return `row ${Math.floor(cell / data.grid[1]) + 1}, column ${cell % data.grid[1] + 1}`;
};

function list(frame) {
  const verbs = { write: "wrote", edit: "edited", remask: "remasked" };
  const counts = Object.entries(verbs).map(([kind, verb]) => [verb, frame.log.filter((row) => row[0] === kind).length]);
  const told = counts.filter(([, count]) => count).map(([verb, count]) => `${verb} ${count}`).join(", ");
  at("log-title").textContent = now ? `Step ${frame.step + 1} ${told || "changed nothing"}` : "Before the first step";
  log.replaceChildren(...frame.log.map(([kind, place, name, logprob]) => {
    const row = make("li", kind), cell = make("span", "name"), bar = make("span", "bar"), fill = make("i");
    cell.append(make("b", "", name), make("small", "", `  ${cellOf(place)}`));
    const p = logprob === null ? 0 : Math.exp(logprob);
    fill.style.width = `${100 * Math.min(1, p)}%`;
    bar.append(fill);
    row.append(cell, bar, make("span", "p", p >= 0.001 ? `${(100 * p).toFixed(1)} %` : "< 0.1 %"));
    return row;
  }));
  if (!frame.log.length) log.append(make("li", "none", now ? "" : `${data.slots} open slots`));
}

function show(index) {
  now = Math.max(0, Math.min(last, index));
  const frame = data.frames[now];
  slider.value = now;
  slider.setAttribute("aria-valuetext", `step ${now} of ${last}`);
  at("counter").textContent = `${now} / ${last}`;
  films.forEach((film) => draw(film, frame));
  write(frame);
  list(frame);
  clearTimeout(rest);
  if (now < last) return;
  pause();
  rest = setTimeout(() => films.forEach((film) => draw(film, { fresh: [] })), 1500);
}

function pause() {
  clearInterval(timer);
  timer = 0;
  play.classList.remove("on");
  play.setAttribute("aria-label", "Play");
}

function toggle() {
  if (timer) return pause();
  if (now === last) show(0);
  if (!last) return;
  timer = setInterval(() => show(now + 1), 1000 / data.fps);
  play.classList.add("on");
  play.setAttribute("aria-label", "Pause");
}

const step = (by) => { pause(); show(now + by); };
slider.max = last;
slider.addEventListener("input", () => { pause(); show(Number(slider.value)); });
play.addEventListener("click", toggle);
at("back").addEventListener("click", () => step(-1));
at("next").addEventListener("click", () => step(1));
document.addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.metaKey || event.altKey) return;
  const keys = { ArrowLeft: () => step(-1), ArrowRight: () => step(1), Home: () => step(-last), End: () => step(last), " ": toggle };
  if (!(event.key in keys) || (event.key === " " && event.target.tagName === "BUTTON")) return;
  event.preventDefault();
  keys[event.key]();
});
const wanted = Number.parseInt(location.hash.slice(1), 10);
show(Number.isNaN(wanted) ? 0 : wanted);
