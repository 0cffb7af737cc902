// Step 6: the base and the tune answer the same questions, side by side and word by word.
//
// A screen reader is told twice a question: that the models answer, and both answers when they are
// complete. The words in between are not read out.

import { api, Refused, stream } from "../api.js";
import { draft, keep } from "../draft.js";
import { field, h, number, numeric, replace, select } from "../dom.js";
import { command, notice, say, trouble } from "../parts.js";
import { duration, figure, t } from "../words.js";

const SIDES = ["base", "tuned"];

// A question and its answer, which grows, at the end of one side's talk.
function turn(place, asked) {
  const words = document.createTextNode("");
  const answer = h("div", { class: "turn assistant writing" }, words);
  const nodes = [h("div", { class: "turn user" }, asked), answer];
  place.append(...nodes);
  const end = (note) => {
    answer.classList.remove("writing");
    if (!words.data) answer.append("–");
    nodes.push(h("p", { class: "small soft took" }, note));
    answer.after(nodes.at(-1));
  };
  return {
    get text() {
      return words.data;
    },
    take(piece) {
      if (piece.text) words.appendData(piece.text);
      if (piece.reason) end(t("chat.took", { tokens: figure(piece.tokens), time: duration(piece.seconds) }));
    },
    stop() {
      if (answer.classList.contains("writing")) end(t("chat.stopped"));
    },
    remove: () => nodes.forEach((node) => node.remove()),
  };
}

export async function show(root, rest, gone) {
  const runs = (await api("GET", "runs")).filter((run) => run.state === "finished");
  replace(root, h("h1", {}, t("chat.title")), h("p", { class: "lead" }, t("chat.lead")));
  if (!runs.length) {
    root.append(notice(t("need.finished")));
    return;
  }
  if (!runs.some((run) => run.name === draft.run)) keep({ run: runs[0].name });
  const sides = { base: [], tuned: [] };
  const talk = { base: h("div", {}), tuned: h("div", {}) };
  const said = h("div", { class: "push" });
  let running = null; // what breaks off the answers that are being written
  const stop = () => running?.abort();
  const forget = () => {
    stop();
    running = null;
    for (const side of SIDES) {
      sides[side] = [];
      replace(talk[side]);
    }
    replace(said);
    answering(false);
  };
  gone.addEventListener("abort", () => {
    stop();
    running = null;
  });
  const run = select(runs.map((one) => [one.name, `${one.name} · ${one.model}`]), draft.run, (name) => {
    keep({ run: name });
    forget();
  });
  const tokens = number(120, { min: 1, max: 4096 });
  const heat = number(0, { min: 0, max: 2, step: "any" });
  const text = h("textarea", { rows: "3", required: true, onkeydown: (event) => {
    if (event.key === "Enter" && !event.shiftKey) {
      event.preventDefault();
      if (!running) form.requestSubmit();
    }
  } });
  const send = h("button", { class: "first", id: "send" }, t("chat.send"));
  const halt = h("button", { type: "button", id: "stop", hidden: true, onclick: stop }, t("chat.stop"));
  const answering = (on) => {
    const lost = [send, halt, document.body].includes(document.activeElement);
    send.disabled = on;
    halt.hidden = !on;
    for (const side of SIDES) talk[side].setAttribute("aria-busy", String(on));
    if (lost) (on ? halt : text).focus();
  };
  const wait = (words) => replace(said, notice(words), h("progress", { "aria-label": words }));

  async function ask(asked, mine) {
    const question = (side) => [...sides[side], { role: "user", content: asked }];
    const turns = { base: turn(talk.base, asked), tuned: turn(talk.tuned, asked) };
    let line = "", done = false, failed = null;
    try {
      for await (const piece of stream("POST", "chat", { run: draft.run, base: question("base"),
        tuned: question("tuned"), max_new_tokens: numeric(tokens) ?? 120, temperature: numeric(heat) ?? 0 }, mine.signal)) {
        if (piece.error) throw new Refused(500, piece.error);
        if (piece.command) {
          line = piece.command;
          if (piece.loading) wait(t("chat.loading"));
        } else if (piece.done) done = true;
        else turns[piece.side].take(piece);
      }
      if (!done) throw new Refused(0, "");
    } catch (error) {
      if (!(error instanceof Refused)) throw error;
      failed = mine.signal.aborted ? null : error;
    }
    if (running !== mine) return; // forgotten, or the view has gone
    running = null;
    if (failed) {
      for (const side of SIDES) turns[side].remove();
      replace(said, trouble(failed));
      text.value ||= asked;
    } else {
      for (const side of SIDES) {
        turns[side].stop();
        sides[side].push({ role: "user", content: asked }, { role: "assistant", content: turns[side].text });
      }
      replace(said, line && command(line));
      say(`${done ? "" : t("chat.stopped")} ${SIDES.map((side) => `${t(`chat.${side}`)}: ${turns[side].text}`).join("\n")}`);
    }
    answering(false);
  }

  const form = h("form", { class: "card", onsubmit: (event) => {
    event.preventDefault();
    const asked = text.value.trim();
    if (!asked || running) return;
    running = new AbortController();
    text.value = "";
    wait(t("chat.waiting"));
    say(t("chat.waiting"));
    answering(true);
    return ask(asked, running);
  }, onkeydown: (event) => event.key === "Escape" && stop() },
  h("div", { class: "fields" }, field(t("chat.run"), run), field(t("chat.tokens"), tokens), field(t("chat.heat"), heat, t("chat.heat.hint"))),
  h("div", { class: "push" }, field(t("chat.question"), text, t("chat.question.hint"))),
  h("div", { class: "row push" }, send, halt,
    h("button", { type: "button", onclick: forget }, t("chat.forget")),
    h("button", { type: "button", onclick: async () => {
      stop();
      await api("DELETE", "chat");
      replace(said, notice(t("chat.freed")));
    } }, t("chat.free"))), said);
  root.append(form, h("div", { class: "sides" },
    h("section", { class: "card" }, h("h2", {}, t("chat.base")), talk.base),
    h("section", { class: "card" }, h("h2", {}, t("chat.tuned")), talk.tuned)));
}
