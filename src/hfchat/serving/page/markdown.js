// A small part of Markdown as DOM nodes: paragraphs, headings, lists, code blocks, inline code, bold and italics.
// Text only ever becomes text nodes, so nothing that a model writes can become markup of its own.

const FENCE = /^\s*```\s*([\w+#.-]*)\s*$/;
const HEADING = /^#{1,6}\s+(.*)$/;
const BULLET = /^\s*[-*+]\s+(.*)$/;
const NUMBERED = /^\s*(\d+)[.)]\s+(.*)$/;
const INLINE = /`([^`\n]+)`|\*\*([^*\n]+)\*\*|\*([^*\s][^*\n]*)\*/g;

export function element(name, properties = {}, ...children) {
  const node = Object.assign(document.createElement(name), properties);
  node.append(...children);
  return node;
}

/** The nodes of a text; a code block that is not closed yet (the answer is still coming) is shown as one. */
export function render(text) {
  const nodes = [];
  const lines = text.split("\n");
  let paragraph = [];
  let list = null;

  const endParagraph = () => {
    if (paragraph.length) nodes.push(element("p", {}, ...inline(paragraph.join("\n"))));
    paragraph = [];
  };
  const endList = () => { list = null; };
  const addItem = (kind, content, start) => {
    endParagraph();
    if (list?.localName !== kind) {
      list = element(kind);
      if (start) list.start = start;
      nodes.push(list);
    }
    list.append(element("li", {}, ...inline(content)));
  };

  for (let index = 0; index < lines.length; index++) {
    const line = lines[index];
    let match;
    if ((match = line.match(FENCE))) {
      endParagraph();
      endList();
      const code = [];
      while (++index < lines.length && !/^\s*```\s*$/.test(lines[index])) code.push(lines[index]);
      nodes.push(codeBlock(code.join("\n"), match[1]));
    } else if ((match = line.match(HEADING))) {
      endParagraph();
      endList();
      nodes.push(element("h3", {}, ...inline(match[1])));
    } else if ((match = line.match(BULLET))) {
      addItem("ul", match[1]);
    } else if ((match = line.match(NUMBERED))) {
      addItem("ol", match[2], Number(match[1]));
    } else if (!line.trim()) {
      endParagraph();
    } else {
      endList();
      paragraph.push(line);
    }
  }
  endParagraph();
  return nodes;
}

function inline(text) {
  const nodes = [];
  let end = 0;
  for (const match of text.matchAll(INLINE)) {
    nodes.push(...withBreaks(text.slice(end, match.index)));
    const [whole, code, strong, emphasis] = match;
    if (code !== undefined) nodes.push(element("code", { textContent: code }));
    else if (strong !== undefined) nodes.push(element("strong", { textContent: strong }));
    else nodes.push(element("em", { textContent: emphasis }));
    end = match.index + whole.length;
  }
  nodes.push(...withBreaks(text.slice(end)));
  return nodes;
}

function withBreaks(text) {
  return text.split("\n").flatMap((line, index) => (index ? [element("br"), line] : [line]));
}

function codeBlock(code, language) {
  const copy = element("button", { type: "button", textContent: "Copy" });
  copy.addEventListener("click", async () => {
    try {
      await navigator.clipboard.writeText(code);
      copy.textContent = "Copied";
    } catch {
      copy.textContent = "Select and copy by hand";
    }
    setTimeout(() => { copy.textContent = "Copy"; }, 2000);
  });
  return element(
    "figure",
    { className: "code" },
    element("figcaption", {}, element("span", { textContent: language || "code" }), copy),
    element("pre", { tabIndex: 0 }, element("code", { textContent: code })),
  );
}
