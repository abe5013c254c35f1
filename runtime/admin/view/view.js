// The page of the admin endpoint. Everything that comes from the application, and so perhaps from
// strangers, gets into the page as text.

const SVG = "http://www.w3.org/2000/svg";
const SAMPLES = 60;
// A rate is the mean of so many samples.
const SMOOTHED = 5;
const MOST_ROWS = 200;
const MOST_NODES = 60;
const MOST_FAILURES = 20;
const MOST_PROBLEMS = 20;

const find = (id) => document.getElementById(id);

function make(name, attributes = {}, ...children) {
  const node = document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) node.setAttribute(key, value);
  node.append(...children);
  return node;
}

function draw(name, attributes = {}, ...children) {
  const node = document.createElementNS(SVG, name);
  for (const [key, value] of Object.entries(attributes)) node.setAttribute(key, value);
  node.append(...children);
  return node;
}

function put(node, text) {
  if (node.textContent !== text) node.textContent = text;
}

function mark(node, name, value) {
  if (node.getAttribute(name) !== value) node.setAttribute(name, value);
}

// Numbers.

function rateText(rate) {
  if (rate === null) return "–";
  return rate < 10 ? `${Number(rate.toFixed(1))}` : Math.round(rate).toLocaleString("en");
}

function timeText(seconds) {
  if (seconds === null || seconds === undefined) return "–";
  if (seconds < 0.001) return `${Number((seconds * 1e6).toPrecision(2))} µs`;
  if (seconds < 1) return `${Number((seconds * 1e3).toPrecision(2))} ms`;
  if (seconds < 120) return `${Number(seconds.toPrecision(2))} s`;
  if (seconds < 7200) return `${Math.round(seconds / 60)} min`;
  return `${Math.round(seconds / 3600)} h`;
}

const clockText = (at) => new Date(at * 1000).toLocaleTimeString("en", { hour12: false });

const countText = (count) => (count === null ? "–" : count.toLocaleString("en"));

// What was seen before: counts to compute rates from, and rates for the lines.

class Series {
  constructor() {
    this.count = null;
    this.clock = null;
    this.rate = null;
    this.samples = [];
  }

  add(count, clock) {
    if (count === null) return;
    if (this.count !== null && clock > this.clock) {
      this.samples.push(Math.max(0, count - this.count) / (clock - this.clock));
      if (this.samples.length > SAMPLES) this.samples.shift();
      const latest = this.samples.slice(-SMOOTHED);
      this.rate = latest.reduce((sum, rate) => sum + rate, 0) / latest.length;
    }
    this.count = count;
    this.clock = clock;
  }
}

class History {
  constructor() {
    this.series = new Map();
    this.run = null;
  }

  add(picture) {
    const run = `${picture.application} ${picture.instance} ${picture.pid}`;
    if (run !== this.run) {
      this.run = run;
      this.series.clear();
    }
    const seen = new Set();
    const note = (key, count) => {
      seen.add(key);
      if (!this.series.has(key)) this.series.set(key, new Series());
      this.series.get(key).add(count, picture.clock);
    };
    for (const actor of picture.actors) note(actorKey(actor.name), actor.handled);
    for (const edge of picture.publishes) note(edgeKey("publishes", edge), edge.count);
    for (const edge of picture.receives) note(edgeKey("receives", edge), edge.count);
    for (const key of this.series.keys()) if (!seen.has(key)) this.series.delete(key);
  }

  of(key) {
    return this.series.get(key) ?? new Series();
  }
}

const actorKey = (name) => JSON.stringify(["actor", name]);
const edgeKey = (kind, edge) => JSON.stringify([kind, edge.actor, edge.bus, edge.topic]);

const seen = new History();
let picture = null;
let chosen = null;

// The header, problems and connections.

function showHeader() {
  put(find("application"), picture.application);
  document.title = `${picture.application} – spa-dat`;
  const state = find("state");
  put(state, picture.state);
  mark(state, "class", `state ${picture.state}`);
  const facts = {
    instance: picture.instance,
    process: `${picture.pid}`,
    actors: countText(picture.actors.length),
    "loop lag": timeText(picture.loop_lag),
  };
  const list = find("facts");
  const names = Object.keys(facts);
  while (list.children.length < names.length) {
    list.append(make("div", {}, make("dt"), make("dd")));
  }
  names.forEach((name, index) => {
    const [label, value] = list.children[index].children;
    put(label, name);
    put(value, facts[name]);
  });
}

