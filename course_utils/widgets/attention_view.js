// Body of a function of `open` (base64 of raw DEFLATE to a Response) and `name` (class of the elements to start).
"use strict";
const COLOURS = ["#0072b2", "#d55e00", "#009e73", "#b3478a"], BRIGHT = ["#56b4e9", "#ff8f3f", "#2fd0a5", "#f0a3d0"];
const DASHES = [[], [7, 4], [2, 3], [10, 3, 2, 3]];
const make = (tag, into, more = {}, words) => {
  const node = document.createElement(tag);
  for (const [name, value] of Object.entries(more)) node.setAttribute(name, value);
  if (words !== undefined) node.textContent = words;
  if (into) into.append(node);
  return node;
};
const FRAME = 440;
// What stays as it is costs the browser nothing.
const put = (node, chosen, text) => {
  if (node.getAttribute("aria-selected") !== `${chosen}`) node.setAttribute("aria-selected", chosen);
  if (node.textContent !== text) node.textContent = text;
};
const percent = level => (level / 2.55).toFixed(1);

async function start(host) {
  host.dataset.live = "";
  const parts = JSON.parse(await open(host.dataset.model).text());
  const halved = host.dataset.levels[0] === ".";
  const packed = new Uint8Array(await open(host.dataset.levels.slice(+halved)).arrayBuffer());
  let place = 0, bytes;
  for (const part of parts) {
    part.k = part.k || part.q;
    for (const name in part.s) part.s[name] = part.s[name].map(value => value / 100);
    const rows = part.q.length, columns = part.k.length;
    const size = part.c ? rows * (rows + 1) / 2 : rows * columns, begin = place;
    part.from = (layer, head, row) => begin + (layer * part.h + head) * size + (part.c ? row * (row + 1) / 2 : row * columns);
    part.at = (layer, head, row, column) => part.c && column > row ? 0 : bytes[part.from(layer, head, row) + column];
    place += part.l * part.h * size;
  }
  // Two levels a byte; what is more than 15 follows behind.
  bytes = halved ? new Uint8Array(place) : packed;
  if (halved) for (let at = 0, more = place + 1 >> 1; at < place; at++) {
    const half = at & 1 ? packed[at >> 1] & 15 : packed[at >> 1] >> 4;
    bytes[at] = half < 15 ? half : 15 + packed[more++];
  }
  const shadow = host.attachShadow({ mode: "open" });
  make("style", shadow, {}, `__CSS__`);
  const all = make("div", shadow, { class: "all", role: "group", "aria-label": "Attention viewer" });
  let ground = host;
  let light = [255, 255, 255];
  for (; ground; ground = ground.parentElement) {
    const found = getComputedStyle(ground).backgroundColor.match(/[\d.]+/g) || [];
    if (found.length === 3 || +found[3] > 0) { light = found; break; }
  }
  const dark = light[0] * 0.3 + light[1] * 0.6 + light[2] * 0.1 < 128;
  if (dark) all.classList.add("dark");
  const colours = dark ? BRIGHT : COLOURS;
  const shade = level => {
    const s = Math.sqrt(level / 255);
    return dark ? [22 + 140 * s, 24 + 190 * s, 28 + 227 * s] : [247 - 239 * s, 251 - 203 * s, 255 - 148 * s];
  };
  // As canvases keep their pixels: four bytes, opaque.
  const shades = new Uint32Array(Uint8ClampedArray.from(Array.from({ length: 256 }, (_, level) => [...shade(level), 255]).flat()).buffer);
  let part = parts[0], heads = [[0, 0]], query = 0, key = -1, texts = "all";

  const bar = make("div", all, { class: "bar" });
  const field = (words, options, change) => {
    const select = make("select", make("label", bar, {}, words + " "));
    for (const option of options) make("option", select, {}, option);
    select.onchange = () => change(select.selectedIndex, select.value);
    return select;
  };
  if (parts.length > 1) field("maps", parts.map(one => one.n), number => { part = parts[number]; build(); });
  let score, least, shown;
  const dim = () => {
    const values = part.s[score.value];
    least.max = Math.max(1, ...(values || [])).toFixed(2);
    shown.textContent = (+least.value).toFixed(2);
    grid.querySelectorAll("button").forEach((button, number) => button.classList.toggle("dim", !!values && values[number] < +least.value));
  };
  const panes = make("div", all, { class: "panes" });
  const left = make("div", panes), middle = make("div", panes), right = make("div", panes);
  const words = make("p", all, { "aria-live": "polite" });
  const legend = make("p", all, { class: "key" });
  let cell, grid, lines, map, marker, queries, keys;

  // Which pairs of texts are looked at: a text of its own for each side, where there are two.
  const allowed = (row, column) => {
    if (texts === "all" || !part.b) return true;
    const names = "AB";
    return texts === names[+(row >= part.b)] + " to " + names[+(column >= part.b)];
  };
  const draw = (canvas, rows, columns, level) => {
    canvas.width = columns;
    canvas.height = rows;
    const context = canvas.getContext("2d"), image = context.createImageData(columns, rows);
    const pixels = new Uint32Array(image.data.buffer);
    for (let row = 0, to = 0; row < rows; row++) for (let column = 0; column < columns; column++) pixels[to++] = shades[level(row, column)];
    context.putImageData(image, 0, 0);
  };
  // One tab stop; the arrow keys move inside.
  const roving = (nodes, width, choose) => {
    nodes.forEach((node, number) => {
      node.tabIndex = number ? -1 : 0;
      node.onkeydown = event => {
        const step = { ArrowRight: width > 1 ? 1 : 0, ArrowLeft: width > 1 ? -1 : 0, ArrowDown: width, ArrowUp: -width, Home: -number, End: nodes.length - 1 - number }[event.key];
        if (event.key === "Enter" || event.key === " ") { event.preventDefault(); choose(number, event.shiftKey || event.key === " "); }
        if (!step) return;
        event.preventDefault();
        const next = nodes[number + step];
        if (!next) return;
        nodes.forEach(one => one.tabIndex = one === next ? 0 : -1);
        next.focus();
        choose(number + step, event.shiftKey);
      };
      node.onclick = event => { nodes.forEach(one => one.tabIndex = one === node ? 0 : -1); choose(number, event.shiftKey || event.ctrlKey || event.metaKey); };
    });
  };

  function build() {
    heads = [[0, 0]]; query = 0; key = -1; texts = "all";
    bar.querySelectorAll(".own").forEach(node => node.remove());
    const names = Object.keys(part.s);
    score = field("score", ["none", ...names], dim);
    least = make("input", make("label", bar, {}, "at least "), { type: "range", min: 0, max: 1, step: 0.05, value: 0.5 });
    shown = make("output", least.parentNode);
    least.oninput = dim;
    if (part.b) field("texts", ["all", "A to A", "A to B", "B to A", "B to B"], (_, value) => { texts = value; paint(); });
    for (const node of [...bar.children].slice(parts.length > 1 ? 1 : 0)) node.classList.add("own");
    score.onchange = dim;

    left.replaceChildren();
    make("p", left, {}, `Layers (down) and heads (across) of the ${part.n}`);
    const box = make("div", left, { class: "scroll" });
    cell = Math.max(30, Math.min(56, Math.floor(360 / part.h)));
    grid = make("div", box, { class: "grid", role: "grid", "aria-label": "Heads", "aria-multiselectable": "true", style: `--cell:${cell}px` });
    const canvas = make("canvas", grid, { "aria-hidden": "true" }), buttons = [];
    for (let layer = 0; layer < part.l; layer++) {
      const row = make("div", grid, { role: "row" });
      for (let head = 0; head < part.h; head++) {
        const number = layer * part.h + head;
        const about = names.map(name => `, ${name} ${part.s[name][number].toFixed(2)}`).join("");
        buttons.push(make("button", row, { role: "gridcell", type: "button", title: `layer ${layer + 1}, head ${head + 1}${about}`, "aria-label": `layer ${layer + 1}, head ${head + 1}${about}` }));
      }
    }
    roving(buttons, part.h, (number, add) => {
      const head = [Math.floor(number / part.h), number % part.h];
      const known = heads.findIndex(one => one[0] === head[0] && one[1] === head[1]);
      if (!add) heads = [head];
      else if (known >= 0 && heads.length > 1) heads.splice(known, 1);
      else if (known < 0) heads = [...heads.slice(-3), head];
      paint();
    });
    thumbnails(canvas);
    dim();

    middle.replaceChildren();
    make("p", middle, {}, "Lines: from a token (left) to where it looks (right)");
    const frame = make("div", middle, { class: "scroll", tabindex: 0, role: "group", "aria-label": "Lines from token to token" });
    frame.onscroll = sketch;
    const pair = make("div", frame, { class: "lines" });
    queries = make("ul", pair, { role: "listbox", "aria-label": "Tokens that look" });
    lines = make("canvas", pair, { width: 130, height: Math.min(20 * Math.max(part.q.length, part.k.length), FRAME), "aria-hidden": "true" });
    keys = make("ul", pair, { role: "listbox", "aria-label": "Tokens that are looked at" });
    const side = (list, tokens, choose) => {
      const items = tokens.map(token => make("li", list, { role: "option", "aria-selected": "false", dir: "auto" }, token));
      roving(items, 1, choose);
      items.forEach((item, number) => item.onmouseenter = () => choose(number));
    };
    side(queries, part.q, number => { query = number; key = -1; paint(); });
    side(keys, part.k, number => { key = number; query = -1; paint(); });

    right.replaceChildren();
    make("p", right, {}, "Matrix: rows look at columns");
    const square = make("div", right, { class: "square" });
    map = make("canvas", square, { class: "map", tabindex: 0, role: "img" });
    const longest = Math.max(part.q.length, part.k.length), scale = Math.max(1, Math.floor(360 / longest));
    marker = make("div", square, { class: "marker" });
    map.style.width = part.k.length * scale + "px";
    map.style.height = part.q.length * scale + "px";
    const point = (row, column) => {
      query = Math.max(0, Math.min(part.q.length - 1, row));
      key = Math.max(0, Math.min(part.k.length - 1, column));
      paint();
    };
    map.onmousemove = event => {
      const frame = map.getBoundingClientRect();
      point(Math.floor((event.clientY - frame.top) / frame.height * part.q.length), Math.floor((event.clientX - frame.left) / frame.width * part.k.length));
    };
    map.onkeydown = event => {
      const step = { ArrowRight: [0, 1], ArrowLeft: [0, -1], ArrowDown: [1, 0], ArrowUp: [-1, 0] }[event.key];
      if (step) { event.preventDefault(); point(Math.max(query, 0) + step[0], Math.max(key, 0) + step[1]); }
    };
    paint();
  }

  function thumbnails(canvas) {
    const side = cell - 2, height = part.q.length, width = part.k.length, rows = Math.min(height, side), columns = Math.min(width, side);
    const edges = Array.from({ length: columns }, (_, column) => Math.ceil((column + 1) * width / columns)), small = document.createElement("canvas");
    canvas.width = cell * part.h;
    canvas.height = cell * part.l;
    const context = canvas.getContext("2d");
    context.imageSmoothingEnabled = false;
    for (let layer = 0; layer < part.l; layer++) for (let head = 0; head < part.h; head++) {
      const most = new Uint8Array(rows * columns);
      for (let row = 0; row < height; row++) {
        const from = part.from(layer, head, row), last = from + (part.c ? row + 1 : width);
        for (let column = 0, at = from, to = Math.floor(row * rows / height) * columns; column < columns; column++, to++) {
          const end = Math.min(from + edges[column], last);
          let level = most[to];
          for (; at < end; at++) if (bytes[at] > level) level = bytes[at];
          most[to] = level;
        }
      }
      draw(small, rows, columns, (row, column) => most[row * columns + column]);
      context.drawImage(small, head * cell + 1, layer * cell + 1, side, side);
    }
  }

  // Lines of the chosen token, or of all, where they can be seen; the weakest are left out.
  function sketch() {
    const step = 20, context = lines.getContext("2d");
    context.reset();
    context.translate(0, 10 - lines.parentNode.parentNode.scrollTop);
    const faintest = query < 0 && key < 0 || part.q.length > 40 && query < 0 ? 20 : 3;
    heads.forEach((one, order) => {
      context.strokeStyle = colours[order];
      context.setLineDash(DASHES[order]);
      for (let row = 0; row < part.q.length; row++) {
        if (query >= 0 && row !== query) continue;
        for (let column = 0; column < part.k.length; column++) {
          if (key >= 0 && column !== key || !allowed(row, column)) continue;
          const weight = part.at(one[0], one[1], row, column);
          if (weight < faintest) continue;
          context.globalAlpha = 0.25 + 0.75 * weight / 255;
          context.lineWidth = 1 + 3 * weight / 255;
          context.beginPath();
          context.moveTo(0, row * step + 2 * order);
          context.lineTo(lines.width, column * step + 2 * order);
          context.stroke();
        }
      }
    });
  }

  function paint() {
    const [layer, head] = heads[heads.length - 1], level = (row, column) => allowed(row, column) ? part.at(layer, head, row, column) : 0;
    [...grid.querySelectorAll("button")].forEach((button, number) => {
      const order = heads.findIndex(one => one[0] * part.h + one[1] === number);
      put(button, order >= 0, order >= 0 && heads.length > 1 ? `${order + 1}` : "");
    });
    draw(map, part.q.length, part.k.length, level);
    const within = (place, of) => place < 0 ? [0, 100] : [100 * place / of, 100 / of];
    const [[top, height], [left, width]] = [within(query, part.q.length), within(key, part.k.length)];
    marker.style.cssText = `top:${top}%;height:${height}%;left:${left}%;width:${width}%`;
    sketch();
    const mark = (list, tokens, chosen, number) => [...list.children].forEach((item, place) => {
      const weight = number(place);
      put(item, place === chosen, weight === null ? tokens[place] : `${tokens[place]} ${percent(weight)} %`);
    });
    mark(queries, part.q, query, place => key >= 0 && query < 0 ? level(place, key) : null);
    mark(keys, part.k, key, place => query >= 0 ? level(query, place) : null);
    const number = layer * part.h + head;
    const about = Object.entries(part.s).map(([name, values]) => `${name} ${values[number].toFixed(2)}`).join(", ");
    let what = "";
    if (query >= 0 && key >= 0) what = `${part.q[query]} looks at ${part.k[key]} with ${percent(level(query, key))} %.`;
    else if (query >= 0) {
      const best = part.k.map((_, place) => place).sort((a, b) => level(query, b) - level(query, a)).slice(0, 3);
      what = `${part.q[query]} looks at ${best.map(place => `${part.k[place]} (${percent(level(query, place))} %)`).join(", ")}.`;
    } else what = `${part.k[key]} is looked at most by ${part.q[part.q.reduce((best, _, place) => level(place, key) > level(best, key) ? place : best, 0)]}.`;
    words.textContent = `Layer ${layer + 1}, head ${head + 1}${about ? `: ${about}` : ""}. ${what}`;
    map.setAttribute("aria-label", `Matrix of layer ${layer + 1}, head ${head + 1}; arrow keys move from cell to cell. ${what}`);
    legend.replaceChildren();
    heads.forEach((one, order) => {
      const entry = make("span", legend);
      const line = make("canvas", entry, { width: 36, height: 8, "aria-hidden": "true" }).getContext("2d");
      line.strokeStyle = colours[order];
      line.lineWidth = 3;
      line.setLineDash(DASHES[order]);
      line.moveTo(0, 4);
      line.lineTo(36, 4);
      line.stroke();
      entry.append(` layer ${one[0] + 1}, head ${one[1] + 1}`);
    });
    make("span", legend, {}, "Shift and click, or Space, adds a head. Colours show the square root of a weight. · is a space.");
  }
  build();
}

let tries = 0;
(function find() {
  const hosts = document.querySelectorAll(`.${name}:not([data-live])`);
  hosts.forEach(host => start(host).catch(error => console.error(error)));
  if (!hosts.length && tries++ < 100) setTimeout(find, 50);
})();
