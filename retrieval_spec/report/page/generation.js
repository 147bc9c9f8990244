// One generation: its tokens, what is known of each, and its trees. Built when it is chosen, not before.

// What each token is: lists of the data that have no entry for every token are read in step with it.
function unfold(generation, data) {
  const rest = { rejected: 0, generations: 0, documents: 0 };
  let begin = 0;
  return generation.tokens.map((token, at) => {
    const mask = generation.masks[at];
    const percent = generation.percents[at];
    const one = { at, text: data.texts[token], mask, percent, bits: bitsOf(mask), begin, match: generation.match[at] };
    if (one.match) one.generation = generation.generations[rest.generations++];
    if (!mask && percent >= 0) one.rejected = data.texts[generation.rejected[rest.rejected++]];
    if (mask & data.corpus_mask) {
      one.document = data.texts[generation.documents[rest.documents]];
      one.corpusMatch = generation.corpus_match[rest.documents++];
    }
    if (!mask) begin = at + 1;
    return one;
  });
}

function tokenElement(one) {
  const element = el("span", { role: "option", id: `token-${one.at}`, "aria-selected": "false",
    class: `token ${one.mask ? "drafted" : one.rejected === undefined ? "target" : "target missed"}` });
  element.dataset.at = one.at;
  const blank = !one.text.trim();
  if (blank) element.setAttribute("aria-label", visible(one.text));
  // Signs where nothing would be seen; the break itself stays a break.
  const parts = one.text.split("\n");
  parts.forEach((part, at) => {
    element.append(part);
    if (at < parts.length - 1) element.append(el("span", { class: "mark", "aria-hidden": "true" }, "\u21b5"), "\n");
  });
  if (!one.text) element.append(el("span", { class: "mark", "aria-hidden": "true" }, "\u00b7"));
  if (one.mask) paint(element, one.bits);
  return element;
}

function sentences(one, generation, data) {
  const sources = one.bits.map((bit) => data.source_names[bit]).join(", ");
  const rows = [["Decided by", one.mask ? `a draft of ${sources}` : "the target itself"]];
  if (one.mask) rows.push(["Path probability", `${one.percent} %, and it came true`]);
  else if (one.rejected !== undefined) {
    rows.push(["Drafted instead", visible(one.rejected)], ["Path probability", `${one.percent} %, and it did not come true`]);
  } else rows.push(["Drafted here", "nothing"]);
  const where = one.generation === generation.number ? "this generation" : `generation ${whole((one.generation ?? 0) + 1)}`;
  rows.push(["Match length", one.match ? `${plural(one.match, "token")} before it, first in ${where}` : "none in earlier text"]);
  if (one.document) rows.push(["Document", `${one.document} (${plural(one.corpusMatch, "token")} before it)`]);
  rows.push(["Place", `token ${whole(one.at + 1)}, ${whole(one.at - one.begin + 1)} of its step`]);
  return rows;
}

class GenerationView {
  constructor(data) {
    this.data = data;
    this.list = byId("tokens");
    this.detail = byId("detail");
    this.list.addEventListener("mouseover", (event) => this.pointed(event));
    this.list.addEventListener("click", (event) => this.pointed(event));
    this.list.addEventListener("focus", () => this.choose(Math.max(this.at, 0)));
    this.list.addEventListener("keydown", (event) => this.pressed(event));
  }

  show(generation) {
    this.generation = generation;
    this.tokens = unfold(generation, this.data);
    this.elements = this.tokens.map(tokenElement);
    this.at = -1;
    this.list.removeAttribute("aria-activedescendant");
    this.list.replaceChildren(...this.elements);
    byId("prompt").textContent = generation.prompt;
    byId("prompt-fold").hidden = !generation.prompt;
    const rest = generation.output_tokens - this.tokens.length;
    byId("cut").textContent = rest > 0 ? `${whole(rest)} more tokens of this output are not on this page.` : "";
    byId("generation-about").textContent = `${plural(generation.prompt_tokens, "prompt token")}, ` +
      `${plural(generation.output_tokens, "output token")} in ${plural(generation.steps, "step")}: ` +
      `${(1 + generation.accepted / Math.max(generation.steps, 1)).toFixed(2)} tokens a step.`;
    this.detail.replaceChildren(el("p", { class: "quiet" }, "Point at a token, or choose one with the arrow keys."));
    byId("trees").replaceChildren(...(generation.trees.length
      ? generation.trees.map((tree) => treeFigure(tree, generation, this.data, (at) => this.goTo(at)))
      : [el("p", { class: "quiet" }, "No step of it had a draft.")]));
  }

  goTo(at) {
    this.choose(Math.min(at, this.tokens.length - 1));
    this.list.focus();
  }

  choose(at) {
    if (at === this.at || !this.tokens[at]) return;
    const old = this.tokens[this.at];
    if (old) {
      this.elements[this.at].setAttribute("aria-selected", "false");
      for (const one of this.stepOf(old)) this.elements[one.at].classList.remove("step");
    }
    this.at = at;
    const now = this.tokens[at];
    this.elements[at].setAttribute("aria-selected", "true");
    for (const one of this.stepOf(now)) this.elements[one.at].classList.add("step");
    this.list.setAttribute("aria-activedescendant", this.elements[at].id);
    this.detail.replaceChildren(el("div", { class: "shown" }, visible(now.text)),
      el("dl", {}, ...sentences(now, this.generation, this.data).flatMap(([name, text]) => [el("dt", {}, name), el("dd", {}, text)])));
  }

  stepOf(one) {
    const step = [];
    for (let at = one.begin; at < this.tokens.length && this.tokens[at].begin === one.begin; at++) step.push(this.tokens[at]);
    return step;
  }

  pointed(event) {
    const token = event.target.closest(".token");
    if (token) this.choose(Number(token.dataset.at));
  }

  pressed(event) {
    const last = this.tokens.length - 1;
    const now = this.tokens[Math.max(this.at, 0)];
    const step = this.stepOf(now);
    const targets = {
      ArrowLeft: this.at - 1,
      ArrowRight: this.at + 1,
      ArrowDown: step[step.length - 1].at + 1,
      ArrowUp: now.at > now.begin ? now.begin : (this.tokens[now.begin - 1] || now).begin,
      Home: 0,
      End: last,
    };
    if (event.key === "Enter") {
      const figure = byId(`tree-${now.begin}`);
      if (figure) figure.focus();
    } else if (event.key in targets && !event.altKey && !event.ctrlKey && !event.metaKey) {
      this.choose(Math.max(0, Math.min(last, targets[event.key])));
      this.elements[this.at].scrollIntoView({ block: "nearest" });
    } else return;
    event.preventDefault();
  }
}