function showProblems() {
  const problems = Object.entries(picture.problems);
  const texts = problems.slice(0, MOST_PROBLEMS).map(([name, text]) => `${name}: ${text}`);
  if (problems.length > texts.length) texts.push(`and ${problems.length - texts.length} more`);
  // Below the buttons, which must not move from under a finger.
  find("problems").hidden = find("problem-link").hidden = !texts.length;
  put(find("problem-link"), problems.length === 1 ? "1 problem" : `${problems.length} problems`);
  fillList(find("problem-list"), texts);
}

function fillList(list, texts) {
  while (list.children.length > texts.length) list.lastChild.remove();
  while (list.children.length < texts.length) list.append(make("li"));
  texts.forEach((text, index) => put(list.children[index], text));
}

function fillRows(body, rows, columns) {
  while (body.children.length > rows.length) body.lastChild.remove();
  while (body.children.length < rows.length) {
    const row = make("tr");
    for (const kind of columns) row.append(make("td", kind ? { class: kind } : {}));
    body.append(row);
  }
  rows.forEach((cells, index) => {
    cells.forEach((text, column) => put(body.children[index].children[column], text));
  });
}

function showConnections() {
  const body = find("connection-rows");
  const rows = picture.connections.map((one) => [one.bus, "", timeText(one.connected_for)]);
  fillRows(body, rows, ["text", "", "number"]);
  picture.connections.forEach((one, index) => {
    const cell = body.children[index].children[1];
    if (!cell.firstChild) cell.append(make("span"));
    put(cell.firstChild, one.connected ? "connected" : "no connection");
    mark(cell.firstChild, "class", `state ${one.connected ? "connected" : "lost"}`);
  });
}

function showFailures() {
  const all = picture.actors.flatMap((actor) =>
    actor.failures.map((failure) => ({ ...failure, actor: actor.name })),
  );
  all.push(...picture.failures.map((failure) => ({ ...failure, actor: "" })));
  all.sort((one, other) => other.at - one.at);
  find("failures").hidden = !all.length;
  put(find("failures-note"), all.length ? "" : "Nothing has failed since the start.");
  const rows = all.slice(0, MOST_FAILURES).map((one) => [
    clockText(one.at),
    one.actor,
    one.error,
    one.text,
    one.topic ?? "–",
    one.where,
  ]);
  fillRows(find("failure-rows"), rows, ["time", "", "bad", "text", "text", ""]);
}

// The table of actors.

const rows = new Map();

function rowOf(name) {
  let row = rows.get(name);
  if (row) return row;
  const button = make("button", { type: "button", class: "name" }, name);
  button.addEventListener("click", () => choose(name, true));
  const line = draw("polyline");
  const bar = draw("rect", { class: "bar", height: "8", width: "0" });
  const pause = make("button", { type: "button" });
  const restart = make("button", { type: "button" }, "Restart");
  restart.setAttribute("aria-label", `Restart ${name}`);
  pause.addEventListener("click", () => {
    order(pause.dataset.action, name);
  });
  restart.addEventListener("click", () => order("restart", name));
  const state = make("span");
  const cells = {};
  for (const cell of ["handled", "rate", "p50", "p99", "oldest", "failed", "retrying", "letters", "lag"]) {
    cells[cell] = make("td", { class: cell === "lag" ? "number lag" : "number" });
  }
  const fill = make("span");
  const spark = draw(
    "svg",
    { class: "spark", viewBox: "0 0 72 20", preserveAspectRatio: "none", "aria-hidden": "true" },
    line,
  );
  const meter = draw(
    "svg",
    { viewBox: "0 0 56 8", preserveAspectRatio: "none", "aria-hidden": "true" },
    draw("rect", { class: "back", width: "56", height: "8" }),
    bar,
  );
  const element = make(
    "tr",
    {},
    make("th", { scope: "row" }, button),
    make("td", {}, state),
    cells.handled,
    make("td", {}, spark),
    cells.rate,
    cells.p50,
    cells.p99,
    make("td", {}, make("span", { class: "fill" }, meter, fill)),
    cells.oldest,
    cells.failed,
    cells.retrying,
    cells.letters,
    cells.lag,
    make("td", { class: "do" }, pause, restart),
  );
  row = { element, state, cells, line, bar, fill, pause, restart };
  rows.set(name, row);
  return row;
}

