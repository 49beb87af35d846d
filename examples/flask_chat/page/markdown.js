// Markdown as models write it, made into elements. Text becomes text nodes and nothing else, so that no answer can
// bring markup, a script, or an image that tells another host what was said.
//
// Known: paragraphs, headings, lists, quotes, rules, fenced code, inline code, bold, emphasis, links to http(s).
// Whatever is not known, or not finished yet, is shown as it was written.

const FENCE = /^ {0,3}(`{3,}|~{3,})\s*([\w+#.-]*)[^`]*$/;
const HEADING = /^ {0,3}(#{1,6})\s+(.+?)\s*#*$/;
const ITEM = /^( {0,3})([-*+]|(\d{1,9})[.)])( +|$)(.*)$/;
const QUOTE = /^ {0,3}> ?(.*)$/;
const RULE = /^ {0,3}([-*_])( *\1){2,} *$/;

// One alternative for each kind; none can look further than its own closing mark.
const INLINE = new RegExp(
  [
    /(?<ticks>`{1,2})(?<code>[^`]+)\k<ticks>(?!`)/,
    /!?\[(?<label>[^\][]*)\]\((?<target>[^\s()]+(?:\([^\s()]*\)[^\s()]*)*)\)/,
    /\*{3}(?<both>[^\s*](?:[^*]*[^\s*])?)\*{3}/,
    /\*\*(?<bold>[^\s*](?:(?:[^*]|\*(?!\*))*?[^\s*])?)\*\*/,
    /(?<!\*)\*(?<em>[^\s*](?:[^*]*[^\s*])?)\*(?!\*)/,
    /(?<![\w_])_(?<low>[^\s_](?:[^_]*[^\s_])?)_(?![\w_])/,
    /(?<url>https?:\/\/(?:[^\s<>()"'*`]|\([^\s<>()"'*`]*\))*(?:[^\s<>()"'*`.,;:!?]|\([^\s<>()"'*`]*\)))/,
    /\\(?<literal>[\\`*_{}[\]()#+.!>|~-])/,
  ].map((part) => part.source).join("|"),
  "gu",
);

const DEEPEST = 8; // of lists and quotes in each other; more is no text that anybody wrote

/**
 * Shows `text` in `element`. Blocks that are as they were at the last call stay, with what is selected in them.
 */
export function render(element, text) {
  const shown = (element.blocks ??= []);
  const blocks = parse(text.replaceAll("\t", "    ").split(/\r?\n/), 0);
  blocks.forEach((block, index) => {
    const source = JSON.stringify(block);
    if (shown[index]?.source === source) return;
    const node = built(block);
    if (shown[index]) shown[index].node.replaceWith(node);
    else element.append(node);
    shown[index] = { source, node };
  });
  for (const { node } of shown.splice(blocks.length)) node.remove();
}

// Lines to blocks, which are plain objects.

function parse(lines, depth) {
  const blocks = [];
  for (let at = 0; at < lines.length; ) {
    const [block, next] = blockAt(lines, at, depth);
    if (block) blocks.push(block);
    at = next;
  }
  return blocks;
}

function blockAt(lines, at, depth) {
  const line = lines[at];
  if (!line.trim()) return [null, at + 1];
  let match;
  if ((match = FENCE.exec(line))) return fence(lines, at, match);
  if ((match = HEADING.exec(line))) return [{ kind: "heading", level: match[1].length, text: match[2] }, at + 1];
  if (RULE.test(line)) return [{ kind: "rule" }, at + 1];
  if (depth < DEEPEST && QUOTE.test(line)) return quote(lines, at, depth);
  if (depth < DEEPEST && ITEM.test(line)) return list(lines, at, depth);
  return paragraph(lines, at);
}

const begins = (line) => [FENCE, HEADING, RULE, QUOTE, ITEM].some((kind) => kind.test(line));

function paragraph(lines, at) {
  let end = at + 1;
  while (end < lines.length && lines[end].trim() && !begins(lines[end])) end += 1;
  return [{ kind: "paragraph", text: lines.slice(at, end).map((line) => line.trim()).join("\n") }, end];
}

/** Takes code to its closing fence; to the end, while that has not come. */
function fence(lines, at, [, mark, language]) {
  const closing = (line) => line.trim().startsWith(mark) && !line.trim().replaceAll(mark[0], "");
  let end = at + 1;
  while (end < lines.length && !closing(lines[end])) end += 1;
  return [{ kind: "code", language, text: lines.slice(at + 1, end).join("\n") }, end + 1];
}

function quote(lines, at, depth) {
  const inner = [];
  for (let match; at < lines.length && (match = QUOTE.exec(lines[at])); at += 1) inner.push(match[1]);
  return [{ kind: "quote", blocks: parse(inner, depth + 1) }, at];
}

function list(lines, at, depth) {
  const [, , , number] = ITEM.exec(lines[at]);
  const block = { kind: "list", start: number, items: [] };
  for (let match; at < lines.length && (match = ITEM.exec(lines[at])) && !match[3] === !number; ) {
    const [inner, next] = itemLines(lines, at, match);
    block.items.push(parse(inner, depth + 1));
    at = next;
  }
  return [block, at];
}

/** Returns an item's lines, without what indents them, and where the next begins. */
function itemLines(lines, at, [, before, marker, , space, text]) {
  const indent = before.length + marker.length + Math.min(space.length, 4);
  const inner = [text];
  let end = at + 1;
  for (; end < lines.length; end += 1) {
    const line = lines[end];
    const depth = line.search(/\S/);
    if (depth < 0) inner.push("");
    else if (depth >= Math.min(indent, before.length + 2)) inner.push(line.slice(Math.min(depth, indent)));
    else if (inner.at(-1).trim() && !begins(line)) inner.push(line); // the paragraph goes on
    else break;
  }
  return [inner, end];
}

// Blocks to elements.

const BUILDERS = {
  paragraph: ({ text }) => filled("p", text),
  heading: ({ level, text }) => filled(`h${Math.min(level + 2, 6)}`, text), // the page has 1 and 2
  rule: () => document.createElement("hr"),
  quote: ({ blocks }) => holding("blockquote", blocks.map(built)),
  code: codeBlock,
  list: ({ start, items }) => {
    const element = holding(start ? "ol" : "ul", items.map(listItem));
    if (start) element.start = Number(start);
    return element;
  },
};

const built = (block) => BUILDERS[block.kind](block);

/** Builds an item; a single paragraph needs no element of its own. */
function listItem(blocks) {
  const [first, ...rest] = blocks;
  if (first?.kind !== "paragraph") return holding("li", blocks.map(built));
  return holding("li", [...inline(first.text), ...rest.map(built)]);
}

function codeBlock({ language, text }) {
  const code = holding("code", [text]);
  const block = holding("pre", [code]);
  block.tabIndex = 0; // who has no mouse scrolls it too
  if (language) block.dataset.language = language;
  return block;
}

function filled(tag, text) {
  return holding(tag, inline(text));
}

function holding(tag, children) {
  const element = document.createElement(tag);
  element.append(...children); // strings become text nodes
  return element;
}

/** Returns the elements and texts of one stretch of text. */
function inline(text) {
  const parts = [];
  let end = 0;
  for (const match of text.matchAll(INLINE)) {
    parts.push(text.slice(end, match.index), span(match));
    end = match.index + match[0].length;
  }
  return [...parts, text.slice(end)];
}

function span({ 0: whole, groups }) {
  if (groups.code) return holding("code", [groups.code.trim() || groups.code]);
  if (groups.both) return holding("strong", [filled("em", groups.both)]);
  if (groups.bold) return filled("strong", groups.bold);
  if (groups.em ?? groups.low) return filled("em", groups.em ?? groups.low);
  if (groups.literal) return groups.literal;
  return link(groups.url ?? groups.target, groups.url ?? groups.label) ?? whole;
}

/** Returns a link to a web page; undefined for `javascript:` and all that is no web page. */
function link(target, label) {
  const url = URL.canParse(target) ? new URL(target) : null;
  if (!/^https?:$/.test(url?.protocol)) return undefined;
  const element = holding("a", [label || target]);
  Object.assign(element, { href: url.href, target: "_blank", rel: "noopener noreferrer" });
  return element;
}
