// The map of blocks: a cell for each block, or for a few of them.

import { byId, colour, count, fillLegend } from "./dom.js";

export const STATES = ["free", "cached", "owned", "shared", "copied"];
const TELL = [
  "free",
  "cached: a prompt may find it",
  "owned by one sequence",
  "shared",
  "copied just now",
];
const COPY_SHOWN_MS = 900;
const MOST_PX = 14;
const HIGHEST_PX = 232;

export class BlockMap {
  #canvas = byId("blocks");
  #cells = new Uint8Array();
  #copiedMs = new Map();
  #about = null;
  #here = -1;
  #size = MOST_PX;
  #columns = 1;

  constructor() {
    new ResizeObserver(() => this.draw()).observe(this.#canvas.parentElement);
    this.#canvas.addEventListener("pointermove", (event) => this.#point(event));
    this.#canvas.addEventListener("pointerleave", () => this.#tell(-1));
    this.#canvas.addEventListener("keydown", (event) => this.#key(event));
    this.#canvas.addEventListener("blur", () => this.#tell(-1));
  }

  about(about) {
    this.#about = about;
    this.#cells = new Uint8Array(Math.ceil(about.num_blocks / about.blocks_per_cell));
  }

  // cells: base64; counts: free, cached, owned, shared.
  show(cells, counts) {
    if (cells !== undefined) {
      this.#cells = Uint8Array.from(atob(cells), (one) => one.charCodeAt(0));
      const now = performance.now();
      this.#cells.forEach((state, cell) => {
        if (state === 4) this.#copiedMs.set(cell, now);
      });
    }
    const { num_blocks: total, block_size: size } = this.#about;
    const used = total - counts[0] - counts[1];
    byId("blocks-now").textContent = `${count(used)} of ${count(total)} in use, ${size} tokens each`;
    fillLegend(
      byId("block-legend"),
      STATES.map((name, index) => [name, index < 4 ? `${name} ${count(counts[index])}` : name]),
    );
    this.#canvas.setAttribute(
      "aria-label",
      `Map of ${count(total)} blocks: ${counts.map((number, index) => `${number} ${STATES[index]}`).join(", ")}`,
    );
    this.draw();
  }

  draw() {
    const width = this.#canvas.parentElement.clientWidth - 2 * parseFloat(getComputedStyle(this.#canvas.parentElement).paddingLeft);
    const total = this.#cells.length;
    if (!total || width <= 0) return;
    this.#size = Math.max(3, Math.min(MOST_PX, Math.floor(Math.sqrt((width * HIGHEST_PX) / total))));
    this.#columns = Math.max(1, Math.floor(width / this.#size));
    // Rows of a round number of cells, which fill the width.
    if (this.#columns > 16) {
      this.#columns -= this.#columns % 8;
      this.#size = width / this.#columns;
    }
    const rows = Math.ceil(total / this.#columns);
    const ratio = window.devicePixelRatio || 1;
    const canvas = this.#canvas;
    canvas.width = Math.round(width * ratio);
    const height = Math.ceil(rows * this.#size);
    canvas.height = Math.round(height * ratio);
    canvas.style.height = `${height}px`;
    const context = canvas.getContext("2d");
    context.scale(ratio, ratio);
    const colours = STATES.map((name) => colour(name));
    const gap = this.#size > 5 ? 2 : 1;
    const now = performance.now();
    for (let cell = 0; cell < total; cell++) {
      context.fillStyle = colours[this.#state(cell, now)];
      context.fillRect(...this.#place(cell, gap));
    }
    if (this.#here >= 0 && this.#here < total) {
      const [left, top, wide, high] = this.#place(this.#here, gap);
      context.strokeStyle = colour("ink");
      context.lineWidth = 2;
      context.strokeRect(left - 1, top - 1, wide + 2, high + 2);
    }
  }

  // A copy is seen for a moment longer than it lasts.
  #state(cell, now) {
    const state = this.#cells[cell];
    const copied = this.#copiedMs.get(cell);
    if (copied === undefined || state === 4) return state;
    if (now - copied < COPY_SHOWN_MS && state >= 2) return 4;
    this.#copiedMs.delete(cell);
    return state;
  }

  // Left, top, width and height of a cell, on whole pixels so that edges are sharp.
  #place(cell, gap) {
    const [column, row] = [cell % this.#columns, Math.floor(cell / this.#columns)];
    const [left, top] = [Math.round(column * this.#size), Math.round(row * this.#size)];
    const right = Math.round((column + 1) * this.#size);
    return [left, top, right - left - gap, Math.round((row + 1) * this.#size) - top - gap];
  }

  #point({ offsetX, offsetY }) {
    const column = Math.min(this.#columns - 1, Math.floor(offsetX / this.#size));
    this.#tell(Math.floor(offsetY / this.#size) * this.#columns + column);
  }

  #key(event) {
    const steps = { ArrowRight: 1, ArrowLeft: -1, ArrowDown: this.#columns, ArrowUp: -this.#columns };
    const step = steps[event.key];
    if (step === undefined) return;
    event.preventDefault();
    const next = this.#here < 0 ? 0 : this.#here + step;
    if (next >= 0 && next < this.#cells.length) this.#tell(next);
  }

  #tell(cell) {
    this.#here = cell < this.#cells.length ? cell : -1;
    const note = byId("block-here");
    if (this.#here < 0) {
      note.textContent = "Point at a cell, or move with the arrow keys.";
    } else {
      const { blocks_per_cell: per, num_blocks: total } = this.#about;
      const first = this.#here * per;
      const last = Math.min(first + per, total) - 1;
      const name = per === 1 ? `Block ${count(first)}` : `Blocks ${count(first)} to ${count(last)}, mostly`;
      note.textContent = `${name}: ${TELL[this.#cells[this.#here]]}`;
    }
    this.draw();
  }
}
