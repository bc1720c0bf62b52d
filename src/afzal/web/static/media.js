// Images and sounds. A sound counts as heard once it has played for three seconds, or to its end.

import { TOKEN } from "./api.js";
import { $, cards, element } from "./show.js";
import * as dialogs from "./dialogs.js";

const ENOUGH = 3;

let side = 0, current = null;
const heardOf = new WeakMap(), broken = new WeakSet();

export const keys = [
  [["q", "w"], "play or pause the sound of the first or second response"],
  [["a"], "play or pause the sound of the prompt"],
  [["e"], "play the last sound from the start"],
  [["z"], "show an image at full size"],
  [["x"], "flip between the two images"],
];

export function partOf({ type, media }) {
  const src = `/media/${TOKEN}/${media}`;
  const player = type === "image" ? imageFrom(src) : soundFrom(src);
  player.addEventListener("error", () => { broken.add(player); notify(); });
  return player;
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
  sound.addEventListener("ended", () => { heardOf.get(sound).ended = true; notify(); });
  return sound;
}

function listen(sound) {
  const heard = heardOf.get(sound), gap = sound.currentTime - heard.last;
  if (gap > 0 && gap < 1) heard.seconds += gap;
  heard.last = sound.currentTime;
  notify();
}

let notify = () => {};

// The callback runs whenever more of a sound has been heard, and when something cannot be shown.
export function onChange(callback) {
  notify = callback;
}

const allIn = (place, tags) => [...(place?.querySelectorAll(tags) ?? [])];
const soundsIn = (place) => allIn(place, "audio");
const imageOf = (card) => card?.querySelector("img.image");
const isHeard = (sound) => heardOf.get(sound).ended || heardOf.get(sound).seconds >= ENOUGH;

// One of several sounds in a place: the one that is playing, else the first that has not been heard yet.
function soundOf(place) {
  const sounds = soundsIn(place);
  return sounds.find((sound) => !sound.paused) ?? sounds.find((sound) => !isHeard(sound)) ?? sounds[0];
}

const inResponses = () => cards().some(soundOf);

export function allHeard() {
  return [$("prompt"), ...cards()].flatMap(soundsIn).every(isHeard);
}

// Whether the file of an image or sound is missing, or its format unsupported: nobody can compare what does not show.
export function isBroken() {
  return [$("prompt"), ...cards()].some((place) => allIn(place, "audio, img.image").some((one) => broken.has(one)));
}

// The keys that play the sounds.
export function hint() {
  const ways = [soundOf($("prompt")) && "a plays the prompt", inResponses() && "q and w play the responses"];
  return ways.filter(Boolean).join(", ");
}

// Seconds heard of each response, in the order shown; null if no response has a sound.
export function heard() {
  if (!inResponses()) return null;
  const seconds = (card) => soundsIn(card).reduce((sum, sound) => sum + heardOf.get(sound).seconds, 0);
  return cards().map((card) => Math.round(seconds(card) * 10) / 10);
}

export function pauseOthers(playing = null) {
  for (const sound of document.querySelectorAll("audio")) if (sound !== playing) sound.pause();
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
