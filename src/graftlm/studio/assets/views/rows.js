// Step 1: choose a model, drop a file, see what would be learned.

import { api, upload } from "../api.js";
import { draft, keep, rows } from "../draft.js";
import { facts, field, h, number, numeric, replace, select, table } from "../dom.js";
import { follow, go, notice, say, trouble, work } from "../parts.js";
import { bytes, figure, has, percent, t } from "../words.js";

export async function show(root) {
  const [machine, files] = await Promise.all([api("GET", "machine"), api("GET", "uploads")]);
  const found = h("div", {});
  const settings = h("div", {});
  const known = machine.models.includes(draft.model);
  const choose = (name) => keep({ model: name, check: null, plan: null, option: null });
  const other = h("input", { value: known ? "" : draft.model, autocomplete: "off", spellcheck: "false",
    placeholder: "owner/name", onchange: () => choose(other.value.trim()) });
  const id = field(t("rows.model.id"), other, t("rows.model.hint"));
  id.hidden = known;
  const model = select([...machine.models.map((name) => [name, name]), ["", t("rows.model.other")]],
    known ? draft.model : "", (name) => {
      id.hidden = name !== "";
      choose(name || other.value.trim());
    });
  replace(root,
    h("h1", {}, t("rows.title")), h("p", { class: "lead" }, t("rows.lead")),
    h("div", { class: "grid" },
      h("section", { class: "card" }, h("h2", {}, t("rows.model")),
        field(t("rows.model.name"), model), id,
        h("div", { class: "push" }, facts([
          [t("machine.memory"), `${bytes(machine.memory_free)} / ${bytes(machine.memory)}`],
          [t("machine.cores"), String(machine.cores)],
          [t("machine.disk"), bytes(machine.disk_free)],
        ]))),
      h("section", { class: "card" }, h("h2", {}, t("rows.file")), dropZone(machine.most_upload, files, settings, found))),
    settings, found);
  if (draft.upload && files.some((file) => file.name === draft.upload)) {
    await ask(settings, found);
    if (draft.check) showCheck(found, await follow(found, draft.check));
  }
}

function dropZone(limit, files, settings, found) {
  const said = h("div", {});
  const input = h("input", { type: "file", class: "hidden", tabindex: "-1", "aria-hidden": "true",
    onchange: () => input.files[0] && take(input.files[0]) });
  const chosen = async (name) => {
    keep({ upload: name, prompt: "", completion: "", check: null, plan: null, option: null });
    await ask(settings, found);
  };
  async function take(file) {
    if (file.size > limit) { // the server would say so, after the browser has sent all of it
      replace(said, notice(t("rows.large", { name: file.name, size: bytes(file.size), limit: bytes(limit) }), "error"));
      return;
    }
    const bar = h("progress", { max: "1", value: 0, "aria-label": t("rows.sending") });
    replace(said, bar);
    try {
      const { name } = await upload(file, (share) => (bar.value = share));
      replace(said, notice(t("rows.received", { name })));
      say(t("rows.received", { name }));
      await chosen(name);
    } catch (error) {
      replace(said, trouble(error));
    }
  }
  const zone = h("div", {
    class: "drop",
    ondragover: (event) => { event.preventDefault(); zone.classList.add("over"); },
    ondragleave: () => zone.classList.remove("over"),
    ondrop: (event) => {
      event.preventDefault();
      zone.classList.remove("over");
      if (event.dataTransfer.files[0]) take(event.dataTransfer.files[0]);
    },
  }, h("p", {}, t("rows.drop")), input,
  h("button", { type: "button", class: "first", onclick: () => input.click() }, t("rows.choose")));
  const earlier = files.length
    ? field(t("rows.earlier"), select([["", "–"], ...files.map((one) => [one.name, `${one.name} (${bytes(one.bytes)})`])],
      draft.upload, chosen))
    : null;
  return [zone, h("p", { class: "small soft push" }, t("rows.kinds")), said, earlier];
}

