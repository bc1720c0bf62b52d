// The chat: messages, answers as they are generated, and blind votes by key.

import { get, post, RequestError, send, TOKEN, upload } from "/static/api.js";
import * as clock from "/static/clock.js";
import { byId, element, keyList, openDialog } from "/static/dom.js";
import { digitOf, isPlain, isQuestionMark, isTyping, letterOf } from "/static/keys.js";

const KEYS = [
  ["↵", "send; Shift+↵ starts a new line"], ["Esc", "stop the answers; leave the message box to use the keys below"],
  ["1 2", "the first or second answer is better"], ["0", "they are equal"], ["9", "both are bad"], ["s", "skip: no vote"],
  ["u", "undo the last vote"], ["n", "new conversation"], ["t", "tally, with names"], ["/", "back to the message box"],
];
const ATTACHING = ["a", "attach an image or a sound; you can also paste or drop one"];
const BY_DIGIT = { 1: "first", 2: "second", 0: "tie", 9: "both_bad" };
const WORDS = { first: "first is better", second: "second is better", tie: "equal", both_bad: "both bad", skip: "skipped" };
const ENDINGS = { length: "cut at the length limit", stopped: "stopped", eos: "" };

let state = null;

function show(next) {
  state = next;
  const title = state.blind ? "Blind: two answers in random order" : state.names.join(" and ");
  byId("who").textContent = title;
  byId("how").textContent = Object.entries(state.sampling).map(([name, value]) => `${name.replaceAll("_", " ")} ${value}`).join(" · ");
  document.querySelector("[data-act=tally]").hidden = !state.blind;
  showAttached();
  const main = byId("main");
  main.replaceChildren(...state.rounds.map(section));
  if (!state.rounds.length) main.append(element("p", "intro", intro()));
  setPhase(state.busy ? "busy" : state.waits);
  main.scrollTop = main.scrollHeight;
  if (state.busy) setTimeout(() => refresh(), 1000); // another page is using the chat
}

function showAttached() {
  byId("attach").hidden = !state.reads.length;
  byId("file").accept = state.reads.map((kind) => `${kind}/*`).join(",");
  byId("attached").hidden = !state.attached.length;
  byId("attached").replaceChildren(...state.attached.map(chip));
}

function chip(medium) {
  const node = element("li"), remove = element("button", "", "Remove");
  remove.type = "button";
  remove.setAttribute("aria-label", `Remove ${medium.name}`);
  remove.addEventListener("click", () => attempt(async () => {
    show(await post("/api/detach", { media: medium.media }));
    byId("text").focus();
  }));
  if (medium.type === "image") node.append(player(medium));
  node.append(element("span", "", medium.summary), remove);
  return node;
}

function player({ type, media, name }) {
  const node = element(type === "image" ? "img" : "audio");
  node.src = `/media/${TOKEN}/${media}`;
  if (type === "image") node.alt = name;
  else node.controls = true, node.setAttribute("aria-label", name);
  return node;
}

function intro() {
  const kinds = state.reads.map((kind) => (kind === "image" ? "images" : "sounds")).sort().join(" and ");
  const first = kinds ? `Type a message. You can attach ${kinds}.` : "Type a message.";
  if (!state.blind) return `${first} Each model continues its own conversation.`;
  return `${first} Two models answer in random order; choose the better answer, and the conversation continues with it.`;
}

function section(round) {
  const node = element("section");
  const answers = element("div", "answers");
  for (let place = 0; place < state.places; place++) answers.append(article(round, place));
  if (round.media.length) {
    const media = element("div", "media");
    media.append(...round.media.map(player));
    node.append(media);
  }
  if (round.said) node.append(element("p", "said", round.said));
  node.append(answers);
  return node;
}

function article(round, place) {
  const node = element("article"), head = element("h2"), answer = round.answers[place];
  const isBetter = round.judged === ["first", "second"][place];
  node.className = isBetter ? "better" : "";
  node.dataset.testid = `answer-${place + 1}`;
  head.append(element("span", "", state.blind ? `${place + 1}${isBetter ? " · better" : ""}` : state.names[place]), element("small"));
  const text = element("p", "", answer?.text ?? "");
  if (answer) text.dataset.empty = "(empty)";
  node.append(head, text);
  if (answer) note(node, answer, state.blind && !round.judged);
  return node;
}

// Until the vote, the number of tokens is hidden: it could reveal the tokenizer.
function note(node, answer, isHidden) {
  const tokens = isHidden ? "" : `${answer.tokens} tokens`;
  node.querySelector("small").textContent = [tokens, ENDINGS[answer.stop]].filter(Boolean).join(" · ");
}

function setPhase(phase) {
  document.body.dataset.phase = phase;
  byId("choices").hidden = phase !== "vote";
  byId("text").disabled = byId("send").disabled = byId("attach").disabled = phase !== "say";
  byId("stop").hidden = phase !== "busy";
  if (phase === "vote") {
    clock.restart();
    byId("main").focus();
  } else if (phase === "say") byId("text").focus();
}

function trouble(message) {
  byId("banner").hidden = !message;
  byId("banner").textContent = message ?? "";
}

async function attempt(work) {
  try {
    await work();
    trouble(null);
  } catch (error) {
    trouble(error.status ? error.message : "The server is not responding. Nothing was lost: try again once it is running.");
    if (state && document.body.dataset.phase !== "busy") setPhase(state.waits);
  }
}

const refresh = () => attempt(async () => show(await get("/api/state")));

