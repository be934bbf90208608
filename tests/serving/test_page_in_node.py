"""What the page's scripts make of what strangers write, in node with as much of a document as they need."""

import json
import shutil
import subprocess
from importlib.resources import files

import pytest

NODE = shutil.which("node")
pytestmark = pytest.mark.skipif(NODE is None, reason="there is no node to run the page's scripts in")
PAGE = files("hfchat") / "serving" / "page"
# A document of elements that only have children. What is made of each text is printed as HTML, or how many nodes.
SCRIPT = """
class Node {
  constructor(localName) { this.localName = localName; this.children = []; }
  append(...nodes) { for (const node of nodes) this.children.push(node); }
  get lastChild() { return this.children.at(-1); }
  addEventListener() {}
  get inner() {
    return this.textContent ?? this.children.map((each) => each.outer ?? each).join("");
  }
  get outer() {
    return `<${this.localName}>${this.inner}</${this.localName}>`;
  }
  get count() {
    return this.children.reduce((sum, each) => sum + (each.count ?? 1), 1);
  }
}
globalThis.document = { createElement: (name) => new Node(name) };
const { render } = await import(process.argv[1]);
let input = "";
for await (const part of process.stdin) input += part;
const { texts, counts } = JSON.parse(input);
const results = texts.map((text) => {
  const nodes = render(text);
  return counts ? nodes.reduce((sum, node) => sum + node.count, 0) : nodes.map((node) => node.outer).join("");
});
console.log(JSON.stringify(results));
"""


def render(*texts, counts=False):
    command = [NODE, "--input-type=module", "-e", SCRIPT, (PAGE / "markdown.js").as_uri()]
    sent = json.dumps({"texts": texts, "counts": counts})
    done = subprocess.run(command, input=sent, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


E_COM = "<p><a>{}</a> (e.com)</p>"
LINKS = {
    "[here](https://e.com/login)": E_COM.format("here"),
    "[https://accounts.google.com](https://e.com/login)": E_COM.format("https://accounts.google.com"),
    "[e.com.evil.example](https://e.com)": E_COM.format("e.com.evil.example"),
    "[google.com](https://e.com)": E_COM.format("google.com"),
    "[https://google.com/e.com](https://e.com)": E_COM.format("https://google.com/e.com"),
    "[https://google.com@e.com/](https://google.com@e.com/)": E_COM.format("https://google.com@e.com/"),
    "[e.com@google.com](https://e.com)": E_COM.format("e.com@google.com"),
    "[e.com:443.google.com](https://e.com)": E_COM.format("e.com:443.google.com"),
    "[\u202emoc.elgoog](https://e.com)": E_COM.format("moc.elgoog"),
    "[е.com](https://e.com)": E_COM.format("е.com"),
    "[ ](https://e.com)": "<p><a>e.com</a></p>",
    "[](https://e.com)": "<p><a>e.com</a></p>",
    "[e.com](https://e.com/login)": "<p><a>e.com</a></p>",
    "[https://e.com/a?b](https://e.com/a?b)": "<p><a>https://e.com/a?b</a></p>",
    "[here](javascript:alert(1))": "<p>[here](javascript:alert(1))</p>",
    '[here]( <https://e.com/a_(b)> "title" )': E_COM.format("here"),
}


def test_a_link_never_seems_to_lead_elsewhere():
    assert dict(zip(LINKS, render(*LINKS), strict=True)) == LINKS


FIGURE = "<figure><figcaption><span>{}</span><button>Copy</button></figcaption><pre><code>{}</code></pre></figure>"
MARKDOWN = {
    "# Title ##": "<h3>Title</h3>",
    "## C#": "<h3>C#</h3>",
    "# #": "<h3></h3>",
    "#no": "<p>#no</p>",
    "1. one\n\n   ```py\n   x = 1\n   ```\n\n2. two": (
        "<ol><li>one" + FIGURE.format("py", "x = 1") + "</li><li>two</li></ol>"
    ),
    "- a\n  - b\n    ```\n    x\n      y\n    ```\n  - c": (
        "<ul><li>a<ul><li>b" + FIGURE.format("code", "x\n  y") + "</li><li>c</li></ul></li></ul>"
    ),
    "- a\n```\nx\n```\n- b": "<ul><li>a</li></ul>" + FIGURE.format("code", "x") + "<ul><li>b</li></ul>",
    "~~~c++ title\nx\n~~~": FIGURE.format("c++", "x"),
    "```a`b": "<p>```a`b</p>",
    "| a | b |\n|:--|--:|\n| 1 |\n| 1 | 2 | 3 |": (
        "<div><table><thead><tr><th>a</th><th>b</th></tr></thead>"
        "<tbody><tr><td>1</td><td></td></tr><tr><td>1</td><td>2</td></tr></tbody></table></div>"
    ),
    "a | b\n--- | ---": ("<div><table><thead><tr><th>a</th><th>b</th></tr></thead><tbody></tbody></table></div>"),
    "a | b\n--- | x": "<p>a | b<br></br>--- | x</p>",
}


def test_markdown():
    assert dict(zip(MARKDOWN, render(*MARKDOWN), strict=True)) == MARKDOWN


PARTS = ["#", "# ", "# #", " ", "-", "- ", "|", "-|", "|\n", "|-", "*", "**a ", "* a\n", "_", "`", "` ", "`a``b", "~"]
PARTS += ["> ", "[", "[a](", "[a](b", "[a](b(", "![", "(", "\n", "a\n", "a|\n-|\n", "1. ", "<", "~~~\n"]
STARTS = [
    "",
    "# a",
    "|",
    "--",
    "[a](",
    "[a](x",
    '[a](x "',
    "```",
    "~~~",
    "~~~ ",
    "**",
    "*",
    "`",
    "- ",
    "> ",
    "a|b\n|-",
]
MANY = 128 * 1024  # characters; a card may have twice as many


def test_a_text_takes_no_longer_than_it_is_long():
    """By expressions that go back, some of these took minutes; some had more nodes than a call takes arguments."""
    texts = [part * (MANY // len(part)) for part in PARTS]
    texts += [start + fill * MANY + "`" for start in STARTS for fill in (" ", "~", "a", "#", "-")]
    assert max(render(*texts, counts=True)) < 3 * MANY


def test_a_table_has_no_more_cells_than_its_text_has_letters():
    wide = "|" * 1000 + "\n" + "-|" * 1000 + "\n" + "|\n" * 10_000
    usual = "a|" * 90 + "\n" + "-|" * 90 + "\n" + "|\n" * 1000
    assert max(render(wide, usual, counts=True)) < 500_000


def test_an_upstreams_code_is_no_property_of_every_object():
    script = """
globalThis.fetch = async () => new Response(JSON.stringify({ error: { message: "no", code: process.argv[2] } }),
  { status: 400 });
const { modelNames } = await import(process.argv[1]);
console.log(await modelNames().catch((error) => error.message));
"""
    for code in ("__proto__", "constructor", "toString", "unknown"):
        command = [NODE, "--input-type=module", "-e", script, (PAGE / "api.js").as_uri(), code]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.stdout == "no\n", (code, done.stdout, done.stderr)