async function ask(place, found) {
  replace(found);
  const { columns, first } = await api("GET", `uploads/${encodeURIComponent(draft.upload)}/columns`);
  const guess = (names) => columns.find((name) => names.includes(name.toLowerCase())) ?? "";
  const chat = columns.some((name) => ["messages", "conversations"].includes(name));
  if (!chat && !draft.prompt) {
    keep({
      prompt: guess(["prompt", "question", "instruction", "input", "câu hỏi", "hỏi", "cau_hoi", "q"]),
      completion: guess(["completion", "answer", "response", "output", "trả lời", "câu trả lời", "đáp", "tra_loi", "a"]),
    });
  }
  const options = [["", t("rows.column.none")], ...columns.map((name) => [name, name])];
  const example = (name) => (first[name] ? t("rows.example", { text: first[name].slice(0, 60) }) : null);
  const stale = (change) => keep({ ...change, check: null, plan: null, option: null });
  const length = number(draft.max_length, { min: 2, placeholder: "512",
    onchange: () => stale({ max_length: numeric(length) }) });
  const held = number(draft.eval_fraction * 100, { min: 0, max: 90,
    onchange: () => stale({ eval_fraction: (numeric(held) ?? 0) / 100 }) });
  replace(place, h("form", { class: "card", onsubmit: (event) => { event.preventDefault(); check(found); } },
    h("h2", {}, t("rows.reading", { name: draft.upload })),
    h("div", { class: "fields" },
      columns.length && !chat ? [
        field(t("rows.prompt"), select(options, draft.prompt, (prompt) => stale({ prompt })), example(draft.prompt)),
        field(t("rows.completion"), select(options, draft.completion, (completion) => stale({ completion })), example(draft.completion)),
        field(t("rows.format"), select([["chat", t("rows.format.chat")], ["plain", t("rows.format.plain")]],
          draft.format, (format) => stale({ format })), t("rows.format.hint")),
      ] : null,
      field(t("rows.length"), length, t("rows.length.hint")),
      field(t("rows.held"), held, t("rows.held.hint"))),
    h("div", { class: "row push" }, h("button", { class: "first", id: "check" }, t("rows.check")))));
}

async function check(found) {
  const job = await work(found, { kind: "check", model: draft.model, rows: rows() });
  if (job) keep({ check: job.id });
  showCheck(found, job);
}

function showCheck(found, job) {
  if (!job?.result) return;
  const result = job.result;
  found.append(
    h("section", { class: "card" }, h("h2", {}, t("check.title")),
      notice(t(result.ok ? "check.ready" : "check.wrong"), result.ok ? "" : "error"),
      facts([
        [t("check.rows"), figure(result.rows)], [t("check.examples"), figure(result.examples)],
        [t("check.tokens"), figure(result.tokens)],
        [t("check.learned"), `${figure(result.supervised_tokens)} (${percent(result.supervised_tokens / Math.max(1, result.tokens))})`],
        [t("check.template"), result.template], [t("check.longest"), figure(result.max_length)],
      ]),
      result.findings.length ? h("div", { class: "push" }, h("h3", {}, t("check.findings")),
        table([t("check.kind"), [t("check.count"), "n"], t("check.message")],
          result.findings.map((one) => [
            h("span", { class: one.severity }, t(`severity.${one.severity}`)), [figure(one.count), "n"],
            h("div", {}, has(`finding.${one.kind}`) ? h("strong", {}, t(`finding.${one.kind}`)) : null,
              h("div", { lang: "en" }, one.message),
              one.places.slice(0, 3).map((at) => h("div", { class: "soft small", lang: "en" }, at))),
          ]), t("check.findings"))) : null),
    h("div", { class: "grid" },
      h("section", { class: "card" }, h("h2", {}, t("check.samples")),
        h("p", { class: "small soft" }, h("mark", {}, t("check.mark")), ` ${t("check.mark.rest")}`),
        result.samples.map((sample) => h("div", { class: "sample", translate: "no" },
          sample.pieces.map(([text, learned]) => (learned ? h("mark", {}, text) : text))))),
      h("section", { class: "card" }, h("h2", {}, t("check.lengths")), histogram(result.length_histogram))),
    result.ok ? h("button", { type: "button", class: "first", id: "to-plan", onclick: () => go("#/plan") }, t("next.plan")) : null);
}

function histogram(bins) {
  const shown = bins.filter(([, count]) => count);
  const most = Math.max(1, ...shown.map(([, count]) => count));
  return h("div", { class: "histogram", role: "img",
    "aria-label": shown.map(([upto, count]) => t("check.bin", { upto, count })).join(", ") },
  shown.map(([upto, count]) => [h("span", { class: "n" }, `≤ ${upto}`), h("span", { class: "n" }, figure(count)),
    h("div", {}, h("div", { class: "fill", "width%": (100 * count) / most }))]));
}
