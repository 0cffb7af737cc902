// Step 3: the run's settings, the command they make, and its start.

import { api } from "../api.js";
import { draft, keep, rows } from "../draft.js";
import { field, h, number, numeric, replace, select } from "../dom.js";
import { command, go, notice, trouble } from "../parts.js";
import { t } from "../words.js";

export async function show(root) {
  replace(root, h("h1", {}, t("train.title")), h("p", { class: "lead" }, t("train.lead")));
  if (!draft.upload) {
    root.append(notice(t("need.rows")), h("button", { class: "first", onclick: () => go("#/rows") }, t("way.rows")));
    return;
  }
  const runs = await api("GET", "runs");
  let count = runs.length + 1;
  while (runs.some((run) => run.name === `run-${count}`)) count += 1;
  const name = h("input", { value: `run-${count}`, required: true, pattern: "[A-Za-z0-9][A-Za-z0-9._\\-]*" });
  const method = select(["auto", "qlora", "lora", "full"].map((one) => [one, t(`method.${one}`)]),
    draft.option?.method ?? "auto");
  const steps = number(null, { min: 1, placeholder: t("train.steps.all") });
  const epochs = number(1, { min: 0, step: "any" });
  const rate = number(null, { min: 0, step: "any", placeholder: "2e-4" });
  const rank = number(draft.rank, { min: 1, placeholder: "16" });
  const batch = number(draft.batch_size, { min: 1, placeholder: "8" });
  const evaluate = number(null, { min: 0, placeholder: t("train.eval.ends") });
  const save = number(null, { min: 0, placeholder: t("train.save.end") });
  const answers = number(2, { min: 0, max: 20 });
  const seed = number(null, { min: 0, placeholder: "0" });
  const shown = h("div", {});
  const asked = () => ({
    kind: "train", model: draft.model, rows: rows(), run: name.value.trim(), method: method.value,
    steps: numeric(steps), epochs: numeric(epochs), learning_rate: numeric(rate), rank: numeric(rank),
    batch_size: numeric(batch), seed: numeric(seed), eval_steps: numeric(evaluate) ?? 0,
    save_steps: numeric(save) ?? 0, samples: numeric(answers) ?? 0,
    ...(draft.option && draft.option.method === method.value ? draft.option : {}),
  });
  async function preview() {
    try {
      replace(shown, command((await api("POST", "commands", asked())).command));
    } catch (error) {
      replace(shown, trouble(error));
    }
  }
  const form = h("form", { class: "card", onchange: preview, onsubmit: async (event) => {
    event.preventDefault();
    try {
      await api("POST", "jobs", asked());
      keep({ run: name.value.trim() });
      go(`#/runs/${encodeURIComponent(name.value.trim())}`);
    } catch (error) {
      replace(shown, trouble(error));
    }
  } },
  h("p", {}, t("plan.of", { model: draft.model, rows: draft.upload })),
  h("div", { class: "fields" },
    field(t("train.name"), name, t("train.name.hint")), field(t("train.method"), method),
    field(t("train.steps"), steps, t("train.steps.hint")), field(t("train.epochs"), epochs),
    field(t("train.rate"), rate), field(t("train.rank"), rank), field(t("train.batch"), batch),
    field(t("train.eval"), evaluate, t("train.eval.hint")), field(t("train.answers"), answers, t("train.answers.hint")),
    field(t("train.save"), save, t("train.save.hint")), field(t("train.seed"), seed)),
  h("h2", { class: "push" }, t("train.command")), shown,
  h("p", { class: "small soft" }, t("train.detached")),
  h("button", { class: "first", id: "start" }, t("train.start")));
  root.append(form);
  await preview();
}
