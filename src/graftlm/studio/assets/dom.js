// Elements without markup: text becomes a text node, so nothing that a row or a model says is HTML.

export function h(tag, props = {}, ...children) {
  const node = document.createElement(tag);
  for (const [name, value] of Object.entries(props)) {
    if (value === undefined || value === null || value === false) continue;
    if (name.startsWith("on")) node.addEventListener(name.slice(2), value);
    else if (name === "class") node.className = value;
    else if (name === "width%") node.style.width = `${value}%`;
    else if (name === "left%") node.style.left = `${value}%`;
    else if (name === "value") node.value = value;
    else if (name === "checked" || name === "disabled" || name === "selected") node[name] = true;
    else node.setAttribute(name, value === true ? "" : value);
  }
  node.append(...children.flat(9).filter((one) => one !== null && one !== undefined && one !== false));
  return node;
}

export function replace(node, ...children) {
  node.replaceChildren(...children.flat(9).filter((one) => one !== null && one !== undefined && one !== false));
  return node;
}

let numbered = 0;

// A labelled input, select or textarea, with a hint that is read out with it.
export function field(label, control, hint) {
  const id = (control.id ||= `f${++numbered}`);
  if (hint) control.setAttribute("aria-describedby", `${id}-hint`);
  return h("div", { class: "field" },
    h("label", { for: id }, label), control,
    hint && h("span", { class: "hint", id: `${id}-hint` }, hint));
}

export function select(options, chosen, onchange) {
  const node = h("select", { onchange: () => onchange?.(node.value) },
    options.map(([value, text]) => h("option", { value, selected: value === chosen }, text)));
  return node;
}

export function number(value, props = {}) {
  return h("input", { type: "number", inputmode: "decimal", value: value ?? "", ...props });
}

export const numeric = (control) => (control.value.trim() === "" ? null : Number(control.value));

export function facts(pairs) {
  return h("dl", { class: "facts" },
    pairs.filter(Boolean).map(([name, value]) => h("div", {}, h("dt", {}, name), h("dd", {}, value))));
}

export function table(head, rows, label) {
  const cell = (tag) => (one) => {
    const [value, kind] = Array.isArray(one) ? one : [one, ""];
    return h(tag, { class: kind || null, ...(tag === "th" ? { scope: "col" } : {}) }, value);
  };
  return h("div", { class: "scroll", tabindex: "0", role: "region", "aria-label": label },
    h("table", {}, h("thead", {}, h("tr", {}, head.map(cell("th")))),
      h("tbody", {}, rows.map((row) => h("tr", {}, row.map(cell("td")))))));
}
