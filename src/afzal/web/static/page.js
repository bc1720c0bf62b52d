// The page's states (sign in, guideline, asking, saving, feedback, waiting, done), and what each key does in them.

import * as clock from "./clock.js";
import * as dialogs from "./dialogs.js";
import { get, leave, newId, persist, post, tab } from "./api.js";
import * as diff from "./diff.js";
import * as jumps from "./jumps.js";
import * as media from "./media.js";
import * as rank from "./rank.js";
import * as rate from "./rate.js";
import { digitOf, isPlain, isQuestionMark, isTyping, letterOf } from "./keys.js";
import * as pair from "./pair.js";
import { $, cards, element, fold, isFoldable, minutes, plural, scroll, showPrompt, write } from "./show.js";

const MODES = { pair, rank, rate };
const SLOW = 300, POLL = 4000;

let about = {}, mode = pair, question = null, phase = "loading", note = "", flag = false, afterFeedback = null, timer = 0, guidelineShown = false;

const COMMON_KEYS = [
  [["s"], "skip, with a reason"],
  [["u"], "undo the last answer; press again to undo more"],
  [["n"], "add a note"],
  [["f"], "flag for review"],
  [["j", "k"], "scroll the responses; with Shift, only one"],
  [["p"], "unfold or fold a long prompt"],
  [["g"], "guideline"],
  [["?"], "this list"],
  [["Esc"], "close"],
];

async function begin() {
  clock.watch();
  jumps.watch();
  document.addEventListener("keydown", onKey);
  document.addEventListener("click", onClick);
  addEventListener("pagehide", leave);
  addEventListener("beforeunload", (event) => { if (phase === "saving") event.preventDefault(); });
  media.onChange(() => {
    const isOpening = document.body.classList.contains("locked") && media.allHeard();
    if (phase === "ask" && (isOpening || media.isBroken())) showLock();
  });
  await load();
}

async function load() {
  try {
    about = await get("/api/about");
    mode = MODES[about.mode];
    document.title = `${about.title} · Afzal`;
    write("title", about.title);
    write("who", about.annotator);
    document.querySelector("[data-act=guideline]").hidden = !about.guideline;
    showTrouble(null);
    await showReply(await get(`/api/next?tab=${tab}`));
  } catch (error) {
    if (error.status < 500) return notice("This address is not valid", error.message);
    showTrouble("offline");
    setTimeout(load, 2000);
  }
}

function enter(next) {
  phase = next;
  document.body.dataset.phase = next;
  clearTimeout(timer);
}

// --- replies from the server -----------------------------------------------------------------------------------

async function showReply(reply) {
  showProgress(reply.progress);
  if (reply.state === "ask") return showQuestion(reply);
  question = null;
  if (reply.state === "sign_in") return showSignIn();
  if (reply.state === "wait") return showWaiting();
  if (reply.state === "elsewhere") return showElsewhere();
  return showDone(reply);
}

async function showQuestion(reply) {
  question = reply;
  note = "";
  flag = false;
  showMarks();
  $("notice").hidden = true;
  $("task").hidden = document.querySelector("footer").hidden = false;
  write("axis", reply.axis ?? "");
  write("ask", reply.practice ? `Practice: ${reply.ask}` : reply.ask);
  showPrompt(reply.prompt);
  mode.show(reply, vote, about);
  jumps.list(cards().map((card) => card.querySelector("h2 > :first-child").lastChild.textContent));
  $("main").scrollTop = document.scrollingElement.scrollTop = 0;
  showLock();
  if (mode.focus) mode.focus();
  else $("prompt").focus({ preventScroll: true });
  enter("ask");
  if (about.guideline && reply.progress.done === 0 && !guidelineShown) {
    guidelineShown = true;
    await dialogs.openGuideline(about.guideline, true);
  }
  clock.restart();
}

function showProgress(progress) {
  if (!progress) return;
  const total = progress.done + progress.left;
  write("count", `${progress.done} of ${total}`);
  write("eta", minutes(progress.minutes_left));
  $("bar").value = total ? progress.done / total : 1;
}

