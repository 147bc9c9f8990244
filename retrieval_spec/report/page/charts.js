// Charts as SVG, each with a table of the same numbers.

const HEIGHT = 230;
const MARGIN = { left: 44, right: 24, top: 12, bottom: 38 };

function widthOf(figure) {
  return Math.max(240, Math.min(560, figure.clientWidth || 480));
}

function drawing(label, width, height) {
  return svg("svg", { role: "img", "aria-label": label, width, height, viewBox: `0 0 ${width} ${height}` });
}

function put(figure, title, note, picture, head, rows) {
  const fold = figure.querySelector("details");
  const table = el("details", fold && fold.open ? { open: "" } : {}, el("summary", {}, "As a table"),
    scrolling(title, tableOf(head, rows)));
  figure.replaceChildren(el("figcaption", {}, title, el("span", {}, note)), ...picture, table);
}

// Maps of numbers to places, and the frame around them.
function frame(picture, width, xs, ys, xName, yName) {
  const right = width - MARGIN.right;
  const bottom = HEIGHT - MARGIN.bottom;
  const x = (value) => MARGIN.left + (value - xs.from) / (xs.to - xs.from || 1) * (right - MARGIN.left);
  const y = (value) => bottom - (value - ys.from) / (ys.to - ys.from || 1) * (bottom - MARGIN.top);
  for (const [value, text] of ys.ticks) {
    picture.append(svg("line", { class: "axis", x1: MARGIN.left, x2: right, y1: y(value), y2: y(value) }),
      svg("text", { class: "quiet", x: MARGIN.left - 6, y: y(value) + 4, "text-anchor": "end" }, text));
  }
  for (const [value, text] of xs.ticks) {
    picture.append(svg("text", { class: "quiet", x: x(value), y: bottom + 16, "text-anchor": "middle" }, text));
  }
  picture.append(svg("text", { class: "quiet", x: right, y: HEIGHT - 5, "text-anchor": "end" }, xName),
    svg("text", { class: "quiet", x: 2, y: HEIGHT - 5 }, yName));
  return { x, y };
}

function steps(from, to, wanted, format) {
  const raw = (to - from) / wanted || 1;
  const power = 10 ** Math.floor(Math.log10(raw));
  const step = power * [1, 2, 5, 10].find((times) => times * power >= raw);
  const ticks = [];
  for (let at = Math.ceil(from / step - 1e-9) * step; at <= to + 1e-9; at += step) ticks.push([at, format(at)]);
  return ticks;
}

function drawSources(figure, totals, names) {
  const rows = Object.entries(totals.sources);
  const width = widthOf(figure);
  const most = Math.max(1, ...rows.map(([, counts]) => counts[0]));
  const label = rows.map(([name, [drafted, accepted]]) => `${name}: ${whole(accepted)} of ${whole(drafted)}`).join("; ");
  const picture = drawing(`Accepted of drafted nodes by source. ${label}`, width, 12 + 48 * rows.length);
  rows.forEach(([name, [drafted, accepted, alone]], at) => {
    const y = 8 + 48 * at;
    const scale = (count) => Math.max(count ? 1.5 : 0, count / most * (width - 4));
    const colour = strong(Math.max(0, names.indexOf(name)));
    picture.append(
      svg("text", { x: 0, y: y + 10 }, name),
      svg("text", { class: "quiet", x: width, y: y + 10, "text-anchor": "end" },
        `${share(accepted / Math.max(drafted, 1))} of ${whole(drafted)}`),
      svg("rect", { class: "outline", x: 1, y: y + 16, width: scale(drafted), height: 18 }),
      svg("rect", { x: 1, y: y + 16, width: scale(accepted), height: 18, fill: colour }),
      svg("rect", { x: 1, y: y + 29, width: scale(alone), height: 5, fill: "var(--ink)" }));
  });
  put(figure, "Sources", "Outline: drafted nodes. Filled: came true. Thick line below: came true, and no other source had it.",
    [picture], ["source", "drafted", "came true", "it alone"],
    rows.map(([name, counts]) => [name, ...counts.map(whole)]));
}

