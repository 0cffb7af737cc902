// Step 7: one model again, in the form of the tool that will run it, with the proof.

import { api } from "../api.js";
import { draft, keep } from "../draft.js";
import { facts, field, h, replace, select, table } from "../dom.js";
import { command, notice, work } from "../parts.js";
import { bytes, figure, has, percent, t } from "../words.js";

const FORMS = ["ollama", "gguf", "gguf-adapter", "transformers", "merge", "peft", "vllm", "mlx"];

export async function show(root) {
  const runs = (await api("GET", "runs")).filter((run) => run.state === "finished");
  replace(root, h("h1", {}, t("export.title")), h("p", { class: "lead" }, t("export.lead")));
  if (!runs.length) {
    root.append(notice(t("need.finished")));
    return;
  }
  if (!runs.some((run) => run.name === draft.run)) keep({ run: runs[0].name });
  const found = h("div", {});
  const name = h("input", { required: true, pattern: "[A-Za-z0-9][A-Za-z0-9._\\-]*" });
  const form = select(FORMS.map((one) => [one, t(`form.${one}`)]), "ollama", rename);
  const quantization = select(["", "q8_0", "q4_0", "f16", "bf16", "f32"].map((one) => [one, one || t("export.default")]), "");
  const kind = select([["16bit", t("export.16bit")], ["nf4", t("export.nf4")]], "16bit");
  const run = select(runs.map((one) => [one.name, `${one.name} · ${one.model}`]), draft.run, (chosen) => {
    keep({ run: chosen });
    rename();
  });
  const weights = field(t("export.quantization"), quantization);
  const bits = field(t("export.kind"), kind);
  function rename() {
    name.value = `${draft.run.replaceAll("/", "-")}-${form.value}`;
    weights.hidden = !["gguf", "ollama"].includes(form.value);
    bits.hidden = form.value !== "merge";
  }
  rename();
  root.append(h("form", { class: "card", onsubmit: async (event) => {
    event.preventDefault();
    const merging = form.value === "merge";
    const job = await work(found, merging
      ? { kind: "merge", run: draft.run, name: name.value.trim(), to: kind.value }
      : { kind: "export", run: draft.run, name: name.value.trim(), to: form.value,
        quantization: weights.hidden ? "" : quantization.value });
    if (job?.result) (merging ? merged : exported)(found, job.result);
  } },
  h("div", { class: "fields" }, field(t("chat.run"), run), field(t("export.form"), form, t("export.form.hint")), weights, bits,
    field(t("export.name"), name)),
  h("div", { class: "row push" }, h("button", { class: "first", id: "export" }, t("export.start")),
    h("button", { type: "button", onclick: () => forms(found) }, t("export.which")))), found);
}

async function forms(found) {
  const job = await work(found, { kind: "forms", run: draft.run });
  if (!job?.result) return;
  found.append(h("section", { class: "card" }, table([t("export.form"), t("export.possible"), t("check.message")],
    Object.entries(job.result.targets).map(([name, problems]) => [name, problems.length ? h("span", { class: "error" }, t("no")) : t("yes"),
      h("span", { lang: "en" }, problems.join("; ") || "–")]), t("export.which"))));
}

const SHARES = ["agreement", "kept", "same_answers", "same_tokens"];

function exported(found, result) {
  const known = ["to", "base", "out", "verified", "uploaded", "proof"];
  const proof = [...flat(result.proof ?? {}), ...flat(result.verified ?? {})];
  found.append(h("section", { class: "card" }, h("h2", {}, t("export.done")),
    notice(t(result.verified ? "export.proved" : "export.unproved"), result.verified ? "" : "warning"),
    facts([[t("export.where"), result.out], ...flat(without(result, known)).map(fact)]),
    proof.length ? h("div", { class: "push" }, h("h3", {}, t("export.proof")), facts(proof.map(fact))) : null,
    result.to === "ollama" ? h("div", { class: "push" }, h("p", {}, t("export.ollama")), command(`ollama create my-model -f ${result.out}/Modelfile`),
      command("ollama run my-model")) : null));
}

const without = (values, names) => Object.fromEntries(Object.entries(values).filter(([name]) => !names.includes(name)));

// Names and values, those of inner objects too.
const flat = (values) => Object.entries(values).flatMap(([name, value]) => value !== null && typeof value === "object" && !Array.isArray(value) ? flat(value) : [[name, value]]);

function fact([name, value]) {
  const label = has(`figure.${name}`) ? t(`figure.${name}`) : h("span", { lang: "en" }, name.replaceAll("_", " "));
  if (typeof value === "boolean") return [label, t(value ? "yes" : "no")];
  if (Array.isArray(value)) return [label, value.map((one) => typeof one === "string" ? JSON.stringify(one) : figure(one)).join(", ") || "–"];
  if (typeof value !== "number") return [label, String(value ?? "–")];
  return [label, SHARES.includes(name) ? percent(value) : name.includes("bytes") ? bytes(value) : figure(value)];
}

function merged(found, result) {
  found.append(h("section", { class: "card" }, h("h2", {}, t("export.done")),
    notice(t("export.kept", { kind: result.chosen, kept: percent(result.kept) })),
    table([t("export.kind"), [t("chart.loss"), "n"], ["KL", "n"], [t("export.agreement"), "n"], [t("export.share"), "n"]], [
      [t("chat.base"), [figure(result.base_loss), "n"], "", "", ""],
      [t("export.live"), [figure(result.live_loss), "n"], "", "", ""],
      ...result.candidates.map((one) => [`${one.kind}${one.kind === result.chosen ? " ←" : ""}`, [figure(one.loss), "n"], [figure(one.kl), "n"],
        [percent(one.agreement), "n"], [percent(one.kept), "n"]])], t("export.proof")),
    h("div", { class: "push" }, facts([
      [t("export.where"), result.out], [t("export.size"), bytes(result.bytes)],
      [t("export.tensors"), `${figure(result.proof.tensors_applied)} / ${figure(result.proof.tensors_expected)}`],
      [t("export.distance"), figure(result.proof.distance)]]))));
}
