"use strict";

/** The upper half of a symmetric matrix, row by row from the diagonal on, kept as whole numbers of steps. */
class Similarities {
  constructor(base64, count, steps) {
    const bytes = Uint8Array.from(atob(base64), (character) => character.charCodeAt(0));
    const view = new DataView(bytes.buffer);
    this.count = count;
    this.steps = steps;
    this.values = Uint16Array.from({ length: (count * (count + 1)) / 2 }, (_, index) => view.getUint16(2 * index, true));
  }

  at(row, column) {
    const [i, j] = row <= column ? [row, column] : [column, row];
    return this.values[i * this.count - (i * (i - 1)) / 2 + (j - i)] / this.steps;
  }

  /** The most similar others, the best first. */
  nearest(row, wanted) {
    const others = Array.from({ length: this.count }, (_, index) => index).filter((index) => index !== row);
    others.sort((a, b) => this.at(row, b) - this.at(row, a) || a - b);
    return others.slice(0, wanted);
  }
}

/** Neighbours of one family, as half-open ranges. */
function familyRuns(families) {
  const runs = [];
  families.forEach((family, index) => {
    const last = runs[runs.length - 1];
    if (last && last.family === family) last.stop = index + 1;
    else runs.push({ family, start: index, stop: index + 1 });
  });
  return runs;
}

/** Those whose names hold all words of the query, names that begin with it first. */
function search(names, query, wanted) {
  const words = query.toLowerCase().split(/\s+/).filter(Boolean);
  if (!words.length) return [];
  const found = names.map((name, index) => ({ name: name.toLowerCase(), index }));
  const rank = (entry) => (entry.name === words[0] ? 0 : entry.name.startsWith(words[0]) ? 1 : 2);
  return found
    .filter((entry) => words.every((word) => entry.name.includes(word)))
    .sort((a, b) => rank(a) - rank(b) || a.name.length - b.name.length || (a.name < b.name ? -1 : 1))
    .slice(0, wanted)
    .map((entry) => entry.index);
}

function rgb(hex) {
  return [1, 3, 5].map((start) => parseInt(hex.slice(start, start + 2), 16));
}

/** An image of one dot per colour, as the address of a PNG. */
function image(width, height, colourAt) {
  const canvas = document.createElement("canvas");
  canvas.width = width;
  canvas.height = height;
  const context = canvas.getContext("2d");
  const dots = context.createImageData(width, height);
  for (let y = 0, offset = 0; y < height; y++) {
    for (let x = 0; x < width; x++, offset += 4) {
      [dots.data[offset], dots.data[offset + 1], dots.data[offset + 2]] = colourAt(x, y);
      dots.data[offset + 3] = 255;
    }
  }
  context.putImageData(dots, 0, 0);
  return canvas.toDataURL();
}

/** Plotly reads a little HTML in its labels; a name is none. */
function plain(text, width) {
  const short = text.length > width ? `${text.slice(0, width / 2 - 1)}…${text.slice(1 - width / 2)}` : text;
  return short.replaceAll("&", "&amp;").replaceAll("<", "&lt;").replaceAll(">", "&gt;");
}

/** Labels of the part of an axis that is in view: names where a cell has room for one, families elsewhere. */
function ticks(names, runs, range, length) {
  const [first, last] = [Math.min(...range) + 0.5, Math.max(...range) + 0.5];
  const cell = length / (last - first);
  if (cell >= 11) {
    const start = Math.max(0, Math.floor(first));
    const shown = names.slice(start, Math.ceil(last));
    return { tickvals: shown.map((_, index) => start + index), ticktext: shown.map((name) => plain(name, 30)) };
  }
  const visible = runs
    .map((run) => ({ family: run.family, start: Math.max(run.start, first), stop: Math.min(run.stop, last) }))
    .filter((run) => run.stop > run.start)
    .sort((a, b) => b.stop - b.start - (a.stop - a.start) || a.start - b.start);
  const placed = [];
  for (const run of visible) {
    const centre = (run.start + run.stop) / 2 - 0.5;
    if (placed.every((other) => Math.abs(other.centre - centre) * cell >= 13)) placed.push({ centre, family: run.family });
  }
  return { tickvals: placed.map((label) => label.centre), ticktext: placed.map((label) => plain(label.family, 30)) };
}

/** An element with a text; names go in as text, never as HTML. */
function element(tag, text, attributes = {}) {
  const made = Object.assign(document.createElement(tag), attributes);
  made.textContent = text;
  return made;
}

class Page {
  constructor(content) {
    this.content = content;
    this.count = content.names.length;
    this.similarities = new Similarities(content.similarity, this.count, content.steps);
    this.runs = familyRuns(content.families);
    this.plot = document.getElementById("matrix");
    this.tip = document.getElementById("tip");
    this.chosen = null;
  }