function drawPositions(figure, totals) {
  const width = widthOf(figure);
  const shares = totals.positions;
  const top = Math.max(0.1, ...shares);
  const picture = drawing(`Share of steps that accepted a token at each position: ${shares.slice(0, 8).map(share).join(", ")}`,
    width, HEIGHT);
  const every = Math.ceil(shares.length / 12);
  const xs = { from: 0.5, to: shares.length + 0.5,
    ticks: shares.map((_, at) => [at + 1, String(at + 1)]).filter((_, at) => at % every === 0) };
  const { x, y } = frame(picture, width, xs, { from: 0, to: top, ticks: steps(0, top, 4, share) },
    "drafted token of the step", "share of steps");
  const half = (x(2) - x(1)) * 0.38;
  shares.forEach((part, at) => picture.append(svg("rect", { x: x(at + 1) - half, width: 2 * half,
    y: y(part), height: Math.max(0, y(0) - y(part)), fill: "var(--c0)" })));
  put(figure, "Acceptance by position", "How many steps accepted a first, second, third … drafted token.", [picture],
    ["position", "share of steps"], shares.map((part, at) => [at + 1, share(part)]));
}

function drawReliability(figure, totals) {
  const width = widthOf(figure);
  const bins = totals.reliability;
  const most = Math.max(1, ...bins.map(([nodes]) => nodes));
  const picture = drawing(`Path probability against the share that came true; mean distance ${totals.calibration_error}`,
    width, HEIGHT);
  const axis = { from: 0, to: 1, ticks: steps(0, 1, 4, share) };
  const { x, y } = frame(picture, width, axis, axis, "path probability", "came true");
  picture.append(svg("line", { class: "even", x1: x(0), y1: y(0), x2: x(1), y2: y(1) }),
    svg("polyline", { class: "curve", stroke: "var(--c0)",
      points: bins.map(([, expected, accepted]) => `${x(expected)},${y(accepted)}`).join(" ") }));
  for (const [nodes, expected, accepted] of bins) {
    picture.append(svg("circle", { cx: x(expected), cy: y(accepted), r: 2 + 6 * Math.sqrt(nodes / most), fill: "var(--c0)" }));
  }
  put(figure, "Are the probabilities true?", "On the dotted line they are. A larger dot stands for more nodes.", [picture],
    ["mean probability", "came true", "nodes"],
    bins.map(([nodes, expected, accepted]) => [share(expected), share(accepted), whole(nodes)]));
}

function drawMatches(figure, totals) {
  const width = widthOf(figure);
  const rows = totals.match_lengths;
  const steps = Math.max(1, rows.reduce((sum, [, count]) => sum + count, 0));
  const most = Math.max(...rows.map(([, , tokens]) => tokens));
  const told = rows.map(([name, count, tokens]) => `${name}: ${tokens.toFixed(2)} in ${share(count / steps)} of steps`);
  const picture = drawing(`Tokens a step by match length. ${told.join("; ")}`, width, 8 + 34 * rows.length);
  rows.forEach(([name, count, tokens], at) => {
    const y = 6 + 34 * at;
    const full = Math.max(width - 190, 40);
    picture.append(svg("text", { x: 0, y: y + 17 }, name),
      svg("rect", { x: 48, y: y + 2, width: tokens / most * full, height: 22, fill: "var(--c0)", opacity: count ? 1 : 0 }),
      svg("text", { class: "quiet", x: width, y: y + 17, "text-anchor": "end" },
        count ? `${tokens.toFixed(2)} in ${share(count / steps)} of steps` : "no step"));
  });
  put(figure, "Tokens a step by match length", "How many tokens before the step stood in the family's texts before.", [picture],
    ["match length", "steps", "tokens a step"], rows.map(([name, count, tokens]) => [name, whole(count), tokens.toFixed(3)]));
}

