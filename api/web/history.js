// What the engine has told lately, and what follows from it. Pure.

export const WINDOW_S = 60;
const RATE_S = 1.5;
const SPREAD_S = 15;

// The counters of events, the newest last, and figures of the time between them.
export class History {
  events = [];
  points = [];

  add(event) {
    this.events.push(event);
    while (event.at_s - this.events[0].at_s > WINDOW_S) this.events.shift();
    this.points.push(this.#point(event));
    while (event.at_s - this.points[0].at_s > WINDOW_S) this.points.shift();
  }

  // The newest event that is at least so old, or else the oldest.
  before(seconds) {
    const now = this.events.at(-1).at_s;
    return this.events.findLast((event) => event.at_s <= now - seconds) ?? this.events[0];
  }

  #point(event) {
    const then = this.before(RATE_S);
    const took = event.at_s - then.at_s;
    const rate = (now, before) => (took > 0 ? (now - before) / took : 0);
    const outputs = rate(event.num_generated_tokens, then.num_generated_tokens);
    const computed = rate(event.stats.num_scheduled_tokens, then.stats.num_scheduled_tokens);
    return {
      at_s: event.at_s,
      computed,
      outputs,
      running: event.num_running,
      waiting: event.num_waiting,
    };
  }

  // Quantiles of a Spread in the last seconds, or since the start where nothing was in them.
  quantiles(name, bounds, shares) {
    const { [name]: now } = this.events.at(-1);
    const { [name]: then } = this.before(SPREAD_S);
    const lately = now.counts.map((number, index) => number - then.counts[index]);
    const counts = lately.some((number) => number > 0) ? lately : now.counts;
    return shares.map((share) => quantile(counts, bounds, share));
  }
}

// The value below which a share of what was counted lies, taken to be even between two bounds.
export function quantile(counts, bounds, share) {
  const total = counts.reduce((sum, number) => sum + number, 0);
  if (!total) return NaN;
  let left = share * total;
  for (const [index, number] of counts.entries()) {
    if (number && left <= number) {
      const low = index ? bounds[index - 1] : 0;
      return low + ((bounds[index] ?? low) - low) * (left / number);
    }
    left -= number;
  }
  return bounds.at(-1);
}
