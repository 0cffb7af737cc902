// Step 6: the base and the tune answer the same questions, side by side.

import { api } from "../api.js";
import { draft, keep } from "../draft.js";
import { field, h, number, numeric, replace, select } from "../dom.js";
import { command, notice, say, trouble } from "../parts.js";
import { duration, figure, t } from "../words.js";

export async function show(root) {
  const runs = (await api("GET", "runs")).filter((run) => run.state === "finished");
  replace(root, h("h1", {}, t("chat.title")), h("p", { class: "lead" }, t("chat.lead")));
  if (!runs.length) {
    root.append(notice(t("need.finished")));
    return;
  }
  if (!runs.some((run) => run.name === draft.run)) keep({ run: runs[0].name });
  const sides = { base: [], tuned: [] };
  const talk = { base: h("div", {}), tuned: h("div", {}) };
  const said = h("div", {});
  const forget = () => {
    for (const side of ["base", "tuned"]) {
      sides[side] = [];
      replace(talk[side]);
    }
  };
  const run = select(runs.map((one) => [one.name, `${one.name} · ${one.model}`]), draft.run, (name) => {
    keep({ run: name });
    forget();
  });
  const tokens = number(120, { min: 1, max: 4096 });
  const heat = number(0, { min: 0, max: 2, step: "any" });
  const text = h("textarea", { rows: "3", required: true, onkeydown: (event) => {
    if (event.key === "Enter" && !event.shiftKey) {
      event.preventDefault();
      form.requestSubmit();
    }
  } });
  const send = h("button", { class: "first", id: "send" }, t("chat.send"));
  const form = h("form", { class: "card", onsubmit: async (event) => {
    event.preventDefault();
    const asked = text.value.trim();
    if (!asked || send.disabled) return;
    send.disabled = true;
    replace(said, notice(t("chat.waiting")), h("progress", { "aria-label": t("chat.waiting") }));
    const question = (side) => [...sides[side], { role: "user", content: asked }];
    try {
      const answer = await api("POST", "chat", { run: draft.run, base: question("base"), tuned: question("tuned"),
        max_new_tokens: numeric(tokens) ?? 120, temperature: numeric(heat) ?? 0 });
      for (const side of ["base", "tuned"]) {
        const { text: words, tokens: count, seconds } = answer[side];
        sides[side].push({ role: "user", content: asked }, { role: "assistant", content: words });
        talk[side].append(h("div", { class: "turn user" }, asked), h("div", { class: "turn assistant" }, words || "–"),
          h("p", { class: "small soft" }, t("chat.took", { tokens: figure(count), time: duration(seconds) })));
      }
      text.value = "";
      replace(said, command(answer.command));
      say(`${t("chat.tuned")}: ${answer.tuned.text}`);
    } catch (error) {
      replace(said, trouble(error));
    }
    send.disabled = false;
    text.focus();
  } },
  h("div", { class: "fields" }, field(t("chat.run"), run), field(t("chat.tokens"), tokens), field(t("chat.heat"), heat, t("chat.heat.hint"))),
  h("div", { class: "push" }, field(t("chat.question"), text, t("chat.question.hint"))),
  h("div", { class: "row push" }, send,
    h("button", { type: "button", onclick: forget }, t("chat.forget")),
    h("button", { type: "button", onclick: async () => {
      await api("DELETE", "chat");
      replace(said, notice(t("chat.freed")));
    } }, t("chat.free"))), said);
  root.append(form, h("div", { class: "sides" },
    h("section", { class: "card" }, h("h2", {}, t("chat.base")), talk.base),
    h("section", { class: "card" }, h("h2", {}, t("chat.tuned")), talk.tuned)));
}