function showRow(actor) {
  const row = rowOf(actor.name);
  const { cells } = row;
  const series = seen.of(actorKey(actor.name));
  put(row.state, actor.state);
  mark(row.state, "class", `state ${actor.state}`);
  mark(row.element, "class", actor.name === chosen ? "chosen" : "");
  put(cells.handled, countText(actor.handled));
  put(cells.rate, rateText(series.rate));
  put(cells.p50, timeText(actor.latency?.p50));
  put(cells.p99, timeText(actor.latency?.p99));
  put(cells.oldest, timeText(actor.oldest_unsettled));
  for (const [cell, count] of [["failed", actor.failed], ["retrying", actor.retrying], ["letters", actor.dead_letters]]) {
    put(cells[cell], countText(count));
    mark(cells[cell], "class", count ? "number warn" : "number");
  }
  put(cells.lag, countText(actor.lag));
  const limit = actor.window === null ? actor.mailbox_limit : Math.min(actor.window, actor.mailbox_limit);
  const share = Math.min(1, actor.mailbox / limit);
  put(row.fill, `${countText(actor.mailbox)} of ${countText(limit)}`);
  mark(row.bar, "width", `${Math.ceil(56 * share)}`);
  mark(row.bar, "class", share > 0.8 ? "bar full" : "bar");
  const most = Math.max(...series.samples, 1e-9);
  const points = series.samples.map(
    (rate, index) => `${72 - (series.samples.length - 1 - index) * (72 / (SAMPLES - 1))},${19 - (rate / most) * 18}`,
  );
  mark(row.line, "points", points.join(" "));
  const action = actor.state === "paused" ? "resume" : "pause";
  row.pause.dataset.action = action;
  put(row.pause, action === "pause" ? "Pause" : "Resume");
  mark(row.pause, "aria-label", `${row.pause.textContent} ${actor.name}`);
  row.pause.disabled = row.restart.disabled = actor.state === "ended";
  return row.element;
}

const ORDERS = {
  name: null,
  rate: (actor) => seen.of(actorKey(actor.name)).rate,
  p99: (actor) => actor.latency?.p99,
  mailbox: (actor) => actor.mailbox,
  oldest_unsettled: (actor) => actor.oldest_unsettled,
  failed: (actor) => actor.failed,
};

function showActors() {
  const part = find("filter").value.toLowerCase();
  let shown = picture.actors.filter((actor) => actor.name.toLowerCase().includes(part));
  const order = find("order").value;
  if (order === "name") shown.sort((one, other) => (one.name < other.name ? -1 : 1));
  else if (order in ORDERS) {
    const value = (actor) => ORDERS[order](actor) ?? -1;
    shown.sort((one, other) => value(other) - value(one));
  }
  const found = shown.length;
  shown = shown.slice(0, MOST_ROWS);
  const all = picture.actors.length;
  let note = found < all ? `${countText(found)} of ${countText(all)}` : "";
  if (found > shown.length) note += `${note && "; "}these are the first ${shown.length}`;
  put(find("actors-note"), note);
  const lags = picture.actors.some((actor) => actor.lag !== null);
  mark(find("actor-table"), "class", lags ? "" : "no-lag");
  const body = find("actor-rows");
  const elements = shown.map(showRow);
  const names = new Set(shown.map((actor) => actor.name));
  for (const name of rows.keys()) {
    if (!names.has(name)) {
      rows.get(name).element.remove();
      rows.delete(name);
    }
  }
  // A row that stays where it is keeps the focus.
  elements.forEach((element, index) => {
    if (body.children[index] !== element) body.insertBefore(element, body.children[index] ?? null);
  });
}

// One actor.

function choose(name, moves) {
  chosen = name;
  show();
  if (moves && name !== null) find("detail").focus();
}