async function say() {
  const text = byId("text").value;
  if ((!text.trim() && !state.attached.length) || document.body.dataset.phase !== "say") return;
  const response = await send("/api/say", { text });
  byId("text").value = "";
  byId("saved").textContent = "";
  document.querySelector(".intro")?.remove();
  const node = section({ said: text, media: state.attached, answers: [], judged: null });
  byId("attached").hidden = true;
  byId("main").append(node);
  setPhase("busy");
  for (const one of node.querySelectorAll("article")) one.setAttribute("aria-busy", "true");
  byId("main").scrollTop = byId("main").scrollHeight;
  let failed = null;
  for await (const line of linesOf(response)) {
    if (line.error) failed = line.error;
    else if (line.state) show(line.state);
    else hear(node.querySelectorAll("article")[line.place], line);
  }
  if (document.body.dataset.phase === "busy") await refresh();
  if (failed) {
    byId("text").value = text;
    throw new RequestError(409, { message: failed });
  }
}

function hear(node, line) {
  const text = node.querySelector("p"), main = byId("main");
  const isAtEnd = main.scrollHeight - main.scrollTop - main.clientHeight < 60;
  if (line.done) {
    node.removeAttribute("aria-busy");
    text.textContent = line.done.text;
    note(node, line.done, state.blind);
  } else text.textContent = text.textContent.slice(0, line.keep) + line.text;
  if (isAtEnd) main.scrollTop = main.scrollHeight;
}

async function* linesOf(response) {
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  for (;;) {
    const { value, done } = await reader.read();
    if (done) return;
    const lines = (rest + value).split("\n");
    rest = lines.pop();
    for (const line of lines) yield JSON.parse(line);
  }
}

const attach = (files) => attempt(async () => {
  for (const file of files) {
    byId("saved").textContent = `attaching ${file.name}`;
    try {
      show(await upload(`/api/attach?name=${encodeURIComponent(file.name)}`, file));
    } finally {
      byId("saved").textContent = "";
    }
  }
});

const canAttach = () => document.body.dataset.phase === "say" && state.reads.length > 0;

const judge = (outcome) => attempt(async () => {
  if (document.body.dataset.phase !== "vote") return;
  setPhase("saving");
  show(await post("/api/vote", { outcome, ...clock.read() }));
  byId("saved").textContent = outcome === "skip" ? "skipped" : `saved ${state.saved}: ${WORDS[outcome]}`;
});

const acts = {
  undo: () => attempt(async () => {
    show(await post("/api/undo", {}));
    byId("saved").textContent = "undone";
  }),
  new: () => attempt(async () => {
    show(await post("/api/new", {}));
    byId("saved").textContent = "";
  }),
  attach: () => byId("file").click(),
  stop: () => attempt(() => post("/api/stop", {})),
  tally: () => attempt(async () => openDialog("Tally", tally(await get("/api/tally")))),
  keys: () => openDialog("Keys", keyList(state.reads.length ? [...KEYS, ATTACHING] : KEYS)),
};

function tally({ models, counts, win_rate: rate }) {
  const table = element("table");
  const rows = [[`${models[0]} is better`, counts.first], [`${models[1]} is better`, counts.second], ["equal", counts.tie], ["both bad", counts.both_bad]];
  for (const [name, count] of rows) {
    const row = element("tr");
    row.append(element("th", "", name), element("td", "", String(count)));
    table.append(row);
  }
  const percent = (share) => (100 * share).toFixed(1);
  const words = rate ? `Win rate of ${models[0]}: ${percent(rate.value)}% [${percent(rate.low)}, ${percent(rate.high)}], 95% over conversations, ties half.` : "No votes yet.";
  const all = element("div");
  all.append(table, element("p", "soft", `${words} Once you have seen the names, you are no longer blind to the models' habits.`));
  return all;
}

function onKey(event) {
  if (!isPlain(event) || byId("dialog").open) return;
  const phase = document.body.dataset.phase;
  if (event.key === "Escape") return phase === "busy" ? acts.stop() : event.target.blur();
  if (isTyping(event)) {
    if (event.key !== "Enter" || event.shiftKey) return;
    event.preventDefault();
    return attempt(say);
  }
  if (event.repeat) return;
  const letter = letterOf(event), digit = digitOf(event);
  if (phase === "vote" && digit in BY_DIGIT) return judge(BY_DIGIT[digit]);
  if (phase === "vote" && letter === "s") return judge("skip");
  const act = { u: acts.undo, n: acts.new, t: state.blind ? acts.tally : null }[letter];
  if (isQuestionMark(event)) acts.keys();
  else if (letter === "a" && canAttach()) event.preventDefault(), acts.attach();
  else if (event.key === "/" && phase === "say") event.preventDefault(), byId("text").focus();
  else if (act && (phase === "say" || phase === "vote")) event.preventDefault(), act();
}

addEventListener("keydown", onKey);
byId("form").addEventListener("submit", (event) => (event.preventDefault(), attempt(say)));
byId("file").addEventListener("change", async () => {
  await attach([...byId("file").files]);
  byId("file").value = ""; // so that the same file can be chosen again
});
addEventListener("paste", (event) => {
  const { files, types } = event.clipboardData;
  if (!canAttach() || !files.length || types.includes("text/plain")) return; // word processors copy text as an image too
  event.preventDefault();
  attach([...files]);
});
for (const kind of ["dragover", "dragleave", "drop"]) {
  addEventListener(kind, (event) => {
    if (!event.dataTransfer.types.includes("Files")) return;
    event.preventDefault(); // the browser would open the file
    document.body.classList.toggle("dropping", kind === "dragover" && canAttach());
    if (kind === "drop" && canAttach()) attach([...event.dataTransfer.files]);
  });
}
for (const button of document.querySelectorAll("[data-act]")) button.addEventListener("click", () => acts[button.dataset.act]());
for (const button of document.querySelectorAll("[data-judge]")) button.addEventListener("click", () => judge(button.dataset.judge));
clock.watch();
refresh();
