// One question and its answer on the page.

import { show } from "./markdown.js";

const template = (id) => document.getElementById(id).content.firstElementChild.cloneNode(true);

/** What is said where an answer ended early. */
const ENDINGS = {
  stopped: "Stopped.",
  length: "Cut at the length limit.",
};

export class Turn {
  /** Appends the question and an empty answer to `target`. */
  constructor(target, question) {
    this.question = question;
    this.answer = "";
    this.user = template("user-message");
    this.user.querySelector(".text").textContent = question;
    this.element = template("answer-message");
    this.text = this.element.querySelector(".text");
    this.figures = this.element.querySelector(".figures");
    this.note = this.element.querySelector(".note");
    target.append(this.user, this.element);
    this.begin();
  }

  /** Ready for an answer, the first or another. */
  begin() {
    this.answer = "";
    this.pieces = 0;
    this.started = performance.now();
    this.first = null;
    this.text.replaceChildren();
    this.figures.textContent = "";
    this.note.hidden = true;
    this.state("waiting");
  }

  state(state) {
    this.element.dataset.state = state;
    this.element.setAttribute("aria-busy", String(state === "waiting" || state === "streaming"));
  }

  /** Takes a piece of the answer; the page follows with the next frame. */
  add(piece) {
    if (this.first === null) {
      this.first = performance.now();
      this.state("streaming");
    }
    this.answer += piece;
    this.pieces += 1;
    this.frame ??= requestAnimationFrame(() => this.draw());
  }

  draw() {
    this.frame = null;
    show(this.text, this.answer);
    const seconds = (performance.now() - this.first) / 1000;
    if (this.element.dataset.state === "streaming" && seconds > 0.5) {
      this.tell({ rate: (this.pieces - 1) / seconds, tokens: null });
    }
    this.drawn?.();
  }

  /** The figures under the answer. */
  tell({ rate, tokens }) {
    const parts = [];
    if (tokens !== null) parts.push(`${tokens} ${tokens === 1 ? "token" : "tokens"}`);
    if (rate > 0) parts.push(`${rate.toFixed(1)} tokens/s`);
    if (this.first !== null) parts.push(`first token ${((this.first - this.started) / 1000).toFixed(2)} s`);
    this.figures.textContent = parts.join("  ·  ");
    this.figures.dataset.tokensPerSecond = rate.toFixed(3);
    if (this.first !== null) this.figures.dataset.ttftMs = (this.first - this.started).toFixed(1);
  }

  /** The answer is all there; `end` is what the server said last. */
  done(end) {
    this.settle("done", end.finishReason === "length" ? ENDINGS.length : "");
    const tokens = end.usage?.completion_tokens ?? end.timings?.predicted_n ?? this.pieces;
    this.tell({ rate: end.timings?.predicted_per_second || this.rate(), tokens });
  }

  stopped() {
    this.settle("stopped", ENDINGS.stopped);
    if (this.first !== null) this.tell({ rate: this.rate(), tokens: this.pieces });
  }

  failed(message) {
    this.settle("error", message);
  }

  rate() {
    const seconds = (performance.now() - (this.first ?? this.started)) / 1000;
    return this.pieces > 1 ? (this.pieces - 1) / seconds : 0;
  }

  settle(state, note) {
    if (this.frame) cancelAnimationFrame(this.frame);
    this.state(state);
    if (this.first !== null) this.draw();
    this.note.textContent = note;
    this.note.hidden = !note;
  }

  /** The turn as messages of a conversation: nothing while there is no answer. */
  messages() {
    if (!this.answer) return [];
    // Thoughts are for the reader, not for the model's next turn.
    const said = this.answer.replace(/^\s*<think>[\s\S]*?(<\/think>|$)/, "").trimStart();
    return [{ role: "user", content: this.question }, { role: "assistant", content: said }];
  }
}
