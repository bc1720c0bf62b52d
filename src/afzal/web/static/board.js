// The board: a list that refreshes itself, curves that grow, and keyboard control.

import { get, TOKEN } from "/static/api.js";
import { cursor, draw } from "/static/chart.js";
import { byId, element, keyList, openDialog } from "/static/dom.js";
import { isPlain, isQuestionMark, isTyping, letterOf } from "/static/keys.js";
import { finite, number } from "/static/axes.js";

const FILES = `/f/${TOKEN}/`;
const [LIST_EVERY, MOST, COLOURS] = [2000, 8, 8];
const FIRST = ["loss", "rewards/accuracies", "rewards/margins", "kl", "reward", "perplexity", "grad_norm", "lr"];
const KEYS = [
  ["j k", "next, previous run"], ["Space", "add the run to the charts, or remove it"], ["Enter", "open its report"],
  ["a", "show the runs in training, or else the newest"], ["c", "clear the charts"], ["m", "choose the charts"],
  ["/", "filter the list"], ["g", "go to the charts; there, ← → move along the steps"], ["?", "this list; Esc closes it"],
];

const stored = (name, fallback) => JSON.parse(sessionStorage.getItem(`board.${name}`)) ?? fallback;
const store = (name, value) => sessionStorage.setItem(`board.${name}`, JSON.stringify(value));
const state = { runs: [], pages: [], colours: new Map(stored("colours", [])), metrics: stored("metrics", null), at: null };
const curves = new Map(); // run -> { since, names, known, points }
const rows = new Map(); // run -> its <li>
const figures = new Map(); // metric -> { figure, svg, caption, lines, drawn }

function link(path) {
  return FILES + path.split("/").map(encodeURIComponent).join("/");
}

// The list

async function renewList() {
  try {
    Object.assign(state, await get("/api/runs"));
    say(null);
  } catch (error) {
    say(error.status === 401 ? error.message : "The server is not responding. The page shows its last reply.");
    return;
  }
  for (const path of [...state.colours.keys()]) if (!state.runs.some((run) => run.path === path)) unchoose(path);
  if (document.body.dataset.phase === "loading" && !state.colours.size) chooseNewest();
  document.body.dataset.phase = "ready";
  showList();
  showPages();
  showChosen();
}

function say(trouble) {
  byId("banner").hidden = trouble === null;
  byId("banner").textContent = trouble ?? "";
}

function showList() {
  const list = byId("runs"), wanted = byId("filter").value.trim().toLowerCase();
  const isWanted = (run) => `${run.name} ${run.method ?? ""} ${run.status}`.toLowerCase().includes(wanted);
  const paths = new Set(state.runs.map((run) => run.path));
  for (const [path, row] of rows) if (!paths.has(path)) rows.delete(path), row.remove();
  let last = null;
  for (const run of state.runs) {
    const row = rows.get(run.path) ?? newRow(run);
    fill(row, run);
    row.hidden = !isWanted(run);
    if (row.previousElementSibling !== last || row.parentElement !== list)
      last === null ? list.prepend(row) : last.after(row);
    last = row;
  }
  const training = state.runs.filter((run) => run.status === "running").length;
  const count = `${state.runs.length} ${state.runs.length === 1 ? "run" : "runs"}`;
  byId("count").textContent = count + (training ? `, ${training} training` : "");
}

function newRow(run) {
  const row = element("li"), box = element("input"), label = element("label"), state = element("small");
  row.dataset.path = run.path;
  row.dataset.testid = "run";
  box.type = "checkbox";
  box.id = `run-${rows.size}-${Date.now()}`;
  label.htmlFor = box.id;
  box.addEventListener("change", () => (box.checked ? choose(run.path) : unchoose(run.path), showList(), showChosen()));
  state.append(element("span", "state"), element("span", "rest"));
  const name = element("strong");
  name.append(element("span"), element("b"));
  label.append(name, state, element("small", "sizes"));
  row.append(box, label);
  rows.set(run.path, row);
  return row;
}

