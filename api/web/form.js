// The settings: what they say as fields of a request, and what is wrong with them.

import { byId, make } from "./dom.js";
import { SCHEMA, TOOLS } from "./examples.js";

// A setting that cannot be sent. `id`: of its field.
export class FieldError extends Error {
  constructor(id, message) {
    super(message);
    this.id = id;
  }
}

const DEFAULT_ALTERNATIVES = 5;

function number(id) {
  const text = byId(id).value.trim();
  if (text === "") return undefined;
  const value = Number(text);
  if (!Number.isFinite(value)) throw new FieldError(id, `${id} is "${text}": it must be a number.`);
  // A seed may have 64 bits, a number of JavaScript has 53: it would be sent as another.
  if (Number.isInteger(value) && !Number.isSafeInteger(value)) {
    throw new FieldError(id, `${id} is ${text}: this page sends at most ${Number.MAX_SAFE_INTEGER}.`);
  }
  return value;
}

function json(id, label) {
  const text = byId(id).value.trim();
  if (text === "") return undefined;
  try {
    return JSON.parse(text);
  } catch (error) {
    throw new FieldError(id, `${label} is not JSON: ${error.message}`);
  }
}

function tools() {
  const given = json("tools", "tools");
  if (given === undefined) return {};
  if (!Array.isArray(given)) throw new FieldError("tools", "tools must be a JSON list of tools.");
  if (!given.length) return {};
  return { tools: given, tool_choice: byId("tool_choice").value };
}

function form() {
  const type = byId("response_format").value;
  if (type === "text") return {};
  if (type === "json_object") return { response_format: { type } };
  const schema = json("schema", "The JSON Schema");
  if (schema === undefined) {
    throw new FieldError("schema", "json_schema needs a JSON Schema: write one, or take the example.");
  }
  return { response_format: { type, json_schema: { name: "answer", schema } } };
}

// The fields of a request beside its messages. Throws FieldError.
export function readForm() {
  const body = { ...tools(), ...form() };
  for (const { id } of byId("form").querySelectorAll("[data-number]")) {
    const value = number(id);
    if (id !== "top_logprobs" && value !== undefined) body[id] = value;
  }
  if (byId("stop").value) body.stop = [byId("stop").value];
  if (byId("logprobs").checked) {
    body.logprobs = true;
    body.top_logprobs = number("top_logprobs") ?? DEFAULT_ALTERNATIVES;
  }
  return body;
}

// Mark the field that is wrong, say why beside it, and go there.
export function showFieldError({ id, message }) {
  clearFieldErrors();
  const field = byId(id);
  for (let box = field.closest("details"); box; box = box.parentElement.closest("details")) {
    box.open = true;
  }
  openSettings(true);
  const note = make("small", { class: "wrong", id: `${id}-wrong`, role: "alert", text: message });
  field.setAttribute("aria-invalid", "true");
  field.setAttribute("aria-errormessage", note.id);
  field.after(note);
  field.focus();
}

export function clearFieldErrors() {
  for (const field of document.querySelectorAll("[aria-invalid]")) {
    field.removeAttribute("aria-invalid");
    field.removeAttribute("aria-errormessage");
  }
  for (const note of document.querySelectorAll(".wrong")) note.remove();
}

// Whether there is a field for a parameter that the server complains of.
export const hasField = (id) => Boolean(id && byId("form").querySelector(`#${CSS.escape(id)}`));

export function fillTools() {
  byId("tools").value = JSON.stringify(TOOLS, null, 1);
  byId("tools").closest("details").open = true;
}

// On a narrow page the settings are behind a button.
export function openSettings(isOpen) {
  byId("settings").classList.toggle("open", isOpen);
  byId("show-settings").setAttribute("aria-expanded", String(isOpen));
}

export function startForm() {
  byId("show-settings").addEventListener("click", () => {
    openSettings(!byId("settings").classList.contains("open"));
  });
  for (const field of byId("form").querySelectorAll("input:not([value])")) {
    if (!field.placeholder && field.type !== "password") field.placeholder = "default";
  }
  byId("stop").placeholder = "none";
  byId("tools-example").addEventListener("click", fillTools);
  byId("schema-example").addEventListener("click", () => {
    byId("schema").value = JSON.stringify(SCHEMA, null, 1);
    byId("response_format").value = "json_schema";
  });
  byId("form").addEventListener("input", clearFieldErrors);
  byId("form").addEventListener("submit", (event) => event.preventDefault());
}
