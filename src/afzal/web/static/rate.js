// Rating each response: a digit rates the one in focus and moves on, Tab moves the focus, Enter saves.

import { digitOf } from "./keys.js";
import { $, cards, element, showResponses } from "./show.js";

let values = [], scale = 5;

export const keys = [
  [["1", "…"], "rate the response in focus; higher is better"],
  [["Tab"], "go to the next response"],
  [["Enter"], "save, once all are rated"],
];

export function show(question, vote, about) {
  scale = about.scale;
  values = question.responses.map(() => null);
  const names = values.map((_, place) => (values.length === 1 ? "Response" : `Response ${place + 1}`));
  showResponses(question.responses, names, []);
  cards().forEach((card, place) => card.append(scaleOf(place)));
  const save = element("button", { type: "button", class: "primary", id: "save", "data-testid": "save" }, "Save ", element("kbd", {}, "Enter"));
  save.addEventListener("click", () => finish(vote));
  const hint = element("span", { class: "hint" }, element("kbd", {}, "1"), " worst, ", element("kbd", {}, String(scale)), " best");
  $("choices").replaceChildren(save, hint);
  update();
}

export function focus() {
  cards()[0].focus({ preventScroll: true });
}

function scaleOf(place) {
  const buttons = Array.from({ length: scale }, (_, k) => {
    const button = element("button", { type: "button", tabindex: "-1", "data-testid": `rate-${place}-${k + 1}`, "aria-pressed": "false" }, String(k + 1));
    button.addEventListener("click", () => rate(place, k + 1));
    return button;
  });
  return element("div", { class: "scale", role: "group", "aria-label": `Rating of response ${place + 1}` }, ...buttons);
}

export function key(event, vote) {
  const digit = digitOf(event);
  if (event.key === "Enter") return finish(vote);
  if (!(digit >= 1 && digit <= scale)) return false;
  const focused = cards().indexOf(document.activeElement?.closest?.("article"));
  rate(focused >= 0 ? focused : Math.max(0, values.indexOf(null)), digit);
  return true;
}

function rate(place, value) {
  values[place] = value;
  update();
  const next = [...values.keys()].map((k) => (place + 1 + k) % values.length).find((k) => values[k] === null);
  cards()[next ?? place].focus();
}

function finish(vote) {
  if (!values.includes(null)) vote({ values });
  return true;
}

function update() {
  cards().forEach((card, place) => {
    card.querySelectorAll(".scale button").forEach((button, k) => {
      button.setAttribute("aria-pressed", String(values[place] === k + 1));
    });
  });
  $("save").disabled = values.includes(null);
}

export function mark() {}

export function words({ values }) {
  return `rated ${values.join(", ")}`;
}