function fill(row, run) {
  const colour = state.colours.get(run.path), isTraining = run.status === "running" && run.steps > 0;
  row.dataset.status = run.status;
  if (colour === undefined) delete row.dataset.colour;
  else row.dataset.colour = colour;
  row.querySelector("input").checked = colour !== undefined;
  const cut = run.name.lastIndexOf("/") + 1;
  put(row.querySelector("strong span"), run.name.slice(0, cut));
  put(row.querySelector("strong b"), run.name.slice(cut));
  put(row.querySelector(".state"), run.status);
  put(row.querySelector(".rest"), ` ${progress(run)}`);
  put(row.querySelector(".sizes"), run.why ?? sizes(run));
  let link_ = row.querySelector("a"), bar = row.querySelector("progress");
  if (run.report && !link_) {
    link_ = element("a", "", "report");
    link_.href = link(run.report);
    link_.tabIndex = -1;
    row.append(link_);
  }
  if (isTraining && !bar) row.append((bar = element("progress")));
  if (!isTraining) bar?.remove();
  else Object.assign(bar, { max: run.steps, value: run.step, ariaLabel: "Progress" });
}

function put(target, text) {
  if (target.textContent !== text) target.textContent = text;
}

function progress(run) {
  const parts = [run.method, run.steps ? `step ${number(run.step)} of ${number(run.steps)}` : null];
  if (finite(run.left)) parts.push(`${duration(run.left)} left`);
  else if (finite(run.seconds)) parts.push(duration(run.seconds));
  return parts.filter(Boolean).join(" · ");
}

function sizes(run) {
  const loss = run.loss ?? run.train_loss;
  return [
    finite(loss) ? `${finite(run.loss) ? "held-out" : "train"} loss ${number(loss)}` : null,
    finite(run.accuracy) ? `accuracy ${(100 * run.accuracy).toFixed(1)}%` : null,
    finite(run.reward) ? `reward ${number(run.reward)}` : null,
    finite(run.kl) ? `KL ${number(run.kl)}` : null,
  ].filter(Boolean).join(" · ");
}

function duration(seconds) {
  if (seconds < 90) return `${Math.round(seconds)} s`;
  const minutes = Math.round(seconds / 60);
  return minutes < 60 ? `${minutes} min` : `${Math.floor(minutes / 60)} h ${minutes % 60} min`;
}

function showPages() {
  byId("pages").hidden = !state.pages.length;
  const list = byId("pages").querySelector("ul"), text = JSON.stringify(state.pages);
  if (list.dataset.shown === text) return;
  list.dataset.shown = text;
  list.replaceChildren(...state.pages.map((page) => {
    const row = element("li"), anchor = element("a", "", page.title);
    anchor.href = link(page.path);
    row.append(anchor, element("small", "", `${page.kind} · ${page.path}`));
    return row;
  }));
}

// Runs in the charts

function choose(path) {
  if (state.colours.has(path)) return;
  if (state.colours.size >= MOST) {
    say(`The charts hold at most ${MOST} runs: remove one first.`);
    return;
  }
  const used = new Set(state.colours.values());
  state.colours.set(path, [...Array(COLOURS).keys()].find((k) => !used.has(k)));
  store("colours", [...state.colours]);
  renewCurves();
}

function unchoose(path) {
  state.colours.delete(path);
  curves.delete(path);
  store("colours", [...state.colours]);
}

function chooseNewest() {
  const training = state.runs.filter((run) => run.status === "running");
  const newest = state.runs.filter((run) => run.status !== "broken")
    .sort((a, b) => (b.started ?? "").localeCompare(a.started ?? ""));
  for (const run of (training.length ? training : newest.slice(0, 3)).slice(0, MOST)) choose(run.path);
}

function showChosen() {
  const chosen = state.runs.filter((run) => state.colours.has(run.path));
  const isEmpty = !chosen.length;
  put(byId("hint"), !state.runs.length ? "There are no runs in this folder yet. They appear here when they start."
    : isEmpty ? "No run is in the charts. Press Space to add the run in focus, or a to add the newest." : "");
  byId("chosen").replaceChildren(...chosen.map((run) => {
    const item = element("li", "", run.name);
    item.dataset.colour = state.colours.get(run.path);
    return item;
  }));
  showFigures(chosen);
  showCharts();
}

const COLUMNS = [
  ["state", (run) => run.status], ["method", (run) => run.method ?? "—"],
  ["step", (run) => (finite(run.step) ? `${number(run.step)}${run.steps ? ` / ${number(run.steps)}` : ""}` : "—")],
  ["train loss", (run) => number(run.train_loss)], ["held-out loss", (run) => number(run.loss)],
  ["accuracy", (run) => (finite(run.accuracy) ? `${(100 * run.accuracy).toFixed(1)}%` : "—")],
  ["reward", (run) => number(run.reward)], ["KL, nats", (run) => number(run.kl)],
  ["time", (run) => (finite(run.seconds) ? duration(run.seconds) : "—")],
];

