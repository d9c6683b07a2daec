// The page at /: puts its parts together. Theme, key, and what is shown are decided here.

import { startChat } from "./chat.js";
import { apiKey, ask } from "./client.js";
import { byId, count, kept } from "./dom.js";
import { startEngine } from "./engine.js";
import { openSettings, startForm } from "./form.js";

const THEMES = ["auto", "light", "dark"];

const theme = kept("localStorage", "quire-theme");
const shown = kept("localStorage", "quire-view");
const dark = matchMedia("(prefers-color-scheme: dark)");
const narrow = matchMedia("(max-width: 1099px)");

startForm();
const engine = startEngine();
const chat = startChat(askKey);

function askKey() {
  byId("key-field").classList.add("asked-for");
  byId("key-field").open = true;
  openSettings(true);
  byId("docs").hidden = true;
  byId("key").focus();
}

async function tellModel() {
  try {
    const { data } = await (await ask("v1/models")).json();
    byId("model").textContent = `${data[0].id}, ${count(data[0].max_model_len)} tokens`;
    document.title = `Quire, ${data[0].id}`;
    byId("key-field").classList.remove("asked-for");
  } catch (error) {
    byId("model").textContent = error.status === 401 ? "needs an API key" : error.message;
    if (error.status === 401) askKey();
  }
}

function tellTheme() {
  const name = theme.value || "auto";
  byId("theme").textContent = `Theme: ${name}`;
  if (name === "auto") delete document.documentElement.dataset.theme;
  else document.documentElement.dataset.theme = name;
  engine.redraw();
}

function tellView() {
  let view = document.querySelector("[name=view]:checked").value;
  if (view === "both" && narrow.matches) view = "chat";
  document.body.dataset.view = view;
  for (const radio of document.querySelectorAll("[name=view]")) radio.checked = radio.value === view;
  engine.follow(view !== "chat" && !document.hidden);
}

byId("theme").addEventListener("click", () => {
  const name = THEMES[(THEMES.indexOf(theme.value || "auto") + 1) % THEMES.length];
  theme.value = name === "auto" ? "" : name;
  tellTheme();
});
dark.addEventListener("change", () => engine.redraw());

byId("key").value = apiKey.value;
// A link sends no key.
byId("docs").hidden = apiKey.value !== "";
byId("key").addEventListener("change", () => {
  apiKey.value = byId("key").value.trim();
  engine.follow(false);
  tellView();
  tellModel();
});

for (const radio of document.querySelectorAll("[name=view]")) {
  if (radio.value === shown.value) radio.checked = true;
  radio.addEventListener("change", () => {
    shown.value = radio.value;
    tellView();
  });
}
narrow.addEventListener("change", tellView);
document.addEventListener("visibilitychange", tellView);
addEventListener("pagehide", () => chat.stop());

tellTheme();
tellView();
tellModel();
if (!narrow.matches) byId("message").focus();
