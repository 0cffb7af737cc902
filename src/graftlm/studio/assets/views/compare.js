// Step 5: runs on shared axes.

import { api } from "../api.js";
import { Chart } from "../charts.js";
import { h, replace, table } from "../dom.js";
import { notice } from "../parts.js";
import { bytes, duration, figure, t } from "../words.js";
import { state } from "./runs.js";

const MOST = 8;

export async function show(root, _rest, gone) {
  const runs = (await api("GET", "runs")).filter((run) => run.step > 0);
  const picture = h("div", {});
  replace(root, h("h1", {}, t("compare.title")), h("p", { class: "lead" }, t("compare.lead")));
  if (!runs.length) {
    root.append(notice(t("runs.none")));
    return;
  }
  const chosen = new Set(runs.slice(0, 4).map((run) => run.name));
  let charts = [];
  gone.addEventListener("abort", () => charts.forEach((chart) => chart.close()));
  async function draw() {
    charts.forEach((chart) => chart.close());
    if (!chosen.size) return replace(picture, notice(t("compare.none")));
    const query = [...chosen].map((name) => `run=${encodeURIComponent(name)}`).join("&");
    const found = await api("GET", `runs/curves?${query}`);
    const series = (dots) => found.map(({ run }, index) => ({ label: run.name, colour: `--s${index}`, dots }));
    charts = [new Chart(t("chart.loss"), series(false)), new Chart(t("chart.eval"), series(true))];
    replace(picture, h("div", { class: "grid" }, charts.map((chart) => chart.node)),
      h("section", { class: "card" }, table(
        [t("runs.name"), t("runs.state"), t("train.method"), [t("train.rank"), "n"], [t("step"), "n"], [t("chart.eval"), "n"], [t("chart.memory"), "n"], [t("chart.tokens"), "n"], [t("run.time"), "n"]],
        found.map(({ run }) => [run.name, state(run), t(`method.${run.method}`), [run.rank === null ? "–" : String(run.rank), "n"], [figure(run.step, 6), "n"],
          [figure(run.summary?.eval_loss_after ?? run.last?.eval_loss), "n"], [bytes(run.summary?.peak_memory_bytes ?? run.last?.memory_bytes), "n"],
          [figure(run.summary?.tokens_per_second ?? run.last?.tokens_per_second), "n"], [duration(run.summary?.wall_seconds), "n"]]),
        t("compare.title"))));
    charts[0].draw(found.map(({ curves }) => curves.smooth));
    charts[1].draw(found.map(({ curves }) => curves.eval_loss));
    return undefined;
  }
  root.append(h("fieldset", { class: "card" }, h("legend", { class: "hidden" }, t("compare.choose")), h("h2", {}, t("compare.choose")),
    h("div", { class: "fields" }, runs.map((run) => h("label", { class: "check" }, h("input", {
      type: "checkbox", checked: chosen.has(run.name), onchange: (event) => {
        if (event.target.checked && chosen.size >= MOST) event.target.checked = false;
        else if (event.target.checked) chosen.add(run.name);
        else chosen.delete(run.name);
        draw();
      },
    }), run.name)))), picture);
  await draw();
}