function showDetail() {
  const actor = picture.actors.find((one) => one.name === chosen);
  const section = find("detail");
  section.hidden = !actor;
  if (!actor) return;
  put(find("detail-title"), `${actor.kind === "producer" ? "Producer" : "Actor"} ${actor.name}`);
  const edges = (kind) =>
    picture[kind]
      .filter((edge) => edge.actor === actor.name)
      .map((edge) => {
        const { rate } = seen.of(edgeKey(kind, edge));
        return `${edge.topic || "(other filters)"}: ${countText(edge.count)}, ${rateText(rate)}/s`;
      });
  const facts = [
    ["State", [actor.state]],
    ["Problem", actor.problem ? [actor.problem] : []],
    ["Bus", [actor.bus]],
    ["Called", actor.every === null ? [] : [`every ${timeText(actor.every)}`]],
    ["Handles", actor.kind === "producer" ? [] : edges("receives")],
    ["Publishes on", edges("publishes")],
    ["At work on", [`${countText(actor.in_work)} messages, ${countText(actor.attempts)} calls`]],
    ["In its mailbox", [`${countText(actor.mailbox)} messages, ${countText(actor.mailbox_bytes)} bytes`]],
    ["Stalled at", actor.stalled.map((call) => `${call.where} for ${timeText(call.seconds)}`)],
    [
      "Failed with",
      actor.failures
        .map((one) => {
          const topic = one.topic === null ? "" : ` (on ${one.topic})`;
          return `${clockText(one.at)} ${one.error}: ${one.text}${topic}`;
        })
        .reverse(),
    ],
  ].filter(([, texts]) => texts.length);
  const list = find("detail-facts");
  while (list.children.length > 2 * facts.length) list.lastChild.remove();
  while (list.children.length < 2 * facts.length) {
    list.append(make("dt"), make("dd", {}, make("ul")));
  }
  facts.forEach(([label, texts], index) => {
    put(list.children[2 * index], label);
    fillList(list.children[2 * index + 1].firstChild, texts);
  });
}

// The graph: actors and topics in columns, so that most edges go from left to right.

const WIDTH = 160;
const HEIGHT = 26;
const GAP = 14;
const STEP = WIDTH + 84;
const LONGEST = 22;
const SMALLEST = 0.8;

let drawn = { key: null };

function nodesAndEdges() {
  const nodes = new Map();
  const states = new Map(picture.actors.map((actor) => [actor.name, actor]));
  const node = (id, kind, label, actor = null) => {
    if (!nodes.has(id)) nodes.set(id, { id, kind, label, actor, rate: 0, weight: 0 });
    return nodes.get(id);
  };
  const several = picture.connections.length > 1;
  const topicOf = (edge) =>
    node(JSON.stringify(["topic", edge.bus, edge.topic]), "topic", several ? `${edge.topic} @ ${edge.bus}` : edge.topic);
  const actorOf = (edge) =>
    edge.actor === null
      ? node('["application"]', "actor", "(application)")
      : node(JSON.stringify(["actor", edge.actor]), "actor", edge.actor, states.get(edge.actor));
  const edges = [];
  const add = (kind, edge) => {
    const topic = topicOf(edge);
    const actor = actorOf(edge);
    const { rate } = seen.of(edgeKey(kind, edge));
    const [from, to] = kind === "publishes" ? [actor, topic] : [topic, actor];
    edges.push({ from, to, rate, count: edge.count });
    for (const one of [from, to]) {
      one.rate += rate ?? 0;
      one.weight += edge.count;
    }
  };
  for (const edge of picture.publishes) add("publishes", edge);
  for (const edge of picture.receives) if (edge.topic) add("receives", edge);
  for (const actor of picture.actors) actorOf({ actor: actor.name });
  return { nodes: [...nodes.values()], edges };
}

function limited({ nodes, edges }) {
  if (nodes.length <= MOST_NODES) return { nodes, edges, left: 0 };
  // Those that were shown stay as long as they exist: a picture that jumps shows nothing.
  const before = drawn.ids ?? new Set();
  const importance = (node) => [node.actor?.problem ? 1 : 0, before.has(node.id) ? 1 : 0, node.rate, node.weight];
  const ordered = [...nodes].sort((one, other) => {
    const [a, b] = [importance(one), importance(other)];
    for (let index = 0; index < a.length; index++) if (a[index] !== b[index]) return b[index] - a[index];
    return 0;
  });
  const kept = new Set(ordered.slice(0, MOST_NODES));
  return {
    nodes: nodes.filter((node) => kept.has(node)),
    edges: edges.filter((edge) => kept.has(edge.from) && kept.has(edge.to)),
    left: nodes.length - kept.size,
  };
}

