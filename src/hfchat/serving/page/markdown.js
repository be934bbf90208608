// The part of Markdown that models write, as DOM nodes: paragraphs, headings, lists, tables, quotes, code, links,
// bold and italics. Text only ever becomes text nodes, so nothing that a model writes can become markup of its own.

import { appended, copy, element } from "./dom.js";

// These run on what strangers wrote, up to 256 kB of it, so none of them may go back over what it has read: after what
// can be repeated comes something that it cannot be, or an end that always fits.
const FENCE = /^(\s*)(`{3,}|~{3,})(.*)$/;
const LANGUAGE = /^[\w+#.-]*/;
const HEADING = /^#{1,6}\s+(.*)$/;
const ITEM = /^(\s*)(?:[-*+]|(\d{1,9})[.)])\s+(.*)$/;
const QUOTE = /^\s*>\s?/;
const RULE = /^\s*([-*_])(\s*\1){2,}\s*$/;
const DASHES = /^:?-+:?$/;
const DIRECTIONS = /[\u200e\u200f\u202a-\u202e\u2066-\u2069]/g; // they can turn what is read around
const MAX_COLUMNS = 100; // each row has as many cells as the first one
const MAX_DEPTH = 8;
const INLINE = new RegExp(
  [
    /(?<!`)(`+)(?!`)(.+?)(?<!`)\1(?!`)/, // code
    /\*\*(?=\S)(.+?)\*\*/, // bold
    /(?<![\w*])\*(?=[^\s*])([^*]+)\*/, // italics
    // link or image
    /(!?)\[([^[\]]*)\]\(\s{0,9}<?([^\s<>()]*(?:\([^\s<>()]*\)[^\s<>()]*){0,9})>?(?:\s{1,9}"[^"]*")?\s{0,9}\)/,
  ].map(({ source }) => source).join("|"),
  "gs",
);

/**
 * The nodes of a text; a code block that is not closed yet (the answer is still coming) is shown as one. Quotes and
 * lists that lie `MAX_DEPTH` deep hold no others: a model that repeats itself must not build a tower of them.
 */
export function render(text, depth = 0) {
  const nodes = [];
  const lines = text.split("\n");
  let paragraph = [];
  let lists = []; // the open ones, from the outermost to the innermost: {indent, node}

  const endParagraph = () => {
    if (paragraph.length) nodes.push(element("p", {}, inline(paragraph.join("\n"))));
    paragraph = [];
  };
  const add = (node) => {
    endParagraph();
    lists = [];
    nodes.push(node);
  };
  const addCode = (indent, code) => {
    while (lists.length && lists.at(-1).indent >= indent) lists.pop();
    if (!lists.length) return add(code);
    endParagraph();
    lists.at(-1).node.lastChild.append(code); // it belongs to the item that it is indented under
  };
  const addItem = (indent, number, content) => {
    endParagraph();
    const kind = number === undefined ? "ul" : "ol";
    while (lists.length && lists.at(-1).indent > indent) lists.pop();
    if (lists.at(-1)?.indent === indent && lists.at(-1).node.localName !== kind) lists.pop();
    if (lists.at(-1)?.indent !== indent && lists.length < MAX_DEPTH) {
      const node = element(kind, number === undefined ? {} : { start: Number(number) });
      if (lists.length) lists.at(-1).node.lastChild.append(node);
      else nodes.push(node);
      lists.push({ indent, node });
    }
    lists.at(-1).node.append(element("li", {}, inline(content)));
  };

  for (let index = 0; index < lines.length; index++) {
    const line = lines[index];
    let match;
    if ((match = fenceOf(line))) {
      const { indent, fence, language } = match;
      const code = [];
      while (++index < lines.length && !isClosing(lines[index], fence)) code.push(without(indent, lines[index]));
      addCode(indent.length, codeBlock(code.join("\n"), language));
    } else if ((match = line.match(HEADING))) {
      add(element("h3", {}, inline(titleOf(match[1]))));
    } else if (RULE.test(line)) {
      add(element("hr"));
    } else if ((match = line.match(ITEM))) {
      addItem(match[1].length, match[2], match[3]);
    } else if (QUOTE.test(line) && depth < MAX_DEPTH) {
      const quoted = [line];
      while (QUOTE.test(lines[index + 1] ?? "")) quoted.push(lines[++index]);
      add(element("blockquote", {}, render(quoted.map((each) => each.replace(QUOTE, "")).join("\n"), depth + 1)));
    } else if (line.includes("|") && isRowOfDashes(lines[index + 1] ?? "") && cellsOf(line).length <= MAX_COLUMNS) {
      const rows = [line];
      for (index++; lines[index + 1]?.includes("|"); index++) rows.push(lines[index + 1]);
      add(table(rows));
    } else if (!line.trim()) {
      endParagraph();
    } else if (lists.length && !paragraph.length && /^\s/.test(line)) {
      appended(lists.at(-1).node.lastChild, [" ", ...inline(line.trim())]);
    } else {
      lists = [];
      paragraph.push(line);
    }
  }
  endParagraph();
  return nodes;
}

