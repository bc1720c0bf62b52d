// Axis ranges, ticks and number formats for charts, by the rules of the reports (afzal/report/axes.py, value_range.py).

export function finite(value) {
  return typeof value === "number" && Number.isFinite(value);
}

export function number(value) {
  if (!finite(value)) return "—";
  const size = Math.abs(value);
  if (Number.isInteger(value)) return value.toLocaleString("en").replace("-", "−");
  const text = size < 1e-3 ? value.toExponential(2) : size < 1000 ? value.toPrecision(4) : value.toFixed(size < 1e5 ? 1 : 0);
  return text.replaceAll("-", "−");
}

export function ticks(low, high, count = 5) {
  if (low === high) return [low];
  const raw = (high - low) / (count - 1);
  const power = 10 ** Math.floor(Math.log10(raw));
  const step = [1, 2, 5, 10].map((m) => m * power).find((s) => s >= raw * 0.999);
  const first = Math.ceil(low / step - 1e-9), last = Math.floor(high / step + 1e-9);
  const values = [];
  for (let k = first; k <= last; k++) values.push(Number((k * step).toPrecision(12)));
  return values.length ? values : [low];
}

// All with the same number of decimals, so that they line up; powers of ten only below 1/1000 and above 10 million.
export function labels(values) {
  const size = Math.max(...values.map(Math.abs));
  if ((size > 0 && size < 1e-3) || size >= 1e7) return values.map((v) => (v === 0 ? "0" : v.toExponential(1).replaceAll("-", "−").replace("+", "")));
  const decimals = Math.max(...values.map((v) => (v.toFixed(8).replace(/0+$/, "").split(".")[1] ?? "").length));
  return values.map((v) => v.toLocaleString("en", { minimumFractionDigits: decimals, maximumFractionDigits: decimals }).replace("-", "−"));
}

export function padded(low, high) {
  if (low > high) return [0, 1];
  if (high - low <= 1e-12 * Math.max(Math.abs(low), Math.abs(high), 1e-300)) {
    const half = Math.abs(low) * 0.1 || 0.5;
    return [low - half, high + half];
  }
  const air = (high - low) * 0.06;
  return [low - air, high + air];
}

// The range shared by the series, by the rule of afzal/report/value_range.py.
export function robustRange(groups) {
  const series = groups.map((values) => values.filter(finite).sort((a, b) => a - b)).filter((values) => values.length);
  if (!series.length) return [0, 1];
  const full = [Math.min(...series.map((s) => s[0])), Math.max(...series.map((s) => s.at(-1)))];
  const pooled = series.flatMap((s) => Array.from({ length: 41 }, (_, k) => s[Math.round((k * (s.length - 1)) / 40)]));
  const middle = median(pooled);
  const reach = 12 * median(pooled.map((v) => Math.abs(v - middle)));
  const isInside = (v) => Math.abs(v - middle) <= reach;
  const isStray = (s) => s.filter((v) => !isInside(v)).length > 0.1 * s.length;
  const usual = series.filter((s) => !isStray(s));
  const strays = series.length - usual.length, most = series.length < 3 ? 0 : Math.floor((series.length - 1) / 2);
  const inner = usual.flat().filter(isInside);
  const low = inner.reduce((a, b) => Math.min(a, b), Infinity), high = inner.reduce((a, b) => Math.max(a, b), -Infinity);
  const gains = full[1] - full[0] > 4 * (high - low);
  return reach > 0 && high > low && strays <= most && gains ? [low, high] : full;
}

function median(values) {
  const sorted = [...values].sort((a, b) => a - b);
  const half = sorted.length >> 1;
  return sorted.length % 2 ? sorted[half] : (sorted[half - 1] + sorted[half]) / 2;
}

export function smooth(points, window) {
  const half = window >> 1;
  return points.map(([x, y], i) => {
    const near = points.slice(Math.max(0, i - half), i + half + 1).map((p) => p[1]).filter(finite);
    return [x, finite(y) && near.length ? near.reduce((a, b) => a + b, 0) / near.length : null];
  });
}

export function smoothingWindow(count) {
  return count < 10 ? 1 : Math.max(3, Math.floor(count / 15)) | 1;
}

// At most about `limit` points, including both extremes of every stretch, so that no spike disappears.
export function thin(points, limit = 400) {
  if (points.length <= limit) return points;
  const size = Math.ceil(points.length / (limit / 2));
  const thinned = [];
  for (let start = 0; start < points.length; start += size) {
    const stretch = points.slice(start, start + size);
    const known = stretch.filter((p) => finite(p[1]));
    if (!known.length) thinned.push(stretch[0]);
    else {
      const low = known.reduce((a, b) => (b[1] < a[1] ? b : a)), high = known.reduce((a, b) => (b[1] > a[1] ? b : a));
      thinned.push(...(low === high ? [low] : low[0] < high[0] ? [low, high] : [high, low]));
    }
  }
  return thinned;
}
