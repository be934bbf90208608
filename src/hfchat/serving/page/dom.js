// Elements and icons, made without markup: a text only ever becomes a text node.

export const $ = (id) => document.getElementById(id);

/** An element with its children: nodes, texts, and lists of them. */
export function element(name, properties = {}, ...children) {
  return appended(Object.assign(document.createElement(name), properties), children.flat());
}

/** One by one: a call takes some ten thousand arguments, and a long text has more nodes. */
export function appended(node, children) {
  for (const child of children) node.append(child);
  return node;
}

const ICONS = {
  copy: "M9 9h11v11H9zM5 15H4V4h11v1",
  done: "M5 13l4 4L19 7",
  edit: "M4 20l1-4L16 5l3 3L8 19zM14 7l3 3",
  retry: "M20 11a8 8 0 1 0-2 6M20 5v6h-6",
  up: "M7 11v9H3v-9zM7 11l4-8c2 0 3 1 3 3v4h5c1.500 0 2.300 1 2 2.500l-1.500 6c-.2.900-1 1.500-2 1.500H7",
  down: "M17 13V4h4v9zM17 13l-4 8c-2 0-3-1-3-3v-4H5c-1.500 0-2.300-1-2-2.500l1.500-6c.2-.9 1-1.500 2-1.500H17",
  previous: "M14 6l-6 6 6 6",
  next: "M10 6l6 6-6 6",
};

/** A button that shows an icon; `label` is its name for screen readers, and its tooltip. */
export function iconButton(name, label, onClick) {
  const button = element("button", { type: "button", className: "icon", title: label, ariaLabel: label });
  button.addEventListener("click", onClick);
  setIcon(button, name);
  return button;
}

export function setIcon(button, name) {
  const svg = document.createElementNS("http://www.w3.org/2000/svg", "svg");
  svg.setAttribute("viewBox", "0 0 24 24");
  svg.setAttribute("aria-hidden", "true");
  const path = document.createElementNS(svg.namespaceURI, "path");
  path.setAttribute("d", ICONS[name]);
  svg.append(path);
  button.replaceChildren(svg);
}

/** Copy a text, and show it on the button for a while: `show(true)` or `show(false)`, and then `show(null)`. */
export async function copy(text, show) {
  show(await written(text));
  setTimeout(() => show(null), 2000);
}

async function written(text) {
  // Browsers have a clipboard for pages from HTTPS and from the same machine only; elsewhere the old way works.
  if (navigator.clipboard) return navigator.clipboard.writeText(text).then(() => true, () => false);
  const field = element("textarea", { value: text, className: "visually-hidden" });
  const focused = document.activeElement;
  document.body.append(field);
  field.select();
  const done = document.execCommand("copy");
  field.remove();
  focused.focus();
  return done;
}

/** Resolves with the value of the button that closed the dialog, "" if it was dismissed. */
export function opened(dialog) {
  dialog.returnValue = "";
  dialog.showModal();
  return new Promise((resolve) => {
    dialog.addEventListener("close", () => resolve(dialog.returnValue), { once: true });
  });
}