/** {indent, fence, language} of a line that begins a block of code. */
function fenceOf(line) {
  const match = line.match(FENCE);
  if (!match || match[3].includes("`")) return null;
  return { indent: match[1], fence: match[2], language: match[3].trim().match(LANGUAGE)[0] };
}

/** The text of a heading, without the row of `#` that may close it. */
function titleOf(text) {
  const trimmed = text.trim();
  let end = trimmed.length;
  while (trimmed[end - 1] === "#") end--;
  return end === 0 || /\s/.test(trimmed[end - 1]) ? trimmed.slice(0, end).trim() : trimmed;
}

function cellsOf(row) {
  return row.trim().replace(/^\|/, "").replace(/\|$/, "").split("|").map((cell) => cell.trim());
}

function isRowOfDashes(line) {
  return line.includes("|") && cellsOf(line).every((cell) => DASHES.test(cell));
}

function isClosing(line, fence) {
  const trimmed = line.trim();
  return trimmed.length >= fence.length && trimmed === fence[0].repeat(trimmed.length);
}

function without(indent, line) {
  return line.startsWith(indent) ? line.slice(indent.length) : line.trimStart();
}

function inline(text) {
  const nodes = [];
  let end = 0;
  for (const match of text.matchAll(INLINE)) {
    addTo(nodes, withBreaks(text.slice(end, match.index)));
    const [whole, , code, strong, emphasis, image, label, address] = match;
    if (code !== undefined) nodes.push(element("code", { textContent: code }));
    else if (strong !== undefined) nodes.push(element("strong", {}, inline(strong)));
    else if (emphasis !== undefined) nodes.push(element("em", {}, inline(emphasis)));
    else if (image) nodes.push(element("em", { textContent: `[Image: ${label}]` })); // loading it would tell its server
    else nodes.push(...link(label, address, whole));
    end = match.index + whole.length;
  }
  addTo(nodes, withBreaks(text.slice(end)));
  return nodes;
}

function addTo(nodes, more) {
  for (const node of more) nodes.push(node);
}

/** A link says where it leads, in its text or after it; one that leads to no web address stays the text that it is. */
function link(label, address, source) {
  if (!URL.canParse(address)) return [source];
  const url = new URL(address);
  if (!["http:", "https:"].includes(url.protocol)) return [source];
  const properties = { href: url.href, title: url.href, target: "_blank", rel: "noopener noreferrer nofollow" };
  const shown = label.replace(DIRECTIONS, "").trim() || url.host;
  const anchor = element("a", properties, inline(shown));
  return startsWithHost(shown, url.host) ? [anchor] : [anchor, ` (${url.host})`];
}

/** Whether a text is an address of this host, so that nobody takes it for one of another. */
function startsWithHost(text, host) {
  const address = text.replace(/^https?:\/\//, "");
  return address.startsWith(host) && (address.length === host.length || "/?#".includes(address[host.length]));
}

function withBreaks(text) {
  return text.split("\n").flatMap((line, index) => (index ? [element("br"), line] : [line])).filter((node) => node !== "");
}

function table(rows) {
  const [head, ...body] = rows.map(cellsOf);
  const row = (kind, cells) => element("tr", {}, cells.map((cell) => element(kind, {}, inline(cell))));
  return element(
    "div",
    { className: "table", tabIndex: 0, role: "group", ariaLabel: "Table" }, // it scrolls by itself
    element(
      "table", {},
      element("thead", {}, row("th", head)),
      element("tbody", {}, body.map((cells) => row("td", head.map((_, column) => cells[column] ?? "")))),
    ),
  );
}

export function codeBlock(code, language) {
  const button = element("button", { type: "button", textContent: "Copy" });
  button.addEventListener("click", () => copy(code, (done) => {
    button.textContent = { true: "Copied", false: "Select and copy by hand", null: "Copy" }[done];
  }));
  return element(
    "figure",
    { className: "code", ariaLabel: `Code${language && ` in ${language}`}` },
    element("figcaption", {}, element("span", { textContent: language || "code" }), button),
    element("pre", { tabIndex: 0, role: "group", ariaLabel: "Code" }, element("code", { textContent: code })),
  );
}
