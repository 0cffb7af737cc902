// Curves, drawn by uPlot. A chart is kept and given new data, so that memory does not grow.

import uPlot from "./uplot/uPlot.esm.js";
import { h } from "./dom.js";
import { figure, t } from "./words.js";

const colour = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();

export class Chart {
  // series: [{ label, colour: "--s0", width, dots }]
  constructor(title, series, { fromZero = false, unit = "" } = {}) {
    this.series = series;
    this.title = title;
    this.fromZero = fromZero;
    this.unit = unit;
    this.place = h("div", { class: "chart", role: "img", "aria-label": title });
    this.node = h("section", { class: "card" }, h("h2", {}, title), this.place);
    this.seen = new ResizeObserver(() => {
      if (!this.place.isConnected) return this.close();
      this.plot?.setSize({ width: Math.max(200, this.place.clientWidth), height: 240 });
    });
  }

  // curves: a list of [[x, y], …], one for each series.
  draw(curves) {
    const drawn = curves.map((curve) => [curve.map((p) => p[0]), curve.map((p) => p[1])]);
    const filled = drawn.filter((one) => one[0].length);
    this.place.setAttribute("aria-label", `${this.title}: ${this.inWords(curves)}`);
    if (!filled.length) return;
    const data = uPlot.join(drawn.map((one) => (one[0].length ? one : [[filled[0][0][0]], [null]])));
    if (this.plot) this.plot.setData(data);
    else this.make(data);
  }

  inWords(curves) {
    return curves.map((curve, index) => {
      if (!curve.length) return null;
      const values = curve.map((point) => point[1]).filter((value) => value !== null);
      return t("chart.words", {
        name: this.series[index].label, last: figure(values.at(-1)), low: figure(Math.min(...values)),
        high: figure(Math.max(...values)), steps: curve.at(-1)[0],
      });
    }).filter(Boolean).join("; ");
  }

  make(data) {
    const ink = colour("--soft");
    const line = colour("--line");
    const axis = { stroke: ink, grid: { stroke: line, width: 1 }, ticks: { stroke: line, width: 1 } };
    const value = (_, v) => (v === null || v === undefined ? "–" : `${figure(v)}${this.unit}`);
    this.plot = new uPlot({
      width: Math.max(200, this.place.clientWidth || 320),
      height: 240,
      scales: { x: { time: false }, y: this.fromZero ? { range: (_, low, high) => [0, high * 1.08 || 1] } : {} },
      axes: [
        { ...axis, values: (_, ticks) => ticks.map((v) => (Number.isInteger(v) ? figure(v, 6) : "")) },
        { ...axis, size: 66, values: (_, ticks) => ticks.map((v) => figure(v)) },
      ],
      series: [
        { label: t("step"), value: (_, v) => (v === null ? "–" : figure(v, 6)) },
        ...this.series.map((one) => ({
          label: one.label, stroke: colour(one.colour), width: one.width ?? 2, spanGaps: true,
          points: { show: one.dots ?? false, size: 7, fill: colour(one.colour) }, value,
        })),
      ],
    }, data, this.place);
    this.seen.observe(this.place);
  }

  close() {
    this.seen.disconnect();
    this.plot?.destroy();
    this.plot = null;
  }
}
