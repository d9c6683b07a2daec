// The engine as it works: follows /debug/live while somebody looks, and shows what it tells.

import { BlockMap } from "./blocks.js";
import { Chart } from "./charts.js";
import { ask } from "./client.js";
import { byId, count, counted, duration, fillLegend, make } from "./dom.js";
import { readEvents } from "./events.js";
import { History, WINDOW_S } from "./history.js";

const RETRY_MS = [500, 1000, 2000, 4000, 8000];
const NUM_STEPS = 96;

const TILES = [
  ["outputs", "Outputs/s"],
  ["computed", "Computed/s"],
  ["first", "First token"],
  ["between", "Between tokens"],
  ["running", "Running"],
  ["waiting", "Waiting"],
  ["hits", "Prefix hits"],
  ["preempted", "Preemptions"],
];

class EngineView {
  #history = new History();
  #steps = [];
  #about = null;
  #map = new BlockMap();
  #tiles = new Map();
  #following = null;
  isPaused = false;

  constructor() {
    for (const [name, title] of TILES) {
      const value = make("dd", { text: "–" });
      this.#tiles.set(name, value);
      byId("tiles").append(make("div", {}, make("dt", { text: title }), value));
    }
    const steps = {
      range: (low, high) => [Math.max(0, (high ?? 0) - NUM_STEPS) + 0.5, Math.max(high ?? 0, NUM_STEPS) + 0.5],
      tell: (step) => (Number.isInteger(step) && step > 0 ? count(step) : ""),
    };
    const time = {
      range: () => [-WINDOW_S, 0],
      tell: (second) => (second ? `${second} s` : "now"),
    };
    const bars = (id, series, hideX) => new Chart(id, { kind: "bars", series, x: steps, hideX });
    const lines = (id, series) => new Chart(id, { kind: "lines", series, x: time });
    this.prefill = bars("plot-prefill", [{ name: "prompt", colour: "prefill" }], true);
    // From the top of a bar down, as they are drawn.
    this.decode = bars("plot-decode", [
      { name: "wrong guesses", colour: "wrong-guess" },
      { name: "right guesses", colour: "right-guess" },
      { name: "outputs", colour: "decode" },
    ]);
    this.rate = lines("plot-rate", [
      { name: "computed", colour: "prefill" },
      { name: "outputs", colour: "decode" },
    ]);
    this.queue = lines("plot-queue", [
      { name: "running", colour: "decode" },
      { name: "waiting", colour: "copied" },
    ]);
    fillLegend(byId("step-legend"), [
      ["prefill", "prompt tokens (above)"],
      ["decode", "output tokens"],
      ["right-guess", "right guesses"],
      ["wrong-guess", "wrong guesses"],
    ]);
    fillLegend(byId("rate-legend"), [["prefill", "computed"], ["decode", "outputs"]]);
    fillLegend(byId("queue-legend"), [["decode", "running"], ["copied", "waiting"]]);
  }

  // Follow while that is wanted: nobody costs the engine anything who does not look.
  follow(wanted) {
    if (wanted === Boolean(this.#following)) return;
    if (!wanted) {
      this.#following.abort();
      this.#following = null;
      return;
    }
    this.#following = new AbortController();
    this.#run(this.#following.signal);
  }

  async #run(signal) {
    let failures = 0;
    while (!signal.aborted) {
      try {
        const response = await ask("debug/live", { signal });
        this.#history = new History();
        this.#steps = [];
        for await (const event of readEvents(response.body)) {
          failures = 0;
          this.#take(event);
        }
        this.#tellState("ended", "warn");
      } catch (error) {
        if (signal.aborted) return;
        const words = { 401: "asks for a key", 429: "too many viewers" };
        this.#tellState(words[error.status] ?? "not reachable", "warn");
        byId("engine-state").title = error.message;
        // Another key makes it begin anew.
        if (error.status === 401) return;
      }
      const wait = RETRY_MS[Math.min(failures++, RETRY_MS.length - 1)];
      await new Promise((resume) => {
        setTimeout(resume, wait);
        signal.addEventListener("abort", resume, { once: true });
      });
    }
  }

  #tellState(text, kind) {
    const pill = byId("engine-state");
    if (pill.textContent !== text) pill.textContent = text;
    pill.dataset.kind = kind;
  }

  #take(event) {
    if (event.about) {
      this.#about = event.about;
      this.#map.about(event.about);
    }
    this.#history.add(event);
    this.#steps = [...this.#steps, ...event.steps].slice(-NUM_STEPS);
    if (this.isPaused) return;
    const isBusy = event.num_running + event.num_waiting > 0;
    const words = event.status === "ok" ? (isBusy ? "working" : "idle") : event.status;
    this.#tellState(words, event.status !== "ok" ? "warn" : isBusy ? "busy" : "");
    this.#map.show(event.cells, event.block_counts);
    this.#showTiles(event);
    this.#showSteps(event);
    this.#showLines();
  }

  #showTiles({ num_running: running, num_waiting: waiting, stats }) {
    const point = this.#history.points.at(-1);
    const spread = (name) => {
      const bounds = this.#about[`${name}_bounds_s`];
      return duration(this.#history.quantiles(name, bounds, [0.5])[0]);
    };
    const hits = stats.prefix_queries ? `${Math.round((100 * stats.prefix_hits) / stats.prefix_queries)}%` : "–";
    const values = {
      outputs: count(point.outputs),
      computed: count(point.computed),
      first: spread("first_token"),
      between: spread("between_tokens"),
      running: `${count(running)} of ${count(this.#about.max_num_seqs)}`,
      waiting: count(waiting),
      hits,
      preempted: count(stats.num_preemptions),
    };
    for (const [name, value] of Object.entries(values)) {
      const tile = this.#tiles.get(name);
      if (tile.textContent !== value) tile.textContent = value;
    }
  }

  #showSteps({ stats }) {
    const column = (index) => this.#steps.map((step) => step[index]);
    const [numbers, guesses, right] = [column(0), column(6), column(7)];
    this.prefill.show(numbers, [column(4)]);
    const wrong = guesses.map((number, index) => number - right[index]);
    this.decode.show(numbers, [column(5), right, wrong]);
    const last = this.#steps.at(-1);
    byId("steps-now").textContent = last
      ? `${count(last[0])}: ${counted(last[3], "row")}, ${counted(last[4] + last[5] + last[6], "token")} in ${duration(last[2])}`
      : `${count(stats.num_steps)} so far`;
  }

  #showLines() {
    const points = this.#history.points;
    const now = points.at(-1);
    const column = (name) => points.map((point) => point[name]);
    const xs = points.map((point) => point.at_s - now.at_s);
    this.rate.show(xs, [column("computed"), column("outputs")]);
    this.queue.show(xs, [column("running"), column("waiting")]);
    byId("rate-now").textContent = count(now.outputs);
    byId("queue-now").textContent = `${count(now.running)} run, ${count(now.waiting)} wait`;
  }

  // The theme has changed.
  redraw() {
    for (const chart of [this.prefill, this.decode, this.rate, this.queue]) chart.make();
    this.#map.draw();
  }
}

export function startEngine() {
  const view = new EngineView();
  const pause = byId("pause");
  pause.addEventListener("click", () => {
    view.isPaused = !view.isPaused;
    pause.setAttribute("aria-pressed", String(view.isPaused));
    pause.textContent = view.isPaused ? "Go on" : "Pause";
  });
  return view;
}
