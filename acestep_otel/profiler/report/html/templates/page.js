"use strict";

// The table of all spans already holds every word that a card shows, so a card is made from its row.
function fill(card, row) {
  const headings = row.closest("table").tHead.rows[0].cells;
  const list = document.createElement("dl");
  for (const [index, cell] of [...row.cells].entries()) {
    const term = document.createElement("dt");
    term.textContent = headings[index].textContent;
    const description = document.createElement("dd");
    description.append(...[...cell.childNodes].map((node) => node.cloneNode(true)));
    list.append(term, description);
  }
  card.replaceChildren(list);
}

function place(card, x, y) {
  const margin = 14;
  const right = x + margin + card.offsetWidth > innerWidth ? x - margin - card.offsetWidth : x + margin;
  const below = y + margin + card.offsetHeight > innerHeight ? innerHeight - margin - card.offsetHeight : y + margin;
  card.style.left = `${Math.max(0, right)}px`;
  card.style.top = `${Math.max(0, below)}px`;
}

for (const chart of document.querySelectorAll(".waterfall")) {
  const card = chart.closest("figure").querySelector(".span-card");
  const bars = [...chart.querySelectorAll("[data-span]")];
  const show = (bar, x, y) => {
    // The browser's own tooltip would cover the card.
    bar.querySelector("title")?.remove();
    fill(card, document.getElementById(bar.dataset.span));
    card.hidden = false;
    place(card, x, y);
  };
  const hide = () => { card.hidden = true; };

  for (const [index, bar] of bars.entries()) {
    // One tab stop for the whole chart; arrows move within it.
    bar.setAttribute("tabindex", index === 0 ? "0" : "-1");
    bar.addEventListener("pointermove", (event) => show(bar, event.clientX, event.clientY));
    bar.addEventListener("pointerleave", hide);
    bar.addEventListener("blur", hide);
    bar.addEventListener("focus", () => {
      const box = bar.getBoundingClientRect();
      show(bar, box.left, box.bottom);
    });
    bar.addEventListener("keydown", (event) => {
      const steps = { ArrowDown: 1, ArrowRight: 1, ArrowUp: -1, ArrowLeft: -1 };
      const destination = { Home: 0, End: bars.length - 1 }[event.key] ?? index + (steps[event.key] ?? 0);
      if (event.key === "Escape") hide();
      if (destination === index || !bars[destination]) return;
      event.preventDefault();
      bar.setAttribute("tabindex", "-1");
      bars[destination].setAttribute("tabindex", "0");
      bars[destination].focus();
    });
  }
}

// What is wider than the window fades towards the edge that it goes on beyond.
for (const box of document.querySelectorAll(".scroll")) {
  const mark = () => {
    box.classList.toggle("more-left", box.scrollLeft > 1);
    box.classList.toggle("more-right", box.scrollLeft + box.clientWidth < box.scrollWidth - 1);
  };
  box.addEventListener("scroll", mark, { passive: true });
  new ResizeObserver(mark).observe(box);
  mark();
}

// Paper has no buttons: figures that are folded away are printed, and folded again afterwards.
const unfolded = [];
addEventListener("beforeprint", () => {
  for (const details of document.querySelectorAll("details:not([open]):not(.every-span)")) {
    details.open = true;
    unfolded.push(details);
  }
});
addEventListener("afterprint", () => {
  for (const details of unfolded.splice(0)) details.open = false;
});
