// Texts on the page. All text from data is set through textContent and never parsed as markup.

import { partOf } from "./media.js";

const FOLDED_LINES = 12;
const ROLES = { user: "User", assistant: "Assistant", system: "System", tool: "Tool", developer: "Developer" };

export const $ = (id) => document.getElementById(id);

export function element(name, attributes = {}, ...children) {
  const created = document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) {
    if (value === true) created.setAttribute(key, "");
    else if (value !== false && value != null) created.setAttribute(key, value);
  }
  created.append(...children);
  return created;
}

export function write(id, text) {
  $(id).textContent = text;
}

// Blocks are {role, parts}; a plain text has no role.
export function turns(blocks) {
  const one = blocks.length === 1;
  return blocks.map((block) => {
    const parts = block.parts.map(part);
    const named = block.role && !(one && /^(?:user|assistant)$/.test(block.role));
    const label = named ? [element("div", { class: "role" }, ROLES[block.role] ?? block.role)] : [];
    return element("div", { class: "turn", "data-role": block.role ?? "text" }, ...label, ...parts);
  });
}

function part({ type, text, media, tree }) {
  if (media) return partOf({ type, media });
  if (tree) return element("div", { class: "part markdown", dir: "auto", "data-testid": "text" }, ...tree.map(node));
  const kind = type === "reasoning" ? "part reasoning" : type === "text" ? "part" : "part foreign";
  const block = element("div", { class: kind, dir: "auto", "data-testid": "text" });
  block.textContent = text;
  return block;
}

const TAGS = new Set("p br hr em strong s code pre blockquote ul ol li h1 h2 h3 h4 h5 h6 table thead tbody tr th td".split(" "));

// A Markdown node is text, or [tag, ...children]; only known tags are created.
function node(value) {
  if (typeof value === "string") return value;
  const [tag, ...children] = value;
  return element(TAGS.has(tag) ? tag : "span", {}, ...children.map(node));
}

export function showPrompt(blocks) {
  const place = $("prompt").querySelector(".text");
  place.replaceChildren(...turns(blocks));
  place.scrollTop = 0;
  const line = parseFloat(getComputedStyle(place).lineHeight);
  const folds = place.scrollHeight > line * (FOLDED_LINES + 1);
  fold(folds);
  // In a conversation, the last turns matter most.
  $("prompt").classList.toggle("tail", blocks.length > 1);
  if (blocks.length > 1) place.scrollTop = place.scrollHeight;
  $("prompt").querySelector(".fold").hidden = !folds;
}

export function fold(folded = !$("prompt").classList.contains("folded")) {
  $("prompt").classList.toggle("folded", folded);
  const button = $("prompt").querySelector(".fold");
  button.replaceChildren(element("kbd", {}, "p"), folded ? " show the whole prompt" : " fold the prompt");
  button.setAttribute("aria-expanded", String(!folded));
}

export function isFoldable() {
  return !$("prompt").querySelector(".fold").hidden;
}

// One card per response. names: their titles; keys: the key for each, if there is one; onPick: called when the card's
// title is pressed.
export function showResponses(responses, names, keys, onPick = null) {
  const cards = responses.map((blocks, place) => {
    const mark = keys[place] ? [element("kbd", {}, keys[place]), " "] : [];
    const name = onPick ? element("button", { type: "button", "data-testid": `pick-${place}` }, ...mark, names[place]) : element("span", {}, ...mark, names[place]);
    if (onPick) name.addEventListener("click", () => onPick(place));
    const head = element("h2", {}, name, element("span", { class: "badge" }));
    const text = element("div", { class: "text", "data-testid": `response-${place}` }, ...turns(blocks));
    return element("article", { tabindex: "0", "aria-label": `${names[place]} response`, "data-place": place }, head, text);
  });
  $("responses").replaceChildren(...cards);
  $("responses").dataset.count = responses.length;
}

export function cards() {
  return [...$("responses").children];
}

// j and k scroll every card; with Shift only the one in focus, or the first.
export function scroll(direction, { one }) {
  const focused = document.activeElement?.closest?.("article");
  const moved = one ? [focused ?? cards()[0]] : cards();
  const scrollable = moved.filter((card) => card && card.scrollHeight > card.clientHeight);
  const main = $("main").scrollHeight > $("main").clientHeight ? $("main") : document.scrollingElement;
  for (const place of scrollable.length ? scrollable : [main]) place.scrollBy({ top: direction * 120, behavior: "instant" });
}

export function minutes(left) {
  if (!left) return "";
  if (left < 1) return "less than a minute left";
  return left < 90 ? `about ${Math.round(left)} min left` : `about ${(left / 60).toFixed(1)} h left`;
}

export function plural(count, noun) {
  return `${count} ${noun}${count === 1 ? "" : "s"}`;
}