function columns(nodes, edges) {
  const next = new Map(nodes.map((node) => [node, []]));
  for (const { from, to } of edges) next.get(from).push(to);
  // Edges that would close a circle do not count.
  const state = new Map();
  const order = [];
  const forward = [];
  const visit = (node) => {
    state.set(node, "open");
    for (const other of next.get(node)) {
      if (state.get(other) === "open") continue;
      forward.push([node, other]);
      if (!state.has(other)) visit(other);
    }
    state.set(node, "done");
    order.push(node);
  };
  const inner = new Set(edges.map((edge) => edge.to));
  for (const node of nodes) if (!inner.has(node) && !state.has(node)) visit(node);
  for (const node of nodes) if (!state.has(node)) visit(node);
  const rank = new Map(nodes.map((node) => [node, 0]));
  const after = new Map(nodes.map((node) => [node, []]));
  for (const [from, to] of forward) after.get(from).push(to);
  for (const node of order.reverse()) {
    for (const other of after.get(node)) rank.set(other, Math.max(rank.get(other), rank.get(node) + 1));
  }
  // What nobody publishes to stands next to its reader, not at the far left.
  for (const node of nodes) {
    const ranks = after.get(node).map((other) => rank.get(other));
    if (!inner.has(node) && ranks.length) rank.set(node, Math.min(...ranks) - 1);
  }
  const result = [];
  for (const node of nodes) (result[rank.get(node)] ??= []).push(node);
  // An edge over several columns has a place in each of them, so that it goes around the boxes.
  const pieces = [];
  for (const edge of edges) {
    edge.via = [];
    let before = edge.from;
    for (let column = rank.get(edge.from) + 1; column < rank.get(edge.to); column++) {
      const bend = { bends: true };
      edge.via.push(bend);
      result[column].push(bend);
      pieces.push([before, bend]);
      before = bend;
    }
    pieces.push([before, edge.to]);
  }
  return { layers: result.filter(Boolean), pieces };
}

function place(nodes, edges) {
  const linked = new Set(edges.flatMap((edge) => [edge.from, edge.to]));
  const alone = nodes.filter((node) => !linked.has(node));
  const { layers, pieces } = columns(nodes.filter((node) => linked.has(node)), edges);
  const beside = new Map(layers.flat().map((node) => [node, []]));
  for (const [from, to] of pieces) {
    beside.get(from).push(to);
    beside.get(to).push(from);
  }
  for (const layer of layers) layer.forEach((node, index) => (node.y = index));
  for (let round = 0; round < 6; round++) {
    for (const layer of round % 2 ? [...layers].reverse() : layers) {
      const middle = new Map(
        layer.map((node) => {
          const ys = beside.get(node).map((other) => other.y);
          return [node, ys.length ? ys.reduce((sum, y) => sum + y, 0) / ys.length : node.y];
        }),
      );
      layer.sort((one, other) => middle.get(one) - middle.get(other));
      layer.forEach((node, index) => (node.y = index - (layer.length - 1) / 2));
    }
  }
  const tallest = Math.max(1, ...layers.map((layer) => layer.length));
  layers.forEach((layer, column) => {
    layer.forEach((node, index) => {
      node.x = 8 + column * STEP;
      node.y = 8 + (index + (tallest - layer.length) / 2) * (HEIGHT + GAP);
    });
  });
  let height = layers.length ? 8 + tallest * (HEIGHT + GAP) : 8;
  // What is linked to nothing is below, in rows.
  const inRow = Math.max(layers.length, 4);
  alone.forEach((node, index) => {
    node.x = 8 + (index % inRow) * STEP;
    node.y = height + 8 + Math.floor(index / inRow) * (HEIGHT + GAP);
  });
  if (alone.length) height += 8 + Math.ceil(alone.length / inRow) * (HEIGHT + GAP);
  const wide = Math.max(layers.length, Math.min(alone.length, inRow));
  return { width: 16 + (wide - 1) * STEP + WIDTH, height };
}

