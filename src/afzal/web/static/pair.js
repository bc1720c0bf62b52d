// Comparing two responses: one key is the vote.

import { digitOf } from "./keys.js";
import { $, cards, element, showResponses } from "./show.js";

const OUTCOMES = { 1: "first", 2: "second", 0: "tie", 9: "both_bad" };
const WORDS = { first: "first", second: "second", tie: "equal", both_bad: "both bad" };
const CHOICES = [["1", "first", "first is better"], ["2", "second", "second is better"], ["0", "tie", "equal"], ["9", "both_bad", "both bad"]];

export const keys = [
  [["1", "←"], "the first response is better"],
  [["2", "→"], "the second response is better"],
  [["0"], "they are equally good"],
  [["9"], "both are bad"],
  [["Shift"], "with 1 or 2: clearly better"],
  [["d"], "show where the two differ"],
];

export function show(question, vote) {
  showResponses(question.responses, ["First", "Second"], ["1", "2"]);
  const buttons = CHOICES.map(([key, outcome, words]) => {
    const button = element("button", { type: "button", "data-testid": `vote-${outcome}`, "data-outcome": outcome }, element("kbd", {}, key), ` ${words}`);
    button.addEventListener("click", (event) => vote(verdict(outcome, isClear(event))));
    return button;
  });
  // For people without a Shift key: pressed first, then the answer. Every question starts with it off.
  const clearly = element("button", { type: "button", id: "clearly", "data-testid": "clearly", "aria-pressed": "false" }, element("kbd", {}, "Shift"), " clearly better");
  clearly.addEventListener("click", () => clearly.setAttribute("aria-pressed", String(!isPressed())));
  $("choices").replaceChildren(...buttons, clearly);
}

const isPressed = () => $("clearly").getAttribute("aria-pressed") === "true";
const isClear = (event) => event.shiftKey || isPressed();

export function key(event, vote) {
  const arrow = { ArrowLeft: "first", ArrowRight: "second" }[event.key];
  const outcome = arrow ?? OUTCOMES[digitOf(event)];
  if (outcome) vote(verdict(outcome, isClear(event)));
  return Boolean(outcome);
}

function verdict(outcome, clearly) {
  return outcome === "first" || outcome === "second" ? { outcome, strength: clearly ? 2 : 1 } : { outcome };
}

export function mark({ outcome }) {
  const chosen = { first: [0], second: [1], tie: [0, 1] }[outcome] ?? [];
  cards().forEach((card, place) => card.classList.toggle("chosen", chosen.includes(place)));
  for (const button of $("choices").querySelectorAll("button")) {
    button.classList.toggle("chosen", button.dataset.outcome === outcome);
  }
}

export function words({ outcome, strength }) {
  return WORDS[outcome] + (strength === 2 ? " (clearly)" : "");
}

export function feedback({ right, better, why }) {
  cards().forEach((card, place) => {
    card.classList.remove("chosen");  // from now on, a frame marks the better one
    card.classList.toggle("better", (better === "first") === (place === 0));
  });
  return `${right ? "Right" : "Not quite"}: the ${better} response is better. ${why ?? ""}`;
}
