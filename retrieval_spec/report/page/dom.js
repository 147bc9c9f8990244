// Elements, numbers and colours. All text comes in as text nodes.

const SVG = "http://www.w3.org/2000/svg";
const LINES = ["solid", "dashed", "dotted", "double", "wavy"];
const DASHES = ["", "7 4", "2 3", "9 3 2 3", "12 5"];
const NUM_COLOURS = 8;

function fill(element, attributes, children) {
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
  element.append(...children);
  return element;
}

function el(name, attributes = {}, ...children) {
  return fill(document.createElement(name), attributes, children);
}

function svg(name, attributes = {}, ...children) {
  return fill(document.createElementNS(SVG, name), attributes, children);
}

function byId(id) {
  return document.getElementById(id);
}

function whole(number) {
  return number.toLocaleString("en");
}

function plural(number, word) {
  return `${whole(number)} ${word}${number === 1 ? "" : "s"}`;
}

function share(part) {
  return `${(100 * part).toFixed(part > 0 && part < 0.1 ? 1 : 0)} %`;
}

function strong(number) {
  return `var(--c${number % NUM_COLOURS})`;
}

function tint(number) {
  return `var(--t${number % NUM_COLOURS})`;
}

function bitsOf(mask) {
  const bits = [];
  for (let bit = 0; mask >> bit; bit++) if (mask >> bit & 1) bits.push(bit);
  return bits;
}

// A token's place in the text keeps its breaks; a sign shows where they are.
function visible(text) {
  return text.replaceAll(" ", "\u00b7").replaceAll("\n", "\u21b5").replaceAll("\t", "\u21e5") || "(part of a character)";
}

function shortened(text, length) {
  const letters = Array.from(text);
  return letters.length > length ? letters.slice(0, length - 1).join("") + "\u2026" : text;
}

// The colour and the line under a token of these sources; several share the ground in stripes.
function paint(element, bits) {
  const stops = bits.slice(0, 3).map((bit, at, all) =>
    `${tint(bit)} ${100 * at / all.length}% ${100 * (at + 1) / all.length}%`);
  element.style.background = bits.length > 1 ? `linear-gradient(${stops.join(",")})` : tint(bits[0]);
  element.style.textDecorationLine = "underline";
  element.style.textDecorationStyle = bits.length > 1 ? "solid" : LINES[bits[0] % LINES.length];
  element.style.textDecorationColor = bits.length > 1 ? "var(--ink)" : strong(bits[0]);
}

function tableOf(head, rows) {
  const cells = (kind, values) => values.map((value, at) =>
    at === 0 && kind === "td" ? el("th", { scope: "row" }, String(value))
      : el(kind, kind === "th" ? { scope: "col" } : {}, String(value)));
  return el("table", {},
    el("thead", {}, el("tr", {}, ...cells("th", head))),
    el("tbody", {}, ...rows.map((row) => el("tr", {}, ...cells("td", row)))));
}

function scrolling(label, ...children) {
  return el("div", { class: "scroll", tabindex: "0", role: "group", "aria-label": label }, ...children);
}
