// One metric of several runs: training values as a smoothed line, held-out values as dots.

import { finite, labels, number, padded, robustRange, smooth, smoothingWindow, thin, ticks } from "/static/axes.js";

const [HEIGHT, TOP, BOTTOM, RIGHT] = [220, 12, 22, 10];

// lines: [{ name, colour, train: [[step, value]], eval: [[step, value]] }]
export function draw(svg, lines, width) {
  const shown = lines.map((line) => {
    const window = smoothingWindow(line.train.length);
    return { ...line, mean: window > 1 ? smooth(line.train, window) : line.train, raw: window > 1 && lines.length < 3 ? line.train : [] };
  });
  const xs = lines.flatMap((line) => [...line.train, ...line.eval].map((p) => p[0]));
  const y = padded(...robustRange(shown.map((line) => [...line.train, ...line.eval].map((p) => p[1]))));
  const low = xs.reduce((a, b) => Math.min(a, b), Infinity), high = xs.reduce((a, b) => Math.max(a, b), -Infinity);
  const x = low < high ? [low, high] : padded(low, high);
  const values = ticks(...y);
  const words = labels(values);
  const frame = { left: 10 + 6.4 * Math.max(...words.map((w) => w.length)), right: width - RIGHT, x, y };
  const px = (v) => frame.left + ((v - x[0]) / (x[1] - x[0])) * (frame.right - frame.left);
  const py = (v) => HEIGHT - BOTTOM - ((v - y[0]) / (y[1] - y[0])) * (HEIGHT - BOTTOM - TOP);
  svg.setAttribute("viewBox", `0 0 ${width} ${HEIGHT}`);
  svg.replaceChildren();
  values.forEach((v, k) => {
    add(svg, "path", { class: "grid", d: `M${frame.left} ${py(v)}H${frame.right}` });
    add(svg, "text", { x: frame.left - 6, y: py(v) + 4, "text-anchor": "end" }, words[k]);
  });
  add(svg, "path", { class: "axis", d: `M${frame.left} ${HEIGHT - BOTTOM}H${frame.right}` });
  for (const v of ticks(...x, width < 380 ? 4 : 6).filter(Number.isInteger))
    add(svg, "text", { x: px(v), y: HEIGHT - 6, "text-anchor": "middle" }, number(v));
  const beyond = [];
  for (const line of shown) {
    for (const [points, css] of [[line.raw, "line faint"], [line.mean, "line"], [line.eval, "line held"]])
      add(svg, "path", { class: css, "data-colour": line.colour, d: path(thin(points), px, py, y) });
    for (const [step, value] of dots(line))
      if (finite(value) && value >= y[0] && value <= y[1])
        add(svg, "circle", { class: "dot", "data-colour": line.colour, cx: px(step), cy: py(value), r: 3 });
    beyond.push(...strays(line, y));
  }
  marks(svg, beyond, frame, px, py);
  return { px, frame };
}

function dots(line) {
  return line.train.length === 1 ? [...line.train, ...line.eval] : line.eval;
}

// A line breaks at values that are not numbers; where it leaves the plot, it ends at the edge.
function path(points, px, py, [low, high]) {
  let d = "", last = null;
  for (const [step, value] of points) {
    const isIn = finite(value) && value >= low && value <= high;
    if (finite(value) && last !== null && (isIn || last.isIn)) {
      if (!last.isIn) d += at("M", crossing(last, step, value, low, high));
      d += at("L", isIn ? [step, value] : crossing({ step, value }, last.step, last.value, low, high));
    } else if (isIn) d += at("M", [step, value]);
    last = finite(value) ? { step, value, isIn } : null;
  }
  return d;

  function at(letter, [x, y]) {
    return `${letter}${px(x).toFixed(1)} ${py(y).toFixed(1)}`;
  }
}

// The point where a line from outside the plot enters it.
function crossing(outside, step, value, low, high) {
  const edge = outside.value > high ? high : low;
  const share = (edge - value) / (outside.value - value);
  return [step + share * (outside.step - step), edge];
}

// A line's furthest values above and below the axis range.
function strays(line, [low, high]) {
  const points = [...line.train, ...line.eval].filter((p) => finite(p[1]));
  const above = points.filter((p) => p[1] > high), under = points.filter((p) => p[1] < low);
  const extremes = [];
  if (above.length) extremes.push({ line, up: true, at: above.reduce((a, b) => (b[1] > a[1] ? b : a)) });
  if (under.length) extremes.push({ line, up: false, at: under.reduce((a, b) => (b[1] < a[1] ? b : a)) });
  return extremes;
}

function marks(svg, beyond, frame, px, py) {
  const rows = { true: 0, false: 0 };
  for (const { line, up, at } of beyond) {
    const x = px(at[0]), edge = up ? TOP : HEIGHT - BOTTOM, tip = up ? -7 : 7;
    add(svg, "path", { class: "beyond", "data-colour": line.colour, d: `M${x - 5} ${edge}h10l-5 ${tip}Z` });
    const row = rows[up]++, isLate = x > (frame.left + frame.right) / 2;
    const y = up ? TOP + 11 + 12 * row : HEIGHT - BOTTOM - 5 - 12 * row;
    const words = `${line.name}: ${number(at[1])}`;
    const place = { class: "beyond-label", "data-colour": line.colour, x: isLate ? x - 8 : x + 8, y };
    add(svg, "text", { ...place, "text-anchor": isLate ? "end" : "start" }, words);
  }
}

function add(parent, tag, attributes, words) {
  const element = document.createElementNS(parent.namespaceURI, tag);
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
  if (words !== undefined) element.textContent = words;
  parent.append(element);
  return element;
}

export function cursor(svg, drawn, step) {
  svg.querySelector(".cursor")?.remove();
  if (step === null || step < drawn.frame.x[0] || step > drawn.frame.x[1]) return;
  add(svg, "path", { class: "cursor", d: `M${drawn.px(step)} ${TOP}V${HEIGHT - BOTTOM}` });
}
