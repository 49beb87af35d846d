// The page: a conversation, a form, and one answer at a time.

import { render } from "./markdown.js";
import { AnswerError, ConnectionLost, chunksOf } from "./stream.js";

const TURNS = 12; // how much of the conversation goes with a question
const CHARACTERS = 40_000;

const $ = (id) => document.getElementById(id);
const [log, question, status] = [$("log"), $("question"), $("status")];
const turns = [];
let running = null; // the turn whose answer is coming

// A turn: a question, its answer so far, and where both are shown.

function newTurn(text) {
  const parts = {
    words: element("p", "", [text]),
    text: element("div", "text"),
    notice: element("div", "notice"),
    figures: element("span", "figures"),
    actions: element("span", "actions"),
  };
  const asked = element("article", "asked", [element("h2", "unseen", ["You"]), parts.words]);
  const foot = element("div", "foot", [parts.figures, parts.actions]);
  const heading = element("h2", "unseen", ["Answer"]);
  const answered = element("article", "answered", [heading, parts.text, parts.notice, foot]);
  log.append(asked, answered);
  $("welcome").hidden = true;
  const turn = { question: text, answer: "", answered, ...parts };
  turns.push(turn);
  return turn;
}

/**
 * Asks for a turn's answer and shows it as it comes.
 *
 * @param {"anew" | "on" | "rejoin"} how from its beginning; on from where it broke off; or the same answer once more,
 *   of an app that keeps answers
 */
async function ask(turn, how = "anew") {
  if (running) return;
  if (how === "anew") turn.answer = "";
  if (how !== "rejoin") Object.assign(turn, { base: turn.answer, id: newId() });
  Object.assign(turn, { abort: new AbortController(), figured: new Figures(how === "rejoin") });
  begin(turn);
  let failure = null;
  try {
    let received = "";
    for await (const chunk of chunksOf(how === "rejoin" ? rejoined(turn) : posted(turn), turn.abort)) {
      const text = chunk.choices?.[0]?.delta?.content ?? "";
      received += typeof text === "string" ? text : "";
      const answer = joined(turn.base, received);
      if (answer.length > turn.answer.length) turn.answer = answer; // else it repeats what is here
      if (chunk.question) turn.question = turn.words.textContent = chunk.question; // we came late
      turn.figured.add(chunk, text);
      draw(turn);
    }
  } catch (error) {
    failure = turn.stopped ? null : error;
  }
  finish(turn, failure);
}

async function posted(turn) {
  const response = await fetch("chat", {
    method: "POST",
    headers: { "Content-Type": "application/json" },
    body: JSON.stringify({ id: turn.id, messages: conversation(turn) }),
    signal: turn.abort.signal,
  });
  turn.again = response.headers.get("Content-Location"); // an app that keeps answers says where
  if (turn.again) history.replaceState(null, "", `#${turn.again}`);
  return response;
}

function rejoined(turn) {
  return fetch(turn.again, { signal: turn.abort.signal });
}

/** Shows the answer that the page's address names, from its beginning, if the app keeps answers. */
function join() {
  const [, again, id] = /^#(answers\/([0-9a-f]{32}))$/.exec(location.hash) ?? [];
  if (again) ask(Object.assign(newTurn(""), { id, again, base: "" }), "rejoin");
}

/** Returns what to send: the newest turns that have an answer, the question, and the beginning of its answer. */
function conversation(turn) {
  const earlier = turns.slice(0, turns.indexOf(turn)).filter(({ answer }) => answer.trim());
  const messages = [];
  let room = CHARACTERS - turn.question.length;
  for (const { question, answer } of earlier.slice(-TURNS).reverse()) {
    room -= question.length + answer.length;
    if (room < 0) break;
    messages.unshift({ role: "user", content: question }, { role: "assistant", content: answer });
  }
  messages.push({ role: "user", content: turn.question });
  if (turn.base.trim()) messages.push({ role: "assistant", content: turn.base, prefix: true });
  return messages;
}

/** Returns the whole answer: some servers repeat its beginning before they go on, others do not. */
function joined(before, received) {
  if (received.startsWith(before)) return received;
  return before.startsWith(received) ? before : before + received;
}

function newId() {
  return Array.from(crypto.getRandomValues(new Uint8Array(16)), (byte) => byte.toString(16).padStart(2, "0")).join("");
}

/** Ends the answer that is coming. The app is told, for it might not notice while the model is silent. */
function stop() {
  if (!running) return;
  running.stopped = true;
  running.abort.abort();
  fetch(`stop/${running.id}`, { method: "POST", keepalive: true }).catch(() => {});
}

// What is shown.

function begin(turn) {
  running = turn;
  turn.stopped = false;
  turn.notice.replaceChildren();
  turn.actions.replaceChildren();
  turn.figures.textContent = "";
  turn.answered.classList.add("coming");
  turn.answered.setAttribute("aria-busy", "true"); // to be read out when it is whole, not word by word
  status.textContent = "The answer is coming.";
  for (const button of log.querySelectorAll(".retry")) button.remove(); // only the last answer is asked for again
  draw(turn);
  showButtons();
  turn.answered.scrollIntoView({ block: "end" });
}

/** Draws at the next frame, however many words come until then. */
function draw(turn) {
  turn.frame ??= requestAnimationFrame(() => drawNow(turn));
}

