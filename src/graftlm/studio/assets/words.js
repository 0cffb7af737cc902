// The page's texts in the chosen language, and numbers as it writes them.

export const LANGUAGES = { en: "English", vi: "Tiếng Việt" };

let texts = {};
export let language = "en";

export async function speak(wanted) {
  language = wanted in LANGUAGES ? wanted : "en";
  texts = await (await fetch(`/assets/lang/${language}.json`)).json();
  document.documentElement.lang = language;
}

export function t(key, values = {}) {
  if (!(key in texts)) {
    console.error(`no text ${key} in ${language}`);
    return key;
  }
  return texts[key].replace(/\{(\w+)\}/g, (_, name) => values[name] ?? "");
}

export const has = (key) => key in texts;

export function figure(value, digits = 3) {
  if (value === null || value === undefined || !Number.isFinite(value)) return "–";
  const small = value !== 0 && Math.abs(value) < 1e-4;
  return new Intl.NumberFormat(language, small
    ? { notation: "scientific", maximumSignificantDigits: 3 }
    : { maximumSignificantDigits: Math.max(digits, String(Math.trunc(Math.abs(value))).length) },
  ).format(value);
}

export function percent(value, digits = 1) {
  if (value === null || value === undefined) return "–";
  return new Intl.NumberFormat(language, { style: "percent", maximumFractionDigits: digits }).format(value);
}

export function bytes(value) {
  if (value === null || value === undefined) return "–";
  for (const [unit, size] of [["GB", 1e9], ["MB", 1e6], ["kB", 1e3]]) {
    if (value >= size) return `${figure(value / size)} ${unit}`;
  }
  return `${value} B`;
}

export function duration(seconds) {
  if (seconds === null || seconds === undefined || !Number.isFinite(seconds)) return "–";
  if (seconds < 60) return t("unit.seconds", { n: figure(seconds, 2) });
  if (seconds < 3600) return t("unit.minutes", { n: figure(seconds / 60, 2) });
  return t("unit.hours", { n: figure(seconds / 3600, 2) });
}
