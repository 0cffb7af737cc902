// The frame of the page: the way, the language, the theme, and which view is shown.

import { takeToken } from "./api.js";
import { draft, keep } from "./draft.js";
import { h, replace, select } from "./dom.js";
import { trouble } from "./parts.js";
import { LANGUAGES, language, speak, t } from "./words.js";
import * as chat from "./views/chat.js";
import * as compare from "./views/compare.js";
import * as exporting from "./views/export.js";
import * as plan from "./views/plan.js";
import * as rows from "./views/rows.js";
import * as runs from "./views/runs.js";
import * as train from "./views/train.js";

const WAY = [["rows", rows], ["plan", plan], ["train", train], ["runs", runs],
  ["compare", compare], ["chat", chat], ["export", exporting]];
const main = document.getElementById("main");
const dark = matchMedia("(prefers-color-scheme: dark)");

let leave = null;

function theme() {
  document.documentElement.dataset.theme = draft.theme || (dark.matches ? "dark" : "light");
}

function header() {
  const [here] = place();
  const steps = WAY.map(([name], index) => h("li", {}, h("a", {
    href: `#/${name}`, "aria-current": name === here ? "step" : null,
  }, h("span", { class: "n", "aria-hidden": "true" }, String(index + 1)), t(`way.${name}`))));
  const languages = select(Object.entries(LANGUAGES), language, async (chosen) => {
    keep({ language: chosen });
    await speak(chosen);
    show();
    document.getElementById("language").focus();
  });
  languages.id = "language";
  languages.setAttribute("aria-label", t("language"));
  const themes = select(["", "light", "dark"].map((one) => [one, t(`theme.${one || "auto"}`)]),
    draft.theme, (chosen) => {
      keep({ theme: chosen });
      theme();
      show();
      document.getElementById("theme").focus();
    });
  themes.id = "theme";
  themes.setAttribute("aria-label", t("theme"));
  replace(document.getElementById("header"),
    h("div", { class: "bar" },
      h("span", { class: "brand" }, h("img", { src: "/assets/icon.svg", alt: "" }), h("span", { class: "name" }, "graftlm studio")),
      themes, languages),
    h("nav", { "aria-label": t("way") }, h("ol", {}, steps)));
  document.getElementById("skip").textContent = t("skip");
  document.querySelector("nav [aria-current]")?.scrollIntoView({ block: "nearest", inline: "center" });
}

function place() {
  const [, name, ...rest] = location.hash.split("/");
  return [WAY.some(([known]) => known === name) ? name : "rows", decodeURIComponent(rest.join("/"))];
}

async function show() {
  leave?.();
  leave = null;
  header();
  const [name, rest] = place();
  const view = WAY.find(([known]) => known === name)[1];
  document.title = `${t(`way.${name}`)} · graftlm studio`;
  const root = h("div", {});
  replace(main, root);
  const gone = new AbortController();
  leave = () => gone.abort();
  try {
    await view.show(root, rest, gone.signal);
  } catch (error) {
    if (!gone.signal.aborted) root.append(trouble(error));
    if (error.status === undefined) throw error;
  }
}

document.getElementById("skip").addEventListener("click", (event) => {
  event.preventDefault();
  main.focus();
});
addEventListener("hashchange", () => {
  takeToken();
  show();
  main.focus({ preventScroll: true });
  scrollTo(0, 0);
});
dark.addEventListener("change", () => {
  theme();
  show();
});
takeToken();
theme();
await speak(draft.language || (navigator.language.startsWith("vi") ? "vi" : "en"));
show();
