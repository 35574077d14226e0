"use strict";
(function () {
  const table = document.getElementById("gallery");
  const body = table.tBodies[0];
  const rows = Array.from(body.rows);
  const buttons = Array.from(table.tHead.querySelectorAll("button"));

  function compare(kind, sign) {
    return function (left, right) {
      if (left.key === "" || right.key === "") return (left.key === "") - (right.key === "");
      if (kind === "number") return sign * (Number(left.key) - Number(right.key));
      return sign * left.key.localeCompare(right.key, undefined, { numeric: true });
    };
  }

  function sortBy(button) {
    const head = button.parentElement;
    // the first click sorts numbers descending, names ascending
    const first = button.dataset.kind === "text" ? "ascending" : "descending";
    const other = first === "ascending" ? "descending" : "ascending";
    const order = head.getAttribute("aria-sort") === first ? other : first;
    for (const each of buttons) each.parentElement.removeAttribute("aria-sort");
    head.setAttribute("aria-sort", order);
    const keyed = rows.map(function (row) {
      return { row: row, key: row.cells[head.cellIndex].dataset.key };
    });
    let kind = button.dataset.kind;
    if (kind === "auto") {
      kind = keyed.every(function (each) { return !Number.isNaN(Number(each.key)); }) ? "number" : "text";
    }
    keyed.sort(compare(kind, order === "ascending" ? 1 : -1)); // stable: equal keys keep the page's order
    body.append(...keyed.map(function (each) { return each.row; }));
  }

  const filter = document.getElementById("filter");
  const shown = document.getElementById("shown");

  function applyFilter() {
    const wanted = filter.value.trim().toLowerCase();
    let count = 0;
    for (const row of rows) {
      row.hidden = wanted !== "" && !row.textContent.toLowerCase().includes(wanted);
      count += row.hidden ? 0 : 1;
    }
    const images = rows.length + (rows.length === 1 ? " image" : " images");
    shown.textContent = count === rows.length ? images : count + " of " + images;
  }

  for (const button of buttons) button.addEventListener("click", function () { sortBy(button); });
  filter.addEventListener("input", applyFilter);
  applyFilter();
})();