function drawNode(node) {
  const actor = node.kind === "actor";
  const long = node.label.length > LONGEST;
  const box = draw("rect", { class: "box", width: WIDTH, height: HEIGHT, rx: actor ? 13 : 3 });
  const text = draw("text", { x: WIDTH / 2, y: HEIGHT / 2 + 4, "text-anchor": "middle" });
  text.textContent = long ? `${node.label.slice(0, LONGEST - 1)}…` : node.label;
  const title = draw("title");
  title.textContent = node.label;
  const known = actor && node.actor;
  const group = draw(known ? "a" : "g", { transform: `translate(${node.x} ${node.y})` }, title, box, text);
  if (known) {
    group.setAttribute("href", "#detail");
    group.setAttribute("aria-label", `Actor ${node.label}`);
    group.addEventListener("click", (event) => {
      event.preventDefault();
      choose(node.label, true);
    });
  }
  return group;
}

function pathOf({ from, to, via }) {
  const y1 = from.y + HEIGHT / 2;
  const y2 = to.y + HEIGHT / 2;
  if (to.x > from.x) {
    let [x, y] = [from.x + WIDTH, y1];
    let path = `M${x} ${y}`;
    const curve = (x2, y3) => {
      const bend = (x2 - x) / 2;
      path += ` C${x + bend} ${y} ${x2 - bend} ${y3} ${x2} ${y3}`;
    };
    for (const place of via) {
      curve(place.x, place.y + HEIGHT / 2);
      [x, y] = [place.x + WIDTH, place.y + HEIGHT / 2];
      path += ` H${x}`;
    }
    curve(to.x - 5, y2);
    return path;
  }
  // Back to the left: around below the boxes.
  const [x1, x2] = [from.x + WIDTH / 2, to.x + WIDTH / 2];
  const low = Math.max(y1, y2) + HEIGHT / 2 + 22;
  return `M${x1} ${y1 + HEIGHT / 2} C${x1} ${low} ${x2} ${low} ${x2} ${y2 + HEIGHT / 2 + 5}`;
}

function arrowHead(id) {
  const size = { markerUnits: "userSpaceOnUse", markerWidth: 8, markerHeight: 8, viewBox: "0 0 6 6" };
  const head = draw("path", { d: "M0 0 6 3 0 6z", class: id });
  return draw("marker", { id, ...size, refX: 1, refY: 3, orient: "auto" }, head);
}

function redraw(nodes, edges) {
  const { width, height } = place(nodes, edges);
  const svg = find("graph");
  svg.replaceChildren();
  for (const [name, value] of Object.entries({ width, height: height + 4, viewBox: `0 0 ${width} ${height + 4}` })) {
    svg.setAttribute(name, value);
  }
  // Wide ones get smaller, as long as they can be read.
  svg.style.minWidth = `${Math.round(width * SMALLEST)}px`;
  svg.append(draw("defs", {}, arrowHead("still"), arrowHead("flowing")));
  const paths = edges.map((edge) => {
    const path = draw("path", { class: "edge", d: pathOf(edge) });
    svg.append(path);
    return path;
  });
  const groups = nodes.map((node) => {
    const group = drawNode(node);
    svg.append(group);
    return group;
  });
  const labels = edges.map((_, index) => {
    const label = draw("text", { class: "rate", "text-anchor": "middle" });
    const path = paths[index];
    const length = path.getTotalLength();
    // Of a long one in the gap before its end, where it is alone.
    const middle = path.getPointAtLength(edges[index].via.length ? length - 45 : length / 2);
    label.setAttribute("x", middle.x);
    label.setAttribute("y", middle.y + 4);
    svg.append(label);
    return label;
  });
  return { paths, groups, labels };
}

