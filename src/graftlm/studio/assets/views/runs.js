// Step 4: the runs, and one run while it trains. Everything shown is read from the run folder.

import { api, pause } from "../api.js";
import { Chart } from "../charts.js";
import { keep } from "../draft.js";
import { facts, h, number, numeric, replace, table } from "../dom.js";
import { command, go, notice, say, trouble } from "../parts.js";
import { bytes, duration, figure, t } from "../words.js";

export async function show(root, name, gone) {
  await (name ? one(root, name, gone) : all(root, gone));
}

async function all(root, gone) {
  const list = h("div", {});
  replace(root, h("h1", {}, t("runs.title")), h("p", { class: "lead" }, t("runs.lead")), list);
  let before = "";
  while (!gone.aborted) {
    const runs = await api("GET", "runs");
    const now = JSON.stringify(runs.map(({ seconds_left, ...rest }) => rest));
    if (now !== before && !list.contains(document.activeElement)) replace(list, runs.length ? listed(runs) : notice(t("runs.none")));
    before = now;
    await pause(2000);
  }
}

function listed(runs) {
  return h("section", { class: "card" }, table(
    [t("runs.name"), t("runs.state"), t("train.method"), t("rows.model.name"), [t("step"), "n"], [t("chart.loss"), "n"], [t("chart.eval"), "n"]],
    runs.map((run) => [
      h("a", { href: `#/runs/${encodeURIComponent(run.name)}` }, run.name), state(run),
      run.method ? t(`method.${run.method}`) : "–", run.model ?? "–", [`${run.step ?? 0} / ${run.steps ?? "–"}`, "n"],
      [figure(run.last?.loss), "n"], [figure(run.summary?.eval_loss_after ?? run.last?.eval_loss), "n"],
    ]), t("runs.title")));
}

export const state = (run) => h("span", { class: `tag ${run.state}` }, t(`state.${run.state}`));

async function one(root, name, gone) {
  const top = h("div", {}), now = h("div", {}), acts = h("div", {});
  const card = h("section", { class: "card" }, now, acts);
  const charts = [
    new Chart(t("chart.loss"), [
      { label: t("chart.step.loss"), colour: "--s8", width: 1 }, { label: t("chart.loss"), colour: "--s0" },
      { label: t("chart.eval"), colour: "--s1", dots: true }]),
    new Chart(t("chart.speed"), [{ label: t("chart.tokens"), colour: "--s3" }], { fromZero: true }),
    new Chart(t("chart.memory"), [{ label: "GB", colour: "--s2" }], { fromZero: true, unit: " GB" }),
    new Chart(t("chart.rate"), [{ label: t("chart.rate"), colour: "--s4" }], { fromZero: true }),
  ];
  const answers = h("div", {});
  replace(root, h("h1", {}, name), top, h("div", { class: "grid" }, charts.map((chart) => chart.node)), answers);
  gone.addEventListener("abort", () => charts.forEach((chart) => chart.close()));
  let drawn = "", headed = "", acted = "", told = "", waiting = false, known = false;
  while (!gone.aborted) {
    try {
      // Until its command has made the folder there is no run to ask for.
      known ||= (await api("GET", "runs")).some((run) => run.name === name);
      if (!known) {
        await starting(top, name, { status: 404, message: t("runs.none") });
        await pause(1000);
        continue;
      }
      const [found] = await api("GET", `runs/curves?run=${encodeURIComponent(name)}`);
      const { run, curves } = found;
      const stamp = `${run.step} ${run.state} ${curves.eval_loss.length}`;
      const head = `${stamp} ${run.seconds_left}`;
      if (!top.contains(card)) replace(top, card);
      if (headed !== head) replace(now, summary(run));
      headed = head;
      // Drawn anew only when they change, so that the focus stays on a button while the figures move.
      if (acted !== run.state) replace(acts, actions(run));
      acted = run.state;
      if (told !== run.state) say(t(`state.${run.state}`));
      told = run.state;
      if (drawn !== stamp) {
        drawn = stamp;
        charts[0].draw([curves.loss, curves.smooth, curves.eval_loss]);
        charts[1].draw([curves.tokens_per_second]);
        charts[2].draw([curves.memory_bytes.map(([x, y]) => [x, y / 1e9])]);
        charts[3].draw([curves.learning_rate]);
        waiting = true;
      }
      if (waiting) waiting = await samples(answers, name);
    } catch (error) {
      if (error.status !== 404 && error.status !== 0) throw error;
      known = false;
      await starting(top, name, error);
    }
    await pause(1000);
  }
}

