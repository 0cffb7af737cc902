// Parts that several views use: a command to copy, a job's progress, an error.

import { api, pause } from "./api.js";
import { h, replace } from "./dom.js";
import { duration, t } from "./words.js";

export function say(text) {
  document.getElementById("status").textContent = text;
}

export function command(text) {
  const button = h("button", {
    type: "button",
    onclick: async () => {
      await navigator.clipboard.writeText(text);
      button.textContent = t("copied");
      say(t("copied"));
      setTimeout(() => (button.textContent = t("copy")), 1500);
    },
  }, t("copy"));
  return h("div", { class: "command" }, h("code", { lang: "en", translate: "no" }, text), button);
}

export function notice(text, kind = "") {
  return h("div", { class: `notice ${kind}`, role: kind === "error" ? "alert" : null }, text);
}

// What went wrong, in words. The messages of the commands are in English.
export function trouble(error) {
  if (error.status === 401) return notice(t("error.token"), "error");
  if (error.status === 0) return notice(t("error.server"), "error");
  return h("div", { class: "notice error", role: "alert", lang: "en" }, error.message);
}

// Starts a command, shows it with its time, and returns its end; null once the view has gone.
export async function work(place, asked) {
  replace(place, notice(t("job.starting")));
  let job;
  try {
    job = await api("POST", "jobs", asked);
  } catch (error) {
    replace(place, trouble(error));
    return null;
  }
  return follow(place, job.id);
}

export async function follow(place, id) {
  for (;;) {
    let job;
    try {
      job = await api("GET", `jobs/${id}`);
    } catch (error) {
      if (error.status !== 0) {
        replace(place, trouble(error));
        return null;
      }
      await pause(1000); // the server is away; the job is not
      continue;
    }
    if (!place.isConnected && place.dataset.shown) return null;
    place.dataset.shown = "yes";
    if (job.state !== "running") {
      replace(place, command(job.command));
      say(t(`job.${job.state}`));
      // `check` and `export --check` exit with 1 where they find something: they have a result.
      if (job.state !== "done" && !job.result) {
        place.append(notice(t(`job.${job.state}`), "error"),
          h("div", { class: "sample", lang: "en" }, job.said.trim() || "–"));
        return null;
      }
      return job;
    }
    replace(place, command(job.command), h("div", { class: "row" },
      h("progress", { "aria-label": t("job.running") }),
      h("span", { class: "soft" }, `${t("job.running")} · ${duration(job.seconds)}`),
      h("button", { type: "button", onclick: () => api("POST", `jobs/${id}/stop`) }, t("job.stop"))));
    await pause(700);
  }
}

export function go(hash) {
  location.hash = hash;
}