// Lines over the same places; each with a dash pattern and a name in a legend.
function drawLines(figure, { title, note, lines, places, ticks, xName, yName, even }) {
  const width = widthOf(figure);
  const values = lines.flatMap(([, line]) => line).concat(even ? [1] : []);
  const low = Math.min(...values);
  const high = Math.max(...values, low + 0.1);
  const label = `${title}. ` + lines.map(([name, line]) => `${name}: ${line[0]} to ${line[line.length - 1]}`).join("; ");
  const picture = drawing(label, width, HEIGHT);
  const { x, y } = frame(picture, width, { from: places[0], to: places[places.length - 1], ticks },
    { from: low, to: high, ticks: steps(low, high, 4, (value) => value.toFixed(high - low < 0.8 ? 2 : 1)) }, xName, yName);
  if (even) picture.append(svg("line", { class: "even", x1: x(places[0]), x2: x(places[places.length - 1]), y1: y(1), y2: y(1) }));
  lines.forEach(([, line], at) => picture.append(svg("polyline", { class: "curve", stroke: strong(at),
    "stroke-dasharray": DASHES[at % DASHES.length], points: line.map((value, i) => `${x(places[i])},${y(value)}`).join(" ") })));
  const legend = lines.length < 2 ? [] : [el("ul", { class: "legend" }, ...lines.map(([name], at) => el("li", {},
    svg("svg", { width: 34, height: 10, "aria-hidden": "true" }, svg("line", { class: "curve", x1: 0, x2: 34, y1: 5, y2: 5,
      stroke: strong(at), "stroke-dasharray": DASHES[at % DASHES.length] })), name)))];
  return [picture, ...legend];
}

function drawSpeedups(figure, totals, data) {
  const lines = Object.entries(totals.speedups);
  const sizes = data.batch_sizes;
  const title = "Speed-up over batch size";
  const pays = sizes.filter((_, at) => lines[0][1][at] > 1.005);
  const note = data.has_costs
    ? (pays.length ? `Drafts pay up to ${pays[pays.length - 1]} sessions of those drawn. ` : "Drafts do not pay. ") + "Tokens per cost of the target's passes, where plain decoding has 1; the batch shares what pays, or trees are cut."
    : "Assumed: a drafted node costs so much of a plain pass of one session. Give --cost-curve for what yours costs.";
  const picture = drawLines(figure, { title, lines, places: sizes.map(Math.log2),
    ticks: sizes.map((size) => [Math.log2(size), String(size)]), xName: "sessions in a batch", yName: "speed-up", even: true });
  put(figure, title, note, picture, ["sessions", ...lines.map(([name]) => name)],
    sizes.map((size, at) => [size, ...lines.map(([, line]) => line[at].toFixed(2))]));
}

function drawLengths(figure, totals) {
  const lengths = totals.lengths_by_nodes;
  const places = lengths.map((_, at) => at);
  const title = "Tokens a step over drafted nodes";
  const picture = drawLines(figure, { title, lines: [["tokens a step", lengths]], places,
    ticks: steps(0, places.length - 1, 8, String), xName: "nodes of a tree at most", yName: "tokens a step", even: true });
  put(figure, title, "With every tree cut to its best nodes; plain decoding has 1.", picture, ["nodes", "tokens a step"],
    places.map((at) => [at, lengths[at].toFixed(3)]));
}

function drawFamilies(figure, data) {
  const rows = Object.entries(data.totals).map(([name, one]) => [name, whole(one.traces), whole(one.tokens),
    one.mean_acceptance_length.toFixed(2), share(one.accepted_share_of_nodes), one.calibration_error.toFixed(3)]);
  figure.replaceChildren(el("figcaption", {}, "Families", el("span", {}, "What was replayed.")),
    scrolling("Families", tableOf(["family", "traces", "tokens", "length", "nodes accepted", "error"], rows)));
}