// The run has no folder yet: its command loads the model and reads the rows, or has failed.
async function starting(top, name, error) {
  try {
    const jobs = await api("GET", "jobs");
    const found = jobs.find((one) => one.about === name && one.kind === "train");
    if (!found) return replace(top, trouble(error));
    const job = await api("GET", `jobs/${found.id}`);
    if (job.state === "running") replace(top, command(job.command), notice(t("run.loading", { time: duration(job.seconds) })));
    else replace(top, command(job.command), notice(t(`job.${job.state}`), "error"), h("div", { class: "sample", lang: "en" }, job.said.trim()));
  } catch (again) {
    replace(top, trouble(again));
  }
  return undefined;
}

function summary(run) {
  const done = run.state === "finished" ? run.summary : null;
  return [
    h("div", { class: "row" }, state(run), h("span", { class: "soft" },
      `${run.method ? t(`method.${run.method}`) : ""} · ${run.model ?? ""} · ${run.data ?? ""}`)),
    run.error ? h("div", { class: "notice error", lang: "en" }, run.error) : null,
    h("progress", { max: String(run.steps || 1), value: run.step || 0, "aria-label": t("run.progress") }),
    facts([
      [t("step"), `${figure(run.step, 6)} / ${figure(run.steps, 6)}`],
      run.state === "running" ? [t("run.left"), duration(run.seconds_left)] : null,
      [t("chart.loss"), figure(run.last?.loss)],
      [t("chart.tokens"), figure((done ?? run.last)?.tokens_per_second)],
      [t("chart.memory"), bytes(done ? done.peak_memory_bytes : run.last?.memory_bytes)],
      done && done.eval_loss_before !== null
        ? [t("chart.eval"), `${figure(done.eval_loss_before)} → ${figure(done.eval_loss_after)}`] : null,
      done ? [t("run.time"), duration(done.wall_seconds)] : null,
    ])];
}

function actions(run) {
  const ask = (label, kind, what) => h("button", { type: "button", class: kind, onclick: async (event) => {
    event.target.disabled = true;
    try {
      await what();
    } catch (error) {
      event.target.disabled = false;
      event.target.closest("section").append(trouble(error));
    }
  } }, label);
  const more = number(null, { min: 1, "aria-label": t("run.more"), placeholder: t("run.more") });
  more.style.maxWidth = "11rem";
  return [
    h("div", { class: "row push" },
      run.state === "running" ? [
        ask(t("run.pause"), "first", () => api("POST", "runs/stop", { run: run.name })),
        ask(t("run.kill"), "danger", () => api("POST", "runs/stop", { run: run.name, now: true }))] : null,
      run.state === "paused" ? ask(t("run.resume"), "first", () => api("POST", "jobs", { kind: "resume", run: run.name })) : null,
      run.state === "finished" ? [
        h("button", { type: "button", class: "first", id: "to-chat", onclick: () => { keep({ run: run.name }); go("#/chat"); } }, t("way.chat")),
        h("button", { type: "button", onclick: () => go("#/compare") }, t("way.compare")),
        h("button", { type: "button", id: "to-export", onclick: () => { keep({ run: run.name }); go("#/export"); } }, t("way.export")),
        more, ask(t("run.extend"), "", () => api("POST", "jobs", { kind: "resume", run: run.name, steps: numeric(more) }))] : null),
    run.path ? command(run.state === "paused" ? `graftlm train --resume --out ${run.path}`
      : run.state === "running" ? `graftlm train ${run.path}/config.yaml --out ${run.path}` : `graftlm chat ${run.path}`) : null];
}

// Returns whether the answers are still being turned into text.
async function samples(place, name) {
  const { rows, pending } = await api("GET", `runs/samples?run=${encodeURIComponent(name)}`);
  if (rows.length) {
    replace(place, h("section", { class: "card" }, h("h2", {}, t("samples.title")), h("p", { class: "small soft" }, t("samples.lead")),
      h("div", { class: "answers" }, rows.slice(0, 40).map((one) => h("dl", {},
        [[t("step"), String(one.step)], [t("samples.asked"), one.prompt], [t("samples.answer"), one.answer || "–"],
          [t("samples.wanted"), one.expected]].map(([name, text]) => [h("dt", {}, name), h("dd", { class: "said" }, text)]))))));
  }
  return pending;
}
