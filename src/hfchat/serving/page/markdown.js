// The part of Markdown that models write, as DOM nodes: paragraphs, headings, lists, tables, quotes, code, links,
// bold and italics. Text only ever becomes text nodes, so nothing that a model writes can become markup of its own.

import { copy, element } from "./dom.js";

const FENCE = /^(\s*)(`{3,}|~{3,})\s*([\w+#.-]*)[^`]*$/;
const HEADING = /^#{1,6}\s+(.*?)\s*#*$/;
const ITEM = /^(\s*)(?:[-*+]|(\d{1,9})[.)])\s+(.*)$/;
const QUOTE = /^\s*>\s?/;
const RULE = /^\s*([-*_])(\s*\1){2,}\s*$/;
const ROW_OF_DASHES = /^\s*\|?(\s*:?-+:?\s*\|)+(\s*:?-+:?\s*)?$/;
const MAX_DEPTH = 8;
const INLINE = new RegExp(
  [
    /(?<!`)(`+)(?!`)(.+?)(?<!`)\1(?!`)/, // code
    /\*\*(?=\S)(.+?)\*\*/, // bold
    /(?<![\w*])\*(?=[^\s*])([^*]+)\*/, // italics
    /(!?)\[([^[\]]*)\]\(\s*<?([^\s<>()]*(?:\([^\s<>()]*\)[^\s<>()]*)*)>?(?:\s+"[^"]*")?\s*\)/, // link or image
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
    if (paragraph.length) nodes.push(element("p", {}, ...inline(paragraph.join("\n"))));
    paragraph = [];
  };
  const add = (node) => {
    endParagraph();
    lists = [];
    nodes.push(node);
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
    lists.at(-1).node.append(element("li", {}, ...inline(content)));
  };

  for (let index = 0; index < lines.length; index++) {
    const line = lines[index];
    let match;
    if ((match = line.match(FENCE))) {
      const [, indent, fence, language] = match;
      const code = [];
      while (++index < lines.length && !isClosing(lines[index], fence)) code.push(without(indent, lines[index]));
      add(codeBlock(code.join("\n"), language));
    } else if ((match = line.match(HEADING))) {
      add(element("h3", {}, ...inline(match[1])));
    } else if (RULE.test(line)) {
      add(element("hr"));
    } else if ((match = line.match(ITEM))) {
      addItem(match[1].length, match[2], match[3]);
    } else if (QUOTE.test(line) && depth < MAX_DEPTH) {
      const quoted = [line];
      while (QUOTE.test(lines[index + 1] ?? "")) quoted.push(lines[++index]);
      add(element("blockquote", {}, ...render(quoted.map((each) => each.replace(QUOTE, "")).join("\n"), depth + 1)));
    } else if (line.includes("|") && ROW_OF_DASHES.test(lines[index + 1] ?? "")) {
      const rows = [line];
      for (index++; lines[index + 1]?.includes("|"); index++) rows.push(lines[index + 1]);
      add(table(rows));
    } else if (!line.trim()) {
      endParagraph();
    } else if (lists.length && !paragraph.length && /^\s/.test(line)) {
      lists.at(-1).node.lastChild.append(" ", ...inline(line.trim()));
    } else {
      lists = [];
      paragraph.push(line);
    }
  }
  endParagraph();
  return nodes;
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
    nodes.push(...withBreaks(text.slice(end, match.index)));
    const [whole, , code, strong, emphasis, image, label, address] = match;
    if (code !== undefined) nodes.push(element("code", { textContent: code }));
    else if (strong !== undefined) nodes.push(element("strong", {}, ...inline(strong)));
    else if (emphasis !== undefined) nodes.push(element("em", {}, ...inline(emphasis)));
    else if (image) nodes.push(element("em", { textContent: `[Image: ${label}]` })); // loading it would tell its server
    else nodes.push(...link(label, address, whole));
    end = match.index + whole.length;
  }
  nodes.push(...withBreaks(text.slice(end)));
  return nodes;
}

/** A link says where it leads; one that leads to no web address stays the text that it is. */
function link(label, address, source) {
  if (!URL.canParse(address)) return [source];
  const url = new URL(address);
  if (!["http:", "https:"].includes(url.protocol)) return [source];
  const properties = { href: url.href, title: url.href, target: "_blank", rel: "noopener noreferrer nofollow" };
  const anchor = element("a", properties, ...inline(label || url.host));
  return label.includes(url.host) ? [anchor] : [anchor, ` (${url.host})`];
}

function withBreaks(text) {
  return text.split("\n").flatMap((line, index) => (index ? [element("br"), line] : [line])).filter((node) => node !== "");
}

function table(rows) {
  const [head, ...body] = rows.map((row) => row.trim().replace(/^\||\|$/g, "").split("|").map((cell) => cell.trim()));
  const row = (kind, cells) => element("tr", {}, ...cells.map((cell) => element(kind, {}, ...inline(cell))));
  return element(
    "div",
    { className: "table", tabIndex: 0, role: "group", ariaLabel: "Table" }, // it scrolls by itself
    element(
      "table", {},
      element("thead", {}, row("th", head)),
      element("tbody", {}, ...body.map((cells) => row("td", head.map((_, column) => cells[column] ?? "")))),
    ),
  );
}

function codeBlock(code, language) {
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
