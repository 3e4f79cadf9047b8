"use strict";

for (const viewer of document.querySelectorAll(".viewer")) {
  const slider = viewer.querySelector("input[type=range]");
  const bars = viewer.querySelectorAll("rect");
  const images = viewer.querySelectorAll(".image");
  const layer = viewer.querySelector(".layer");
  const paths = viewer.querySelectorAll(".panel path");
  const empty = "data:image/gif;base64,R0lGODlhAQABAAAAACH5BAEKAAEALAAAAAABAAEAAAICTAEAOw==";
  let slices = null; // parsed when they are first asked for: a report may hold thousands of pictures
  let turned = 0;

  function show(index) {
    slices ??= JSON.parse(viewer.querySelector("script").textContent);
    index = Math.max(0, Math.min(slices.length - 1, index));
    const slice = slices[index];
    const kind = viewer.querySelector("input[type=radio]:checked").value;
    for (const image of images) image.src = slice.plain;
    layer.src = slice[kind] || empty;
    layer.className = `layer ${kind}`;
    for (const path of paths) {
      const name = path.dataset.outline ?? "outline"; // earlier versions drew that of the mask only
      const box = viewer.querySelector(`input[value=${name}]`);
      path.setAttribute("d", !box || box.checked ? slice[name] : "");
    }
    for (const bar of bars) bar.classList.toggle("now", Number(bar.dataset.shown) === index);
    if (slider) {
      slider.value = index;
      viewer.querySelector("output").textContent = `Slice ${slice.name}, score ${slice.score.toFixed(2)}.`;
    }
  }
  const now = () => (slider ? Number(slider.value) : 0);

  viewer.querySelector(".layers").addEventListener("change", () => show(now()));
  slider?.addEventListener("input", () => show(now()));
  for (const bar of bars) bar.addEventListener("click", () => show(Number(bar.dataset.shown)));
  viewer.addEventListener("keydown", (event) => {
    const step = { ArrowLeft: -1, ArrowDown: -1, ArrowRight: 1, ArrowUp: 1 }[event.key];
    if (!slider || !step || event.target.type === "radio") return;
    event.preventDefault();
    show(now() + step);
  });
  viewer.querySelector(".panels").addEventListener(
    "wheel",
    (event) => {
      if (!slider || !viewer.contains(document.activeElement)) return; // the page scrolls until a picture is clicked
      event.preventDefault();
      turned += event.deltaY;
      if (Math.abs(turned) < 30) return;
      show(now() + Math.sign(turned));
      turned = 0;
    },
    { passive: false },
  );
  if (slider) new IntersectionObserver((entries, observer) => {
    if (!entries.some((entry) => entry.isIntersecting)) return;
    observer.disconnect();
    show(now());
  }).observe(viewer);
}

for (const table of document.querySelectorAll("table.sortable")) {
  const heads = [...table.querySelectorAll("th")];
  const find = table.closest("section").querySelector(".find");
  const step = Number(table.dataset.rowsAtOnce);
  let rows = [...table.tBodies[0].rows];
  let most = step;

  function fill() {
    const part = find?.querySelector("input").value.trim().toLowerCase();
    const found = part ? rows.filter((row) => row.cells[1].textContent.toLowerCase().includes(part)) : rows;
    table.tBodies[0].replaceChildren(...found.slice(0, most));
    if (!find) return;
    find.querySelector("output").textContent = `${Math.min(most, found.length)} of ${found.length} cases are listed.`;
    find.querySelector("button").hidden = most >= found.length;
  }

  for (const head of heads) {
    head.querySelector("button")?.addEventListener("click", () => {
      const column = heads.indexOf(head);
      const rising = head.getAttribute("aria-sort") === "descending";
      const isNumber = head.classList.contains("number");
      const compare = isNumber ? (a, b) => a - b : new Intl.Collator(undefined, { numeric: true }).compare;
      const keyed = rows.map((row) => {
        const cell = row.cells[column];
        return [isNumber ? Number(cell.dataset.value) : cell.textContent.trim(), row];
      });
      keyed.sort((a, b) => compare(a[0], b[0]));
      rows = (rising ? keyed : keyed.reverse()).map(([, row]) => row);
      for (const other of heads) other.removeAttribute("aria-sort");
      head.setAttribute("aria-sort", rising ? "ascending" : "descending");
      most = step;
      fill();
    });
  }
  find?.querySelector("input").addEventListener("input", fill);
  find?.querySelector("button").addEventListener("click", () => {
    most += step;
    fill();
  });
  fill();
}
