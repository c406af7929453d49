// Rates and quantiles of the time between two answers of /status, from the differences of counts.

const KEPT_S = 300;
const RECENT_S = 60;

export class History {
  snapshots = [];
  points = [];

  // Take up a status; after a restart of the server its counts begin at 0 again.
  add(status) {
    const before = this.snapshots.at(-1);
    if (before && before.started !== status.started) {
      this.snapshots = [];
      this.points = [];
    } else if (before && status.time > before.time) {
      this.points.push(pointBetween(before, status));
    }
    this.snapshots.push(status);
    const old = each => each.time < status.time - KEPT_S;
    this.snapshots = this.snapshots.filter(each => !old(each));
    this.points = this.points.filter(each => !old(each));
  }

  // Figures of one operation over the last minute.
  recent(operation) {
    const now = this.snapshots.at(-1);
    const before = this.snapshots.find(each => each.time >= now.time - RECENT_S);
    return figures(before, now, [operation]);
  }
}

function pointBetween(before, now) {
  const names = Object.keys(now.operations);
  return { time: now.time, queued: now.queue.rows, ...figures(before, now, names) };
}

function figures(before, now, names) {
  const elapsed = now.time - before.time;
  const rate = total => (elapsed > 0 ? Math.max(0, total(now) - total(before)) / elapsed : null);
  const sum = (status, value) =>
    names.reduce(
      (so_far, name) => so_far + (status.operations[name] ? value(status.operations[name]) : 0),
      0,
    );
  const counts = histogram(before, now, names, "request");
  return {
    requests: rate(status => sum(status, answered)),
    errors: rate(status => sum(status, failed)),
    rows: rate(status => sum(status, each => each.rows)),
    p50: quantile(now.bounds.request, counts, 0.5),
    p99: quantile(now.bounds.request, counts, 0.99),
  };
}

export const answered = operation => Object.values(operation.answers).reduce((a, b) => a + b, 0);
export const failed = operation => answered(operation) - (operation.answers[200] ?? 0);

function histogram(before, now, names, of) {
  const counts = now.bounds[of].concat(Infinity).map(() => 0);
  for (const name of names) {
    const old = before.operations[name]?.histograms[of].counts;
    now.operations[name]?.histograms[of].counts.forEach((value, place) => {
      counts[place] += Math.max(0, value - (old?.[place] ?? 0));
    });
  }
  return counts;
}

// The quantile of a histogram, as if values lay evenly within a bucket; null without a value.
export function quantile(bounds, counts, share) {
  const total = counts.reduce((a, b) => a + b, 0);
  if (!total) return null;
  let below = 0;
  for (const [place, found] of counts.entries()) {
    if (found && below + found >= share * total) {
      const low = place ? bounds[place - 1] : 0;
      const high = bounds[place] ?? low;
      return low + (high - low) * ((share * total - below) / found);
    }
    below += found;
  }
  return bounds.at(-1);
}