function showFigures(chosen) {
  const table = byId("figures");
  table.hidden = !chosen.length;
  const columns = COLUMNS.filter(([, of]) => chosen.some((run) => of(run) !== "—"));
  const head = element("tr"), body = element("tbody"), top = element("thead");
  head.append(element("th", "", "run"), ...columns.map(([name]) => element("th", "", name)));
  top.append(head);
  for (const run of chosen) {
    const row = element("tr"), name = element("th", "", run.name);
    row.dataset.colour = state.colours.get(run.path);
    row.append(name, ...columns.map(([, of]) => element("td", "", of(run))));
    body.append(row);
  }
  table.replaceChildren(top, body);
}

// Curves

let isRenewing = false, isAskedAgain = false;

async function renewCurves() {
  if (isRenewing) return void (isAskedAgain = true);
  isRenewing = true;
  do {
    isAskedAgain = false;
    await Promise.all([...state.colours.keys()].map((path) => follow(path).catch(() => {})));
    showCharts();
  } while (isAskedAgain);
  isRenewing = false;
}

async function follow(path) {
  const names = (state.metrics ?? FIRST).join(",");
  let curve = curves.get(path);
  if (curve?.names !== names) curve = { since: "", names, known: new Set(curve?.known), points: {} };
  const run = state.runs.find((other) => other.path === path);
  const stamp = `${run?.status} ${run?.step}`;
  if (curve.stamp === stamp && run?.status !== "running") return;
  for (let more = true; more; ) {
    const query = new URLSearchParams({ run: path, names, since: curve.since });
    const update = await get(`/api/curves?${query}`);
    if (update.fresh) curve.points = {};
    for (const [name, kinds] of Object.entries(update.points))
      for (const [kind, points] of Object.entries(kinds)) ((curve.points[name] ??= {})[kind] ??= []).push(...points);
    update.names.forEach((name) => curve.known.add(name));
    [curve.since, more] = [update.next, update.more];
  }
  curve.stamp = stamp;
  if (state.colours.has(path)) curves.set(path, curve);
}

function metricsShown() {
  const known = new Set([...curves.values()].flatMap((curve) => [...curve.known]));
  return state.metrics ?? FIRST.filter((name) => known.has(name)).slice(0, 4);
}

function linesOf(metric) {
  return state.runs.filter((run) => state.colours.has(run.path) && curves.get(run.path)?.points[metric]).map((run) => {
    const points = curves.get(run.path).points[metric];
    return { name: run.name, colour: state.colours.get(run.path), train: points.train ?? [], eval: points.eval ?? [] };
  });
}

function showCharts() {
  const wanted = metricsShown().filter((metric) => linesOf(metric).length);
  for (const [metric, chart] of figures) if (!wanted.includes(metric)) figures.delete(metric), chart.figure.remove();
  wanted.forEach((metric, k) => {
    const chart = figures.get(metric) ?? newFigure(metric);
    const place = byId("charts").children[k];
    if (place !== chart.figure) byId("charts").insertBefore(chart.figure, place ?? null);
    const lines = linesOf(metric);
    chart.lines = lines;
    chart.drawn = draw(chart.svg, lines, Math.max(260, Math.round(chart.figure.clientWidth - 28)));
    chart.svg.setAttribute("aria-label", `${metric} by step: ${lines.map((line) => line.name).join(", ")}`);
    read(chart);
  });
}

function newFigure(metric) {
  const figure = byId("chart").content.firstElementChild.cloneNode(true);
  const [caption, svg] = figure.children;
  figure.dataset.metric = metric;
  caption.querySelector("strong").textContent = metric;
  const chart = { figure, svg, caption, lines: [], drawn: null };
  svg.addEventListener("pointermove", (event) => moveTo(stepAt(chart, event)));
  svg.addEventListener("pointerleave", () => moveTo(null));
  figures.set(metric, chart);
  return chart;
}

function stepsOf(chart) {
  return [...new Set(chart.lines.flatMap((line) => [...line.train, ...line.eval].map((p) => p[0])))].sort((a, b) => a - b);
}

function stepAt(chart, event) {
  const { left, right, x } = chart.drawn.frame;
  const at = x[0] + ((event.offsetX - left) / (right - left)) * (x[1] - x[0]);
  return stepsOf(chart).reduce((a, b) => (Math.abs(b - at) < Math.abs(a - at) ? b : a), Infinity);
}

