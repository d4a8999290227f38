"use strict";
// What is logged, in the groups and words in which it is shown. Kept out: whatever touches the page.

const LANE = /(^|[/_])lane(\d+)(?=[/_]|$)/;
const PHASES = ["train", "val", "test"];
const UNITS = [[/_per_s$/, "1/s"], [/_s$/, "s"], [/_ms$/, "ms"], [/_MiB$/, "MiB"], [/_GiB$/, "GiB"]];
const TITLES = { "": "Speed and progress", training: "Training and validation", spec: "Lanes", health: "Health of the weights", corr: "Between layers" };

const TITLES_OF_CHARTS = { lr: "learning rate", top1: "top-1 accuracy (share)", top5: "top-5 accuracy (share)" };

/** Where a key belongs: its section, its chart or row of pictures, and which of that chart's series it is. */
function placeOf(key) {
  const lane = key.match(LANE);
  if (lane) {
    const parts = key.replace(LANE, "").split("/").filter(Boolean);
    const section = parts.length > 1 ? parts.shift() : "lanes";
    return { section, chart: parts.join("/"), series: `lane ${lane[2]}`, order: Number(lane[2]), lane: Number(lane[2]) };
  }
  const parts = key.split("/");
  const phase = PHASES.indexOf(parts[0]);
  if (parts.length > 1 && phase >= 0) {
    return { section: "training", chart: parts.slice(1).join("/"), series: parts[0], order: phase, lane: null };
  }
  const section = parts.length > 1 ? parts.shift() : "";
  return { section, chart: parts.join("/"), series: "", order: 0, lane: null };
}

/** "step_time_s" -> "step time (s)". */
function words(name) {
  for (const [pattern, unit] of UNITS) {
    if (pattern.test(name)) return `${words(name.replace(pattern, ""))} (${unit})`;
  }
  return name.replaceAll("/", " · ").replaceAll("_", " ");
}

function sectionTitle(name) {
  if (name in TITLES) return TITLES[name];
  return words(name).replace(/^./, (letter) => letter.toUpperCase());
}

/** Charts or rows of pictures of all shown runs: [{section, chart, members: [{key, series, run, ...}]}]. */
function grouped(runs, kind) {
  const groups = new Map();
  runs.forEach((run) => {
    for (const key of Object.keys(run[kind])) {
      const place = placeOf(key);
      const name = `${place.section}\n${place.chart}`;
      if (!groups.has(name)) groups.set(name, { section: place.section, chart: place.chart, members: [] });
      groups.get(name).members.push({ ...place, key, run });
    }
  });
  for (const group of groups.values()) {
    group.members.sort((a, b) => a.order - b.order || a.run.place - b.run.place);
  }
  return [...groups.values()];
}

/** Groups by section; what people look at first comes first, long lists of measures last. */
function inSections(groups) {
  const sections = new Map();
  for (const group of groups) {
    if (!sections.has(group.section)) sections.set(group.section, []);
    sections.get(group.section).push(group);
  }
  const rank = (name) => {
    const place = ["training", "spec", "lanes", ""].indexOf(name);
    return name === "health" ? 99 : place < 0 ? 50 : place;
  };
  return [...sections].sort((a, b) => rank(a[0]) - rank(b[0]) || a[0].localeCompare(b[0]));
}

/** The last place in sorted steps that is not after `step`; -1 if all are. */
function placeAt(steps, step) {
  let low = 0, high = steps.length;
  while (low < high) {
    const middle = (low + high) >> 1;
    if (steps[middle] <= step) low = middle + 1; else high = middle;
  }
  return low - 1;
}

function allSteps(runs, kinds) {
  const steps = new Set();
  for (const run of runs) {
    for (const kind of kinds) {
      for (const [key, series] of Object.entries(run[kind])) {
        const own = kind === "pictures" ? series.map((picture) => picture[0]) : series[0];
        for (const step of own) steps.add(step);
      }
    }
  }
  return [...steps].sort((a, b) => a - b);
}

/** A number for people: four digits, thousands apart, powers of ten only where they must be. */
function spoken(value) {
  if (value === undefined) return "–";
  if (value === null) return "not finite";
  const size = Math.abs(value);
  if (size !== 0 && (size < 1e-3 || size >= 1e7)) {
    return Number(value.toPrecision(3)).toExponential().replace("e+", "e").replaceAll("-", "−");
  }
  const text = Number.isInteger(value) ? value : Number(value.toPrecision(4));
  return text.toLocaleString("en", { maximumFractionDigits: 6 }).replace("-", "−");
}

function duration(seconds) {
  const whole = Math.round(seconds);
  const [h, m, s] = [Math.floor(whole / 3600), Math.floor(whole / 60) % 60, whole % 60];
  return h ? `${h} h ${m} min` : m ? `${m} min ${s} s` : `${s} s`;
}

/** How a run ended, in words. */
function endingOf(run, live) {
  if (run.ending === 0) return "finished";
  if (run.ending !== null) return `failed with exit code ${run.ending}`;
  return live ? "still running, or killed: no end was logged" : "no end was logged: killed, or still running when this page was made";
}

/** Make an element: text is always text, never HTML. */
function element(tag, attributes = {}, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (name === "class") made.className = value; else if (value !== null) made.setAttribute(name, value);
  }
  made.append(...children);
  return made;
}