function notice(title, text, ...more) {
  $("task").hidden = true;
  $("notice").hidden = false;
  $("notice").replaceChildren(element("h1", {}, title), element("p", {}, text), ...more);
  document.querySelector("footer").hidden = phase === "loading" || phase === "sign_in" || phase === "elsewhere";
}

function showSignIn() {
  enter("sign_in");
  const input = element("input", { id: "name", maxlength: "60", autocomplete: "off", "data-testid": "name" });
  const fault = element("p", { class: "fault", role: "alert", "data-testid": "fault" });
  const button = element("button", { class: "primary", "data-testid": "start" }, "Start ", element("kbd", {}, "Enter"));
  const form = element("form", {}, element("label", { for: "name" }, "Your name"), input, button, fault);
  form.addEventListener("submit", async (event) => {
    event.preventDefault();
    try {
      await post("/api/sign-in", { name: input.value });
      await load();
    } catch (error) {
      fault.textContent = error.status ? error.message : "The server cannot be reached. Try again.";
    }
  });
  notice("Welcome", "Your answers are saved under your name. Once you have chosen one, nobody else can use this address.", form);
  input.focus();
}

function showWaiting() {
  enter("wait");
  notice("One moment", "Other people are working on all the remaining questions. This page checks for new ones by itself.");
  timer = setTimeout(refresh, POLL);
}

function showElsewhere() {
  enter("elsewhere");
  const here = element("button", { type: "button", class: "primary", "data-act": "here", "data-testid": "here" }, "Continue here ", element("kbd", {}, "Enter"));
  notice("Open in another tab", "You can answer in one tab at a time.", here);
}

function showDone(reply) {
  enter("done");
  const { votes, skips, repeats, consistent, seconds } = reply.summary;
  const took = seconds >= 60 ? `, ${Math.round(seconds / 60)} min of work` : "";
  const same = repeats ? `Of ${plural(repeats, "repeated question")}, you gave the same answer to ${consistent}.` : "";
  notice("All done. Thank you.", `${plural(votes, "answer")}, ${skips} skipped${took}.`, element("p", {}, same));
}

async function refresh(query = "") {
  try {
    await showReply(await get(`/api/next?tab=${tab}${query}`));
    showTrouble(null);
  } catch {
    showTrouble("offline");
    timer = setTimeout(refresh, POLL);
  }
}

// --- answers from the person -----------------------------------------------------------------------------------

function vote(verdict) {
  if (phase !== "ask") return;
  if (media.isBroken()) return showLock();
  if (!media.allHeard()) return write("lock", "Listen to every sound first, for three seconds or to the end.");
  mode.mark(verdict);
  send("/api/vote", { ...answer(), ...verdict });
}

function skip(reason) {
  if (phase === "ask") send("/api/skip", { ...answer(), reason });
}

function undo() {
  if (phase === "ask" || phase === "done" || phase === "wait") send("/api/undo", {});
}

function answer() {
  return { question: question.question, position: question.position, note, flag, heard: media.heard(), ...clock.read() };
}

// Keys do nothing until the server has the answer on disk.
async function send(path, body) {
  enter("saving");
  media.pauseOthers();
  const slow = setTimeout(() => document.body.classList.add("slow"), SLOW);
  try {
    const reply = await persist(path, { id: newId(), ...body }, showTrouble);
    if (reply.undone) write("saved", "undone");
    if (reply.saved) write("saved", `saved ${reply.saved.number}: ${spoken(reply.saved)}`);
    await (reply.feedback ? feedback(reply) : showReply(reply.next));
  } catch (error) {
    write("saved", `not saved: ${error.message}`);
    if (error.code === "elsewhere") showElsewhere();
    else await refresh();
  } finally {
    clearTimeout(slow);
    document.body.classList.remove("slow");
  }
}

const spoken = (saved) => (saved.kind === "skip" ? "skipped" : mode.words(saved));

function feedback(reply) {
  enter("feedback");
  afterFeedback = reply.next;
  write("ask", mode.feedback(reply.feedback));
  const goOn = element("button", { type: "button", class: "primary", "data-act": "goOn", "data-testid": "go-on" }, "Continue ", element("kbd", {}, "any key"));
  $("choices").replaceChildren(goOn);
  goOn.focus();
}

