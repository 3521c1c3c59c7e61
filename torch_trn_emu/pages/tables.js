"use strict";
// Tables sort by a click on a head and filter as one types; the flame graph zooms by a click.
(() => {
  const UNITS = { s: 1, ms: 1e-3, us: 1e-6, ns: 1e-9, B: 1, KiB: 2 ** 10, MiB: 2 ** 20, GiB: 2 ** 30 };
  const value = text => {
    const parts = /^([+-]?[\d,.]+(?:e[+-]?\d+)?)\s*(\S*)/.exec(text);
    return parts ? parseFloat(parts[1].replaceAll(",", "")) * (UNITS[parts[2]] || 1) : null;
  };
  for (const table of document.querySelectorAll("table")) {
    const heads = [...table.querySelectorAll("thead th")], body = table.tBodies[0];
    if (!heads.length || body.rows.length < 2) continue;
    heads.forEach((head, column) => {
      const button = document.createElement("button");
      button.textContent = head.textContent || "sort";
      head.replaceChildren(button);
      button.onclick = () => {
        const down = head.ariaSort !== "descending";
        heads.forEach(other => other.removeAttribute("aria-sort"));
        head.setAttribute("aria-sort", down ? "descending" : "ascending");
        const key = row => { const text = row.cells[column].textContent; return [value(text), text]; };
        const rows = [...body.rows].map(row => [key(row), row]);
        rows.sort(([[a, s]], [[b, t]]) => a !== null && b !== null ? a - b : s.localeCompare(t));
        if (down) rows.reverse();
        body.append(...rows.map(([, row]) => row));
      };
    });
    if (body.rows.length < 8) continue;
    const box = document.createElement("input");
    box.type = "search"; box.placeholder = "filter rows"; box.ariaLabel = "filter rows";
    box.oninput = () => { const wanted = box.value.toLowerCase();
      for (const row of body.rows) row.hidden = !row.textContent.toLowerCase().includes(wanted); };
    table.closest(".scroll").before(box);
  }
  for (const flame of document.querySelectorAll(".flame")) {
    const boxes = [...flame.querySelectorAll("button")];
    const place = (from, size) => boxes.forEach(box => {
      const a = (box.dataset.from - from) / size, w = box.dataset.size / size;
      box.style.left = `${100 * Math.max(a, 0)}%`;
      box.style.width = `${100 * Math.min(w + Math.min(a, 0), 1 - Math.max(a, 0))}%`;
      box.hidden = a >= 1 || a + w <= 1e-9;
    });
    let zoomed = null;
    for (const box of boxes) box.onclick = () => {
      zoomed = zoomed === box ? null : box;
      zoomed ? place(+box.dataset.from, +box.dataset.size) : place(0, 1);
    };
  }
})();