  async start() {
    const families = Object.keys(this.content.familyColours);
    const plural = (count, one, many) => `${count} ${count === 1 ? one : many}`;
    document.getElementById("summary").textContent =
      `${plural(this.count, "network", "networks")} of ${plural(families.length, "family", "families")}, clustered; ` +
      "the strips along the matrix show the families";
    this.listFamilies();
    await Plotly.newPlot(this.plot, this.traces(), this.layout(), {
      scrollZoom: true, displaylogo: false, responsive: false, doubleClick: false, showTips: false,
      // Named one by one: what plotly shows unasked includes a button that sends the data to a server.
      modeBarButtons: [["toImage"], ["zoom2d", "pan2d"], ["zoomIn2d", "zoomOut2d", "resetScale2d"]],
    });
    this.plot.on("plotly_relayout", () => { this.hideTip(); return this.label(); });
    this.connectPointer();
    this.connectSearch();
    document.getElementById("whole").addEventListener("click", () => this.show([-0.5, this.count - 0.5]));
    window.addEventListener("resize", () => Plotly.relayout(this.plot, this.size()));
    await this.label();
  }

  traces() {
    const palette = this.content.colours.map(rgb);
    const families = this.content.families.map((family) => rgb(this.content.familyColours[family]));
    const colour = (x, y) => palette[Math.round(this.similarities.at(y, x) * (palette.length - 1))];
    const common = { type: "image", zsmooth: "fast", hoverinfo: "skip", x0: 0, y0: 0, dx: 1, dy: 1 };
    const scale = this.content.colours.map((hex, index, all) => [index / (all.length - 1), hex]);
    return [
      { ...common, source: image(this.count, this.count, colour) },
      { ...common, source: image(1, this.count, (_, y) => families[y]), xaxis: "x2" },
      { ...common, source: image(this.count, 1, (x) => families[x]), yaxis: "y2" },
      {
        // Draws nothing but the colour bar, which an image has none of.
        type: "scatter", x: [null], y: [null], mode: "markers", hoverinfo: "skip", showlegend: false,
        marker: {
          color: [0], cmin: 0, cmax: 1, colorscale: scale, showscale: true,
          colorbar: { title: { text: "symmetric similarity", side: "right" }, thickness: 14, len: 0.5, y: 1, yanchor: "top" },
        },
      },
    ];
  }

  size() {
    const room = this.plot.parentElement;
    const edge = Math.max(240, Math.min(room.clientWidth - 320, window.innerHeight - 75 - 239));
    return { width: edge + 315, height: edge + 234 };
  }

  layout() {
    const whole = [-0.5, this.count - 0.5];
    const common = { showgrid: false, zeroline: false, ticks: "outside", ticklen: 3, tickfont: { size: 10 }, constrain: "range", scaleanchor: false };
    const strip = { ...common, range: [-0.5, 0.5], fixedrange: true, showticklabels: false, ticks: "" };
    return {
      ...this.size(),
      margin: { l: 215, r: 100, t: 34, b: 200, autoexpand: false },
      dragmode: "zoom", hovermode: "closest", plot_bgcolor: "#fff",
      xaxis: { ...common, range: whole, domain: [0.025, 1], anchor: "y2", tickangle: -90, tickmode: "array", minallowed: whole[0], maxallowed: whole[1] },
      yaxis: { ...common, range: [...whole].reverse(), domain: [0.025, 1], anchor: "x2", tickmode: "array", minallowed: whole[0], maxallowed: whole[1] },
      xaxis2: { ...strip, domain: [0, 0.018], anchor: "y" },
      yaxis2: { ...strip, domain: [0, 0.018], anchor: "x" },
    };
  }

  /** Sets the labels for what is in view; its own change of the layout must not call it again. */
  async label() {
    if (this.labelling) return;
    this.labelling = true;
    const { xaxis, yaxis } = this.plot._fullLayout;
    const columns = ticks(this.content.names, this.runs, xaxis.range, xaxis._length);
    const rows = ticks(this.content.names, this.runs, yaxis.range, yaxis._length);
    const [low, high] = xaxis.range;
    this.plot.classList.toggle("magnified", xaxis._length / (high - low) >= 1);
    await Plotly.relayout(this.plot, {
      "xaxis.tickvals": columns.tickvals, "xaxis.ticktext": columns.ticktext,
      "yaxis.tickvals": rows.tickvals, "yaxis.ticktext": rows.ticktext,
    });
    this.labelling = false;
  }

  /** What lies under the pointer: a row, a column, both in the matrix, one of them in a strip, or none. */
  under(event) {
    const { left, top } = this.plot.getBoundingClientRect();
    const { xaxis, yaxis, xaxis2, yaxis2 } = this.plot._fullLayout;
    const [x, y] = [event.clientX - left, event.clientY - top];
    const inside = (axis, at) => at >= axis._offset && at < axis._offset + axis._length;
    const place = (axis, at) => Math.min(Math.max(Math.round(axis.p2c(at - axis._offset)), 0), this.count - 1);
    const found = {};
    if (inside(yaxis, y) && (inside(xaxis, x) || inside(xaxis2, x))) found.row = place(yaxis, y);
    if (inside(xaxis, x) && (inside(yaxis, y) || inside(yaxis2, y))) found.column = place(xaxis, x);
    return found;
  }

