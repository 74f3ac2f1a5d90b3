// The chat page: a conversation in memory, one answer at a time.

import { ApiError, complete, health, models } from "./api.js";
import { settings } from "./settings.js";
import { Turn } from "./turn.js";

const element = (id) => document.getElementById(id);
const conversation = element("conversation");
const messages = element("messages");
const welcome = element("welcome");
const prompt = element("prompt");
const send = element("send");
const stop = element("stop");
const model = element("model");
const status = element("status");
const latest = element("latest");
const options = settings(document);

/** How often a server that is loading or gone is asked again. */
const ASK_AGAIN_MS = 1500;

const page = {
  /** @type {Turn[]} */ turns: [],
  /** @type {AbortController|null} */ running: null,
  /** Whether the view follows the answer; not after the reader scrolled up. */
  following: true,
  ready: false,
  /** The timer of the next question about the server's state. */
  askAgain: 0,
};

// The server's state

const STATES = {
  loading: "The model is loading. You can write already.",
  draining: "The server is shutting down.",
  failed: "The model could not be loaded.",
  gone: "The server cannot be reached. Trying again.",
};

async function watch() {
  clearTimeout(page.askAgain);
  const { state, message, progress } = await health();
  document.body.dataset.server = state;
  const words = state === "failed" ? sentence(message) : (STATES[state] ?? message);
  status.textContent = progress === null ? words : `${words} ${Math.floor(progress * 100)}%`;
  status.hidden = state === "ok";
  page.ready = state === "ok";
  refresh();
  if (state === "ok") await listModels();
  else page.askAgain = setTimeout(watch, ASK_AGAIN_MS);
}

async function listModels() {
  try {
    const list = await models();
    model.replaceChildren(...list.map((entry) => new Option(entry.id, entry.id)));
    model.disabled = list.length < 2;
    model.title = list.map((entry) => `${entry.id} ${entry.meta?.quantization ?? ""}`.trim()).join("\n");
  } catch {
    page.askAgain = setTimeout(watch, ASK_AGAIN_MS);
  }
}

// Asking and stopping

async function answer(turn) {
  const before = page.turns.slice(0, page.turns.indexOf(turn)).flatMap((earlier) => earlier.messages());
  const running = new AbortController();
  page.running = running;
  page.following = true;
  turn.drawn = follow;
  refresh();
  follow();
  announce("Answering.");
  try {
    const request = {
      model: model.value,
      messages: [...options.system(), ...before, { role: "user", content: turn.question }],
      ...options.fields(),
    };
    const end = await complete(request, { signal: running.signal, onText: (piece) => turn.add(piece) });
    turn.done(end);
    announce(turn.text.textContent);
  } catch (error) {
    fail(turn, error);
  }
  if (page.running === running) page.running = null;
  refresh();
  follow();
}

function fail(turn, error) {
  if (error.name === "AbortError") {
    turn.stopped();
    announce("Stopped.");
    return;
  }
  const known = error instanceof ApiError;
  const message = known && error.status === 429 ? "The server is busy and its queue is full." : sentence(error.message);
  turn.failed(known && error.retryAfter ? `${message} Try again in ${error.retryAfter} s.` : message);
  announce(turn.note.textContent);
  if (known && (error.status === 0 || error.status === 503)) watch();
}

/** The server's messages are parts of sentences. */
function sentence(text) {
  const begun = text.charAt(0).toUpperCase() + text.slice(1);
  return /[.!?]$/.test(begun) ? begun : `${begun}.`;
}

function ask(question) {
  if (!question.trim() || page.running || !page.ready) return;
  welcome.hidden = true;
  const turn = new Turn(messages, question.trim());
  page.turns.push(turn);
  answer(turn);
}

function halt() {
  page.running?.abort();
}

/** Asks again; what came after is forgotten. */
function retry(turn) {
  if (page.running || !page.ready) return;
  for (const later of page.turns.splice(page.turns.indexOf(turn) + 1)) {
    later.user.remove();
    later.element.remove();
  }
  turn.begin();
  answer(turn);
}

function newChat() {
  halt();
  page.running = null;
  page.turns = [];
  messages.replaceChildren();
  welcome.hidden = false;
  latest.hidden = true;
  refresh();
  prompt.focus();
}

// The view

function refresh() {
  const busy = page.running !== null;
  stop.hidden = !busy;
  send.hidden = busy;
  send.disabled = !page.ready || !prompt.value.trim();
}

function fit() {
  prompt.style.height = "auto";
  prompt.style.height = `${prompt.scrollHeight}px`;
}

function follow() {
  if (page.following) conversation.scrollTop = conversation.scrollHeight;
}

function announce(text) {
  element("announcer").textContent = text;
}

conversation.addEventListener("scroll", () => {
  const below = conversation.scrollHeight - conversation.scrollTop - conversation.clientHeight;
  page.following = below < 48;
  latest.hidden = page.following || page.turns.length === 0;
});

latest.addEventListener("click", () => {
  page.following = true;
  follow();
});

element("composer").addEventListener("submit", (event) => {
  event.preventDefault();
  if (page.running || !page.ready || !prompt.value.trim()) return;
  const question = prompt.value;
  prompt.value = "";
  fit();
  ask(question);
  prompt.focus();
});

prompt.addEventListener("input", () => {
  fit();
  refresh();
});

prompt.addEventListener("keydown", (event) => {
  // While an input method composes a character, Enter belongs to it.
  if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
  event.preventDefault();
  element("composer").requestSubmit();
});

document.addEventListener("keydown", (event) => {
  if (event.key === "Escape" && page.running && !element("settings").open) halt();
});

stop.addEventListener("click", () => {
  halt();
  prompt.focus();
});

element("new-chat").addEventListener("click", newChat);

element("suggestions").addEventListener("click", (event) => {
  const suggestion = event.target.closest("button");
  if (!suggestion) return;
  prompt.value = suggestion.textContent;
  fit();
  refresh();
  prompt.focus();
});

messages.addEventListener("click", async (event) => {
  const button = event.target.closest("button");
  const turn = page.turns.find((turn) => turn.element.contains(button));
  if (!button || !turn) return;
  if (button.dataset.action === "retry") return retry(turn);
  const code = button.dataset.copy === "code" ? button.closest("figure").querySelector("code").textContent : null;
  if (code !== null || button.dataset.action === "copy") await copy(button, code ?? turn.answer);
});

async function copy(button, text) {
  const label = button.textContent;
  try {
    await navigator.clipboard.writeText(text);
    button.textContent = "Copied";
  } catch {
    // Browsers allow this on secure pages only.
    button.textContent = "Not allowed here";
  }
  setTimeout(() => (button.textContent = label), 1500);
}

element("theme").addEventListener("click", () => {
  const dark = matchMedia("(prefers-color-scheme: dark)").matches;
  const now = document.documentElement.dataset.theme ?? (dark ? "dark" : "light");
  const next = now === "dark" ? "light" : "dark";
  document.documentElement.dataset.theme = next;
  try {
    localStorage.setItem("dunlin.theme", next);
  } catch {
    // Storage may be forbidden: then the choice lasts as long as the page.
  }
});

fit();
refresh();
watch();
