// Responses below each other, as on a phone: a bar that stays in view says how many there are, which of them is being
// read, and leads to each.

import { $, cards, element } from "./show.js";

const GAP = 16;  // pixels, at most, between the bar and a response that was led to

export function watch() {
  $("main").addEventListener("scroll", mark, { passive: true });
  addEventListener("scroll", mark, { passive: true });
  addEventListener("resize", show);
  new ResizeObserver(show).observe($("responses"));  // images load, texts unfold
}

// names: the title of each response.
export function list(names) {
  $("jumps").replaceChildren(...names.map((name, place) => {
    const arrow = element("span", { class: "arrow", "aria-hidden": "true" });
    const button = element("button", { type: "button", "data-testid": `go-${place}` }, name, arrow);
    button.addEventListener("click", () => go(place));
    return button;
  }));
  show();
}

function go(place) {
  const card = cards()[place];
  card.scrollIntoView({ block: "start", behavior: "instant" });
  card.focus({ preventScroll: true });
  mark();
}

const scroller = () => [$("main"), document.scrollingElement].find((one) => one.scrollHeight > one.clientHeight);

// The bar is hidden if all responses are side by side, or in view together.
function show() {
  const bar = $("jumps"), [first, second] = cards();
  bar.hidden = true;
  if (!second) return;
  const isBelow = second.getBoundingClientRect().top >= first.getBoundingClientRect().bottom;
  bar.hidden = !isBelow || !scroller();
  mark();
}

function mark() {
  const bar = $("jumps");
  if (bar.hidden) return;
  const top = bar.getBoundingClientRect().bottom, bottom = Math.min($("main").getBoundingClientRect().bottom, innerHeight);
  const places = cards().map((card) => card.getBoundingClientRect());
  const current = read(places, top);
  [...bar.children].forEach((button, place) => {
    if (place === current) button.setAttribute("aria-current", "true");
    else button.removeAttribute("aria-current");
    button.lastElementChild.textContent = places[place].top >= bottom ? " ↓" : places[place].bottom <= top ? " ↑" : "";
  });
}

// The last response whose start has reached the bar. At the end of the page the starts of short ones never do: there it
// is the one in focus, or else the last.
function read(places, top) {
  const { scrollTop, scrollHeight, clientHeight } = scroller() ?? document.scrollingElement;
  if (scrollTop + clientHeight < scrollHeight - 1) return Math.max(0, places.filter((one) => one.top <= top + GAP).length - 1);
  const focused = cards().indexOf(document.activeElement);
  return focused >= 0 && places[focused].bottom > top ? focused : places.length - 1;
}