function showTrouble(reason) {
  document.body.classList.toggle("offline", reason !== null);
  $("online").lastElementChild.textContent = reason === null ? "online" : "offline";
  $("banner").hidden = reason === null;
  const suffix = phase === "saving" ? " Your last answer is kept here and will be sent again." : "";
  const what = reason === "offline" ? "The server cannot be reached." : `${reason}.`;
  write("banner", reason === null ? "" : what + suffix);
}

function showLock() {
  const why = reasonToWait();
  document.body.classList.toggle("locked", why !== "");
  write("lock", why);
}

function reasonToWait() {
  if (media.isBroken()) return "An image or a sound cannot be shown here: reload the page, or skip the question (s, then 2).";
  return media.allHeard() ? "" : `Listen to every sound before you answer: ${media.hint()}.`;
}

function compare() {
  if (phase === "ask" && about.mode === "pair" && !diff.toggle()) write("saved", "These two cannot be compared word by word.");
}

function showMarks() {
  for (const [act, isOn] of [["note", note !== ""], ["flag", flag]]) {
    document.querySelector(`[data-act=${act}]`).setAttribute("aria-pressed", String(isOn));
  }
}

// --- keys and buttons ------------------------------------------------------------------------------------------

const ACTS = {
  skip: () => phase === "ask" && dialogs.openSkip(skip),
  undo,
  note: () => phase === "ask" && dialogs.openNote(note, (text) => { note = text; showMarks(); }),
  flag: () => { flag = !flag; showMarks(); },
  guideline: () => about.guideline && dialogs.openGuideline(about.guideline, false),
  keys: () => dialogs.openKeys([...mode.keys, ...(document.querySelector("#task :is(audio, img)") ? media.keys : []), ...COMMON_KEYS]),
  fold: () => isFoldable() && fold(),
  diff: compare,
  goOn: () => phase === "feedback" && showReply(afterFeedback),
  here: () => refresh("&take=1"),
};
const LETTERS = { d: "diff", s: "skip", u: "undo", n: "note", f: "flag", g: "guideline", p: "fold" };

function onClick(event) {
  const button = event.target.closest?.("[data-act]");
  if (button) ACTS[button.dataset.act]?.();
}

function onKey(event) {
  if (!isPlain(event) || event.repeat && !"jk".includes(event.key)) return;
  if (dialogs.isOpen()) return onDialogKey(event);
  if (isTyping(event)) return;
  if (phase === "feedback") return afterKey(event, ACTS.goOn);
  if (phase === "elsewhere" && event.key === "Enter") return afterKey(event, ACTS.here);
  if (isQuestionMark(event)) return afterKey(event, ACTS.keys);
  if (event.target.tagName === "AUDIO" && event.key.startsWith("Arrow")) return;  // the player's own: seek, volume
  const letter = letterOf(event);
  if (letter === "j" || letter === "k") return scroll(letter === "j" ? 1 : -1, { one: event.shiftKey });
  if (letter && LETTERS[letter]) return afterKey(event, ACTS[LETTERS[letter]]);
  if (phase !== "ask") return;
  if (letter && media.key(letter)) return event.preventDefault();
  if (event.key === "Enter" && event.target.closest("button")) return;
  if (mode.key(event, vote)) event.preventDefault();
}

function onDialogKey(event) {
  if (dialogs.kind() === "image") {
    if (letterOf(event) === "z") afterKey(event, dialogs.close);
    else if (letterOf(event) === "x") afterKey(event, () => media.key("x"));
  } else if (dialogs.kind() === "skip") {
    const reason = dialogs.REASONS[digitOf(event) - 1];
    if (reason) afterKey(event, () => { dialogs.close(); skip(reason[0]); });
  } else if (dialogs.kind() !== "note" && event.key === "Enter") {
    afterKey(event, dialogs.close);
  }
}

function afterKey(event, act) {
  if (/^(?:Shift|Control|Alt|Meta|CapsLock|Tab)$/.test(event.key)) return;
  event.preventDefault();
  act();
}

begin();
