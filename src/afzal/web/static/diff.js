// Marks the words in which two texts differ, by the longest common subsequence. The texts do not change.

import { cards, element } from "./show.js";

const MOST_CELLS = 4_000_000;

export function isShown() {
  return document.querySelector("#responses mark") !== null;
}

// False if there is nothing to compare, or if the texts are too long.
export function toggle() {
  if (isShown()) return clear();
  if (document.querySelector("#responses .markdown")) return false;
  const [first, second] = cards().map((card) => [...card.querySelectorAll(".part")]);
  if (!second) return false;
  return first.map((part, k) => second[k] && compare(part, second[k])).some(Boolean);
}

function clear() {
  for (const part of document.querySelectorAll("#responses .part")) part.textContent = part.textContent;
  return true;
}

function compare(one, other) {
  const a = words(one.textContent), b = words(other.textContent);
  const shared = common(a, b);
  if (!shared) return false;
  write(one, a, shared[0]);
  write(other, b, shared[1]);
  return true;
}

const words = (text) => text.match(/\s+|[\p{L}\p{N}\p{M}]+|[^\s\p{L}\p{N}\p{M}]/gu) ?? [];

// Which words of a and of b belong to the longest common subsequence.
function common(a, b) {
  let start = 0, end = 0;
  while (start < a.length && a[start] === b[start]) start++;
  while (end < a.length - start && end < b.length - start && a.at(-1 - end) === b.at(-1 - end)) end++;
  const n = a.length - start - end, m = b.length - start - end, width = m + 1;
  if (n * m > MOST_CELLS) return null;
  const length = new Uint16Array((n + 1) * width);
  for (let i = n - 1; i >= 0; i--) {
    for (let j = m - 1; j >= 0; j--) {
      length[i * width + j] = a[start + i] === b[start + j]
        ? length[(i + 1) * width + j + 1] + 1
        : Math.max(length[(i + 1) * width + j], length[i * width + j + 1]);
    }
  }
  const inA = a.map((_, k) => k < start || k >= a.length - end);
  const inB = b.map((_, k) => k < start || k >= b.length - end);
  for (let i = 0, j = 0; i < n && j < m;) {
    if (a[start + i] === b[start + j]) inA[start + i++] = inB[start + j++] = true;
    else if (length[(i + 1) * width + j] >= length[i * width + j + 1]) i++;
    else j++;
  }
  return [inA, inB];
}

function write(part, list, shared) {
  const pieces = [];
  for (let k = 0; k < list.length;) {
    const from = k;
    while (k < list.length && shared[k] === shared[from]) k++;
    const text = list.slice(from, k).join("");
    pieces.push(shared[from] ? text : element("mark", {}, text));
  }
  part.replaceChildren(...pieces);
}