function drawNow(turn) {
  cancelAnimationFrame(turn.frame);
  turn.frame = null;
  const atEnd = innerHeight + scrollY >= document.documentElement.scrollHeight - 80;
  render(turn.text, turn.answer);
  turn.figures.textContent = String(turn.figured);
  if (atEnd) scrollTo(0, document.documentElement.scrollHeight); // who reads further up is left in peace
}

function finish(turn, error) {
  running = null;
  turn.figured.end();
  drawNow(turn);
  turn.answered.classList.remove("coming");
  turn.answered.setAttribute("aria-busy", "false");
  const [said, button] = ending(turn, error);
  status.textContent = said || "The answer is complete.";
  if (said) turn.notice.append(element("p", error ? "bad" : "", [said]));
  if (button) turn.notice.append(button);
  if (turn.answer) turn.actions.append(copyButton(turn));
  if (!button) turn.actions.append(action("Retry", "retry", () => ask(turn)));
  showButtons();
  if (document.activeElement === document.body) toField(); // the button that had it is gone
  if (error) turn.answered.scrollIntoView({ block: "end" });
}

/** Returns what to say of an end, and the button that helps. */
function ending(turn, error) {
  if (turn.stopped) return ["Stopped."];
  if (!error) return [turn.figured.cut ? "The answer reached the longest that this model may say." : ""];
  const again = action("Try again", "retry", () => ask(turn));
  const goOn = (label, how = "on") => action(label, "retry", () => ask(turn, how));
  if (error instanceof ConnectionLost) {
    if (!turn.answer) return ["The server cannot be reached.", again];
    return ["The connection was lost. What came is kept.", goOn("Reconnect", turn.again ? "rejoin" : "on")];
  }
  if (!(error instanceof AnswerError)) return ["What the server sent could not be read.", again];
  return [error.message, error.cutOff && turn.answer ? goOn("Go on") : again];
}

function copyButton(turn) {
  const button = action("Copy", "", async () => {
    const done = await navigator.clipboard?.writeText(turn.answer).then(() => true, () => false);
    button.textContent = done ? "Copied" : "Cannot copy";
    setTimeout(() => (button.textContent = "Copy"), 1500);
  });
  return button;
}

function action(label, name, act) {
  const button = element("button", name, [label]);
  button.type = "button";
  button.addEventListener("click", act);
  return button;
}

function element(tag, name, children = []) {
  const made = document.createElement(tag);
  if (name) made.className = name;
  made.append(...children); // strings become text nodes
  return made;
}

/** How long it took, as the reader saw it, and how much it was, as the server says. */
class Figures {
  began = performance.now();
  words = 0;

  constructor(repeated) {
    this.repeated = repeated; // what was there before comes faster than it was made
  }

  add(chunk, text) {
    if (text) {
      this.first ??= performance.now();
      this.words += 1;
    }
    this.tokens = chunk.usage?.completion_tokens ?? this.tokens;
    this.cut ||= chunk.choices?.[0]?.finish_reason === "length";
  }

  end() {
    this.ended = performance.now();
  }

  toString() {
    const first = this.first && `first token ${seconds(this.first - this.began)}`;
    if (!this.ended || !first) return first ?? "";
    const tokens = this.tokens ?? this.words; // one chunk is about one token
    const spent = this.ended - this.first;
    const rate = tokens > 1 && spent > 0 && !this.repeated ? `, ${Math.round((tokens * 1000) / spent)}/s` : "";
    const amount = `${this.tokens === undefined ? "about " : ""}${tokens} ${tokens === 1 ? "token" : "tokens"}`;
    return [first, `total ${seconds(this.ended - this.began)}`, amount + rate].join(" · ");
  }
}

function seconds(milliseconds) {
  return `${(milliseconds / 1000).toFixed(2)} s`;
}

// What the reader does.

function submit(text) {
  if (!running && text.trim()) ask(newTurn(text.trim()));
}

function showButtons() {
  $("stop").hidden = !running;
  $("send").hidden = Boolean(running);
  $("send").disabled = !question.value.trim();
  $("new").hidden = turns.length === 0;
}

function clear() {
  stop();
  turns.length = 0;
  log.replaceChildren();
  history.replaceState(null, "", location.pathname);
  $("welcome").hidden = false;
  status.textContent = "A new conversation.";
  showButtons();
  toField();
}

/** Goes back to the field; not on a phone, where its keyboard would hide the answer. */
function toField() {
  if (!matchMedia("(pointer: coarse)").matches) question.focus();
}

function fit() {
  question.style.height = "auto";
  question.style.height = `${question.scrollHeight}px`;
  showButtons();
}

$("composer").addEventListener("submit", (event) => {
  event.preventDefault();
  if (running) return; // what is typed meanwhile stays
  submit(question.value);
  question.value = "";
  fit();
});
question.addEventListener("input", fit);
question.addEventListener("keydown", (event) => {
  if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
  event.preventDefault();
  $("composer").requestSubmit();
});
addEventListener("keydown", (event) => event.key === "Escape" && stop());
$("stop").addEventListener("click", stop);
$("new").addEventListener("click", clear);
for (const button of document.querySelectorAll("#welcome button")) {
  button.addEventListener("click", () => {
    submit(button.textContent);
    toField();
  });
}
fit();
toField();
join();
