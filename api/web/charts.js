// Charts in the colours of the theme: bars that stand on each other, and lines.

import { byId, colour } from "./dom.js";
import uPlot from "./vendor/uPlot.esm.js";

const AXIS_PX = 46;

const short = (value) => (value >= 1e4 ? `${+(value / 1e3).toPrecision(3)}k` : `${+value.toPrecision(6)}`);

// A plot in an element that it fills. series: [{name, colour}]; kind: "bars" or "lines".
export class Chart {
  constructor(id, { kind, series, x, hideX = false }) {
    this.host = byId(id);
    this.options = { kind, series, x, hideX };
    this.data = [[], ...series.map(() => [])];
    this.make();
    new ResizeObserver(() => this.plot.setSize(this.#size())).observe(this.host);
  }

  // Draw anew, as when the theme has changed.
  make() {
    this.plot?.destroy();
    const { kind, series, x, hideX } = this.options;
    const [soft, line] = [colour("soft"), colour("line")];
    const axis = { stroke: soft, grid: { stroke: line, width: 1 }, ticks: { show: false }, font: "11px system-ui" };
    this.plot = new uPlot(
      {
        ...this.#size(),
        padding: [6, 14, hideX ? 7 : 0, 0],
        legend: { show: false },
        cursor: { show: false },
        scales: {
          x: { time: false, range: (_, low, high) => x.range(low, high) },
          y: { range: (_, low, high) => [0, Math.max(high ?? 0, 1) * 1.08] },
        },
        axes: [
          { ...axis, show: !hideX, grid: { show: false }, size: 22, values: (_, values) => values.map(x.tell), space: 70 },
          { ...axis, size: AXIS_PX, space: 24, values: (_, values) => values.map((one) => (Number.isInteger(one) ? short(one) : "")) },
        ],
        series: [{}, ...series.map((one) => this.#style(kind, one))],
      },
      this.data,
      this.host,
    );
  }

  #style(kind, { name, colour: token }) {
    const ink = colour(token);
    if (kind === "bars") {
      return { label: name, fill: ink, stroke: ink, width: 0, paths: uPlot.paths.bars({ size: [0.8, 14] }), points: { show: false } };
    }
    return { label: name, stroke: ink, width: 1.75, points: { show: false } };
  }

  #size() {
    return { width: Math.max(120, this.host.clientWidth), height: Math.max(40, this.host.clientHeight) };
  }

  // xs and a list of values for each series; bars are put on each other, the first at the bottom.
  show(xs, lists) {
    if (this.options.kind === "bars") {
      const totals = [];
      let sums = xs.map(() => 0);
      for (const list of lists) {
        sums = sums.map((sum, index) => sum + list[index]);
        totals.push(sums);
      }
      // The tallest are drawn first, the others over them.
      this.data = [xs, ...totals.reverse()];
    } else {
      this.data = [xs, ...lists];
    }
    this.plot.setData(this.data);
  }
}
