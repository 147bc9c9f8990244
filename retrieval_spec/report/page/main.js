// Puts the page together from the data that stands in it.

function drawTotals(data) {
  const totals = data.totals[byId("family").value];
  drawSources(byId("sources"), totals, data.source_names);
  drawPositions(byId("positions"), totals);
  drawReliability(byId("reliability"), totals);
  drawMatches(byId("matches"), totals);
  drawSpeedups(byId("speedups"), totals, data);
  drawLengths(byId("lengths"), totals);
  const facts = [
    ["Tokens a step", totals.mean_acceptance_length.toFixed(2)],
    ["Generations", whole(totals.traces)],
    ["Tokens", whole(totals.tokens)],
    ["Nodes that came true", share(totals.accepted_share_of_nodes)],
    ["Error of probabilities", totals.calibration_error.toFixed(3)],
    ["Time of a draft, median", `${whole(Math.round(totals.draft_us_p50))} \u00b5s`],
  ];
  if ("speedup" in totals) facts.splice(1, 0, ["Speed-up, one session", totals.speedup.toFixed(2)]);
  byId("facts").replaceChildren(...facts.map(([name, value]) => el("div", {}, el("dt", {}, name), el("dd", {}, value))));
}

function drawLegend(data) {
  const entries = data.source_names.map((name, bit) => {
    const sample = el("span", { class: "token" }, name);
    paint(sample, [bit]);
    return el("li", {}, sample);
  });
  const several = el("span", { class: "token" }, "several sources");
  if (data.source_names.length > 1) {
    paint(several, [0, 1]);
    entries.push(el("li", {}, several));
  }
  entries.push(el("li", {}, el("span", { class: "token target" }, "the target, nothing drafted")),
    el("li", {}, el("span", { class: "token target missed" }, "the target, another draft rejected")));
  byId("legend").replaceChildren(...entries);
}

function leftOut(data) {
  const total = data.totals.all;
  const tokens = data.generations.reduce((sum, one) => sum + one.tokens.length, 0);
  return [
    `Generations: ${whole(data.generations.length)} of ${whole(total.traces)} are shown, evenly spaced over each family; ` +
      `of their outputs the beginnings, ${whole(tokens)} of ${whole(total.tokens)} tokens. Totals and charts count everything.`,
    "Draft trees: of each generation the step that accepted most, the one that missed most and a usual one.",
    "A match is the longest run of tokens before a place that stood before in the family's prompts and outputs, " +
      "whichever source drafted; a document is where a datastore has the drafted token after the longest run before it.",
    "Curves over batches and nodes come from up to 2,048 steps of each family, which begin where those of the replay " +
      "began: with other trees they would begin elsewhere. A session's own token is taken to cost what a node costs.",
    "What drafts would have gained under greedy decoding is exact; the time that drafts take is not in any speed-up.",
  ];
}

function offer(data, view) {
  const pick = byId("pick");
  const groups = new Map();
  data.generations.forEach((one, index) => {
    if (!groups.has(one.family)) groups.set(one.family, el("optgroup", { label: one.family }));
    const length = (1 + one.accepted / Math.max(one.steps, 1)).toFixed(2);
    groups.get(one.family).append(el("option", { value: index },
      `${one.family} ${whole(one.number + 1)}: ${length} tokens a step, ${plural(one.output_tokens, "token")}`));
  });
  pick.append(...groups.values());
  const change = () => {
    view.show(data.generations[Number(pick.value)]);
    byId("previous").disabled = pick.selectedIndex <= 0;
    byId("next").disabled = pick.selectedIndex >= data.generations.length - 1;
  };
  const move = (by) => {
    pick.selectedIndex += by;
    change();
  };
  pick.addEventListener("change", change);
  byId("previous").addEventListener("click", () => move(-1));
  byId("next").addEventListener("click", () => move(1));
  if (data.generations.length) change();
}

function start() {
  const data = JSON.parse(byId("data").textContent);
  const total = data.totals.all;
  byId("about").textContent = `${plural(total.traces, "recorded generation")}, ${whole(total.tokens)} tokens, replayed with ` +
    `preset ${data.preset} and at most ${plural(data.max_nodes, "node")} a step, by retrieval_spec ${data.version}.`;
  const family = byId("family");
  family.append(...Object.keys(data.totals).map((name) => el("option", { value: name }, name)));
  family.addEventListener("change", () => drawTotals(data));
  drawFamilies(byId("families"), data);
  drawTotals(data);
  drawLegend(data);
  byId("left-out").replaceChildren(...leftOut(data).map((text) => el("li", {}, text)));
  offer(data, new GenerationView(data));
  let width = window.innerWidth;
  window.addEventListener("resize", () => {
    if (window.innerWidth === width) return;
    width = window.innerWidth;
    requestAnimationFrame(() => drawTotals(data));
  });
}

start();