function moveTo(step) {
  state.at = finite(step) ? step : null;
  for (const chart of figures.values()) read(chart);
}

// The values at the cursor, in the caption.
function read(chart) {
  const target = chart.caption.querySelector("span");
  target.replaceChildren();
  if (chart.drawn) cursor(chart.svg, chart.drawn, state.at);
  if (state.at === null) return;
  target.append(`step ${number(state.at)}`);
  for (const line of chart.lines) {
    const held = line.eval.find((p) => p[0] === state.at), train = line.train.find((p) => p[0] === state.at);
    for (const point of [train, held].filter(Boolean)) {
      const value = element("b", "", number(point[1]));
      value.dataset.colour = line.colour;
      target.append(value);
    }
  }
}

// Keys and dialogs

function visibleRows() {
  return [...byId("runs").children].filter((row) => !row.hidden);
}

function focusBy(delta) {
  const all = visibleRows(), here = all.indexOf(document.activeElement?.closest("#runs li"));
  const next = all[here < 0 ? (delta > 0 ? 0 : all.length - 1) : Math.min(all.length - 1, Math.max(0, here + delta))];
  next?.querySelector("input").focus();
  next?.scrollIntoView({ block: "nearest" });
}

function alongSteps(delta) {
  const chart = figures.get(document.activeElement?.dataset.metric);
  if (!chart) return false;
  const steps = stepsOf(chart), here = steps.findIndex((step) => step >= (state.at ?? Infinity));
  moveTo(steps[state.at === null ? (delta > 0 ? 0 : steps.length - 1) : Math.min(steps.length - 1, Math.max(0, here + delta))]);
  return true;
}

const showKeys = () => openDialog("Keys", keyList(KEYS));

function showMetrics() {
  const known = [...new Set([...curves.values()].flatMap((curve) => [...curve.known]))].sort(
    (a, b) => order(a) - order(b) || a.localeCompare(b));
  const list = element("ul", "names"), shown = new Set(metricsShown());
  for (const name of known) {
    const row = element("li"), label = element("label"), box = element("input");
    Object.assign(box, { type: "checkbox", checked: shown.has(name), name });
    box.addEventListener("change", () => {
      box.checked ? shown.add(name) : shown.delete(name);
      state.metrics = known.filter((metric) => shown.has(metric)).slice(0, 12);
      store("metrics", state.metrics);
      renewCurves();
    });
    label.append(box, ` ${name}`);
    row.append(label);
    list.append(row);
  }
  openDialog("Charts", known.length ? list : element("p", "soft", "Add a run to the charts first."));
}

function order(name) {
  return FIRST.includes(name) ? FIRST.indexOf(name) : FIRST.length;
}

function onKey(event) {
  if (!isPlain(event) || byId("dialog").open) return;
  if (isTyping(event) && event.target.type !== "checkbox") {
    if (event.key === "Escape" || event.key === "Enter") focusBy(1);
    return;
  }
  const arrows = { ArrowRight: 1, ArrowLeft: -1 };
  if (event.key in arrows && alongSteps(arrows[event.key])) return event.preventDefault();
  const row = document.activeElement?.closest("#runs li");
  if (event.key === "Enter" && row) return row.querySelector("a")?.click();
  const acts = {
    j: () => focusBy(1), k: () => focusBy(-1), m: showMetrics, g: () => byId("charts").firstElementChild?.focus(),
    a: () => (chooseNewest(), showList(), showChosen()),
    c: () => ([...state.colours.keys()].forEach(unchoose), showList(), showChosen()),
  };
  const act = event.key === "/" ? () => byId("filter").focus() : isQuestionMark(event) ? showKeys
    : row && event.key === "ArrowDown" ? acts.j : row && event.key === "ArrowUp" ? acts.k : acts[letterOf(event)];
  if (act && !(event.repeat && act !== acts.j && act !== acts.k)) {
    event.preventDefault();
    act();
  }
}

addEventListener("keydown", onKey);
addEventListener("resize", showCharts);
byId("filter").addEventListener("input", showList);
document.querySelector("[data-act=keys]").addEventListener("click", showKeys);
document.querySelector("[data-act=metrics]").addEventListener("click", showMetrics);

async function loop() {
  await renewList();
  await renewCurves();
  setTimeout(loop, document.hidden ? 4 * LIST_EVERY : LIST_EVERY);
}
loop();
