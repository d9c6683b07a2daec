// The conversation: what was said, who is being answered, and how that is stopped.

import { Answer } from "./answer.js";
import { ask, failureOf } from "./client.js";
import { byId, counted, make } from "./dom.js";
import { readEvents } from "./events.js";
import { PROMPTS } from "./examples.js";
import { clearFieldErrors, FieldError, fillTools, hasField, readForm, showFieldError } from "./form.js";
import { hideAlternatives } from "./tokens.js";

const NEAR_PX = 80;

class Chat {
  messages = [];
  #running = null;
  #welcome = byId("welcome");

  constructor(onAsksKey) {
    this.onAsksKey = onAsksKey;
  }

  get isRunning() {
    return this.#running !== null;
  }

  // Say something and have it answered; false where that is not possible now.
  send(text) {
    const body = this.#read();
    if (!body || !text.trim()) return false;
    this.#say(text);
    this.messages.push({ role: "user", content: text });
    this.#answer({ ...body, messages: this.#prompt() });
    return true;
  }

  results(messages) {
    const body = this.#read();
    if (!body) return false;
    this.messages.push(...messages);
    this.#answer({ ...body, messages: this.#prompt() });
    return true;
  }

  // Ask again what an answer was for, with its seed. The conversation goes on from the first one.
  repeat(answer) {
    if (this.isRunning) return;
    this.#answer({ ...answer.body, seed: answer.seed }, answer);
  }

  stop() {
    this.#running?.abort();
  }

  clear() {
    this.stop();
    this.messages = [];
    hideAlternatives();
    clearFieldErrors();
    byId("log").replaceChildren(this.#welcome);
  }

  #read() {
    if (this.isRunning) return null;
    try {
      clearFieldErrors();
      return readForm();
    } catch (error) {
      if (!(error instanceof FieldError)) throw error;
      showFieldError(error);
      return null;
    }
  }

  #prompt() {
    const system = byId("system").value;
    return [...(system ? [{ role: "system", content: system }] : []), ...this.messages];
  }

  #say(text) {
    this.#welcome.remove();
    const node = make("article", { class: "asked", "aria-label": "You" }, make("h2", { text: "You" }), make("div", { class: "text", text }));
    byId("log").append(node);
    node.scrollIntoView({ block: "end" });
  }

  async #answer(body, earlier = null) {
    const controller = (this.#running = new AbortController());
    const on = { repeat: (one) => this.repeat(one), results: (given) => this.results(given) };
    const answer = new Answer({ label: earlier ? "Repeated" : "Model", earlier, on });
    answer.body = body;
    byId("log").append(answer.node);
    this.#show("Answering.");
    let [stopped, error] = [false, null];
    try {
      const sent = { ...body, stream: true, return_token_ids: true, stream_options: { include_usage: true } };
      const response = await ask("v1/chat/completions", { body: sent, signal: controller.signal });
      for await (const chunk of readEvents(response.body)) {
        if (chunk.error) throw failureOf(chunk.error, response.status === 200 ? 0 : response.status);
        this.#keepEnd(() => answer.take(chunk));
      }
    } catch (caught) {
      stopped = caught.name === "AbortError";
      if (!stopped) error = caught;
    }
    if (this.#running === controller) this.#running = null;
    this.#keepEnd(() => answer.end({ stopped, error }));
    if (answer.node.isConnected) this.#settle(answer, earlier, error);
    this.#show(error ? "" : stopped ? "Stopped." : `Answered: ${counted(answer.tokenIds.length, "token")}.`);
  }

  // What comes of an answer that has ended: the conversation goes on with it, or without.
  #settle(answer, earlier, error) {
    if (error?.status === 401) this.onAsksKey();
    else if (error && hasField(error.param)) showFieldError({ id: error.param, message: error.message });
    if (earlier) return;
    if (!answer.isEmpty) {
      this.messages.push(answer.message);
    } else if (this.messages.at(-1)?.role === "user") {
      const { content } = this.messages.pop();
      if (error && !byId("message").value) byId("message").value = content;
    }
  }

  // Change the log, and stay at its end where the reader was there.
  #keepEnd(change) {
    const log = byId("log");
    const atEnd = log.scrollHeight - log.scrollTop - log.clientHeight < NEAR_PX;
    change();
    if (atEnd) log.scrollTop = log.scrollHeight;
  }

  #show(text) {
    byId("announce").textContent = text;
    const hadFocus = document.activeElement;
    byId("halt").hidden = !this.isRunning;
    byId("send").hidden = this.isRunning;
    if (hadFocus === byId("send") || hadFocus === byId("halt")) byId(this.isRunning ? "halt" : "send").focus();
  }
}

export function startChat(onAsksKey) {
  const chat = new Chat(onAsksKey);
  const message = byId("message");
  const send = () => {
    if (chat.send(message.value)) message.value = "";
  };
  byId("composer").addEventListener("submit", (event) => {
    event.preventDefault();
    send();
  });
  message.addEventListener("keydown", (event) => {
    if (event.key === "Enter" && !event.shiftKey && !event.isComposing) {
      event.preventDefault();
      send();
    }
  });
  addEventListener("keydown", (event) => {
    if (event.key !== "Escape") return;
    hideAlternatives();
    chat.stop();
  });
  byId("halt").addEventListener("click", () => chat.stop());
  byId("clear").addEventListener("click", () => {
    chat.clear();
    message.focus();
  });
  byId("chips").append(
    ...PROMPTS.map(({ text, tools }) =>
      make("button", {
        type: "button",
        text,
        onclick: () => {
          if (tools) fillTools();
          chat.send(text);
          message.focus();
        },
      }),
    ),
  );
  return chat;
}

