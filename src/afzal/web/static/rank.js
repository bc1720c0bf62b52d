// Ranking up to nine responses: digits from best to worst, "=" ties the next one with the last, Enter saves.

import { digitOf } from "./keys.js";
import { $, cards, element, showResponses } from "./show.js";

let groups = [], ties = false, count = 0;

export const keys = [
  [["1", "…", "9"], "the next best response"],
  [["="], "tie the next one with the last"],
  [["⌫"], "remove the last one"],
  [["Enter"], "save, once all are placed"],
];

export function show(question, vote) {
  count = question.responses.length;
  groups = [];
  ties = false;
  const digits = question.responses.map((_, place) => String(place + 1));
  showResponses(question.responses, digits.map((digit) => `Response ${digit}`), digits, (place) => { put(place); update(); });
  const order = element("output", { id: "order", class: "order", "data-testid": "order", "aria-live": "polite" });
  const tie = element("button", { type: "button", "data-testid": "tie" }, element("kbd", {}, "="), " tie");
  const back = element("button", { type: "button", "data-testid": "back" }, element("kbd", {}, "⌫"), " back");
  const save = element("button", { type: "button", class: "primary", id: "save", "data-testid": "save" }, "Save ", element("kbd", {}, "Enter"));
  tie.addEventListener("click", () => { join(); update(); });
  back.addEventListener("click", () => { takeBack(); update(); });
  save.addEventListener("click", () => finish(vote));
  $("choices").replaceChildren(order, tie, back, save);
  update();
}

export function key(event, vote) {
  const digit = digitOf(event);
  if (event.key === "=" || event.code === "Equal" || event.code === "NumpadEqual") join();
  else if (event.key === "Backspace") takeBack();
  else if (event.key === "Enter") return finish(vote);
  else if (digit >= 1 && digit <= count) put(digit - 1);
  else return false;
  update();
  return true;
}

const placed = () => groups.flat();

function put(place) {
  if (placed().includes(place)) return;
  if (ties) groups.at(-1).push(place);
  else groups.push([place]);
  ties = false;
}

function join() {
  ties = groups.length > 0 && placed().length < count && !ties;
}

function takeBack() {
  if (ties) ties = false;
  else if (groups.at(-1)?.length > 1) groups.at(-1).pop();
  else groups.pop();
}

function finish(vote) {
  if (placed().length === count) vote({ groups });
  return true;
}

function update() {
  const rank = new Map(groups.flatMap((group, place) => group.map((k) => [k, place + 1])));
  cards().forEach((card, place) => {
    card.classList.toggle("chosen", rank.has(place));
    card.querySelector(".badge").textContent = rank.has(place) ? ordinal(rank.get(place)) : "";
  });
  const written = groups.map((group) => group.map((k) => k + 1).join(" = ")).join("  >  ");
  $("order").textContent = written + (ties ? " =" : "") || "best first";
  $("order").classList.toggle("empty", groups.length === 0);
  $("save").disabled = placed().length < count;
}

export function mark() {}

export function words({ groups }) {
  const tied = groups.some((group) => group.length > 1);
  return `ranked, ${groups.length === 1 ? "all equal" : tied ? "with ties" : "without ties"}`;
}

function ordinal(n) {
  return n + ({ 1: "st", 2: "nd", 3: "rd" }[n] ?? "th");
}