  /** Plotly's own events for images read the canvas at each move; the numbers are here already. */
  connectPointer() {
    let pressed = null;
    this.plot.addEventListener("pointermove", (event) => this.hover(event));
    this.plot.addEventListener("pointerleave", () => this.hideTip());
    this.plot.addEventListener("pointerdown", (event) => { pressed = event.button === 0 ? event : null; }, true);
    // Plotly covers the page while a button is down, so that the release is seen by the window only.
    window.addEventListener("pointerup", (event) => {
      const still = pressed && Math.hypot(event.clientX - pressed.clientX, event.clientY - pressed.clientY) < 4;
      pressed = null;
      if (!still) return;
      const { row, column } = this.under(event);
      if (row !== undefined || column !== undefined) this.choose(row ?? column);
    }, true);
  }

  hideTip() {
    this.tip.style.display = "none";
  }

  hover(event) {
    const { row, column } = this.under(event);
    const places = new Set([row, column].filter((place) => place !== undefined));
    if (event.buttons || !places.size) return this.hideTip();
    const both = row !== undefined && column !== undefined;
    const lines = both ? [element("strong", `similarity ${this.similarities.at(row, column).toFixed(3)}`)] : [];
    for (const place of places) {
      lines.push(element("strong", this.content.names[place]), element("div", this.describe(place)));
    }
    this.tip.replaceChildren(...lines);
    this.tip.style.display = "block";
    const { width, height } = this.tip.getBoundingClientRect();
    this.tip.style.left = `${Math.min(event.clientX + 16, window.innerWidth - width - 8)}px`;
    this.tip.style.top = `${Math.min(event.clientY + 16, window.innerHeight - height - 8)}px`;
  }

  describe(place) {
    const details = Object.entries(this.content.details[place]).map(([what, value]) => `${what} ${value}`);
    return [`family ${this.content.families[place]}`, ...details].join(" · ");
  }

  /** Marks a network's row and column, shows the part of the matrix around it, and lists its nearest. */
  choose(place) {
    this.chosen = place;
    const nearest = this.similarities.nearest(place, 10);
    const list = element("ol", "");
    list.append(...nearest.map((other) => this.entry(other, this.similarities.at(place, other).toFixed(3))));
    document.getElementById("chosen").replaceChildren(
      element("h2", this.content.names[place]),
      element("p", this.describe(place)),
      element("p", nearest.length ? "Nearest:" : "There is no other network."),
      list,
    );
    const half = Math.min(20.5, this.count / 2);
    const centre = Math.min(Math.max(place, half - 0.5), this.count - 0.5 - half);
    return this.show([centre - half, centre + half]);
  }

  show(range) {
    const place = this.chosen;
    const line = { color: "#22d3ee", width: 1 };
    const band = (ends) => ({ type: "rect", line, ...ends });
    const shapes = place === null ? [] : [
      band({ x0: -0.5, x1: this.count - 0.5, y0: place - 0.5, y1: place + 0.5 }),
      band({ y0: -0.5, y1: this.count - 0.5, x0: place - 0.5, x1: place + 0.5 }),
    ];
    return Plotly.relayout(this.plot, { "xaxis.range": range, "yaxis.range": [range[1], range[0]], shapes });
  }

  entry(place, number) {
    const button = element("button", "", { type: "button" });
    button.append(element("span", this.content.names[place]), element("span", number, { className: "number" }));
    button.addEventListener("click", () => this.choose(place));
    const item = element("li", "");
    item.append(button);
    return item;
  }

  connectSearch() {
    const box = document.getElementById("search");
    const found = () => search(this.content.names, box.value, 12);
    box.addEventListener("input", () => {
      const entries = found().map((place) => this.entry(place, ""));
      if (!entries.length && box.value.trim()) entries.push(element("li", "No network's name holds this."));
      document.getElementById("found").replaceChildren(...entries);
    });
    box.addEventListener("keydown", (event) => {
      const [first] = event.key === "Enter" ? found() : [];
      if (first !== undefined) this.choose(first);
    });
  }

  /** Families with a colour of their own; the rest share one grey. */
  listFamilies() {
    const sizes = new Map();
    for (const family of this.content.families) sizes.set(family, (sizes.get(family) ?? 0) + 1);
    const entries = Object.entries(this.content.familyColours);
    const shown = entries.filter(([, colour]) => colour !== this.content.otherColour);
    const item = (colour, text) => {
      const swatch = element("span", "", { className: "swatch" });
      swatch.style.background = colour;
      const made = element("li", "");
      made.append(swatch, text);
      return made;
    };
    const items = shown.map(([family, colour]) => item(colour, `${family} (${sizes.get(family)})`));
    const others = entries.length - shown.length;
    if (others) items.push(item(this.content.otherColour, others === 1 ? "1 other" : `${others} others`));
    document.getElementById("families").replaceChildren(...items);
  }
}

if (typeof document !== "undefined") new Page(JSON.parse(document.getElementById("content").textContent)).start();
