// Curves: one chart per measure, its series by lane (or training and validation) in colours, runs by dashes. All charts
// share the steps on their x axis and the line that shows where the slider is.

const DASHES = [[], [7, 4], [2, 3], [10, 3, 2, 3]];
const HEIGHT = 190;

function colour(name) {
  return getComputedStyle(document.documentElement).getPropertyValue(name).trim();
}

/** The colour of a series: by lane, by phase, or by run where a run has only one. */
function colourName(member, single) {
  if (member.lane !== null) return `--lane-${member.lane % 8}`;
  if (single) return `--run-${member.run.place % 4}`;
  return `--phase-${member.order % 3}`;
}

/** A short line as the legend shows it, in the series' colour and dash. */
function swatch(name, dash) {
  const line = document.createElementNS("http://www.w3.org/2000/svg", "svg");
  line.setAttribute("viewBox", "0 0 26 8");
  line.setAttribute("class", "swatch");
  line.setAttribute("aria-hidden", "true");
  const path = document.createElementNS("http://www.w3.org/2000/svg", "path");
  path.setAttribute("d", "M1 4H25");
  path.setAttribute("style", `stroke:var(${name});stroke-dasharray:${dash.join(" ") || "none"}`);
  line.append(path);
  return line;
}

/** Room above and below the values; a chart in which no value is finite has axes all the same. */
function heights(uplot, low, high) {
  return low === null ? [0, 1] : uPlot.rangeNum(low, high, 0.1, true);
}

class Chart {
  /**
   * @param group what to draw, see grouped()
   * @param numRuns how many runs are shown
   * @param limits first and last step of all runs
   * @param choose called with a step that was pointed at
   */
  constructor(group, numRuns, limits, choose) {
    this.group = group;
    const series = new Set(group.members.map((member) => member.series));
    this.single = series.size === 1 && group.members[0].lane === null;
    this.figure = element("figure", { class: "chart" });
    const title = TITLES_OF_CHARTS[group.chart] ?? words(group.chart);
    this.figure.append(element("figcaption", { title: group.members.map((m) => m.key).join(", ") }, title));
    this.plot = element("div", { class: "plot", role: "img" });
    this.legend = element("ul", { class: "legend" });
    this.values = group.members.map((member) => {
      const name = [this.single && numRuns > 1 ? "" : member.series, numRuns > 1 ? member.run.label : ""].filter(Boolean).join(", ");
      const value = element("b");
      const item = element("li", {}, swatch(colourName(member, this.single), this.dash(member)), name ? `${name} ` : "", value);
      this.legend.append(item);
      return { name: name || title, value };
    });
    this.figure.append(this.plot, this.legend);
    this.title = title;
    this.limits = limits;
    this.choose = choose;
  }

  dash(member) {
    return DASHES[member.run.place % DASHES.length];
  }

  /** Draw; only now, as its width is not known before it is on the page. */
  draw() {
    if (this.uplot || !this.plot.clientWidth) return;
    const axis = { stroke: () => colour("--muted"), grid: { stroke: () => colour("--grid"), width: 1 }, ticks: { show: false }, font: "12px system-ui, sans-serif" };
    const options = {
      width: this.plot.clientWidth,
      height: HEIGHT,
      legend: { show: false },
      cursor: { show: false },
      padding: [8, 12, 0, 0],
      scales: { x: { time: false, range: () => this.limits() }, y: { range: heights } },
      axes: [
        { ...axis, label: "step", labelSize: 16, labelFont: "12px system-ui, sans-serif", labelGap: 0, size: 26, gap: 3, values: (_, ticks) => ticks.map(spoken) },
        { ...axis, gap: 4, values: (_, ticks) => ticks.map(spoken), size: (_, ticks) => 14 + 7 * Math.max(3, ...(ticks ?? []).map((tick) => tick.length)) },
      ],
      series: [{}, ...this.group.members.map((member) => this.series(member))],
      hooks: { draw: [() => this.mark(this.step)] },
    };
    this.uplot = new uPlot(options, this.data(), this.plot);
    this.marker = element("div", { class: "marker" });
    this.uplot.over.append(this.marker);
    const point = (event) => {
      if (event.type === "pointermove" && !event.buttons) return;
      this.choose(this.uplot.posToVal(event.clientX - this.uplot.over.getBoundingClientRect().left, "x"));
    };
    this.uplot.over.addEventListener("pointerdown", point);
    this.uplot.over.addEventListener("pointermove", point);
    this.mark(this.step);
  }

  series(member) {
    const stroke = () => colour(colourName(member, this.single));
    const few = member.run.scalars[member.key][0].length <= 40;
    return { stroke, width: 1.75, dash: this.dash(member), points: { show: few, size: 5, stroke, fill: stroke } };
  }

  /** On common steps; where a series has no step its line goes on, where its value is not finite it breaks. */
  data() {
    return uPlot.join(this.group.members.map((member) => member.run.scalars[member.key]));
  }

  /** Take over a run that has grown. */
  update(group) {
    this.group = group;
    if (this.uplot) this.uplot.setData(this.data());
  }

  resize() {
    if (!this.uplot) this.draw();
    else if (this.plot.clientWidth) this.uplot.setSize({ width: this.plot.clientWidth, height: HEIGHT });
  }

  /** Show where the slider is: the line, and every series' value at that step. */
  mark(step) {
    this.step = step;
    if (step === undefined) return;
    if (this.uplot && this.marker) this.marker.style.left = `${this.uplot.valToPos(step, "x")}px`;
    const said = this.group.members.map((member, place) => {
      const [steps, values] = member.run.scalars[member.key];
      const { name, value } = this.values[place];
      value.textContent = spoken(values[placeAt(steps, step)]);
      return `${name} ${value.textContent}`;
    });
    this.plot.setAttribute("aria-label", `Curves of ${this.title} over steps; at step ${spoken(step)}: ${said.join("; ")}`);
  }
}
