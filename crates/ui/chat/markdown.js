// The part of Markdown that models write, as elements. Text reaches the page as text nodes only: nothing that a
// model says is ever parsed as HTML.

/**
 * Shows `text` in `target`. Called again with longer text it replaces only the blocks that changed, so that a
 * selection in what was said before stays.
 */
export function show(target, text) {
  const blocks = split(text);
  blocks.forEach((block, index) => {
    const old = target.children[index];
    const key = `${block.kind}\n${block.open ? 1 : 0}\n${block.lines.join("\n")}`;
    if (old?.markdownKey === key) return;
    const element = build(block);
    element.markdownKey = key;
    // A block of thoughts that the reader opened stays open while it grows.
    if (old?.open && element instanceof HTMLDetailsElement) element.open = true;
    if (old) old.replaceWith(element);
    else target.append(element);
  });
  while (target.children.length > blocks.length) target.lastElementChild.remove();
}

const FENCE = /^ {0,3}(```+|~~~+)\s*([\w+#.-]*)/;
const ITEM = /^(\s*)([-*+]|\d{1,9}[.)])\s+(.*)$/;
const HEADING = /^(#{1,6})\s+(.*?)\s*#*$/;
const RULE = /^ {0,3}([-*_])(\s*\1){2,}\s*$/;
const DIVIDER = /^\s*\|?(\s*:?-+:?\s*\|)+\s*(:?-+:?\s*)?$/;

/** Cuts a text into blocks: {kind, lines, open, info}. `open` says that the end of a fence is still to come. */
function split(text) {
  const blocks = [];
  const lines = text.replace(/\r\n?/g, "\n").split("\n");
  let at = 0;
  const take = (kind, belongs, info) => {
    const start = at++;
    while (at < lines.length && belongs(lines[at], at)) at++;
    blocks.push({ kind, lines: lines.slice(start, at), info });
  };
  while (at < lines.length) {
    const line = lines[at];
    const fence = FENCE.exec(line);
    if (line.trim() === "") at++;
    else if (line.trimStart().startsWith("<think>")) at = fenced(blocks, lines, at, "thoughts", (l) => l.includes("</think>"), "", at);
    else if (fence) at = fenced(blocks, lines, at, "code", (l) => l.trim().startsWith(fence[1]), fence[2], at + 1);
    else if (HEADING.test(line)) take("heading", () => false);
    else if (RULE.test(line)) take("rule", () => false);
    else if (line.startsWith(">")) take("quote", (next) => next.startsWith(">"));
    else if (ITEM.test(line)) take("list", (next, i) => inList(lines, next, i));
    else if (line.includes("|") && DIVIDER.test(lines[at + 1] ?? "")) take("table", (next) => next.includes("|"));
    else take("paragraph", (next) => next.trim() !== "" && !begins(next));
  }
  return blocks;
}

function fenced(blocks, lines, start, kind, ends, info, from) {
  let end = from;
  while (end < lines.length && !ends(lines[end])) end++;
  const open = end >= lines.length;
  if (kind === "thoughts") blocks.push({ kind, lines: lines.slice(start, end + 1), open });
  else blocks.push({ kind, lines: lines.slice(start + 1, end), open, info });
  return end + 1;
}

function begins(line) {
  return FENCE.test(line) || HEADING.test(line) || RULE.test(line) || line.startsWith(">") || ITEM.test(line);
}

/** A list goes on over further items, indented lines, and an empty line that one of these follows. */
function inList(lines, line, index) {
  if (ITEM.test(line)) return !RULE.test(line);
  if (line.trim() === "") return index + 1 < lines.length && (ITEM.test(lines[index + 1]) || /^\s{2,}\S/.test(lines[index + 1]));
  return /^\s{2,}/.test(line) || (!begins(line) && lines[index - 1].trim() !== "");
}

function make(name, className) {
  const element = document.createElement(name);
  if (className) element.className = className;
  return element;
}

function build(block) {
  switch (block.kind) {
    case "code": return code(block);
    case "thoughts": return thoughts(block);
    case "rule": return make("hr");
    case "list": return list(block.lines);
    case "table": return table(block.lines);
    case "quote": {
      const quote = make("blockquote");
      show(quote, block.lines.map((line) => line.replace(/^>\s?/, "")).join("\n"));
      return quote;
    }
    case "heading": {
      const [, marks, text] = HEADING.exec(block.lines[0]);
      // The page's own headings are the first two levels.
      return inline(make(`h${Math.min(marks.length + 2, 6)}`), text);
    }
    default: return inline(make("p"), block.lines.join("\n"));
  }
}

function code({ lines, info }) {
  const figure = make("figure", "code");
  const caption = make("figcaption");
  const name = make("span");
  name.textContent = info || "text";
  const copy = make("button", "quiet copy");
  copy.type = "button";
  copy.textContent = "Copy";
  copy.dataset.copy = "code";
  caption.append(name, copy);
  const pre = make("pre");
  pre.tabIndex = 0;
  const text = make("code");
  text.textContent = lines.join("\n");
  pre.append(text);
  figure.append(caption, pre);
  return figure;
}

function thoughts({ lines, open }) {
  const details = make("details", "thoughts");
  const summary = make("summary");
  summary.textContent = open ? "Thinking…" : "Thoughts";
  const inner = make("div");
  show(inner, lines.join("\n").replace("<think>", "").replace("</think>", ""));
  details.append(summary, inner);
  return details;
}

function list(lines) {
  const first = ITEM.exec(lines[0]);
  const ordered = /\d/.test(first[2]);
  const element = make(ordered ? "ol" : "ul");
  if (ordered) element.start = Number.parseInt(first[2], 10);
  const indent = first[1].length;
  let item = null;
  for (const line of lines) {
    const match = ITEM.exec(line);
    if (match && match[1].length <= indent + 1) {
      item = { text: [match[3]], width: match[0].length - match[3].length };
      element.append(make("li"));
      element.lastElementChild.source = item;
    } else {
      const lead = line.length - line.trimStart().length;
      item.text.push(line.slice(Math.min(lead, item.width)));
    }
  }
  for (const child of element.children) fillItem(child);
  return element;
}

/** An item of one line is bare text; more is a text of its own. */
function fillItem(child) {
  const text = child.source.text.join("\n").trimEnd();
  if (!text.includes("\n")) inline(child, text);
  else show(child, text);
}

function cells(line) {
  return line.trim().replace(/^\||\|$/g, "").split("|").map((cell) => cell.trim());
}

function table(lines) {
  const frame = make("div", "table");
  const element = frame.appendChild(make("table"));
  lines.forEach((line, row) => {
    if (row === 1) return;
    const tr = element.appendChild(make("tr"));
    for (const cell of cells(line)) tr.append(inline(make(row === 0 ? "th" : "td"), cell));
  });
  return frame;
}

const SPAN = /(`+)([^`]|[^`].*?[^`])\1(?!`)|\*\*(?=\S)(.+?)\*\*(?!\*)|__(?=\S)(.+?)__(?!\w)|\*(?=[^\s*])(.+?)\*|(?<!\w)_(?=[^\s_])(.+?)_(?!\w)|~~(?=\S)(.+?)~~|\[([^\]\n]+)\]\(((?:[^\s()]|\([^\s()]*\))+)\)|(https?:\/\/[^\s<>"')\]]*[^\s<>"')\].,;:!?])/s;

/** Appends `text` with its emphasis, code and links to `element`. */
function inline(element, text) {
  let rest = text;
  for (let match = SPAN.exec(rest); match; match = SPAN.exec(rest)) {
    element.append(rest.slice(0, match.index), span(match));
    rest = rest.slice(match.index + match[0].length);
  }
  element.append(rest);
  return element;
}

function span([, , code, strong, strong2, em, em2, struck, label, target, bare]) {
  if (code !== undefined) {
    const element = make("code");
    element.textContent = code;
    return element;
  }
  if (strong ?? strong2) return inline(make("strong"), strong ?? strong2);
  if (em ?? em2) return inline(make("em"), em ?? em2);
  if (struck) return inline(make("del"), struck);
  return link(label ?? bare, target ?? bare);
}

/** A link, where its target is one that may be followed; else its text. */
function link(label, target) {
  if (!/^(https?:\/\/|mailto:)/i.test(target)) return document.createTextNode(`${label} (${target})`);
  const anchor = make("a");
  anchor.href = target;
  anchor.target = "_blank";
  anchor.rel = "noopener noreferrer";
  anchor.textContent = label;
  return anchor;
}