function showGraph() {
  const { nodes, edges, left } = limited(nodesAndEdges());
  const note = left
    ? `The ${nodes.length} busiest of ${nodes.length + left} actors and topics; messages a second.`
    : "Actors are round, topics square; messages a second.";
  const more = picture.publishes_left_out
    ? ` ${countText(picture.publishes_left_out)} messages on further topics are not in it.`
    : "";
  put(find("graph-note"), note + more);
  const key = JSON.stringify([nodes.map((node) => node.id), edges.map((edge) => [edge.from.id, edge.to.id])]);
  if (key !== drawn.key) {
    drawn = { key, ids: new Set(nodes.map((node) => node.id)), ...redraw(nodes, edges) };
  }
  nodes.forEach((node, index) => {
    const actor = node.actor;
    const failing = actor?.problem && actor.state === "running" ? "failing" : "";
    mark(drawn.groups[index], "class", `${node.kind} ${actor?.kind ?? ""} ${actor?.state ?? ""} ${failing}`);
  });
  edges.forEach((edge, index) => {
    const flows = edge.rate > 0;
    mark(drawn.paths[index], "class", flows ? "edge flowing" : "edge");
    mark(drawn.paths[index], "marker-end", `url(#${flows ? "flowing" : "still"})`);
    mark(drawn.paths[index], "stroke-width", flows ? `${Math.min(6, 1.25 + Math.log10(1 + edge.rate)).toFixed(2)}` : "1");
    put(drawn.labels[index], flows ? rateText(edge.rate) : "");
  });
}

// Dead letters. Finding them may mean reading all of a topic, so it is done when somebody asks.

let letters = [];

function showLettersCount() {
  const count = picture.actors.reduce((sum, actor) => sum + actor.dead_letters, 0);
  put(find("letters-count"), `${countText(count)} stored since the start.`);
}

function tellOfLetters(text, bad = false) {
  put(find("letters-note"), text);
  mark(find("letters-note"), "class", bad ? "note bad" : "note");
}

async function listLetters() {
  const button = find("letters-list");
  button.disabled = true;
  tellOfLetters("reading");
  try {
    const answer = await fetch(`dead-letters?limit=${MOST_ROWS}`, { headers: headers(), cache: "no-store" });
    if (!answer.ok) throw new Error(await answer.text());
    const found = await answer.json();
    letters = found.dead_letters;
    const count = letters.length ? `${letters.length} are there` : "There are none";
    tellOfLetters(found.more ? `These are ${letters.length} of more.` : `${count}.`);
    showLetters();
  } catch (error) {
    tellOfLetters(error instanceof TypeError ? "no connection to the application" : error.message, true);
  } finally {
    button.disabled = false;
  }
}

function showLetters() {
  find("letters").hidden = !letters.length;
  const body = find("letter-rows");
  body.replaceChildren(
    ...letters.map((letter) => {
      const replay = make("button", { type: "button" }, "Replay");
      const discard = make("button", { type: "button" }, "Discard");
      replay.disabled = letter.obstacle !== null;
      if (letter.obstacle !== null) replay.title = letter.obstacle;
      replay.setAttribute("aria-label", `Replay the dead letter of ${letter.actor ?? "an unknown actor"} on ${letter.topic ?? "an unknown topic"}`);
      discard.setAttribute("aria-label", `Discard the dead letter of ${letter.actor ?? "an unknown actor"} on ${letter.topic ?? "an unknown topic"}`);
      const row = make(
        "tr",
        {},
        make("td", { class: "time" }, letter.stored === null ? "–" : new Date(letter.stored).toLocaleString("en", { hour12: false })),
        make("td", {}, letter.actor ?? "–"),
        make("td", { class: "bad" }, letter.error ?? "unreadable"),
        make("td", { class: "text" }, letter.text ?? letter.flaw ?? ""),
        make("td", { class: "text" }, letter.topic ?? "–"),
        make("td", { class: "number" }, countText(letter.size)),
        make("td", { class: "do" }, replay, discard),
      );
      replay.addEventListener("click", () => change(letter, "replay", row));
      let sure = false;
      discard.addEventListener("click", () => {
        if (sure) change(letter, "discard", row);
        else put(discard, "Really discard?");
        sure = true;
      });
      return row;
    }),
  );
}

