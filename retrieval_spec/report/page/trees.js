// Draft trees from left to right: a row for each leaf, the accepted path in strong lines.

const NODE = { width: 104, height: 34, across: 128, down: 44, letters: 11 };
const WHY = {
  best: "The step that accepted most",
  worst: "The step that missed most: nothing came true of what was thought most probable",
  usual: "A usual step: as many accepted as in the median step",
};

// Columns and rows of all nodes; a parent stands beside its first child.
function placesOf(tree) {
  const children = new Map();
  tree.parents.forEach((parent, node) => children.set(parent, [...(children.get(parent) || []), node]));
  const places = [];
  let row = 0;
  const waiting = (children.get(-1) || []).map((node) => [node, 0]).reverse();
  while (waiting.length) {
    const [node, column] = waiting.pop();
    places[node] = { column, row };
    const below = children.get(node) || [];
    if (below.length) waiting.push(...below.map((child) => [child, column + 1]).reverse());
    else row += 1;
  }
  return places;
}

function edgeOf(from, to, accepted) {
  const bend = (from.x + to.x) / 2;
  return svg("path", { class: accepted ? "edge accepted" : "edge",
    d: `M${from.x},${from.y} C${bend},${from.y} ${bend},${to.y} ${to.x},${to.y}` });
}

function nodeOf(x, y, text, percent, bits, accepted) {
  const parts = [svg("rect", { class: accepted ? "accepted" : "", x, y, width: NODE.width, height: NODE.height, rx: 5 })];
  bits.forEach((bit, at) => parts.push(svg("path", { fill: strong(bit),
    d: `M${x + 4},${y + 4 + 26 * at / bits.length} h6 v${26 / bits.length} h-6 z` })));
  parts.push(svg("text", { x: x + 15, y: y + 15 }, shortened(visible(text), NODE.letters)),
    svg("text", { class: "quiet", x: x + 15, y: y + 29 }, `${percent} %${accepted ? " \u2713" : ""}`));
  return svg("g", {}, ...parts);
}

function pictureOf(tree, root, data) {
  const places = placesOf(tree);
  const came = new Set(tree.path);
  const columns = Math.max(...places.map(({ column }) => column)) + 1;
  const rows = Math.max(...places.map(({ row }) => row)) + 1;
  const left = (node) => (node < 0 ? 2 : 2 + (places[node].column + 1) * NODE.across);
  const top = (node) => (node < 0 ? 2 : 2 + places[node].row * NODE.down);
  const width = columns * NODE.across + NODE.width + 6;
  const height = rows * NODE.down;
  const picture = svg("svg", { role: "img", width, height, viewBox: `0 0 ${width} ${height}`,
    "aria-label": `Draft tree of ${plural(tree.tokens.length, "node")}, ${tree.path.length} accepted` });
  tree.parents.forEach((parent, node) => picture.append(edgeOf(
    { x: left(parent) + NODE.width, y: top(parent) + NODE.height / 2 },
    { x: left(node), y: top(node) + NODE.height / 2 }, came.has(node))));
  picture.append(svg("rect", { x: 2, y: 2, width: NODE.width, height: NODE.height, rx: 5, class: "accepted" }),
    svg("text", { x: 10, y: 23 }, shortened(visible(root), NODE.letters + 1)));
  tree.tokens.forEach((token, node) => picture.append(nodeOf(left(node), top(node), data.texts[token],
    tree.percents[node], bitsOf(tree.masks[node]), came.has(node))));
  return picture;
}

function treeTable(tree, data) {
  const came = new Set(tree.path);
  return tableOf(["node", "after", "token", "path probability", "sources", "outcome"], tree.tokens.map((token, node) => [
    node, tree.parents[node] < 0 ? "the context" : tree.parents[node], visible(data.texts[token]), `${tree.percents[node]} %`,
    bitsOf(tree.masks[node]).map((bit) => data.source_names[bit]).join(", "), came.has(node) ? "accepted" : "rejected"]));
}

function treeFigure(tree, generation, data, show) {
  const root = tree.at > 0 && data.has_text ? data.texts[generation.tokens[tree.at - 1]] : "context";
  const button = el("button", { type: "button" }, "Show in the text");
  button.addEventListener("click", () => show(tree.at));
  return el("figure", { class: "tree", id: `tree-${tree.at}`, tabindex: "-1" },
    el("figcaption", {}, WHY[tree.name] || tree.name,
      el("span", {}, `At token ${whole(tree.at + 1)}: ${plural(tree.accepted, "token")} accepted of ${plural(tree.nodes, "node")}` +
        `${tree.nodes > tree.tokens.length ? `, of which the best ${whole(tree.tokens.length)} are drawn` : ""}; drafted in ${whole(tree.us)} \u00b5s.`)),
    scrolling("Draft tree", pictureOf(tree, root, data)),
    el("details", {}, el("summary", {}, "As a table"), scrolling("Nodes of the draft tree", treeTable(tree, data))), button);
}
