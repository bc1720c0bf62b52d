// Dialogs over the page: keys, guideline, note, reasons to skip.

import { $, element } from "./show.js";

export const isOpen = () => $("dialog").open;

export function close() {
  if (isOpen()) $("dialog").close();
}

// kind decides which keys the dialog answers to; resolves when it is closed.
export function open(kind, title, ...body) {
  close();
  $("dialog").dataset.kind = kind;
  $("dialog-title").textContent = title;
  $("dialog-body").replaceChildren(...body);
  $("dialog").showModal();
  $("dialog").scrollTop = 0;
  return new Promise((resolve) => $("dialog").addEventListener("close", resolve, { once: true }));
}

export const kind = () => (isOpen() ? $("dialog").dataset.kind : "");

export function openKeys(rows) {
  const lines = rows.map(([keys, meaning]) =>
    element("div", {}, element("dt", {}, ...keys.map((key) => element("kbd", {}, key))), element("dd", {}, meaning)));
  return open("keys", "Keys", element("dl", { class: "keys" }, ...lines), closing("Close"));
}

export function openGuideline(text, isFirst) {
  const shown = element("div", { class: "guideline", dir: "auto", tabindex: "0", "data-testid": "guideline-text" });
  shown.textContent = text;
  return open("guideline", "Guideline", shown, closing(isFirst ? "Start" : "Close"));
}

export function openNote(note, onSave) {
  const area = element("textarea", { rows: "5", maxlength: "10000", "aria-label": "Note", "data-testid": "note-text" });
  area.value = note;
  const save = element("button", { type: "button", class: "primary", "data-testid": "note-save" }, "Save ", element("kbd", {}, "Enter"));
  const finish = () => { onSave(area.value.trim()); close(); };
  save.addEventListener("click", finish);
  area.addEventListener("keydown", (event) => {
    if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
    event.preventDefault();
    event.stopPropagation();
    finish();
  });
  const hint = element("p", { class: "hint" }, "It is saved with your answer. ", element("kbd", {}, "Shift"), " ", element("kbd", {}, "Enter"), " starts a new line.");
  const opened = open("note", "Note", area, hint, element("div", { class: "row" }, save, leaving("Cancel")));
  area.focus();
  return opened;
}

export const REASONS = [
  ["cannot_judge", "I cannot judge this"],
  ["broken", "It is broken or unreadable"],
  ["offensive", "It is offensive"],
];

export function openSkip(onReason) {
  const buttons = REASONS.map(([reason, words], place) => {
    const button = element("button", { type: "button", "data-testid": `skip-${reason}` }, element("kbd", {}, String(place + 1)), ` ${words}`);
    button.addEventListener("click", () => { close(); onReason(reason); });
    return button;
  });
  return open("skip", "Why are you skipping this question?", element("div", { class: "reasons" }, ...buttons), leaving("Cancel"));
}

// For people without an Esc key at hand, on a phone or with a mouse.
export function leaving(words) {
  const button = element("button", { type: "button", class: "leaving", "data-testid": "dialog-leave" }, `${words} `, element("kbd", {}, "Esc"));
  button.addEventListener("click", close);
  return button;
}

function closing(words) {
  const button = element("button", { type: "button", class: "primary", "data-testid": "dialog-close" }, `${words} `, element("kbd", {}, "Enter"));
  button.addEventListener("click", close);
  return element("div", { class: "end" }, button);
}
