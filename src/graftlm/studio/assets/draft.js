// What the user has chosen on the way, kept in this browser.

const KEY = "graftlm-studio-draft";

export const draft = {
  model: "gemma-3-270m", upload: "", prompt: "", completion: "", format: "chat",
  max_length: null, eval_fraction: 0.1, check: null, plan: null, option: null, run: "",
  theme: "", language: "",
  ...JSON.parse(localStorage.getItem(KEY) ?? "{}"),
};

export function keep(changes) {
  Object.assign(draft, changes);
  localStorage.setItem(KEY, JSON.stringify(draft));
}

export const rows = () => ({
  upload: draft.upload, prompt: draft.prompt, completion: draft.completion, format: draft.format,
  max_length: draft.max_length, eval_fraction: draft.eval_fraction,
});
