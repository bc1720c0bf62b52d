// Images and sounds. A sound counts as heard once it has played for three seconds, or to its end.

import { TOKEN } from "./api.js";
import { $, cards, element } from "./show.js";
import * as dialogs from "./dialogs.js";

const ENOUGH = 3;

let side = 0, current = null;
const heardOf = new WeakMap(), broken = new WeakSet();

export const keys = [
  [["q", "w"], "play or pause the sound of the first, the second response"],
  [["a"], "play or pause the sound of the prompt"],
  [["e"], "play the last sound from its start"],
  [["z"], "an image at full size"],
  [["x"], "flip between the two images"],
];

export function partOf({ type, media }) {
  const src = `/media/${TOKEN}/${media}`;
  const made = type === "image" ? imageFrom(src) : soundFrom(src);
  made.addEventListener("error", () => { broken.add(made); told(); });
  return made;
}

function imageFrom(src) {
  const image = element("img", { class: "image", src, alt: "image", "data-testid": "image" });
  image.addEventListener("error", () => { image.alt = "This image cannot be shown."; });
  return image;
}

function soundFrom(src) {
  const sound = element("audio", { src, controls: true, preload: "auto", "aria-label": "sound", "data-testid": "sound" });
  heardOf.set(sound, { seconds: 0, last: 0, ended: false });
  sound.addEventListener("play", () => { pauseOthers(sound); heardOf.get(sound).last = sound.currentTime; });
  sound.addEventListener("timeupdate", () => listen(sound));
  sound.addEventListener("ended", () => { heardOf.get(sound).ended = true; told(); });
  return sound;
}

function listen(sound) {
  const heard = heardOf.get(sound), gap = sound.currentTime - heard.last;
  if (gap > 0 && gap < 1) heard.seconds += gap;
  heard.last = sound.currentTime;
  told();
}

let told = () => {};

// Called when more of a sound was heard, and when something cannot be shown.
export function onChange(callback) {
  told = callback;
}

const allIn = (place, tags) => [...(place?.querySelectorAll(tags) ?? [])];
const soundsIn = (place) => allIn(place, "audio");
const imageOf = (card) => card?.querySelector("img.image");
const isHeard = (sound) => heardOf.get(sound).ended || heardOf.get(sound).seconds >= ENOUGH;

// Of several sounds in one place the one that plays, else the first that was not heard yet.
function soundOf(place) {
  const sounds = soundsIn(place);
  return sounds.find((sound) => !sound.paused) ?? sounds.find((sound) => !isHeard(sound)) ?? sounds[0];
}

const inResponses = () => cards().some(soundOf);

export function allHeard() {
  return [$("prompt"), ...cards()].flatMap(soundsIn).every(isHeard);
}

// An image or a sound whose file is gone, or of a format that this browser lacks: nobody can compare what does not show.
export function isBroken() {
  return [$("prompt"), ...cards()].some((place) => allIn(place, "audio, img.image").some((one) => broken.has(one)));
}

// Which keys play what is still to be heard.
export function hint() {
  const ways = [soundOf($("prompt")) && "a plays the prompt's", inResponses() && "q and w play those of the responses"];
  return ways.filter(Boolean).join(", ");
}

// Seconds heard of each response, in the order shown; null where there is nothing to hear in any of them.
export function heard() {
  if (!inResponses()) return null;
  const seconds = (card) => soundsIn(card).reduce((sum, sound) => sum + heardOf.get(sound).seconds, 0);
  return cards().map((card) => Math.round(seconds(card) * 10) / 10);
}

export function pauseOthers(kept = null) {
  for (const sound of document.querySelectorAll("audio")) if (sound !== kept) sound.pause();
}

export function key(letter) {
  if (letter === "a") return toggle(soundOf($("prompt")));
  if (letter === "q" || letter === "w") return toggle(soundOf(cards()[letter === "q" ? 0 : 1]));
  if (letter === "e") return restart();
  if (letter === "z") return open(side);
  if (letter === "x") return open(dialogs.kind() === "image" ? 1 - side : side);
  return false;
}

function toggle(sound) {
  if (!sound) return false;
  current = sound;
  if (sound.paused) sound.play().catch(() => {});
  else sound.pause();
  return true;
}

function restart() {
  const sound = current?.isConnected ? current : (soundOf($("prompt")) ?? soundOf(cards()[0]));
  if (!sound) return false;
  current = sound;
  sound.currentTime = 0;
  sound.play().catch(() => {});
  return true;
}

function open(place) {
  const image = imageOf(cards()[place]) ?? imageOf($("prompt")) ?? imageOf(cards()[1 - place]);
  if (!image) return false;
  side = place;
  const large = element("img", { src: image.src, alt: "image at full size", "data-testid": "large" });
  dialogs.open("image", cards().length === 2 ? ["First", "Second"][place] : "Image", large, dialogs.leaving("Close"));
  return true;
}
