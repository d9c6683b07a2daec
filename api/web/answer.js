// One answer: what has come of it so far, and how it is shown.

import { count, counted, duration, make } from "./dom.js";
import { TokenStrip } from "./tokens.js";

export class Answer {
  // earlier: the answer that this one repeats. on: what its buttons do.
  constructor({ label, earlier = null, on }) {
    this.content = "";
    this.reasoning = "";
    this.calls = [];
    this.tokenIds = [];
    this.earlier = earlier;
    this.seed = null;
    this.finishReason = null;
    this.usage = null;
    this.error = null;
    this.startedMs = performance.now();
    this.firstMs = null;
    this.lastMs = null;
    this.on = on;
    this.text = make("div", { class: "text" });
    this.cards = make("div", { class: "cards" });
    this.foot = make("footer");
    this.node = make(
      "article",
      { class: "answer", "aria-busy": "true", "aria-label": label },
      make("h2", { text: label }),
      this.text,
      this.cards,
      this.foot,
    );
  }

  get isEmpty() {
    return !this.content && !this.reasoning && !this.calls.length;
  }

  // The answer as a later request tells it.
  get message() {
    const message = { role: "assistant", content: this.content };
    if (this.calls.length) {
      message.tool_calls = this.calls.map(({ id, name, arguments: given }) => ({
        id,
        type: "function",
        function: { name, arguments: given },
      }));
    }
    return message;
  }

  // Take in a chunk of a stream.
  take(chunk) {
    if (chunk.usage) this.usage = chunk.usage;
    const choice = chunk.choices?.[0];
    if (!choice) return;
    const { delta = {} } = choice;
    const thought = delta.reasoning_content ?? delta.reasoning;
    if (choice.token_ids?.length) {
      this.tokenIds.push(...choice.token_ids);
      this.lastMs = performance.now();
      this.firstMs ??= this.lastMs;
    }
    if (choice.logprobs?.content.length) this.#addTokens(choice.logprobs.content);
    if (thought) this.#addThought(thought);
    if (delta.content) this.#addContent(delta.content);
    for (const call of delta.tool_calls ?? []) this.#addCall(call);
    if (choice.finish_reason) {
      this.finishReason = choice.finish_reason;
      this.seed = choice.seed ?? null;
    }
  }

  #addTokens(rows) {
    if (!this.strip) {
      this.strip = new TokenStrip();
      this.text.before(this.strip.node);
      this.node.classList.add("as-tokens");
    }
    this.strip.add(rows);
  }

  #addThought(text) {
    if (!this.thought) {
      this.thoughtText = make("div", { class: "thought-text" });
      this.thoughtTitle = make("summary", { text: "Thinking" });
      this.thought = make("details", { class: "thought" }, this.thoughtTitle, this.thoughtText);
      this.text.before(this.thought);
      this.thoughtMs = performance.now();
    }
    this.reasoning += text;
    this.thoughtText.append(text);
  }

  #addContent(text) {
    this.#endThought();
    this.content += text;
    this.text.append(text);
  }

  #endThought() {
    if (this.thought && this.thoughtTitle.textContent === "Thinking") {
      const seconds = (performance.now() - this.thoughtMs) / 1e3;
      this.thoughtTitle.textContent = `Thought for ${duration(seconds)}`;
    }
  }

  #addCall({ index = 0, id, function: part = {} }) {
    this.#endThought();
    let call = this.calls[index];
    if (!call) {
      call = this.calls[index] = { id, name: "", arguments: "" };
      call.title = make("strong");
      call.code = make("pre", {}, make("code"));
      this.cards.append(make("div", { class: "call" }, call.title, call.code));
    }
    call.id ??= id;
    call.name += part.name ?? "";
    call.arguments += part.arguments ?? "";
    call.title.textContent = `calls ${call.name}`;
    call.code.firstChild.textContent = call.arguments;
  }

  // Nothing more comes. why: "stopped", or what failed.
  end({ stopped = false, error = null } = {}) {
    this.error = error;
    this.node.setAttribute("aria-busy", "false");
    this.#endThought();
    for (const call of this.calls) call.code.firstChild.textContent = pretty(call.arguments);
    if (error) this.cards.append(errorCard(error));
    const facts = this.#facts(stopped);
    this.foot.replaceChildren(make("span", { class: "facts", text: facts.join(" · ") }));
    if (this.earlier && !error && !stopped) this.foot.prepend(this.#verdict());
    if (!error && !stopped && this.seed !== null) {
      const title = "Ask again with the seed of this answer, and compare the tokens";
      this.foot.append(
        make("button", { type: "button", class: "quiet", text: "Repeat", title, onclick: () => this.on.repeat(this) }),
      );
    }
    if (this.finishReason === "tool_calls" && !this.earlier) this.#askResults();
  }

  #facts(stopped) {
    const seconds = (this.lastMs - this.firstMs) / 1e3;
    const facts = [];
    if (stopped) facts.push("stopped");
    else if (this.finishReason && this.finishReason !== "stop") facts.push(this.finishReason);
    if (this.tokenIds.length) facts.push(counted(this.tokenIds.length, "token"));
    if (this.tokenIds.length > 1 && seconds > 0) {
      facts.push(`${count((this.tokenIds.length - 1) / seconds)} a second`);
    }
    if (this.firstMs !== null) facts.push(`first after ${duration((this.firstMs - this.startedMs) / 1e3)}`);
    if (this.usage) {
      const cached = this.usage.prompt_tokens_details?.cached_tokens ?? 0;
      facts.push(`prompt ${count(this.usage.prompt_tokens)}, ${count(cached)} cached`);
    }
    if (this.seed !== null) facts.push(`seed ${this.seed}`);
    return facts;
  }

  #verdict() {
    const [now, then] = [this.tokenIds, this.earlier.tokenIds];
    const place = now.findIndex((token, index) => token !== then[index]);
    const same = place < 0 && now.length === then.length;
    const text = same
      ? `the same ${counted(now.length, "token")}`
      : `differs from token ${count((place < 0 ? now.length : place) + 1)}`;
    return make("span", { class: same ? "same" : "differs", text });
  }

  // The caller's tools are the reader's: what they gave is typed in.
  #askResults() {
    const fields = this.calls.map((call) => make("input", { "data-id": call.id, spellcheck: "false" }));
    const labels = this.calls.map((call, index) =>
      make("label", { class: "field" }, `Result of ${call.name}`, fields[index]),
    );
    const send = make("button", { type: "submit", class: "quiet", text: "Send results" });
    const form = make("form", { class: "results" }, ...labels, send);
    form.addEventListener("submit", (event) => {
      event.preventDefault();
      const results = fields.map((field) => ({
        role: "tool",
        tool_call_id: field.dataset.id,
        content: field.value,
      }));
      if (!this.on.results(results)) return;
      for (const field of fields) field.disabled = true;
      send.remove();
    });
    this.cards.append(form);
  }
}

export function errorCard(error) {
  const card = make("div", { class: "error", role: "alert" });
  const kind = error.status ? `Error ${error.status}` : "Error";
  card.append(make("strong", { text: error.param ? `${kind}, ${error.param}` : kind }));
  card.append(make("p", { text: error.message }));
  if (error.requestId) card.append(make("small", { text: `request ${error.requestId}` }));
  return card;
}

function pretty(text) {
  try {
    return JSON.stringify(JSON.parse(text), null, 1);
  } catch {
    return text;
  }
}
