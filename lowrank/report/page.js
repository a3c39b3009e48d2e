"use strict";
// Sorting: a heading becomes a button; numbers by their exact value, text by locale, what is missing last.
const key = (row, column) => {
  const cell = row.cells[column];
  if (cell.dataset.value !== undefined) return Number(cell.dataset.value);
  const text = cell.textContent.trim();
  return text === "–" || text === "" ? null : text;
};
const compare = (a, b, sign) => {
  if (a === null || b === null) return (a === null) - (b === null);
  if (typeof a === "number" && typeof b === "number") return sign * (a - b);
  return sign * String(a).localeCompare(String(b), "en", { numeric: true });
};
for (const table of document.querySelectorAll("table.sortable")) {
  const told = document.createElement("p");
  told.className = "definition";
  told.setAttribute("role", "status");
  table.closest(".scroll").before(told);
  for (const head of table.tHead.rows[0].cells) {
    if (head.dataset.fixed !== undefined) continue;
    const name = head.textContent, meaning = head.title, column = head.cellIndex;
    const button = document.createElement("button");
    button.type = "button";
    button.textContent = name;
    head.removeAttribute("title");
    head.setAttribute("aria-sort", "none");
    head.replaceChildren(button);
    const tell = () => { told.textContent = meaning ? name + ": " + meaning : ""; };
    head.addEventListener("pointerenter", tell);
    button.addEventListener("focus", tell);
    button.addEventListener("click", () => {
      const up = head.getAttribute("aria-sort") !== "ascending";
      for (const other of table.tHead.rows[0].cells)
        if (other.hasAttribute("aria-sort")) other.setAttribute("aria-sort", "none");
      head.setAttribute("aria-sort", up ? "ascending" : "descending");
      const rows = [...table.tBodies[0].rows];
      const keys = new Map(rows.map((row) => [row, key(row, column)]));
      rows.sort((a, b) => compare(keys.get(a), keys.get(b), up ? 1 : -1));
      table.tBodies[0].append(...rows);
      tell();
    });
  }
}
// Filters of the ledger: a row stays where every choice and every word fits.
const form = document.querySelector("form.filters");
if (form) {
  form.hidden = false;
  const rows = [...document.querySelectorAll("#ledger tbody tr")];
  const words = new Map(rows.map((row) => [row, row.textContent.toLowerCase()]));
  const apply = () => {
    const wanted = new FormData(form), search = wanted.get("words").toLowerCase().split(/\s+/);
    let shown = 0;
    for (const row of rows) {
      const fits = ["study", "verdict", "kind"].every((name) => !wanted.get(name) || row.dataset[name] === wanted.get(name));
      row.hidden = !(fits && search.every((word) => words.get(row).includes(word)));
      shown += !row.hidden;
    }
    form.querySelector("output").textContent = shown + " of " + rows.length + " shown";
  };
  form.addEventListener("input", apply);
  form.addEventListener("submit", (event) => event.preventDefault());
  form.addEventListener("reset", () => setTimeout(apply));
  for (const link of document.querySelectorAll("a[data-study]"))
    link.addEventListener("click", () => {
      form.reset();
      for (const name of ["study", "verdict"]) form.elements[name].value = link.dataset[name] ?? "";
      apply();
    });
  apply();
}
// A link to a row of a folded table opens it.
const open = () => {
  const target = location.hash && document.getElementById(decodeURIComponent(location.hash.slice(1)));
  if (!target) return;
  for (let node = target; node; node = node.parentElement) if (node.tagName === "DETAILS") node.open = true;
  target.scrollIntoView({ block: "center" });
};
addEventListener("hashchange", open);
open();
// Paper has no folds.
addEventListener("beforeprint", () => document.querySelectorAll("details:not(.code, .again)").forEach((fold) => { fold.open = true; }));
