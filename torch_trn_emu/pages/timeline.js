"use strict";
// The timeline of a profile on a canvas: steps, modules, host, launches, engines, DMA queues.
// profiler/timeline.py makes the data. Wheel and keys zoom, dragging moves, pointing explains.
(async () => {
  const holder = document.getElementById("timeline-data");
  if (!holder) return;
  const bytes = Uint8Array.from(atob(holder.textContent.trim()), c => c.charCodeAt(0));
  const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("deflate"));
  const data = await new Response(stream).json();
  const { words, kinds, prices } = data;
  const [PRICE, DURATION, DISPATCH, OP, SIGNATURE, MODULE, PHASE, SOURCE, ENGINE, STATUS] =
    Array(10).keys();
  const COLORS = JSON.parse(document.getElementById("timeline-colors").textContent);
  const canvas = document.querySelector("#timeline canvas"), pen = canvas.getContext("2d");
  const tip = document.getElementById("tip"), search = document.getElementById("search");
  const ROW = 18, HEAD = 22, MOST_DEPTH = 6;
  const $ = id => document.getElementById(id);

  // --- data -------------------------------------------------------------------------------------

  const sums = list => { const out = new Float64Array(list.length); let at = 0;
    for (let i = 0; i < list.length; i++) out[i] = at += list[i];
    return out; };

  function load(device) {
    const raw = data.devices[device], count = raw.kind.length;
    const d = { count, kind: Int32Array.from(raw.kind), host: sums(raw.host), start: sums(raw.start) };
    d.end = d.start.map((t, i) => t + kinds[d.kind[i]][DURATION]);
    d.last = count ? Math.max(d.end[count - 1], d.host[count - 1]) : 1;
    d.top = [{ name: "steps", spans: data.steps.map((s, i) => ({ begin: s[0], end: s[1],
      name: `step ${i + 1}`, about: `${time(s[1] - s[0])}, ${s[2].toLocaleString()} launches` })) },
      ...moduleRows(d),
      { name: "host dispatch", host: true }, { name: "launches", launches: true },
      ...Object.entries(raw.collectives || {}).map(([name, spans]) => ({ name, spans: spans.map(
        ([begin, end, op, about]) => ({ begin, end, name: words[op], about: `${words[op]}\n${words[about]}` })) })),
    ];
    d.rows = [...d.top, ...engineRows()];
    return d;
  }

  // An engine is a row. The DMA queues, of which a graph has dozens, are one row until it is opened.
  function engineRows() {
    const lanes = data.lanes.map((name, lane) => ({ name, lanes: [lane] }));
    const queues = lanes.filter(row => row.name.startsWith("dma")), engines = lanes.filter(row => !queues.includes(row));
    if (queues.length < 2) return lanes;
    const all = { name: `${opened ? "\u25be" : "\u25b8"} ${queues.length} DMA queues`, lanes: queues.flatMap(row => row.lanes), opens: true };
    return [...engines, all, ...(opened ? queues : [])];
  }

  // Neighbouring launches of one module are one span; a row for each depth of the path.
  function moduleRows(d) {
    const rows = [], parts = words.map(w => w.split("."));
    for (let depth = 0; depth < MOST_DEPTH; depth++) {
      const spans = [];
      let span = null;
      for (let i = 0; i < d.count; i++) {
        const kind = kinds[d.kind[i]], path = parts[kind[MODULE]];
        const name = path.length > depth && path[0] ? path.slice(0, depth + 1).join(".") : "";
        if (span && span.path === name && span.phase === kind[PHASE]) { span.end = d.end[i]; span.launches++; }
        else { span = name ? { path: name, phase: kind[PHASE], begin: d.start[i], end: d.end[i], launches: 1 } : null;
          if (span) spans.push(span); }
      }
      if (!spans.length) break;
      for (const s of spans) { s.name = s.path.split(".").slice(depth ? -1 : 0).join(".");
        s.about = `${s.path} (${words[s.phase]})\n${time(s.end - s.begin)}, ${s.launches} launches`; }
      rows.push({ name: depth ? "" : "modules", spans });
    }
    return rows;
  }

  function time(ns, step = 0) { // as fine as steps of an axis need
    for (const [unit, size] of [["s", 1e9], ["ms", 1e6], ["us", 1e3]]) if (Math.abs(ns) >= size)
      return `${(ns / size).toFixed(step ? Math.max(0, Math.ceil(-Math.log10(step / size))) : 2)} ${unit}`;
    return `${Math.round(ns)} ns`;
  }

  const describe = i => { const k = kinds[d.kind[i]]; return [
    `${words[k[OP]]}  ${words[k[SIGNATURE]]}`,
    `${time(k[DURATION])} on the core from ${time(d.start[i])}, dispatched at ${time(d.host[i])} for ${time(k[DISPATCH])}`,
    `${words[k[MODULE]] || "outside modules"} (${words[k[PHASE]]})${words[k[SOURCE]] ? ", " + words[k[SOURCE]] : ""}; ` +
    `${words[k[ENGINE]]} bound, price ${words[k[STATUS]]}`].join("\n"); };

  // --- view -------------------------------------------------------------------------------------

  const devices = Object.keys(data.devices);
  let opened = false; // whether each DMA queue has a row
  let d = load(devices[0]), begin = 0, span = 1, width = 0, hits = [], found = -1, left = 90;
  const x = t => left + (t - begin) / span * (width - left);
  const at = px => begin + (px - left) / (width - left) * span;
  const style = name => getComputedStyle(document.documentElement).getPropertyValue(name).trim();
  const hue = text => { let h = 0; for (const c of text) h = (h * 31 + c.charCodeAt(0)) % 360;
    return `hsl(${h} 45% 70%)`; };
  const hues = new Map();
  const hueOf = text => hues.get(text) || (hues.set(text, hue(text)), hues.get(text));
  const first = (list, t) => { let low = 0, high = list.length; // of the sorted list, above t
    while (low < high) { const mid = (low + high) >> 1; if (list[mid] > t) high = mid; else low = mid + 1; }
    return low; };

  function view(from, length) {
    span = Math.min(Math.max(length, 20), d.last * 1.02);
    begin = Math.min(Math.max(from, -0.01 * d.last), Math.max(0, d.last * 1.01 - span));
    requestAnimationFrame(draw);
  }

  function fit() { // the last step that is whole, or everything
    const step = data.steps[data.steps.length - 1];
    if (step && step[1] > step[0]) view(step[0] - 0.02 * (step[1] - step[0]), 1.04 * (step[1] - step[0]));
    else view(0, d.last * 1.02);
  }

  function resize() {
    const ratio = devicePixelRatio || 1, height = HEAD + d.rows.length * ROW + 4;
    width = canvas.clientWidth; left = width < 600 ? 64 : 110;
    canvas.style.height = `${height}px`;
    canvas.width = width * ratio; canvas.height = height * ratio;
    pen.setTransform(ratio, 0, 0, ratio, 0, 0);
    draw();
  }

  function box(t0, t1, y, color, text, hit, alpha = 1) {
    const a = Math.max(x(t0), left), b = Math.min(Math.max(x(t1), a + 0.7), width);
    if (b <= left || a >= width) return;
    pen.globalAlpha = alpha; pen.fillStyle = color; pen.fillRect(a, y + 1, b - a, ROW - 2); pen.globalAlpha = 1;
    if (hit) hits.push([a, b, y, hit]);
    if (text && b - a > 34) {
      pen.save(); pen.beginPath(); pen.rect(a, y, b - a, ROW); pen.clip();
      pen.fillStyle = "#111"; pen.fillText(text, a + 3, y + 13); pen.restore();
    }
  }

  function draw() {
    hits = [];
    pen.clearRect(0, 0, width, canvas.height);
    pen.font = "11px system-ui, sans-serif";
    axis();
    const from = first(d.end, begin), to = first(d.start, begin + span);
    const wanted = search.value.trim().toLowerCase();
    const dim = text => wanted && !text.toLowerCase().includes(wanted) ? 0.2 : 1;
    d.rows.forEach((row, r) => {
      const y = HEAD + r * ROW;
      pen.fillStyle = style("--dim"); pen.fillText(row.name, 2, y + 13, left - 6);
      if (row.spans) drawSpans(row, y, dim);
      else if (!row.lanes) drawLaunches(row, y, from, to, dim);
      else drawEngine(row, y, from, to, dim);
    });
    pen.strokeStyle = style("--dim"); pen.setLineDash([3, 3]);
    for (const s of data.steps) { const px = x(s[1]);
      if (px > left && px < width) { pen.beginPath(); pen.moveTo(px, HEAD); pen.lineTo(px, canvas.height); pen.stroke(); } }
    pen.setLineDash([]);
  }

  function axis() {
    const raw = span / Math.max(2, (width - left) / 110), power = 10 ** Math.floor(Math.log10(raw));
    const tick = [1, 2, 5, 10].find(n => n * power >= raw) * power;
    pen.fillStyle = style("--dim"); pen.strokeStyle = style("--line");
    for (let t = Math.ceil(begin / tick) * tick; t < begin + span; t += tick) {
      pen.fillText(time(t, tick), x(t) + 3, 12);
      pen.beginPath(); pen.moveTo(x(t), 0); pen.lineTo(x(t), canvas.height); pen.stroke();
    }
  }

  function drawSpans(row, y, dim) {
    let last = -1;
    for (const s of row.spans) {
      if (s.end < begin) continue;
      if (s.begin > begin + span) break;
      if (x(s.end) - last < 0.7) continue;
      last = x(s.end);
      box(s.begin, s.end, y, hueOf(s.name), s.name, { text: `${s.name}\n${s.about}`, begin: s.begin, end: s.end }, dim(s.about));
    }
  }

  function drawLaunches(row, y, from, to, dim) {
    let last = -1;
    if (row.host) { from = Math.max(0, first(d.host, begin) - 1); to = first(d.host, begin + span); }
    for (let i = from; i < to; i++) {
      const k = kinds[d.kind[i]], t0 = row.host ? d.host[i] : d.start[i];
      const t1 = t0 + k[row.host ? DISPATCH : DURATION], px = x(t1);
      if (px - last < 0.7 && i !== found) continue;
      last = px;
      const color = row.host ? COLORS.dispatch : COLORS[words[k[ENGINE]]] || COLORS.other;
      box(t0, t1, y, i === found ? style("--accent") : color, words[k[OP]], { launch: i, begin: t0, end: t1 },
        dim(words[k[OP]] + " " + words[k[MODULE]]));
    }
  }

  // Wide launches show each span; narrow ones how much of them the engine was busy.
  function drawEngine(row, y, from, to, dim) {
    const color = COLORS[row.name] || COLORS.dma;
    let last = -1;
    for (let i = from; i < to; i++) {
      const k = kinds[d.kind[i]], spans = prices[k[PRICE]];
      if (!spans || x(d.end[i]) - last < 0.7) continue;
      if (x(d.end[i]) - x(d.start[i]) < 6) {
        const share = Math.max(...row.lanes.map(lane => busy(k, lane)));
        last = x(d.end[i]);
        if (share) box(d.start[i], d.end[i], y, color, "", { launch: i, begin: d.start[i], end: d.end[i] }, 0.15 + 0.85 * Math.min(1, share));
        continue;
      }
      let edge = -1;
      for (let j = 0; j < spans.length; j += 6) {
        if (!row.lanes.includes(spans[j])) continue;
        const t0 = d.start[i] + spans[j + 2], t1 = t0 + spans[j + 3];
        if (t1 < begin || t0 > begin + span || x(t1) - edge < 0.7) continue;
        edge = x(t1);
        const name = words[spans[j + 1]];
        box(t0, t1, y, color, name, { launch: i, begin: t0, end: t1, text: `${name} on ${data.lanes[spans[j]]}: ${time(t1 - t0)}, ` +
          `${spans[j + 4].toLocaleString()} executions, ${spans[j + 5].toLocaleString()} bytes written` }, dim(name + " " + words[k[OP]]));
      }
    }
  }

  const shares = new Map();
  function busy(kind, lane) {
    const key = `${kind[PRICE]} ${lane}`;
    if (!shares.has(key)) {
      const spans = prices[kind[PRICE]];
      let sum = 0;
      for (let j = 0; j < spans.length; j += 6) if (spans[j] === lane) sum += spans[j + 3];
      shares.set(key, kind[DURATION] ? sum / kind[DURATION] : 0);
    }
    return shares.get(key);
  }

  // --- what the user does -----------------------------------------------------------------------

  const zoom = (factor, px = (left + width) / 2) => { const t = at(px); view(t - (t - begin) * factor, span * factor); };
  const hitAt = e => { const r = canvas.getBoundingClientRect(), px = e.clientX - r.left, py = e.clientY - r.top;
    for (let i = hits.length - 1; i >= 0; i--) { const [a, b, y, hit] = hits[i];
      if (py >= y && py < y + ROW && px >= a - 1 && px <= b + 1) return hit; } };
  let drag = null;
  canvas.addEventListener("wheel", e => {
    if (e.shiftKey || Math.abs(e.deltaX) > Math.abs(e.deltaY)) view(begin + span * (e.deltaX || e.deltaY) / 800, span);
    else zoom(Math.exp(e.deltaY / 400), e.clientX - canvas.getBoundingClientRect().left);
    e.preventDefault();
  }, { passive: false });
  function open() {
    opened = !opened;
    d.rows = [...d.top, ...engineRows()];
    $("queues").setAttribute("aria-pressed", opened);
    resize();
  }
  $("queues").onclick = open;
  $("queues").hidden = data.lanes.filter(name => name.startsWith("dma")).length < 2;
  const rowAt = e => { const r = canvas.getBoundingClientRect();
    return e.clientX - r.left < left ? d.rows[Math.floor((e.clientY - r.top - HEAD) / ROW)] : undefined; };
  canvas.addEventListener("pointerdown", e => { if (rowAt(e)?.opens) { open(); return; } drag = [e.clientX, begin]; canvas.focus(); canvas.setPointerCapture(e.pointerId); });
  canvas.addEventListener("pointerup", () => { drag = null; });
  canvas.addEventListener("pointermove", e => {
    if (drag) { view(drag[1] - (e.clientX - drag[0]) / (width - left) * span, span); return; }
    const hit = hitAt(e);
    if (hit) tip.textContent = [hit.text, hit.launch === undefined ? "" : describe(hit.launch)].filter(Boolean).join("\n");
  });
  canvas.addEventListener("dblclick", e => { const hit = hitAt(e);
    if (hit) view(hit.begin - 0.1 * (hit.end - hit.begin), 1.2 * (hit.end - hit.begin)); });
  canvas.addEventListener("keydown", e => {
    const act = { w: () => zoom(0.7), "+": () => zoom(0.7), s: () => zoom(1.4), "-": () => zoom(1.4),
      a: () => view(begin - span / 5, span), ArrowLeft: () => view(begin - span / 5, span),
      d: () => view(begin + span / 5, span), ArrowRight: () => view(begin + span / 5, span),
      f: fit, Home: () => view(0, d.last * 1.02), q: open, "/": () => search.focus() }[e.key];
    if (act && !e.ctrlKey && !e.metaKey) { act(); e.preventDefault(); }
  });
  search.addEventListener("input", draw);
  search.addEventListener("keydown", e => { if (e.key === "Enter") next(); });
  function next() { // the next launch whose operator or module matches
    const wanted = search.value.trim().toLowerCase();
    for (let n = 1; wanted && n <= d.count; n++) {
      const i = (found + n) % d.count, k = kinds[d.kind[i]];
      if ((words[k[OP]] + " " + words[k[MODULE]]).toLowerCase().includes(wanted)) {
        found = i; tip.textContent = describe(i);
        view(d.start[i] - span / 2, span); return;
      }
    }
    tip.textContent = wanted ? `nothing matches ${wanted}` : "";
  }
  $("zoom-in").onclick = () => zoom(0.5); $("zoom-out").onclick = () => zoom(2);
  $("one-step").onclick = fit; $("everything").onclick = () => view(0, d.last * 1.02);
  const choice = $("device");
  if (choice) choice.onchange = () => { d = load(choice.value); found = -1; resize(); fit(); };

  // --- Perfetto ---------------------------------------------------------------------------------

  function trace(most = 200000) { // the launches in view, as Chrome's trace format
    const events = [], lane = (tid, name) => events.push({ ph: "M", name: "thread_name", pid: 0, tid, args: { name } });
    d.top.forEach((row, r) => lane(r, row.name || "modules"));
    data.lanes.forEach((name, n) => lane(d.top.length + n, name));
    const add = (tid, name, t0, t1, args) => events.push({ ph: "X", name, pid: 0, tid, ts: t0 / 1e3, dur: (t1 - t0) / 1e3, args });
    const row = test => d.top.findIndex(test), host = row(r => r.host), core = row(r => r.launches), engines = d.top.length;
    d.top.forEach((r, tid) => { for (const s of r.spans || []) if (s.end > begin && s.begin < begin + span) add(tid, s.name, s.begin, s.end); });
    for (let i = first(d.end, begin); i < first(d.start, begin + span) && events.length < most; i++) {
      const k = kinds[d.kind[i]], args = { signature: words[k[SIGNATURE]], module: words[k[MODULE]], phase: words[k[PHASE]] };
      add(host, words[k[OP]], d.host[i], d.host[i] + k[DISPATCH], args);
      add(core, words[k[OP]], d.start[i], d.end[i], args);
      const spans = prices[k[PRICE]] || [];
      for (let j = 0; j < spans.length; j += 6) { const t0 = d.start[i] + spans[j + 2];
        add(engines + spans[j], words[spans[j + 1]], t0, t0 + spans[j + 3], { executions: spans[j + 4], bytes: spans[j + 5] }); }
    }
    return JSON.stringify({ displayTimeUnit: "ns", traceEvents: events });
  }
  $("perfetto").onclick = () => {
    const home = "https://ui.perfetto.dev", other = window.open(home);
    if (!other) { tip.textContent = "the browser blocked the window"; return; }
    const buffer = new TextEncoder().encode(trace()).buffer;
    const ask = setInterval(() => other.postMessage("PING", home), 100);
    const answer = e => { if (e.origin !== home || e.source !== other || e.data !== "PONG") return;
      clearInterval(ask); removeEventListener("message", answer);
      other.postMessage({ perfetto: { buffer, title: document.title } }, home); };
    addEventListener("message", answer);
    setTimeout(() => clearInterval(ask), 30000);
  };
  $("download").onclick = () => { const link = document.createElement("a");
    link.href = URL.createObjectURL(new Blob([trace()], { type: "application/json" }));
    link.download = "trace.json"; link.click(); };

  resize(); fit();
  addEventListener("resize", resize);
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", draw);
  document.body.dataset.timeline = `${d.count} launches`;
})();
