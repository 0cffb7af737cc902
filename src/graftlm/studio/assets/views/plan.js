// Step 2: whether it fits, as a picture: each method's memory by component against the limit.

import { draft, keep, rows } from "../draft.js";
import { field, h, number, numeric, replace } from "../dom.js";
import { follow, go, notice, work } from "../parts.js";
import { bytes, duration, t } from "../words.js";

const PARTS = ["weights", "activations", "optimizer", "gradients", "temporary", "loss", "quantization_state", "adapters", "framework"];

export async function show(root) {
  const found = h("div", {});
  replace(root, h("h1", {}, t("plan.title")), h("p", { class: "lead" }, t("plan.lead")));
  if (!draft.upload) {
    root.append(notice(t("need.rows")), h("button", { class: "first", onclick: () => go("#/rows") }, t("way.rows")));
    return;
  }
  const memory = h("input", { placeholder: t("plan.memory.free"), pattern: "[0-9.]+ ?[KMGT]i?B" });
  const rank = number(null, { min: 1, placeholder: "16" });
  const batch = number(null, { min: 1, placeholder: "8" });
  root.append(h("form", { class: "card", onsubmit: async (event) => {
    event.preventDefault();
    const job = await work(found, { kind: "plan", model: draft.model, rows: rows(),
      memory: memory.value.trim(), rank: numeric(rank), batch_size: numeric(batch) });
    if (job) keep({ plan: job.id, option: null, rank: numeric(rank), batch_size: numeric(batch) });
    picture(found, job);
  } },
  h("p", {}, t("plan.of", { model: draft.model, rows: draft.upload })),
  h("div", { class: "fields" },
    field(t("plan.memory"), memory, t("plan.memory.hint")),
    field(t("train.rank"), rank), field(t("train.batch"), batch)),
  h("div", { class: "row push" }, h("button", { class: "first", id: "plan" }, t("plan.ask")))), found);
  if (draft.plan) picture(found, await follow(found, draft.plan));
}

function picture(found, job) {
  if (!job?.result) return;
  const plan = job.result;
  const same = (one) => ["method", "gradient_checkpointing", "embeddings", "micro_batch_tokens"]
    .every((name) => one[name] === plan.recommended[name]);
  const widest = Math.max(plan.memory_bytes, ...plan.options.map((one) => one.predicted_peak_bytes)) * 1.02;
  const parts = [...new Set(plan.options.flatMap((one) => Object.keys(one.components)))];
  const colour = (name) => (PARTS.includes(name) ? PARTS.indexOf(name) : parts.indexOf(name)) % 9;
  const chosen = (one) => (draft.option ? JSON.stringify(draft.option) === JSON.stringify(taken(one)) : same(one));
  const none = !plan.options.some((one) => one.fits);
  found.append(h("section", { class: "card" }, h("h2", {}, t("plan.picture")),
    notice(none ? t("plan.none") : t("plan.recommended", { method: t(`method.${plan.recommended.method}`) }), none ? "error" : ""),
    h("p", { class: "small soft", lang: "en" }, plan.recommended.why),
    h("p", { class: "small" }, t("plan.limit", { limit: bytes(plan.memory_bytes), device: plan.device })),
    h("fieldset", {}, h("legend", { class: "hidden" }, t("plan.choose")),
      plan.options.map((one) => h("label", { class: "option" },
        h("div", { class: "row" },
          h("span", { class: "name" }, h("input", { type: "radio", name: "option", disabled: !one.fits,
            checked: one.fits && chosen(one), onchange: () => keep({ option: taken(one) }) }),
          h("span", {}, t(`method.${one.method}`), one.gradient_checkpointing ? ` · ${t("plan.recompute")}` : "",
            one.embeddings === "int8" ? ` · ${t("plan.int8")}` : "", same(one) && one.fits ? ` · ${t("plan.best")}` : "")),
          h("span", { class: one.fits ? "" : "error" },
            `${bytes(one.predicted_peak_bytes)} · ${t(one.fits ? "plan.fits" : "plan.does.not")}`,
            one.seconds_per_step ? ` · ${t("plan.step", { time: duration(one.seconds_per_step) })}` : "")),
        h("div", { class: "memory", role: "img", "aria-label": parts.filter((name) => one.components[name])
          .map((name) => `${partName(name)} ${bytes(one.components[name])}`).join(", ") },
        parts.map((name) => h("i", { class: `c${colour(name)}`, "width%": (100 * (one.components[name] ?? 0)) / widest })),
        h("span", { class: "limit", "left%": (100 * plan.memory_bytes) / widest }))))),
    h("ul", { class: "legend" }, parts.map((name) => h("li", {}, h("i", { class: `c${colour(name)}` }), partName(name))),
      h("li", {}, `▏${t("plan.line")}`))),
  none ? null : h("button", { type: "button", class: "first", id: "to-train", onclick: () => {
    if (!draft.option) keep({ option: taken(plan.options.find((one) => one.fits && same(one)) ?? plan.options.find((one) => one.fits)) });
    go("#/train");
  } }, t("next.train")));
}

const partName = (name) => t(`part.${name}`);

const taken = (one) => ({ method: one.method, gradient_checkpointing: one.gradient_checkpointing,
  embeddings: one.embeddings, micro_batch_tokens: one.micro_batch_tokens });