async function change(letter, what, row) {
  const buttons = [...row.querySelectorAll("button")];
  for (const button of buttons) button.disabled = true;
  tellOfLetters(what === "replay" ? `replaying to ${letter.actor}` : "discarding");
  try {
    const query = letter.bus ? `?bus=${encodeURIComponent(letter.bus)}` : "";
    // Names are percent-encoded already.
    const answer = await fetch(`dead-letters/${letter.letter}/${what}${query}`, {
      method: "POST",
      headers: headers({ "Content-Type": "application/json" }),
      body: "{}",
    });
    if (!answer.ok) throw new Error(await answer.text());
    const { outcome, why } = await answer.json();
    const said = why ? `${outcome}: ${why}` : outcome;
    if (["handled", "discarded", "missing"].includes(outcome)) {
      letters = letters.filter((one) => one !== letter);
      showLetters();
      tellOfLetters(said);
      find("letters-list").focus();
      return;
    }
    tellOfLetters(said, true);
  } catch (error) {
    tellOfLetters(error instanceof TypeError ? "no connection to the application" : error.message, true);
  }
  for (const button of buttons) button.disabled = false;
}

// All of it.

function show() {
  if (picture === null || document.hidden) return;
  showHeader();
  showProblems();
  showGraph();
  showActors();
  showDetail();
  showFailures();
  showLettersCount();
  showConnections();
}

function take(text) {
  picture = JSON.parse(text);
  seen.add(picture);
  show();
}

// To and from the application.

const token = {
  get: () => sessionStorage.getItem("spa-dat-token"),
  set: (text) => sessionStorage.setItem("spa-dat-token", text),
};

function headers(more = {}) {
  const known = token.get();
  return known ? { ...more, Authorization: `Bearer ${known}` } : more;
}

function tell(text, lost = false) {
  const link = find("link");
  put(link, text);
  mark(link, "class", lost ? "lost" : "");
}

const pause = (seconds) => new Promise((resolve) => setTimeout(resolve, seconds * 1000));

function askForToken(wrong) {
  const form = find("login");
  form.hidden = false;
  tell(wrong ? "that is not the token" : "a token is needed", wrong);
  find("token").focus();
  return new Promise((resolve) => {
    form.addEventListener(
      "submit",
      (event) => {
        event.preventDefault();
        token.set(find("token").value);
        find("token").value = "";
        form.hidden = true;
        resolve();
      },
      { once: true },
    );
  });
}

async function order(action, actor) {
  const done = find("done");
  try {
    const answer = await fetch("live/control", {
      method: "POST",
      headers: headers({ "Content-Type": "application/json" }),
      body: JSON.stringify({ action, actor }),
    });
    const verbs = { pause: "is paused", resume: "goes on", restart: "restarts after its current message" };
    put(done, answer.ok ? `${actor} ${verbs[action]}.` : await answer.text());
    mark(done, "class", answer.ok ? "" : "bad");
  } catch {
    put(done, `cannot ${action} ${actor}: no connection to the application`);
    mark(done, "class", "bad");
  }
}

async function follow(answer) {
  const reader = answer.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  for (;;) {
    const { done, value } = await reader.read();
    if (done) return;
    rest += value;
    const events = rest.split("\n\n");
    rest = events.pop();
    const newest = events.pop();
    const data = newest?.split("\n").find((line) => line.startsWith("data: "));
    if (data) take(data.slice(6));
  }
}

async function look() {
  let refused = false;
  for (;;) {
    try {
      const answer = await fetch("live/events", { headers: headers(), cache: "no-store" });
      if (answer.status === 401) {
        await askForToken(refused || token.get() !== null);
        refused = true;
        continue;
      }
      if (answer.status === 503) {
        // Too many look at the same time: less often, then.
        const one = await fetch("live", { headers: headers(), cache: "no-store" });
        take(await one.text());
        tell("every 5 seconds, because many clients are connected");
        await pause(5);
        continue;
      }
      if (!answer.ok) throw new Error(await answer.text());
      tell("live");
      await follow(answer);
    } catch (error) {
      if (!(error instanceof TypeError)) console.error(error);
    }
    tell("no connection; trying again", true);
    await pause(2);
  }
}

find("filter").addEventListener("input", show);
find("order").addEventListener("change", show);
find("letters-list").addEventListener("click", listLetters);
find("detail-close").addEventListener("click", () => {
  const row = rows.get(chosen);
  choose(null, false);
  row?.element.querySelector("button")?.focus();
});
document.addEventListener("visibilitychange", show);
look();
