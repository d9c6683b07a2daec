// The tokens of an answer, coloured by their probability, with what else was likely.

import { byId, make } from "./dom.js";

const LEVELS = [0.9, 0.7, 0.5, 0.3, 0.1];

// 0: nearly certain, 5: a surprise.
export function levelOf(probability) {
  const level = LEVELS.findIndex((bound) => probability >= bound);
  return level < 0 ? LEVELS.length : level;
}

export function percent(logprob) {
  const value = Math.exp(logprob) * 100;
  return value >= 99.95 || value === 0 ? `${value.toFixed(0)}%` : `${value.toPrecision(value < 1 ? 1 : 3)}%`;
}

// A token as it can be seen: spaces and ends of lines have signs.
export const visible = (text) =>
  text.replaceAll("\n", "⏎").replaceAll("\t", "⇥").replace(/^ | $/g, "␣") || "∅";

function showAlternatives(node, row) {
  const box = byId("alternatives");
  const rows = row.top_logprobs.some((one) => one.token === row.token)
    ? row.top_logprobs
    : [row, ...row.top_logprobs];
  box.replaceChildren(
    ...rows.map((one) => {
      const share = make("i", { "aria-hidden": "true" });
      share.style.width = `${Math.exp(one.logprob) * 100}%`;
      return make(
        "div",
        { class: one.token === row.token ? "drawn" : "" },
        make("code", { text: visible(one.token) }),
        make("span", { class: "share" }, share),
        make("span", { class: "number", text: percent(one.logprob) }),
      );
    }),
  );
  box.hidden = false;
  const place = node.getBoundingClientRect();
  const left = Math.min(place.left, innerWidth - box.offsetWidth - 8);
  const below = place.bottom + 6;
  const fits = below + box.offsetHeight < innerHeight;
  box.style.left = `${Math.max(8, left)}px`;
  box.style.top = `${fits ? below : Math.max(8, place.top - box.offsetHeight - 6)}px`;
  node.setAttribute("aria-describedby", box.id);
}

export function hideAlternatives() {
  byId("alternatives").hidden = true;
  document.querySelector("[aria-describedby=alternatives]")?.removeAttribute("aria-describedby");
}

// One stop for the Tab key; arrows go from token to token.
export class TokenStrip {
  constructor() {
    this.rows = [];
    this.node = make("div", {
      class: "tokens",
      role: "listbox",
      "aria-label": "Tokens of the answer: arrow keys show what else was likely",
      "aria-orientation": "horizontal",
      onkeydown: (event) => this.#move(event),
      onmouseover: (event) => this.#show(event.target),
      onmouseout: hideAlternatives,
      onfocusin: (event) => this.#show(event.target),
      onfocusout: hideAlternatives,
    });
  }

  add(rows) {
    for (const row of rows) {
      const probability = Math.exp(row.logprob);
      const text = row.token;
      const node = make("span", {
        class: "token",
        role: "option",
        "aria-selected": "false",
        tabindex: this.rows.length ? "-1" : "0",
        "data-level": levelOf(probability),
        text: text || "∅",
        "aria-label": `${visible(text)}, ${percent(row.logprob)}`,
      });
      this.rows.push(row);
      this.node.append(node);
    }
  }

  #show(target) {
    const place = [...this.node.children].indexOf(target);
    if (place >= 0) showAlternatives(target, this.rows[place]);
  }

  #move(event) {
    const nodes = [...this.node.children];
    const here = nodes.indexOf(document.activeElement);
    const places = { ArrowRight: here + 1, ArrowLeft: here - 1, Home: 0, End: nodes.length - 1 };
    const next = nodes[places[event.key]];
    if (!next) return;
    event.preventDefault();
    nodes[here]?.setAttribute("tabindex", "-1");
    next.setAttribute("tabindex", "0");
    next.focus();
  }
}
