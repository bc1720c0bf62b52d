// Which key was pressed, on any keyboard layout: digits by position, letters by what they type.

export function digitOf(event) {
  const place = /^(?:Digit|Numpad)(\d)$/.exec(event.code);
  if (place) return Number(place[1]);
  return /^\d$/.test(event.key) ? Number(event.key) : null;
}

// On a Cyrillic or Greek keyboard, the key that types "s" in Latin layouts counts as "s".
export function letterOf(event) {
  if (/^[a-z]$/i.test(event.key)) return event.key.toLowerCase();
  const place = /^Key([A-Z])$/.exec(event.code);
  return place ? place[1].toLowerCase() : null;
}

export function isQuestionMark(event) {
  return event.key === "?" || (event.code === "Slash" && event.shiftKey);
}

export function isPlain(event) {
  return !event.ctrlKey && !event.metaKey && !event.altKey && !event.isComposing;
}

export function isTyping(event) {
  return /^(?:INPUT|TEXTAREA)$/.test(event.target.tagName);
}
