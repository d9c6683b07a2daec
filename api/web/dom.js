// Elements, made with text and never with markup: what a model says stays text.

export const byId = (id) => document.getElementById(id);

// make("p", {class: "x", text: "y", onclick: f, "aria-label": "z"}, child, ...)
export function make(name, options = {}, ...children) {
  const node = document.createElement(name);
  for (const [key, value] of Object.entries(options)) {
    if (value === undefined || value === null || value === false) continue;
    if (key === "text") node.textContent = value;
    else if (key === "class") node.className = value;
    else if (key.startsWith("on")) node.addEventListener(key.slice(2), value);
    else node.setAttribute(key, value === true ? "" : value);
  }
  node.append(...children);
  return node;
}

export const count = (number) => Math.round(number).toLocaleString("en");

export const counted = (number, noun) => `${count(number)} ${noun}${number === 1 ? "" : "s"}`;

export function duration(seconds) {
  if (!Number.isFinite(seconds)) return "–";
  if (seconds < 0.01) return `${(seconds * 1e3).toFixed(1)} ms`;
  if (seconds < 1) return `${Math.round(seconds * 1e3)} ms`;
  return seconds < 100 ? `${seconds.toFixed(1)} s` : `${Math.round(seconds)} s`;
}

// What a custom property of the style is now, in this theme.
export function colour(name) {
  const probe = make("span", { hidden: true });
  probe.style.color = `var(--${name})`;
  document.body.append(probe);
  const found = getComputedStyle(probe).color;
  probe.remove();
  return found;
}

// A legend: [colour's name, text], in order.
export function fillLegend(list, entries) {
  list.replaceChildren(
    ...entries.map(([name, text]) => {
      const swatch = make("i", { "aria-hidden": "true" });
      swatch.style.background = `var(--${name})`;
      return make("li", {}, swatch, text);
    }),
  );
}

// Where something is kept that may not be there, as in a browser that forbids it.
export function kept(storage, name) {
  return {
    get value() {
      try {
        return window[storage].getItem(name) ?? "";
      } catch {
        return "";
      }
    },
    set value(text) {
      try {
        if (text) window[storage].setItem(name, text);
        else window[storage].removeItem(name);
      } catch {
        // Then it lasts as long as the page.
      }
    },
  };
}
